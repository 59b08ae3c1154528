"""Many data sets at once: shards beyond the memory for them are held on the local disk, with the same blocks."""

import gc
import weakref

import numpy as np
import pytest

from phf_ray.blocks.shard_on_disk import ShardOnDisk
from phf_ray.blocks.shards import BlockArrays


def shard(*, channels=("reference",)) -> BlockArrays:
    generator = np.random.default_rng(7)
    return BlockArrays(
        generator.integers(0, 50_000, (5, 8), np.int32),
        generator.random((5, 8), np.float32),
        generator.integers(0, 4, (5, 8), np.uint8),
        {name: generator.random((5, 8), np.float32) for name in channels},
    )


@pytest.mark.parametrize("channels", [(), ("reference", "other")])
def test_blocks_on_disk_are_those_of_the_shard(channels):
    whole = shard(channels=channels)
    rows = np.array([4, 0, 0, 3])
    found = ShardOnDisk(whole).blocks(rows)
    for name in ("input_ids", "token_scores", "token_kinds"):
        assert getattr(found, name).dtype == getattr(whole, name).dtype
        assert np.array_equal(getattr(found, name), getattr(whole, name)[rows])
    assert [*found.channels] == [*channels]
    for name in channels:
        assert np.array_equal(found.channels[name], whole.channels[name][rows])
    assert ShardOnDisk(whole).blocks(rows[:0]).input_ids.shape == (0, 8)


def test_a_shard_on_disk_keeps_none_of_it_in_memory():
    whole = shard()
    gone = weakref.ref(whole.input_ids)
    held = ShardOnDisk(whole)
    del whole
    gc.collect()
    assert gone() is None
    assert held.blocks(np.array([0])).input_ids.shape == (1, 8)
