"""PPO's losses with their slopes (Schulman et al. 2017, arXiv 1707.06347, equations 7 and 9), token by token.

They are not averaged here: whether tokens or sequences weigh alike is another choice (`aggregation.py`).
"""

import numpy as np
from numpy.typing import ArrayLike

from phf_ray.errors import ConfigError
from phf_ray.measures.arrays import floats, require
from phf_ray.measures.numbers import Floats


def ppo_loss(
    ratio: ArrayLike, advantage: ArrayLike, *, clip: float = 0.2, dual_clip: float | None = None
) -> tuple[Floats, Floats]:
    """Return (loss, d loss / d log-probability), both in the shape of `ratio` and `advantage`.

    ratio: probability of the token under the policy / under the policy that sampled it, above 0. The loss is max(-A
    ratio, -A clip(ratio, 1 - clip, 1 + clip)). Its slope is -A ratio, and 0 where the clipped side is the greater.
    dual_clip c > 1: where A < 0 the loss is at most -c A, with slope 0 there (Ye et al. 2020, arXiv 1912.09729).
    """
    _check_clip(clip)
    if dual_clip is not None and not dual_clip > 1:
        raise ConfigError(f"dual_clip = {dual_clip} is not above 1; 3 is usual, null turns it off")
    ratio = floats(ratio, "ratio")
    advantage = floats(advantage, "advantage", shape=ratio.shape)
    require((ratio > 0) & np.isfinite(ratio), ratio, "a ratio of probabilities must be above 0 and finite")
    require(np.isfinite(advantage), advantage, "an advantage must be finite; leave out tokens without one")

    free = -advantage * ratio
    clipped = -advantage * np.clip(ratio, 1 - clip, 1 + clip)
    loss = np.maximum(free, clipped)
    slope = np.where(free >= clipped, free, 0.0)
    if dual_clip is not None:
        is_capped = (advantage < 0) & (loss > -dual_clip * advantage)
        loss = np.where(is_capped, -dual_clip * advantage, loss)
        slope = np.where(is_capped, 0.0, slope)
    return loss, slope


def value_loss(
    values: ArrayLike, old_values: ArrayLike, returns: ArrayLike, *, clip: float = 0.2
) -> tuple[Floats, Floats]:
    """Return (loss, d loss / d value), both in the shape of the arguments.

    The loss is max((V - R)^2, (clip(V, V_old - clip, V_old + clip) - R)^2) / 2: a value gains nothing by moving more
    than `clip` away from the value at sampling time.
    """
    _check_clip(clip)
    values = floats(values, "values")
    old_values = floats(old_values, "old_values", shape=values.shape)
    returns = floats(returns, "returns", shape=values.shape)
    for array in (values, old_values, returns):
        require(np.isfinite(array), array, "values and returns must be finite; leave out tokens without them")
    free = (values - returns) ** 2 / 2
    clipped = (np.clip(values, old_values - clip, old_values + clip) - returns) ** 2 / 2
    return np.maximum(free, clipped), np.where(free >= clipped, values - returns, 0.0)


def _check_clip(clip: float) -> None:
    if not clip > 0:
        raise ConfigError(f"clip = {clip} is not above 0; 0.2 is usual")
