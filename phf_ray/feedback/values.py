"""Numbers and columns as records of feedback hold them."""

import json
import math
from collections.abc import Mapping
from typing import Any


def finite_number(value: Any) -> float | None:
    """Return a finite number; None for every other value, such as an integer that no float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def unfolded(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record with the columns that a feedback corpus keeps in `meta`; its own columns come first.

    A set that was made of another set has that one's `meta` in its own. If both say a `source` and `record`, those of
    the innermost, where the row began, are `source_column` and `record_column`. A `meta` that is no JSON object stays.
    """
    whole = dict(record)
    while (inner := _object(whole.get("meta"))) is not None:
        del whole["meta"]
        both = [name for name in ("source", "record") if name in whole and name in inner]
        began = {f"{name}_column": inner.get(f"{name}_column", inner[name]) for name in both}
        whole = {**inner, **whole, **began}
    return whole


def _object(meta: Any) -> dict[str, Any] | None:
    if isinstance(meta, str):
        try:
            meta = json.loads(meta)
        except (ValueError, RecursionError):
            return None
    return meta if isinstance(meta, dict) else None
