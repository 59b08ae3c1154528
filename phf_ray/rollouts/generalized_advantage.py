"""Generalized advantage estimation (Schulman et al. 2015, arXiv 1506.02438, equation 16)."""

import numpy as np
from numpy.typing import ArrayLike

from phf_ray.errors import ConfigError
from phf_ray.measures.arrays import floats, mask_of, require
from phf_ray.measures.numbers import Floats


def gae(
    rewards_RT: ArrayLike, values_RT: ArrayLike, mask_RT: ArrayLike, *, gamma: float, lambda_: float
) -> tuple[Floats, Floats]:
    """Return (advantages_RT, returns_RT), both 0 where the mask is 0.

    delta_t = r_t + gamma V_{t+1} - V_t; A_t = delta_t + gamma lambda A_{t+1}; return_t = A_t + V_t. V and A are 0 past
    a rollout's last token. t + 1 is the next token that the mask keeps: what stands at masked positions, even NaN,
    changes nothing, be they padding on either side or a tool's output in the middle.
    """
    for name, value in (("gamma", gamma), ("lambda_", lambda_)):
        if not 0 <= value <= 1:
            raise ConfigError(f"{name} = {value} is not between 0 and 1; 1 and .95 are usual for language models")
    rewards_RT = floats(rewards_RT, "rewards_RT", ndim=2)
    values_RT = floats(values_RT, "values_RT", shape=rewards_RT.shape)
    mask_RT = mask_of(mask_RT, shape=rewards_RT.shape)
    require(np.isfinite(rewards_RT) | ~mask_RT, rewards_RT, "a reward must be finite where the mask is 1")
    require(np.isfinite(values_RT) | ~mask_RT, values_RT, "a value must be finite where the mask is 1")
    # 0 x NaN is NaN.
    rewards_RT, values_RT = np.where(mask_RT, rewards_RT, 0.0), np.where(mask_RT, values_RT, 0.0)

    advantages_RT = np.zeros_like(rewards_RT)
    next_value_R = np.zeros(len(rewards_RT))
    next_advantage_R = np.zeros(len(rewards_RT))
    for t in reversed(range(rewards_RT.shape[1])):
        delta_R = rewards_RT[:, t] + gamma * next_value_R - values_RT[:, t]
        keep_R = mask_RT[:, t]
        next_advantage_R = np.where(keep_R, delta_R + gamma * lambda_ * next_advantage_R, next_advantage_R)
        next_value_R = np.where(keep_R, values_RT[:, t], next_value_R)
        advantages_RT[:, t] = np.where(keep_R, next_advantage_R, 0.0)
    return advantages_RT, advantages_RT + values_RT
