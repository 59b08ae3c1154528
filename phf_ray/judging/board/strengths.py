"""Strengths: Bradley-Terry and Elo ratings of all models over any set of duels, and the matrix of who beats whom.

Intervals resample prompts: all duels of a prompt are one draw.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

from phf_ray.judging.board.duels import Duel
from phf_ray.measures import elo, fit_bradley_terry, win_rate
from phf_ray.measures.numbers import Floats

ELO_POINTS = 400 / math.log(10)
"""Elo points for each unit of log-strength."""
MIDDLE = 1000.0
"""Mean of the Bradley-Terry ratings, and where Elo begins."""
_MOST_UPDATES = 1_000_000
"""Elo goes battle by battle, at about a million per second, so many battles are resampled less often."""
_FEWEST_RESAMPLES = 100


def strengths_of(battles: Sequence[Duel], *, level: float, seed: int, num_resamples: int) -> dict[str, Any]:
    """Return `players` (a row for each model, the strongest first) and the reasons of what is not defined.

    battles: of `battles_of`. Ratings are on the Elo scale around 1000. Those of Elo are medians over resamples in
    random order.
    """
    judged = [one for one in battles if one.preference is not None]
    names = sorted({name for one in judged for name in (one.model, one.opponent)})
    table = _Battles(judged, names)
    fitted = fit_bradley_terry(table.wins(np.ones(len(judged)))) if names else None
    reason = "no duel between two models was judged" if fitted is None else _named(fitted.reason, names)
    rating_M = np.full(len(names), np.nan) if fitted is None else MIDDLE + ELO_POINTS * fitted.log_strengths_M
    resampled = None if reason else _resampled_bradley_terry(table, seed=seed, num=num_resamples)
    elo_reason = reason if fitted is None else table.apart()
    elo_RM = None if elo_reason else _resampled_elo(table, seed=seed, num=num_resamples)
    elo_M = None if elo_RM is None else np.nanmedian(elo_RM, axis=0)
    bounds = _bounds(resampled, num=num_resamples, level=level)
    elo_bounds = _bounds(elo_RM, num=0 if elo_RM is None else len(elo_RM), level=level)
    counts = Counter(name for one in judged for name in (one.model, one.opponent))
    players = [
        {
            "name": name,
            "bradley_terry": None if reason else float(rating_M[number]),
            "bradley_terry_interval": None if bounds is None else bounds[number],
            "elo": None if elo_M is None else float(elo_M[number]),
            "elo_interval": None if elo_bounds is None else elo_bounds[number],
            "n_battles": counts[name],
        }
        for number, name in enumerate(names)
    ]
    return {
        "players": sorted(players, key=_rank),
        "bradley_terry_reason": reason,
        "bradley_terry_interval_reason": reason or (_no_interval(resampled, num_resamples) if bounds is None else None),
        "elo_reason": elo_reason,
        "n_prompts": table.num_prompts,
    }


def _rank(player: Mapping[str, Any]) -> tuple[float, str]:
    known = [player[name] for name in ("bradley_terry", "elo") if player[name] is not None]
    return -known[0] if known else math.inf, player["name"]


class _Battles:
    """Judged duels as arrays: numbers of both models, of the prompt, and the share of the win that goes to model 2."""

    def __init__(self, judged: Sequence[Duel], names: Sequence[str]):
        self.names = names
        number = {name: index for index, name in enumerate(names)}
        prompts: dict[str, int] = {}
        self.first_N = np.array([number[one.opponent] for one in judged], dtype=np.int64)
        self.second_N = np.array([number[one.model] for one in judged], dtype=np.int64)
        self.prompt_N = np.array([prompts.setdefault(one.prompt, len(prompts)) for one in judged], dtype=np.int64)
        self.share_N = np.array([one.share for one in judged], dtype=np.float64)
        self.num_prompts = len(prompts)

    def wins(self, weight_N: Floats) -> Floats:
        """Return how often i beat j, shape (M, M); a draw is half a win to each."""
        size = len(self.names)
        wins_MM = np.zeros((size, size))
        np.add.at(wins_MM, (self.second_N, self.first_N), weight_N * self.share_N)
        np.add.at(wins_MM, (self.first_N, self.second_N), weight_N * (1 - self.share_N))
        return wins_MM

    def apart(self) -> str | None:
        """Return why ratings can't be compared, if models were never linked by battles."""
        size = len(self.names)
        met_MM = np.zeros((size, size))
        met_MM[self.first_N, self.second_N] = 1
        num_groups, group_M = connected_components(met_MM, connection="weak")
        if num_groups == 1:
            return None
        groups = [[name for name, one in zip(self.names, group_M, strict=True) if one == g] for g in (0, 1)]
        return (
            f"no battles link {_listed(groups[0])} with {_listed(groups[1])}, so nothing says how they compare; judge "
            "them against a common model"
        )


