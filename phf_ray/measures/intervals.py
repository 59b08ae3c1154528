"""Percentile bootstrap intervals of means, differences and maxima, from groups that were drawn independently."""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from phf_ray.measures.maxima import order_statistic_weights
from phf_ray.measures.numbers import Floats


@dataclass(frozen=True, slots=True)
class Interval:
    """Percentile bootstrap interval [low, high]."""

    low: float
    high: float


_RESAMPLED_AT_ONCE = 1 << 22
"""Numbers that the bootstrap holds in memory at once: 32 MiB of indices."""


def _resampled_means(groups: Sequence[Sequence[float]], draws: Callable[[int], NDArray[np.int64]], num: int) -> Floats:
    sums = np.array([math.fsum(group) for group in groups])
    counts = np.array([len(group) for group in groups], dtype=np.float64)
    rows = max(1, _RESAMPLED_AT_ONCE // len(groups))
    means = [
        sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
        for drawn in (draws(min(rows, num - start)) for start in range(0, num, rows))
    ]
    return np.concatenate(means)


def _interval(values: Floats, level: float) -> Interval:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def bootstrap_mean(
    groups: Sequence[Sequence[float]], *, seed: int = 0, num_resamples: int = 2000, level: float = 0.95
) -> Interval | None:
    """Return the interval of the mean over all values, resampling groups with replacement.

    Groups are drawn independently: a group is a single sample, or all samples of one prompt. None if there are fewer
    than 2 groups, because they say nothing about the spread.
    """
    groups = [group for group in groups if len(group)]
    if len(groups) < 2:
        return None
    rng = np.random.default_rng(seed)
    num_groups = len(groups)
    return _interval(
        _resampled_means(groups, lambda rows: rng.integers(num_groups, size=(rows, num_groups)), num_resamples), level
    )


def bootstrap_difference(
    first: Mapping[Hashable, Sequence[float]],
    second: Mapping[Hashable, Sequence[float]],
    *,
    paired: bool,
    seed: int = 0,
    num_resamples: int = 2000,
    level: float = 0.95,
) -> tuple[float, Interval] | None:
    """Return mean of `first` minus mean of `second`, and its interval. Both map a group's key to its values.

    If `paired`, only groups (prompts) on both sides count, and both sides draw the same ones. Otherwise each side draws
    its own groups. None if a side has fewer than 2 groups.
    """
    if paired:
        keys: list[Hashable] = [key for key in first if first[key] and second.get(key)]
        first, second = {key: first[key] for key in keys}, {key: second[key] for key in keys}
    sides = [[values for values in side.values() if values] for side in (first, second)]
    if min(len(side) for side in sides) < 2:
        return None
    means = []
    for offset, side in enumerate(sides):
        rng = np.random.default_rng(seed if paired else [seed, offset])
        num_groups = len(side)

        def draw(rows: int, rng: np.random.Generator = rng, num_groups: int = num_groups) -> NDArray[np.int64]:
            return rng.integers(num_groups, size=(rows, num_groups))

        means.append(_resampled_means(side, draw, num_resamples))
    difference = mean(_flat(sides[0])) - mean(_flat(sides[1]))
    return difference, _interval(means[0] - means[1], level)


def bootstrap_share(
    reached: Sequence[float],
    *,
    start: Sequence[float],
    goal: Sequence[float],
    seed: int = 0,
    num_resamples: int = 2000,
    level: float = 0.95,
) -> tuple[float, Interval] | None:
    """Return how much of the way from the mean of `start` to that of `goal` the mean of `reached` has come, and its
    interval: 0 is start, 1 is goal.

    The three are drawn independently. None if one has fewer than 2 values, or if the interval of the way itself holds
    0: a part of nothing is no number.
    """
    sides = (reached, start, goal)
    if min(map(len, sides)) < 2:
        return None
    means_3N = []
    for offset, side in enumerate(sides):
        rng, size = np.random.default_rng([seed, offset]), len(side)

        def draw(rows: int, rng: np.random.Generator = rng, size: int = size) -> NDArray[np.int64]:
            return rng.integers(size, size=(rows, size))

        means_3N.append(_resampled_means([[value] for value in side], draw, num_resamples))
    reached_N, start_N, goal_N = means_3N
    way = _interval(goal_N - start_N, level)
    if way.low <= 0 <= way.high:
        return None
    share = (mean(reached) - mean(start)) / (mean(goal) - mean(start))
    return share, _interval((reached_N - start_N) / (goal_N - start_N), level)


def share_bound(num: int, *, level: float = 0.95) -> float:
    """Return the upper confidence bound of a share of which `num` independent draws showed none.

    1 - (1 - level)^(1/num) is exact (Clopper and Pearson 1934, one-sided). At 95% it is about 3/num, the rule of three.
    """
    return 1 - (1 - level) ** (1 / num)


def bootstrap_max_at_k(
    scores: Sequence[float], ks: Sequence[int], *, seed: int = 0, num_resamples: int = 500, level: float = 0.95
) -> list[Interval]:
    """Return the interval of `max_at_k(scores, k)` for each k, all from the same resamples."""
    values = np.asarray(scores, dtype=np.float64)
    rng = np.random.default_rng(seed)
    weights = np.stack([order_statistic_weights(len(values), k) for k in ks], axis=1)
    rows = max(1, _RESAMPLED_AT_ONCE // len(values))
    maxima = np.concatenate(
        [
            np.sort(values[rng.integers(len(values), size=(min(rows, num_resamples - start), len(values)))], axis=1)
            @ weights
            for start in range(0, num_resamples, rows)
        ]
    )
    return [_interval(maxima[:, column], level) for column in range(len(ks))]


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _flat(groups: Sequence[Sequence[float]]) -> list[float]:
    return [value for group in groups for value in group]
