"""Win rate if both answers had the same length (length-controlled, unregularised).

The model is AlpacaEval 2's (Dubois et al. 2024, arXiv 2404.04475): preference - 1 ~ sigmoid(theta tanh((len_1 -
len_2) / sd) + psi gamma_x + beta). The published leaderboard also regularises the fit with data that is not public, so
its figures differ from these; name these `length-controlled, unregularised`.
"""

import math
import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from phf_ray.errors import DataError
from phf_ray.measures.logistic import are_separable, fit_logistic, sigmoid
from phf_ray.measures.numbers import Floats
from phf_ray.measures.preferences import Preferences, parse_preferences
from phf_ray.measures.undefined import UndefinedFigureWarning


@dataclass(frozen=True, slots=True)
class LengthControlled:
    win_rate: float
    """Percent. NaN if it is not defined."""
    reason: str | None = None
    """Why it is not defined; None if it is."""


def length_controlled_win_rate(
    preferences: Preferences, lengths_1: ArrayLike, lengths_2: ArrayLike, difficulty: ArrayLike | None = None
) -> float:
    """Return `fit_length_control(...).win_rate`; if it is NaN, its reason is an UndefinedFigureWarning."""
    fitted = fit_length_control(preferences, lengths_1, lengths_2, difficulty)
    if fitted.reason is not None:
        warnings.warn(fitted.reason, UndefinedFigureWarning, stacklevel=2)
    return fitted.win_rate


def fit_length_control(
    preferences: Preferences, lengths_1: ArrayLike, lengths_2: ArrayLike, difficulty: ArrayLike | None = None
) -> LengthControlled:
    """Return 100 mean sigmoid(psi gamma + beta): the win rate of answer 2, in percent, if lengths were the same.

    All are (N,). preferences: as for `win_rate`; rows that were not judged are left out. lengths: in any one unit, such
    as characters. difficulty: gamma_x, how hard the row's instruction is, from a fit over many models; without it psi
    is 0. Not defined if length and difficulty separate wins from losses: then no finite theta fits best.
    """
    preferences_N = parse_preferences(preferences)
    is_judged_N = ~np.isnan(preferences_N)

    def judged(values: ArrayLike, name: str) -> Floats:
        values_N = np.asarray(values, dtype=np.float64)
        if values_N.shape != preferences_N.shape:
            raise DataError(f"{name} of shape {values_N.shape} for {len(preferences_N)} preferences; give one per row")
        wrong = np.flatnonzero(is_judged_N & ~np.isfinite(values_N))
        if len(wrong):
            raise DataError(f"{name} of row {wrong[0]} is {values_N[wrong[0]]}; every judged row needs a number")
        return values_N[is_judged_N]

    difference_N = judged(lengths_1, "lengths_1") - judged(lengths_2, "lengths_2")
    difficulty_N = np.zeros(len(difference_N)) if difficulty is None else judged(difficulty, "difficulty")
    return _fit(preferences_N[is_judged_N] - 1, difference_N, difficulty_N)


def _fit(wins_N: Floats, difference_N: Floats, difficulty_N: Floats) -> LengthControlled:
    if len(wins_N) < 2:
        return LengthControlled(math.nan, f"{len(wins_N)} judged rows; the effect of length needs at least 2")
    sd = float(difference_N.std(ddof=1))
    if np.ptp(difference_N) == 0:
        return LengthControlled(
            math.nan, "the answers differ in length by the same in every row, so the effect of length is unknown"
        )
    columns = [np.tanh(difference_N / sd), np.ones(len(wins_N))]
    if np.ptp(difficulty_N) > 0:
        # Standardised for the solver's sake: the fitted probabilities are the same.
        columns.append((difficulty_N - difficulty_N.mean()) / difficulty_N.std())
    design_NK = np.stack(columns, axis=1)
    what = "length" if len(columns) == 2 else "length, with difficulty,"
    if np.linalg.matrix_rank(design_NK) < len(columns):
        return LengthControlled(math.nan, "difficulty follows from length, so their effects can't be told apart")
    if are_separable(design_NK, wins_N):
        return LengthControlled(math.nan, f"{what} separates wins from losses, so no finite effect of it fits best")
    coefficients_K = fit_logistic(design_NK, wins_N, np.ones(len(wins_N)))
    if coefficients_K is None:
        return LengthControlled(math.nan, f"{what} nearly separates wins from losses, and the fit does not converge")
    return LengthControlled(100 * float(sigmoid(design_NK[:, 1:] @ coefficients_K[1:]).mean()))
