"""How far judgements agree with labels of people, with intervals that resample prompts."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from phf_ray.errors import DataError
from phf_ray.measures import Interval, cohen_kappa
from phf_ray.measures.numbers import Floats
from phf_ray.measures.preferences import DRAW, Preferences, parse_preferences

_RESAMPLES = 2000
_LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class LabelAgreement:
    """Agreement of a judge with labels. None where it can't be computed."""

    accuracy: float | None
    """Share of the pairs with a better answer on which the judge says the same; a tie of the judge counts half."""
    accuracy_interval: Interval | None
    kappa: float | None
    """Cohen's, over the verdicts first, tie and second: what agreement is left beyond chance."""
    kappa_interval: Interval | None
    num_judged: int
    num_ties: int
    """Ties of the judge. A label that is a tie itself is not counted: it names no better answer."""
    num_failed: int
    """Pairs with a label that the judge did not judge; they are in no other figure."""


def agreement_with_labels(
    preferences: Preferences, labels: Preferences, *, clusters: Sequence[Hashable] | None = None, seed: int = 0
) -> LabelAgreement:
    """Compare a judge's preferences with labels for the same pairs, each (N,): 1 the first answer is better, 2 the
    second.

    clusters: (N,), such as the pairs' prompts, which the 95% intervals resample; None: every pair is one.
    """
    judge_N, label_N = parse_preferences(preferences), parse_preferences(labels)
    if len(judge_N) != len(label_N) or (clusters is not None and len(clusters) != len(label_N)):
        raise DataError(
            f"{len(judge_N)} preferences and {len(label_N)} labels; give one of each, and a cluster, per pair"
        )
    names = list(range(len(label_N))) if clusters is None else list(clusters)
    has_label_N = ~np.isnan(label_N) & (label_N != DRAW)
    counts_N = has_label_N & ~np.isnan(judge_N)
    judge_M, label_M = _verdict(judge_N[counts_N]), _verdict(label_N[counts_N])
    numbers: dict[Hashable, int] = {}
    cluster_M = np.array(
        [numbers.setdefault(name, len(numbers)) for name, counts in zip(names, counts_N, strict=True) if counts],
        dtype=np.int64,
    )
    # table_GKK[g, i, j]: pairs of cluster g of which the judge says i and the label j.
    table_GKK = np.zeros((len(numbers), 3, 3))
    np.add.at(table_GKK, (cluster_M, judge_M, label_M), 1)
    whole_KK = table_GKK.sum(axis=0)
    accuracies, kappas = _resampled(table_GKK, seed=seed)
    return LabelAgreement(
        accuracy=_accuracy(whole_KK),
        accuracy_interval=_interval(accuracies),
        kappa=cohen_kappa(whole_KK),
        kappa_interval=_interval(kappas),
        num_judged=int(counts_N.sum()),
        num_ties=int(whole_KK[1].sum()),
        num_failed=int((has_label_N & np.isnan(judge_N)).sum()),
    )


def _verdict(preference_M: Floats) -> Any:
    """0 first, 1 a tie, 2 second."""
    return (np.sign(preference_M - DRAW) + 1).astype(np.int64)


def _accuracy(table_KK: Floats) -> float | None:
    total = float(table_KK.sum())
    return float(np.trace(table_KK) + table_KK[1].sum() / 2) / total if total else None


def _resampled(table_GKK: Floats, *, seed: int) -> tuple[list[float], list[float]]:
    """Accuracy and kappa of tables whose clusters are drawn with replacement; both empty for fewer than 2 clusters."""
    num_clusters = len(table_GKK)
    if num_clusters < 2:
        return [], []
    rng = np.random.default_rng(seed)
    flat_GC = table_GKK.reshape(num_clusters, -1)
    drawn = [
        np.bincount(rng.integers(num_clusters, size=num_clusters), minlength=num_clusters) for _ in range(_RESAMPLES)
    ]
    tables = [(times_G @ flat_GC).reshape(3, 3) for times_G in drawn]
    accuracies = [value for table_KK in tables if (value := _accuracy(table_KK)) is not None]
    return accuracies, [value for table_KK in tables if (value := cohen_kappa(table_KK)) is not None]


def _interval(values: Sequence[float]) -> Interval | None:
    if not values:
        return None
    low, high = np.quantile(values, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return Interval(float(low), float(high))
