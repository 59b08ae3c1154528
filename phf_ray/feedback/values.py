"""Numbers and columns as records of feedback hold them."""

import math
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


def column_in_meta(meta: Any, name: str) -> Any:
    """Return what a row's `meta` keeps of a column of its source; None if it keeps none.

    A set that was made of another set keeps that one's `meta` as its own column `meta`.
    """
    while isinstance(meta, dict):
        if meta.get(name) is not None:
            return meta[name]
        meta = meta.get("meta")
    return None
