"""How a reward rises and falls with the distance from the reference policy (Gao et al. 2022, arXiv 2210.10760)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FEWEST_POINTS = 8
_LEAST_SPREAD = 2.0
"""Largest distance over the smallest."""
_LEAST_EXPLAINED = 0.5


@dataclass(frozen=True, slots=True)
class OveroptimizationFit:
    """R = start + d (alpha - beta log d), d = sqrt(KL in nats): the form for reinforcement learning."""

    start: float
    alpha: float
    beta: float
    alpha_error: float
    beta_error: float
    r_squared: float
    num_points: int
    kl_range: tuple[float, float]

    def at(self, kl: float) -> float:
        distance = math.sqrt(kl)
        return self.start if not distance else self.start + distance * (self.alpha - self.beta * math.log(distance))

    @property
    def peak_kl(self) -> float | None:
        """KL at which the fitted reward is highest, exp(2 (alpha / beta - 1)). None if it rises or falls throughout."""
        if self.beta <= 0:
            return None
        exponent = 2 * (self.alpha / self.beta - 1)
        return math.exp(exponent) if exponent < 700 else None


def fit_overoptimization(kls: Sequence[float], rewards: Sequence[float]) -> OveroptimizationFit | str:
    """Fit by least squares, all points alike, with standard errors from the residuals; or return why there is no fit.

    Points whose KL is not above 0 (its estimate can be negative) stand at 0.
    """
    distances_N = np.sqrt(np.maximum(np.asarray(kls, np.float64), 0.0))
    rewards_N = np.asarray(rewards, np.float64)
    positive = distances_N[distances_N > 0]
    if len(positive) < FEWEST_POINTS:
        return f"{len(positive)} rounds have a KL above 0; a fit needs {FEWEST_POINTS}"
    if positive.max() < _LEAST_SPREAD * positive.min():
        return f"the distances of all rounds are within a factor of {_LEAST_SPREAD:g}; a fit would say nothing"
    logs_N = np.log(np.where(distances_N > 0, distances_N, 1.0))
    design_NK = np.stack([np.ones_like(distances_N), distances_N, -distances_N * logs_N], axis=1)
    if np.linalg.matrix_rank(design_NK) < 3:
        return "the distances of the rounds are too much alike for a fit"
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
    )
