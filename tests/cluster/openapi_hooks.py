"""For schemathesis, which makes up names: those of what is served, so that its requests reach models and scorers."""

import os
from typing import Any

import schemathesis

NAMES = {"model": os.environ["PHF_FUZZ_MODEL"], "scorer": os.environ["PHF_FUZZ_SCORER"], "language": "en"}


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    if isinstance(body, dict):
        return {key: NAMES[key] if key in NAMES and isinstance(value, str) else value for key, value in body.items()}
    return body


@schemathesis.hook
def map_path_parameters(context: Any, path_parameters: Any) -> Any:
    return {**path_parameters, "model_id": NAMES["model"]} if "model_id" in (path_parameters or {}) else path_parameters
