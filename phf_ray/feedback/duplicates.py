"""Finds records that were read before, over all shards: of equal ones, the first in the order of the input is kept.

Each shard's keys are stored under `keys` before any part is written, so that parts can be written in any order. They
stay, so that neither a resumed job nor one that takes in more input reads again for them. Memory: 16 bytes for each
record.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from phf_ray.feedback.prepare import KEY_BYTES

_KEY = np.dtype([("high", "<u8"), ("low", "<u8")])
Keys = NDArray[np.void]


def keys_from(content: bytes) -> Keys:
    """Return the keys stored one after the other."""
    return np.frombuffer(content[: len(content) // KEY_BYTES * KEY_BYTES], dtype=_KEY)


def repeats(keys: Sequence[Keys]) -> list[list[int]]:
    """Return for each shard the positions, among its records that have keys, of those that were there before."""
    joined = np.concatenate(keys) if keys else np.empty(0, _KEY)
    _, first = np.unique(joined, return_index=True)
    is_repeat = np.ones(len(joined), bool)
    is_repeat[first] = False
    ends = np.cumsum([len(one) for one in keys])
    return [np.flatnonzero(shard).tolist() for shard in np.split(is_repeat, ends[:-1])] if keys else []
