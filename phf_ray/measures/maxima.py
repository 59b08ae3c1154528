"""Computes the expected maximum of k samples exactly.

A maximum that can't be computed (of 25 samples if only 10 were drawn) is None, never 0 or NaN.
"""

import math
from collections.abc import Sequence

import numpy as np

from phf_ray.config import Compat
from phf_ray.errors import DataError
from phf_ray.measures.numbers import Floats


def order_statistic_weights(num_samples: int, k: int) -> Floats:
    """Return each ascending sample's weight in the expected maximum of k samples: shape (num_samples,), sum 1.

    The weight of the i-th smallest (from 1) is C(i - 1, k - 1) / C(n, k), and 0 for i < k. The computation starts with
    the largest, whose weight is k / n, and goes down, so that no binomial coefficient overflows.
    """
    if not 1 <= k <= num_samples:
        raise DataError(f"the maximum of {k} out of {num_samples} samples is not defined; draw at least {k} samples")
    i = np.arange(num_samples, k, -1, dtype=np.float64)
    downward = k / num_samples * np.cumprod(np.concatenate([[1.0], (i - k) / (i - 1)]))
    weights = np.zeros(num_samples)
    weights[k - 1 :] = downward[::-1]
    return weights


def max_at_k(scores: Sequence[float] | Floats, k: int, *, compat: Compat = None) -> float | None:
    """Return the exact expected maximum of k samples drawn from `scores` without replacement; None for fewer than k.

    For 0/1 scores, it is the probability that at least one of k samples is a hit.
    """
    values = np.asarray(scores, dtype=np.float64)
    if not 1 <= k <= len(values):
        return None
    if compat == "korbak2023":
        # DIFFERS: phf-ray computes the exact order statistic; the original takes the mean over strided chunks of k and
        # drops the remainder (D-4).
        whole = len(values) // k * k
        return float(values[:whole].reshape(k, -1).max(axis=0).mean())
    return float(np.sort(values) @ order_statistic_weights(len(values), k))


def grouped_max_at_k(groups: Sequence[Sequence[float]], k: int, *, compat: Compat = None) -> float | None:
    """Return the mean over groups (prompts) of the expected maximum of k samples from the group.

    Groups with fewer than k scores do not count. None if no group has k scores.
    """
    if compat == "korbak2023":
        return max_at_k([score for group in groups for score in group], k, compat=compat)
    known = [value for value in (max_at_k(group, k) for group in groups) if value is not None]
    return math.fsum(known) / len(known) if known else None
