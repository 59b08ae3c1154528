"""phf-ray's tasks for lm-eval, loaded as lm-eval loads them."""

import importlib.util

from places import ROOT

FOLDER = ROOT / "configs" / "lm_eval"


def load_tasks():
    """Load the tasks by their path, as lm-eval does."""
    spec = importlib.util.spec_from_file_location("lm_eval_tasks", FOLDER / "tasks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
