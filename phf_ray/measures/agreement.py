"""Measures how well two sets of numbers agree: rank correlation and area under the ROC curve.

scipy.stats and sklearn are loaded when they are used: every training worker loads this file, and they take seconds.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from phf_ray.measures.numbers import Floats


def spearman(first_N: Floats, second_N: Floats) -> float | None:
    """Return the rank correlation; equal values share the mean of their ranks. None if either side is constant."""
    from scipy.stats import spearmanr

    if min(len(np.unique(first_N)), len(np.unique(second_N))) < 2:
        return None
    return float(spearmanr(first_N, second_N).statistic)


def auc(scores_N: Floats, is_positive_N: NDArray[np.bool_] | Sequence[bool]) -> float | None:
    """Return the area under the ROC curve; ties count half. None if all items are positive or all negative."""
    from sklearn.metrics import roc_auc_score

    if len(np.unique(is_positive_N)) < 2:
        return None
    return float(roc_auc_score(is_positive_N, scores_N))
