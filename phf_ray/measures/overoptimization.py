"""How a reward rises and falls with the distance from the reference policy (Gao et al. 2022, arXiv 2210.10760)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

FitForm = Literal["reinforcement", "best of n"]
"""R = start + d (alpha - beta log d), or, for best of n, R = start + d (alpha - beta d); d = sqrt(KL in nats)."""

FEWEST_POINTS = 8
_LEAST_SPREAD = 2.0
"""Largest distance over the smallest."""
_LEAST_EXPLAINED = 0.5


@dataclass(frozen=True, slots=True)
class OveroptimizationFit:
    start: float
    alpha: float
    beta: float
    alpha_error: float
    beta_error: float
    r_squared: float
    num_points: int
    kl_range: tuple[float, float]
    form: FitForm = "reinforcement"

    def at(self, kl: float) -> float:
        distance = math.sqrt(kl)
        if not distance:
            return self.start
        falling = math.log(distance) if self.form == "reinforcement" else distance
        return self.start + distance * (self.alpha - self.beta * falling)

    @property
    def peak_kl(self) -> float | None:
        """KL at which the fitted reward is highest. None if it rises or falls throughout.

        exp(2 (alpha / beta - 1)), or (alpha / 2 beta)^2 for best of n.
        """
        if self.beta <= 0:
            return None
        if self.form == "best of n":
            return (self.alpha / (2 * self.beta)) ** 2 if self.alpha > 0 else None
        exponent = 2 * (self.alpha / self.beta - 1)
        return math.exp(exponent) if exponent < 700 else None


def fit_overoptimization(
    kls: Sequence[float], rewards: Sequence[float], *, form: FitForm = "reinforcement"
) -> OveroptimizationFit | str:
    """Fit by least squares, all points alike, with standard errors from the residuals; or return why there is no fit.

    Points whose KL is not above 0 (its estimate can be negative) stand at 0.
    """
    distances_N = np.sqrt(np.maximum(np.asarray(kls, np.float64), 0.0))
    rewards_N = np.asarray(rewards, np.float64)
    positive = distances_N[distances_N > 0]
    if len(positive) < FEWEST_POINTS:
        return f"{len(positive)} points have a KL above 0; a fit needs {FEWEST_POINTS}"
    if positive.max() < _LEAST_SPREAD * positive.min():
        return f"the distances of all points are within a factor of {_LEAST_SPREAD:g}; a fit would say nothing"
    falling_N = np.log(np.where(distances_N > 0, distances_N, 1.0)) if form == "reinforcement" else distances_N
    design_NK = np.stack([np.ones_like(distances_N), distances_N, -distances_N * falling_N], axis=1)
    if np.linalg.matrix_rank(design_NK) < 3:
        return "the distances of the points are too much alike for a fit"
    found_K, *_ = np.linalg.lstsq(design_NK, rewards_N, rcond=None)
    residuals_N = rewards_N - design_NK @ found_K
    variance = float(residuals_N @ residuals_N) / (len(rewards_N) - 3)
    errors_K = np.sqrt(variance * np.diag(np.linalg.inv(design_NK.T @ design_NK)))
    total = float(np.square(rewards_N - rewards_N.mean()).sum())
    r_squared = 1.0 - float(residuals_N @ residuals_N) / total if total else 0.0
    if found_K[2] < 0 or r_squared < _LEAST_EXPLAINED:
        return (
            f"the form does not fit: beta is {found_K[2]:.3g} (it has to be 0 or more), and {r_squared:.0%} of the "
            f"variance is explained (at least {_LEAST_EXPLAINED:.0%})"
        )
    return OveroptimizationFit(
        start=float(found_K[0]),
        alpha=float(found_K[1]),
        beta=float(found_K[2]),
        alpha_error=float(errors_K[1]),
        beta_error=float(errors_K[2]),
        r_squared=r_squared,
        num_points=len(rewards_N),
        kl_range=(float(positive.min() ** 2), float(positive.max() ** 2)),
        form=form,
    )
