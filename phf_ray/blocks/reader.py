"""Reads token blocks by their position in the training order."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phf_ray.blocks.manifest import Shard, read_block_file
from phf_ray.blocks.order import BlockOrder
from phf_ray.blocks.shards import BlockArrays, decode_channel, decode_shard
from phf_ray.errors import DataError


class BlockReader:
    """Reads blocks by their position in the training order, from any position.

    A shard is read whole, because all its rows are needed close together. Memory: two shards per corpus, 64 MiB each.
    """

    def __init__(
        self, root: str, *, order: BlockOrder, channels: Mapping[str, str] | None = None, corpus: str | None = None
    ):
        """`channels`: name -> folder below `root` with one file of that number per shard. `corpus`: name of a channel
        with the number of each block's data set."""
        self._corpus = corpus
        self._root = root
        self._channels = dict(channels or {})
        self._order = order
        self._shards = order.manifest.shards
        self._length = order.manifest.sequence_length
        self._held: OrderedDict[int, BlockArrays] = OrderedDict()
        self._num_held = 2 * len(order.manifest.corpora)

    def read(self, begin: int, end: int) -> BlockArrays:
        """Return the blocks at positions [begin, end), in order. Positions count on across epochs."""
        places = self._order.locate(begin, end)
        shape = (end - begin, self._length)
        numbers = np.unique(places.shards).tolist()
        out = BlockArrays(
            np.empty(shape, np.int32),
            np.empty(shape, np.float32),
            np.empty(shape, np.uint8),
            {name: np.empty(shape, np.float32) for number in numbers[:1] for name in self._shard(number).channels},
        )
        for number in numbers:
            chosen = places.shards == number
            shard = self._shard(number)
            rows = places.rows[chosen]
            out.input_ids[chosen] = shard.input_ids[rows]
            out.token_scores[chosen] = shard.token_scores[rows]
            out.token_kinds[chosen] = shard.token_kinds[rows]
            for name, channel in out.channels.items():
                channel[chosen] = shard.channels[name][rows]
        if self._corpus is None:
            return out
        corpora = np.array([shard.corpus for shard in self._shards], np.float32)[places.shards]
        return out._replace(channels={**out.channels, self._corpus: np.repeat(corpora[:, None], self._length, axis=1)})

    def _channel(self, name: str, expected: Shard) -> NDArray[np.float32]:
        path = f"{self._root}/{self._channels[name]}/{expected.file}"
        channel = decode_channel(read_block_file(path), name, source=path)
        self._check(channel, expected, path=path, remedy="delete its folder, and it is computed again")
        return channel

    def _check(self, array: NDArray[Any], expected: Shard, *, path: str, remedy: str) -> None:
        if array.shape != (expected.num_blocks, self._length):
            raise DataError(
                f"{path} holds {array.shape} tokens, but the manifest of the blocks says "
                f"{(expected.num_blocks, self._length)}; {remedy}"
            )

    def _shard(self, number: int) -> BlockArrays:
        if number in self._held:
            self._held.move_to_end(number)
            return self._held[number]
        expected = self._shards[number]
        path = f"{self._root}/{expected.file}"
        shard = decode_shard(read_block_file(path), source=path)
        self._check(shard.input_ids, expected, path=path, remedy="delete the folder and build the blocks again")
        beside = {name: self._channel(name, expected) for name in self._channels}
        shard = shard._replace(channels={**shard.channels, **beside})
        self._held[number] = shard
        while len(self._held) > self._num_held:
            self._held.popitem(last=False)
        return shard
