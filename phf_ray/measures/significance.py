"""Whether differences between means are more than chance, where many are tested at once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from phf_ray.errors import ConfigError, DataError
from phf_ray.measures.intervals import Interval
from phf_ray.measures.numbers import Floats


@dataclass(frozen=True, slots=True)
class PairedDifference:
    mean: float | None
    """First minus second. None without pairs."""
    interval: Interval | None
    """Student's. None if it is not defined: fewer than 2 pairs, or all differ by the same."""
    p_value: float | None
    """Two-sided t-test against no difference. 1 if no pair differs; None if all differ by the same other than 0."""
    n_pairs: int


def paired_difference(first_N: Floats, second_N: Floats, *, level: float = 0.95) -> PairedDifference:
    """Compare two means over the same items, such as the win rates of two models on the same prompts. Both are (N,)."""
    if first_N.shape != second_N.shape or first_N.ndim != 1:
        raise DataError(f"values of shapes {first_N.shape} and {second_N.shape}; give two for each item")
    if not 0 < level < 1:
        raise ConfigError(f"level {level} is not between 0 and 1; 0.95 is usual")
    difference_N = first_N - second_N
    number = len(difference_N)
    if not number:
        return PairedDifference(None, None, None, 0)
    mean = float(difference_N.mean())
    if not difference_N.any():
        return PairedDifference(0.0, None, 1.0, number)
    if number < 2 or np.ptp(difference_N) == 0:
        return PairedDifference(mean, None, None, number)
    error = float(difference_N.std(ddof=1)) / number**0.5
    half = float(student.ppf((1 + level) / 2, number - 1)) * error
    p_value = float(2 * student.sf(abs(mean) / error, number - 1))
    return PairedDifference(mean, Interval(mean - half, mean + half), p_value, number)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p-values corrected for testing all of them (Holm 1979), in the same order.

    Those below 0.05 hold together: with probability 0.95 none of them is false, however the tests depend on each other.
    None is no test, and counts for none.
    """
    order = sorted((p_value, index) for index, p_value in enumerate(p_values) if p_value is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p_value, index) in enumerate(order):
        if not 0 <= p_value <= 1:
            raise DataError(f"p-value {p_value} is not between 0 and 1")
        largest = max(largest, min(1.0, (len(order) - rank) * p_value))
        corrected[index] = largest
    return corrected
