"""Ratings of many players from comparisons of two: Bradley-Terry, which fits all at once, and Elo, which goes in order.

Both orders of a pair, and copies of one verdict, are one draw: for intervals of ratings, resample prompts, not battles.
"""

import warnings
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse.csgraph import connected_components

from phf_ray.errors import ConfigError, DataError
from phf_ray.measures.logistic import fit_logistic
from phf_ray.measures.numbers import Floats
from phf_ray.measures.undefined import UndefinedFigureWarning

_SCORES = {"a": 1.0, "tie": 0.5, "b": 0.0}


@dataclass(frozen=True, slots=True)
class BradleyTerry:
    log_strengths_M: Floats
    """Mean 0. Times 400 / ln 10 = 173.7, differences are Elo points. All NaN if they are not defined."""
    reason: str | None = None
    """Why they are not defined; None if they are."""


def bradley_terry(wins_MM: ArrayLike, ties_MM: ArrayLike | None = None) -> Floats:
    """Return `fit_bradley_terry(...).log_strengths_M`; if it is NaN, its reason is an UndefinedFigureWarning."""
    fitted = fit_bradley_terry(wins_MM, ties_MM)
    if fitted.reason is not None:
        warnings.warn(fitted.reason, UndefinedFigureWarning, stacklevel=2)
    return fitted.log_strengths_M


def fit_bradley_terry(wins_MM: ArrayLike, ties_MM: ArrayLike | None = None) -> BradleyTerry:
    """Return the most likely log-strengths s, shape (M,), where P(i beats j) = sigmoid(s_i - s_j).

    wins_MM[i, j]: times i beat j. ties_MM[i, j] = ties_MM[j, i]: times i and j tied; a tie is half a win to each.
    Not defined unless every player can be reached from every other by way of wins (Ford 1957): else the players of one
    group never lost to the others', and their strengths grow without end.
    """
    wins_MM = _counts(wins_MM, "wins_MM")
    if ties_MM is not None:
        ties_MM = _counts(ties_MM, "ties_MM")
        if ties_MM.shape != wins_MM.shape:
            raise DataError(
                f"ties_MM of shape {ties_MM.shape} for wins_MM of shape {wins_MM.shape}; they must be alike"
            )
        if (ties_MM != ties_MM.T).any():
            i, j = np.argwhere(ties_MM != ties_MM.T)[0]
            raise DataError(
                f"ties_MM[{i}, {j}] = {ties_MM[i, j]:g} and ties_MM[{j}, {i}] = {ties_MM[j, i]:g}; "
                "write the number of ties of two players in both places"
            )
        wins_MM = wins_MM + ties_MM / 2
    num_players = len(wins_MM)
    num_groups, group_M = connected_components(wins_MM > 0, connection="strong")
    undefined_M = np.full(num_players, np.nan)
    if num_groups > 1:
        first, other = (np.flatnonzero(group_M == group).tolist() for group in (0, 1))
        return BradleyTerry(
            undefined_M,
            f"the {num_players} players fall into {num_groups} groups without wins in both directions between them, "
            f"such as {_shortened(first)} and {_shortened(other)}; judge more pairs, or leave players out",
        )
    first_P, second_P = np.nonzero(np.triu(wins_MM + wins_MM.T))
    count_P = wins_MM[first_P, second_P] + wins_MM[second_P, first_P]
    design_PM = np.zeros((len(first_P), num_players))
    design_PM[np.arange(len(first_P)), first_P] = 1
    design_PM[np.arange(len(first_P)), second_P] = -1
    # Only differences matter; the last player's strength is 0 until the end.
    fitted = fit_logistic(design_PM[:, :-1], wins_MM[first_P, second_P] / count_P, count_P)
    if fitted is None:
        return BradleyTerry(undefined_M, "some players won nearly all of their battles, and the fit does not converge")
    strengths_M = np.append(fitted, 0.0)
    return BradleyTerry(strengths_M - strengths_M.mean())


def elo(
    battles: Iterable[tuple[Hashable, Hashable, str]], k: float = 4.0, initial: float = 1000.0, scale: float = 400.0
) -> dict[Hashable, float]:
    """Return name -> rating after the battles (a, b, winner), in their order; winner is `a`, `b` or `tie`.

    After each, a's rating grows by k (result - 1 / (1 + 10^((rating_b - rating_a) / scale))), and b's falls by as much.
    Later battles weigh more, so the result depends on the order; `bradley_terry` does not.
    """
    if not (k > 0 and scale > 0):
        raise ConfigError(f"k = {k} and scale = {scale} must be above 0; usual are 4 and 400")
    ratings: dict[Hashable, float] = {}
    for number, (a, b, winner) in enumerate(battles):
        if winner not in _SCORES:
            raise DataError(f"winner {winner!r} of battle {number} is unknown; write a, b or tie")
        if a == b:
            raise DataError(f"battle {number} is between {a!r} and itself; leave it out")
        rating_a, rating_b = ratings.get(a, initial), ratings.get(b, initial)
        change = k * (_SCORES[winner] - 1 / (1 + 10 ** ((rating_b - rating_a) / scale)))
        ratings[a], ratings[b] = rating_a + change, rating_b - change
    return ratings


def _counts(counts: ArrayLike, name: str) -> Floats:
    counts_MM = np.asarray(counts, dtype=np.float64)
    if counts_MM.ndim != 2 or len(counts_MM) != counts_MM.shape[1] or not len(counts_MM):
        raise DataError(
            f"{name} of shape {counts_MM.shape}; it must be square, with a row and a column for each player"
        )
    is_wrong_MM = ~np.isfinite(counts_MM) | (counts_MM < 0)
    if is_wrong_MM.any():
        i, j = np.argwhere(is_wrong_MM)[0]
        raise DataError(f"{name}[{i}, {j}] = {counts_MM[i, j]:g} is not a count; write 0 where two players never met")
    if np.diag(counts_MM).any():
        i = int(np.flatnonzero(np.diag(counts_MM))[0])
        raise DataError(f"{name}[{i}, {i}] = {counts_MM[i, i]:g}, but nobody plays against themselves; write 0")
    return counts_MM


def _shortened(players: list[int]) -> str:
    return str(players) if len(players) <= 5 else f"[{', '.join(map(str, players[:5]))}, ...] ({len(players)})"
