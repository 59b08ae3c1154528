"""How well two sets of numbers agree: rank correlation and area under the ROC curve."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def ranks(values_N: Floats) -> Floats:
    """From 1; equal values share the mean of their ranks."""
    _, index_N, counts = np.unique(values_N, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[index_N]


def spearman(first_N: Floats, second_N: Floats) -> float | None:
    a_N, b_N = (ranks(values_N) - (len(values_N) + 1) / 2 for values_N in (first_N, second_N))
    scale = np.sqrt((a_N @ a_N) * (b_N @ b_N))
    return float(a_N @ b_N / scale) if scale else None


def auc(scores_N: Floats, is_positive_N: NDArray[np.bool_] | Sequence[bool]) -> float | None:
    """Area under the ROC curve; ties count half."""
    positive_N = np.asarray(is_positive_N, dtype=bool)
    num_positive = int(positive_N.sum())
    pairs = num_positive * (len(positive_N) - num_positive)
    if not pairs:
        return None
    return float((ranks(scores_N)[positive_N].sum() - num_positive * (num_positive + 1) / 2) / pairs)
