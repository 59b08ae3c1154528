"""Reads the small JSON files of runs and results."""

import json
from pathlib import Path
from typing import Any

from phf_ray.errors import DataError


def stored_json(path: Path) -> dict[str, Any]:
    """Return the object in a file; empty if there is no file. Raises DataError if it holds something else."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} can't be read: {error}; put the file back, or make it anew") from None
    if not isinstance(found, dict):
        raise DataError(f"{path} holds {type(found).__name__}, not an object; put the file back, or make it anew")
    return found
