"""What can be told of a base model and a difference before weights are read or fetched. Imports no torch."""

import json
from pathlib import Path
from typing import Any

from phf_ray.errors import DataError
from phf_ray.model_folder import check_weight_files, refuse_quantised

CHECKSUM_FILE = "model_sum.txt"

_OLDEST_CONVERTER = (4, 29, 2)


def read_weight_sum(folder: Path) -> float:
    """Return the sum of the trained model's weights. Raises DataError if the difference comes without it."""
    path = folder / CHECKSUM_FILE
    try:
        return float(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"{folder} has no {CHECKSUM_FILE}, so nothing could tell the right base model from a wrong one; fetch the "
            "whole folder"
        ) from None
    except ValueError:
        raise DataError(f"{path} does not hold a number; fetch it again") from None


def check_base(base: Path) -> None:
    """Raise DataError if the folder is no model, or one whose weights can't be added to."""
    refuse_quantised(read_config(base), base)
    check_weight_files(base)


def doubt_about(base: Path) -> str | None:
    """Return a warning if the base was converted by too old a version of transformers, which a sum can't tell."""
    version = str(read_config(base).get("transformers_version", ""))
    numbers = tuple(int(part) for part in version.split(".")[:3] if part.isdigit())
    if not numbers or numbers >= _OLDEST_CONVERTER:
        return None
    wanted = ".".join(map(str, _OLDEST_CONVERTER))
    return (
        f"{base} was converted by transformers {version}; before {wanted}, conversions could have rows in another "
        "order, which the sum of the weights can't tell; if the recovered models write gibberish, convert LLaMA again"
    )


def read_config(folder: Path) -> dict[str, Any]:
    """Return config.json. Raises DataError if there is none."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{folder} has no config.json; give the folder of a model") from None
    except ValueError:
        config = None
    if not isinstance(config, dict):
        raise DataError(f"{path} is no configuration of a model; fetch it again")
    return config
