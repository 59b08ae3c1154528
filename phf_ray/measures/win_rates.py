"""Win rate of a model against a baseline, with a standard error that counts the rows of one prompt as one draw."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from phf_ray.errors import ConfigError, DataError
from phf_ray.measures.clusters import clustered_error
from phf_ray.measures.intervals import Interval
from phf_ray.measures.numbers import Floats
from phf_ray.measures.preferences import DRAW, Preferences, parse_preferences


@dataclass(frozen=True, slots=True)
class WinRate:
    """Win rate of the model that wrote answer 2. The names are those of AlpacaFarm's and AlpacaEval's leaderboards."""

    win_rate: float | None
    """Percent; a draw is half a win. None if nothing was judged."""
    standard_error: float | None
    """Percentage points. None if fewer than 2 rows, or 2 clusters, were judged."""
    n_total: int
    """Rows that were judged."""
    n_wins: int
    n_wins_base: int
    n_draws: int

    def interval(self, level: float = 0.95) -> Interval | None:
        """Return Wilson's interval in percent, for as many independent rows as the standard error amounts to.

        Measured at level .95 over 20,000 draws: it covers 93.5 to 96% for 250 rows or more, rates of .1 to .9, and
        single rows or 50 clusters of 5, however alike the rows of a cluster are. Win rate +- 1.96 standard errors
        covers 93% at a rate of .1, 90% there in 50 clusters, and 80% for 100 rows at a rate of .97, where Wilson's
        covers 92% (in 5% there is none). Few clusters are too few for both: 20 of 25 rows cover 91% at a rate of .1, 10
        cover 86%.

        None without a standard error, and if it is 0: rows that all say the same tell nothing about the spread.
        """
        if not 0 < level < 1:
            raise ConfigError(f"level {level} is not between 0 and 1; 0.95 is usual")
        if self.win_rate is None or self.standard_error is None or self.standard_error == 0:
            return None
        rate, error = self.win_rate / 100, self.standard_error / 100
        z = NormalDist().inv_cdf((1 + level) / 2)
        # z^2 / n, for the n at which a share of wins has this standard error.
        spread = (z * error) ** 2 / (rate * (1 - rate))
        middle = (rate + spread / 2) / (1 + spread)
        half = math.sqrt(rate * (1 - rate) * spread + spread**2 / 4) / (1 + spread)
        return Interval(100 * (middle - half), 100 * (middle + half))


def win_rate(preferences: Preferences, clusters: Sequence[Hashable] | None = None) -> WinRate:
    """Return how often answer 2 was preferred to answer 1.

    preferences: (N,), 1 (answer 1 is better) to 2; 1.5, and AlpacaFarm's old 0, are draws; None and NaN are left out.
    clusters: (N,), for instance the rows' prompts: rows of one cluster are one draw of the standard error.
    """
    preferences_N = parse_preferences(preferences)
    if clusters is not None and len(clusters) != len(preferences_N):
        raise DataError(f"{len(clusters)} clusters for {len(preferences_N)} preferences; give one cluster per row")
    is_judged_N = ~np.isnan(preferences_N)
    judged_N = preferences_N[is_judged_N]
    if clusters is not None:
        clusters = [cluster for cluster, is_judged in zip(clusters, is_judged_N, strict=True) if is_judged]
    return WinRate(
        win_rate=100 * float((judged_N - 1).mean()) if len(judged_N) else None,
        standard_error=_standard_error(100 * (judged_N - 1), clusters),
        n_total=len(judged_N),
        n_wins=int((judged_N > DRAW).sum()),
        n_wins_base=int((judged_N < DRAW).sum()),
        n_draws=int((judged_N == DRAW).sum()),
    )


def _standard_error(values_N: Floats, clusters: Sequence[Hashable] | None) -> float | None:
    """Return the error in which a cluster is one draw; sd / sqrt(n) if every row is a cluster of its own."""
    if clusters is None:
        return clustered_error(values_N, np.ones_like(values_N))
    numbers: dict[Hashable, int] = {}
    cluster_N = np.array([numbers.setdefault(cluster, len(numbers)) for cluster in clusters], dtype=np.int64)
    totals_G = np.bincount(cluster_N, weights=values_N).astype(np.float64)
    return clustered_error(totals_G, np.bincount(cluster_N).astype(np.float64))
