"""Whitening: numbers of tokens brought to standard deviation 1, padding left out."""

import numpy as np
from numpy.typing import ArrayLike

from phf_ray.measures.arrays import floats, mask_of
from phf_ray.measures.numbers import Floats

_EPSILON = 1e-8


def whitened(values_RT: ArrayLike, mask_RT: ArrayLike, *, keeps_mean: bool = False) -> Floats:
    """Return (value - mean) / (sd + 1e-8), plus the mean if it is kept; 0 where the mask is 0.

    Mean and sd (ddof 0) are those of the values that the mask keeps. Division by a number that the samples decide is a
    bias: the expected gradient is no longer parallel to the exact one.
    """
    values_RT = floats(values_RT, "values_RT", ndim=2)
    mask_RT = mask_of(mask_RT, shape=values_RT.shape)
    if not mask_RT.any():
        return np.zeros_like(values_RT)
    # DIFFERS: phf-ray whitens the tokens of completions; AlpacaFarm's PPO counts the padding behind them, too, and in
    # advantages and losses.
    kept = values_RT[mask_RT]
    centred_RT = np.where(mask_RT, values_RT - kept.mean(), 0.0)
    scaled_RT = centred_RT / (kept.std() + _EPSILON)
    return np.where(mask_RT, scaled_RT + kept.mean(), 0.0) if keeps_mean else scaled_RT
