"""The tasks that we give lm-eval, loaded as it does."""

import importlib.util

from places import ROOT

FOLDER = ROOT / "configs" / "lm_eval"


def load_tasks():
    """By its path, as lm-eval does."""
    spec = importlib.util.spec_from_file_location("lm_eval_tasks", FOLDER / "tasks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