def _resampled_bradley_terry(table: _Battles, *, seed: int, num: int) -> Floats:
    """Return ratings of resamples, (R, M), without those for which they are not defined."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(num):
        weight_N = _drawn(table, rng).astype(np.float64)
        fitted = fit_bradley_terry(table.wins(weight_N))
        if fitted.reason is None:
            found.append(MIDDLE + ELO_POINTS * fitted.log_strengths_M)
    return np.array(found, dtype=np.float64).reshape(-1, len(table.names))


def _drawn(table: _Battles, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return how often each battle occurs if prompts are drawn with replacement."""
    drawn = rng.integers(table.num_prompts, size=table.num_prompts)
    return np.bincount(drawn, minlength=table.num_prompts)[table.prompt_N]


def _resampled_elo(table: _Battles, *, seed: int, num: int) -> Floats:
    """Return ratings of resamples, (R, M), each with an order of battles of its own, which Elo's ratings depend on."""
    rng = np.random.default_rng(seed)
    num = min(num, max(_FEWEST_RESAMPLES, _MOST_UPDATES // len(table.share_N)))
    numbers_N = np.arange(len(table.share_N))
    return np.array([_elo_of(table, rng.permutation(np.repeat(numbers_N, _drawn(table, rng)))) for _ in range(num)])


def _elo_of(table: _Battles, order: NDArray[np.int64]) -> Floats:
    winners = np.where(table.share_N > 0.5, "b", np.where(table.share_N < 0.5, "a", "tie"))
    battles: list[tuple[Hashable, Hashable, str]] = [
        (int(table.first_N[index]), int(table.second_N[index]), str(winners[index])) for index in order
    ]
    ratings = elo(battles, initial=MIDDLE)
    return np.array([ratings.get(number, np.nan) for number in range(len(table.names))])


def _bounds(ratings_RM: Floats | None, *, num: int, level: float) -> list[list[float]] | None:
    """Return the interval of each model; None if more resamples have no ratings than lie outside of the interval."""
    if ratings_RM is None or not len(ratings_RM) or num - len(ratings_RM) > (1 - level) / 2 * num:
        return None
    low_M, high_M = np.nanquantile(ratings_RM, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return [[float(low), float(high)] for low, high in zip(low_M, high_M, strict=True)]


def _no_interval(ratings_RM: Floats | None, num: int) -> str:
    missing = num - (0 if ratings_RM is None else len(ratings_RM))
    return f"{missing} of {num} resamples of the prompts have no ratings: some model never won or never lost in them"


def _named(reason: str | None, names: Sequence[str]) -> str | None:
    """Return the reason of `fit_bradley_terry` with the numbers of the players explained."""
    if reason is None:
        return None
    return f"{reason} (players: {', '.join(f'{number} {name}' for number, name in enumerate(names[:20]))})"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def matrix_of(battles: Sequence[Duel], *, level: float) -> list[dict[str, Any]]:
    """Return each pair of models that met: how often the first wins, with its interval clustered by prompt."""
    met: defaultdict[tuple[str, str], list[Duel]] = defaultdict(list)
    for one in battles:
        if one.preference is not None:
            one = one if one.opponent < one.model else one.mirrored()
            met[one.opponent, one.model].append(one)
    rows = []
    for (first, second), mine in sorted(met.items()):
        # `win_rate` counts wins of answer 2; the mirrored preference is that of the first model.
        found = win_rate([2 - one.share for one in mine], [one.prompt for one in mine])
        interval = found.interval(level)
        rows.append(
            {
                "first": first,
                "second": second,
                "win_rate": found.win_rate,
                "standard_error": found.standard_error,
                "interval": None if interval is None else [interval.low, interval.high],
                "n_total": found.n_total,
                "n_wins": found.n_wins,
                "n_wins_base": found.n_wins_base,
                "n_draws": found.n_draws,
            }
        )
    return rows
