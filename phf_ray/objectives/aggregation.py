"""Means of numbers per token, over tokens or over sequences, that come out the same on any number of ranks."""

from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from phf_ray.errors import ConfigError
from phf_ray.measures.arrays import floats, mask_of
from phf_ray.measures.numbers import Floats

Aggregation = Literal["tokens", "sequences"]


def aggregation_weights(mask_RT: ArrayLike, *, over: Aggregation) -> tuple[Floats, float]:
    """Return (weights_RT, normalizer): sum(weights x values) / normalizer is the mean. Weights are 0 at masked tokens.

    tokens: every token weighs alike, so long completions weigh more. sequences: the mean of the sequences' means. With
    several ranks, add up both the sums and the normalizers of all ranks, then divide once. Sequences without a token
    that counts are no part of the mean.
    """
    if over not in get_args(Aggregation):
        raise ConfigError(f"over = {over!r} is unknown; choose one of {list(get_args(Aggregation))}")
    mask_RT = mask_of(mask_RT, shape=floats(mask_RT, "mask_RT", ndim=2).shape)
    num_tokens_R = mask_RT.sum(axis=1)
    if over == "tokens":
        return mask_RT.astype(np.float64), float(num_tokens_R.sum())
    return mask_RT / np.maximum(num_tokens_R, 1)[:, None], float((num_tokens_R > 0).sum())
