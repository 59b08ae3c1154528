"""Checks of the arrays that functions on numbers take."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from phf_ray.errors import DataError
from phf_ray.measures.numbers import Floats


def floats(values: ArrayLike, name: str, *, shape: tuple[int, ...] | None = None, ndim: int | None = None) -> Floats:
    """Return values as float64. Raises DataError if they have another shape or number of dimensions than stated."""
    found = np.asarray(values, dtype=np.float64)
    if shape is not None and found.shape != shape:
        raise DataError(f"{name} has shape {found.shape}, the others {shape}; all must have the same")
    if ndim is not None and found.ndim != ndim:
        raise DataError(f"{name} has shape {found.shape}; it must have {ndim} dimensions")
    return found


def mask_of(values: Any, *, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return a mask as booleans. Raises DataError for another shape, or for a number other than 0 and 1."""
    found = floats(values, "mask", shape=shape)
    is_wrong = (found != 0) & (found != 1)
    if is_wrong.any():
        raise DataError(f"a mask with {found[is_wrong][0]:g} in it; write 1 for tokens that count and 0 for others")
    return found == 1


def require(is_fine: NDArray[np.bool_], values: Floats, what: str) -> None:
    """Raise DataError with the first value that is not fine; `what` says what it is and should be."""
    if not is_fine.all():
        place = tuple(int(i) for i in np.argwhere(~is_fine)[0])
        raise DataError(f"{values[place]:g} at {place}: {what}")
