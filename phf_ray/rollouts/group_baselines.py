"""Advantages of a prompt's samples over each other: RLOO and GRPO.

A sample without a reward (NaN) is no part of its group, and its advantage is NaN: leave it out of the update.
"""

import numpy as np
from numpy.typing import ArrayLike

from phf_ray.errors import ConfigError
from phf_ray.measures.arrays import floats, require
from phf_ray.measures.numbers import Floats


def rloo_advantages(rewards_GN: ArrayLike) -> Floats:
    """Return each reward minus the mean of the prompt's other rewards (Ahmadian et al. 2024, arXiv 2402.14740).

    The expected policy gradient is exact. A sample without others has advantage 0: there is nothing to learn from it.
    """
    deviation_GN, num_G = _deviations(rewards_GN)
    # R_i - (sum - R_i) / (n - 1) = n / (n - 1) (R_i - mean).
    return deviation_GN * (num_G / np.maximum(num_G - 1, 1))[:, None]


def group_advantages(rewards_GN: ArrayLike, *, epsilon: float = 1e-4, scale: bool = True) -> Floats:
    """Return (reward - the group's mean) / (sd + epsilon), sd with ddof 1 (Shao et al. 2024, arXiv 2402.03300; TRL).

    Without `scale`, reward - mean: (n - 1) / n of RLOO's advantage, hence of the exact gradient. Division by the
    standard deviation changes the gradient's direction: prompts on which the samples nearly agree weigh more. A sample
    without others, and samples that are all alike, have advantage 0.
    """
    if not epsilon > 0:
        raise ConfigError(f"epsilon = {epsilon} is not above 0; groups whose rewards are all alike would divide 0 by 0")
    deviation_GN, num_G = _deviations(rewards_GN)
    if not scale:
        return deviation_GN
    sd_G = np.sqrt(np.nansum(deviation_GN**2, axis=1) / np.maximum(num_G - 1, 1))
    return deviation_GN / (sd_G + epsilon)[:, None]


def _deviations(rewards_GN: ArrayLike) -> tuple[Floats, Floats]:
    """Return reward - the group's mean, and how many rewards the group has."""
    rewards_GN = floats(rewards_GN, "rewards_GN", ndim=2)
    require(~np.isinf(rewards_GN), rewards_GN, "a reward must be finite; write NaN if a sample has none")
    num_G = (~np.isnan(rewards_GN)).sum(axis=1).astype(np.float64)
    mean_G = np.nansum(rewards_GN, axis=1) / np.maximum(num_G, 1)
    return rewards_GN - mean_G[:, None], num_G
