"""How far judges agree: with each other beyond chance, and with themselves when the answers change places."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest

from phf_ray.errors import DataError
from phf_ray.measures.numbers import Floats
from phf_ray.measures.preferences import DRAW, Preferences, parse_preferences


def cohen_kappa(table_KK: ArrayLike) -> float | None:
    """Return the agreement of two judges beyond chance (Cohen 1960): 1 is perfect, 0 chance.

    table_KK[i, j]: items that the first judge put in class i and the second in class j. None if the table is empty, or
    if both judges used one and the same class: then chance agrees always.
    """
    table_KK = np.asarray(table_KK, dtype=np.float64)
    if table_KK.ndim != 2 or table_KK.shape[0] != table_KK.shape[1]:
        raise DataError(f"a table of shape {table_KK.shape}; it must be square, with the same classes for both judges")
    is_wrong_KK = ~np.isfinite(table_KK) | (table_KK < 0)
    if is_wrong_KK.any():
        i, j = np.argwhere(is_wrong_KK)[0]
        raise DataError(f"table_KK[{i}, {j}] = {table_KK[i, j]:g} is not a count")
    total = table_KK.sum()
    if total == 0:
        return None
    observed = np.trace(table_KK) / total
    expected = table_KK.sum(axis=0) @ table_KK.sum(axis=1) / total**2
    return None if expected == 1 else float((observed - expected) / (1 - expected))


def corrected_rate(observed: float, *, sensitivity: float, specificity: float) -> float | None:
    """Return the true rate behind one that an imperfect judge observed (Rogan and Gladen 1978), cut to 0..1.

    sensitivity: share of the true wins that the judge calls wins; specificity: share of the true losses that it calls
    losses; both as measured on human labels. None if the judge does no better than chance: then it tells nothing.
    """
    for name, value in (("observed", observed), ("sensitivity", sensitivity), ("specificity", specificity)):
        if not 0 <= value <= 1:
            raise DataError(f"{name} {value:g} is no share; give a number from 0 to 1")
    informed = sensitivity + specificity - 1
    return min(1.0, max(0.0, (observed + specificity - 1) / informed)) if informed > 0 else None


def krippendorff_alpha(ratings_RI: ArrayLike) -> float | None:
    """Return the agreement of any number of raters beyond chance, for classes without an order (Krippendorff 2011).

    ratings_RI[r, i]: class, as a number, that rater r gave item i; NaN where there is none. Items with fewer than two
    ratings do not count. None if no item has two, or if all ratings that count are alike.
    """
    ratings_RI = np.asarray(ratings_RI, dtype=np.float64)
    if ratings_RI.ndim != 2:
        raise DataError(f"ratings of shape {ratings_RI.shape}; give a row for each rater and a column for each item")
    classes_K = np.unique(ratings_RI[~np.isnan(ratings_RI)])
    count_IK = (ratings_RI[:, :, None] == classes_K).sum(axis=0).astype(np.float64)
    count_IK = count_IK[count_IK.sum(axis=1) >= 2]
    per_item_I, per_class_K, total = count_IK.sum(axis=1), count_IK.sum(axis=0), count_IK.sum()
    if np.count_nonzero(per_class_K) < 2:
        return None
    # Pairs of ratings that differ, within items and among all; an item's pairs weigh 1 / (its ratings - 1).
    observed = ((per_item_I**2 - (count_IK**2).sum(axis=1)) / (per_item_I - 1)).sum() / total
    expected = (total**2 - (per_class_K**2).sum()) / (total * (total - 1))
    return float(1 - observed / expected)


@dataclass(frozen=True, slots=True)
class SwapConsistency:
    """What a judge does when the two answers change places. All None if no pair was judged in both orders."""

    consistency: float | None
    """Share of pairs with the same verdict (answer 1, answer 2 or a draw) in both orders."""
    debiased_win_rate: float | None
    """Win rate of answer 1 as a fraction, the mean of both orders; a draw is half a win."""
    position_bias: float | None
    """By how much shown first is preferred to shown second, over all pairs: -1 to 1, 0 is best."""
    p_value: float | None
    """McNemar's exact test, two-sided, on pairs whose verdict changed: small if the judge prefers a position."""


def swap_consistency(first_order: Preferences, second_order: Preferences) -> SwapConsistency:
    """Compare a judge's preferences for the same pairs in both orders, each (N,).

    Both are between the same two answers, as for `win_rate`: 1 means answer 1. In `first_order` the judge saw answer 1
    first; in `second_order` it saw answer 2 first, and its verdicts have been swapped back. Pairs that lack either one
    are left out.
    """
    first_N, second_N = parse_preferences(first_order), parse_preferences(second_order)
    if len(first_N) != len(second_N):
        raise DataError(f"{len(first_N)} preferences in the first order, {len(second_N)} in the second; give pairs")
    is_judged_N = ~np.isnan(first_N) & ~np.isnan(second_N)
    first_N, second_N = first_N[is_judged_N], second_N[is_judged_N]
    if not len(first_N):
        return SwapConsistency(None, None, None, None)
    # A preference of 1.2 and one of 1.4 are the same verdict.
    turn_N: Floats = np.sign(np.sign(second_N - DRAW) - np.sign(first_N - DRAW))
    num_to_first, num_to_second = int((turn_N > 0).sum()), int((turn_N < 0).sum())
    num_turned = num_to_first + num_to_second
    return SwapConsistency(
        consistency=1 - num_turned / len(first_N),
        debiased_win_rate=float(2 - (first_N + second_N).mean() / 2),
        position_bias=float((second_N - first_N).mean()),
        p_value=float(binomtest(num_to_first, num_turned).pvalue) if num_turned else 1.0,
    )
