"""Reads preferences between two answers: 1 means that answer 1 is better, 2 that answer 2 is, 1.5 a draw."""

from collections.abc import Sequence

import numpy as np

from phf_ray.errors import DataError
from phf_ray.measures.numbers import Floats

DRAW = 1.5

Preferences = Sequence[float | None] | Floats


def parse_preferences(preferences: Preferences) -> Floats:
    """Return preferences as numbers in 1..2, shape (N,); NaN where there was none. AlpacaFarm's old draw, 0, is 1.5.

    Raises DataError for any other number.
    """
    try:
        # None becomes NaN.
        preferences_N = np.array(preferences, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"preferences must be numbers, or None where nothing was judged: {error}") from None
    if preferences_N.ndim != 1:
        raise DataError(f"preferences of shape {preferences_N.shape}; give one number per row")
    preferences_N[preferences_N == 0] = DRAW
    is_wrong_N = (preferences_N < 1) | (preferences_N > 2)
    if is_wrong_N.any():
        row = int(np.argmax(is_wrong_N))
        raise DataError(
            f"preference {preferences_N[row]:g} in row {row} is not between 1 (answer 1 is better) and 2 (answer 2 is "
            "better); write 1.5 for a draw, and None or NaN for a row that was not judged"
        )
    return preferences_N
