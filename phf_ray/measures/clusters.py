"""Means of samples that come in clusters, such as the answers to one prompt: a cluster is one draw.

Everything is computed from the sum and the number of values of each cluster, so that samples of several rounds are
pooled by adding. Intervals are Student's, with one degree of freedom less than there are clusters.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from phf_ray.measures.intervals import Interval
from phf_ray.measures.numbers import Floats

ClusterSums = Mapping[str, tuple[float, int]]
"""Cluster -> sum and number of its values."""


@dataclass(frozen=True, slots=True)
class ClusteredMean:
    mean: float
    standard_error: float | None
    """None with fewer than 2 clusters, which say nothing of the spread."""
    interval: Interval | None
    num: int
    num_clusters: int


@dataclass(frozen=True, slots=True)
class ClusteredDifference:
    """Mean of the first minus mean of the second."""

    mean: float
    standard_error: float | None
    num_clusters: int

    def low(self, one_sided: float) -> float | None:
        """Return the lower bound that the difference exceeds but for a probability of `one_sided`."""
        if self.standard_error is None:
            return None
        return self.mean - student_quantile(1 - one_sided, self.num_clusters - 1) * self.standard_error


def cluster_sums(clusters: Sequence[str], values: Sequence[float | None]) -> dict[str, tuple[float, int]]:
    """Return sum and number for each cluster, in the order of their first value. None is no value."""
    found: dict[str, list[float]] = {}
    for cluster, value in zip(clusters, values, strict=True):
        if value is not None:
            found.setdefault(cluster, []).append(value)
    return {cluster: (math.fsum(mine), len(mine)) for cluster, mine in found.items()}


def pooled(parts: Iterable[ClusterSums]) -> dict[str, tuple[float, int]]:
    """Return the sums of all parts together; values of one cluster may be in several parts."""
    sums: dict[str, list[float]] = {}
    numbers: dict[str, int] = {}
    for part in parts:
        for cluster, (total, number) in part.items():
            sums.setdefault(cluster, []).append(total)
            numbers[cluster] = numbers.get(cluster, 0) + number
    return {cluster: (math.fsum(totals), numbers[cluster]) for cluster, totals in sums.items()}


def clustered_mean(sums: ClusterSums, *, level: float = 0.95) -> ClusteredMean | None:
    """Return the mean of all values and its interval. None without values."""
    if not sums:
        return None
    totals_G, counts_G = _arrays(sums)
    mean = _mean(sums)
    error = clustered_error(totals_G, counts_G)
    interval = None
    if error is not None:
        half = student_quantile((1 + level) / 2, len(sums) - 1) * error
        interval = Interval(mean - half, mean + half)
    return ClusteredMean(mean, error, interval, int(counts_G.sum()), len(sums))


def clustered_difference(first: ClusterSums, second: ClusterSums) -> ClusteredDifference | None:
    """Compare two means. A cluster in both, such as a prompt that was asked twice, is paired with itself.

    None if a side has no values.
    """
    if not first or not second:
        return None
    ours, theirs = _moves(first), _moves(second)
    moves = {cluster: ours.get(cluster, 0.0) - theirs.get(cluster, 0.0) for cluster in dict.fromkeys((*ours, *theirs))}
    error = None
    if min(len(first), len(second)) >= 2:
        num = len(moves)
        error = math.sqrt(num / (num - 1) * math.fsum(move**2 for move in moves.values()))
    return ClusteredDifference(_mean(first) - _mean(second), error, len(moves))


def clustered_error(totals_G: Floats, counts_G: Floats) -> float | None:
    """Return sqrt(G / (G - 1) sum_g (sum_i (x_gi - mean))^2) / n. None with fewer than 2 clusters."""
    if len(totals_G) < 2:
        return None
    moves_G = totals_G - counts_G * (math.fsum(totals_G) / counts_G.sum())
    return float(np.sqrt(len(moves_G) / (len(moves_G) - 1) * np.square(moves_G).sum()) / counts_G.sum())


def student_quantile(probability: float, degrees: float) -> float:
    return float(stdtrit(degrees, probability))


def _arrays(sums: ClusterSums) -> tuple[Floats, Floats]:
    both = np.array([*sums.values()], dtype=np.float64)
    return both[:, 0], both[:, 1]


def _mean(sums: ClusterSums) -> float:
    return math.fsum(total for total, _ in sums.values()) / sum(number for _, number in sums.values())


def _moves(sums: ClusterSums) -> dict[str, float]:
    """Return how far each cluster moves the mean."""
    mean, num = _mean(sums), sum(number for _, number in sums.values())
    return {cluster: (total - number * mean) / num for cluster, (total, number) in sums.items()}
