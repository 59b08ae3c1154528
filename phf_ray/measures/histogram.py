"""A histogram of scores that merges exactly."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from phf_ray.errors import ConfigError, DataError


@dataclass(slots=True)
class Histogram:
    """Distribution of a score. Bin edges grow by 1%, for negative and positive scores; zero has its own bin.

    Histograms merge exactly: the histograms of all parts add up to the histogram of the corpus.
    """

    RATIO = 1.01
    """Upper edge of a bin / its lower edge. So a quantile is at most 1% above the true quantile, never below it."""

    zero: int = 0
    positive: dict[int, tuple[int, float]] = field(default_factory=dict)
    """i -> count and sum of the scores in (RATIO**(i - 1), RATIO**i]."""
    negative: dict[int, tuple[int, float]] = field(default_factory=dict)
    """i -> count and sum of the scores whose magnitude is in [RATIO**i, RATIO**(i + 1))."""
    squares: float = 0.0
    min: float | None = None
    max: float | None = None

    def add(self, scores: NDArray[np.float64]) -> None:
        """Add scores, shape (N,). Every score must be finite."""
        if not scores.size:
            return
        self.zero += int((scores == 0).sum())
        _add_bins(self.positive, scores[scores > 0], np.ceil)
        _add_bins(self.negative, scores[scores < 0], np.floor)
        self.squares += float(np.square(scores).sum())
        low, high = float(scores.min()), float(scores.max())
        self.min = low if self.min is None else min(self.min, low)
        self.max = high if self.max is None else max(self.max, high)

    def merge(self, other: "Histogram") -> None:
        self.zero += other.zero
        for mine, theirs in ((self.positive, other.positive), (self.negative, other.negative)):
            for index, (count, total) in theirs.items():
                old_count, old_total = mine.get(index, (0, 0.0))
                mine[index] = (old_count + count, old_total + total)
        self.squares += other.squares
        if other.min is not None and other.max is not None:
            self.min = other.min if self.min is None else min(self.min, other.min)
            self.max = other.max if self.max is None else max(self.max, other.max)

    @property
    def count(self) -> int:
        return sum(count for _, count, _ in self._ascending())

    @property
    def mean(self) -> float | None:
        """Mean of the scores, exact up to the order of summation."""
        count = self.count
        return math.fsum(total for _, _, total in self._ascending()) / count if count else None

    @property
    def std(self) -> float | None:
        mean = self.mean
        return None if mean is None else math.sqrt(max(0.0, self.squares / self.count - mean * mean))

    def quantile(self, fraction: float) -> float:
        """Return the least bin edge that at least this fraction of the scores does not exceed.

        Raises DataError if there are no scores.
        """
        if not 0 <= fraction <= 1:
            raise ConfigError(f"quantile {fraction} is not between 0 and 1")
        count = self.count
        if self.min is None or self.max is None:
            raise DataError("the corpus has no scores, so it has no quantiles; see the failures in its manifest.json")
        if fraction == 0:
            return self.min
        seen = 0
        for edge, bin_count, _ in self._ascending():
            seen += bin_count
            if seen >= fraction * count:
                return min(max(edge, self.min), self.max)
        return self.max

    def split(self, threshold: float) -> tuple["Side", "Side"]:
        """Split scores into those up to the threshold and those above. Exact if it is a quantile of this histogram."""
        below, above = Side(), Side()
        for edge, count, total in self._ascending():
            # The last bin's edge can be above a quantile, because quantiles are clipped to the largest score.
            inside = edge <= threshold or (self.max is not None and self.max <= threshold)
            side = below if inside else above
            side.count += count
            side.total += total
        return below, above

    def _ascending(self) -> Iterator[tuple[float, int, float]]:
        """Yield upper edge, count and sum of each bin, in ascending order."""
        for index in sorted(self.negative, reverse=True):
            yield (-(self.RATIO**index), *self.negative[index])
        if self.zero:
            yield 0.0, self.zero, 0.0
        for index in sorted(self.positive):
            yield (self.RATIO**index, *self.positive[index])

    def to_json(self) -> dict[str, Any]:
        return {
            "zero": self.zero,
            "positive": [[index, *self.positive[index]] for index in sorted(self.positive)],
            "negative": [[index, *self.negative[index]] for index in sorted(self.negative)],
            "squares": self.squares,
            "min": self.min,
            "max": self.max,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        return cls(
            zero=values["zero"],
            positive={index: (count, total) for index, count, total in values["positive"]},
            negative={index: (count, total) for index, count, total in values["negative"]},
            squares=values["squares"],
            min=values["min"],
            max=values["max"],
        )


@dataclass(slots=True)
class Side:
    """Scores on one side of a threshold."""

    count: int = 0
    total: float = 0.0

    @property
    def mean(self) -> float | None:
        return self.total / self.count if self.count else None


def _add_bins(bins: dict[int, tuple[int, float]], scores: NDArray[np.float64], rounded: np.ufunc) -> None:
    if not scores.size:
        return
    indices = rounded(np.log(np.abs(scores)) / math.log(Histogram.RATIO)).astype(np.int64)
    values, inverse, counts = np.unique(indices, return_inverse=True, return_counts=True)
    totals = np.bincount(inverse, weights=scores)
    for index, count, total in zip(values.tolist(), counts.tolist(), totals.tolist(), strict=True):
        old_count, old_total = bins.get(index, (0, 0.0))
        bins[index] = (old_count + count, old_total + total)
