"""Reads token blocks by their position in the training order."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phf_ray.blocks.manifest import Shard, read_block_file
from phf_ray.blocks.order import BlockOrder
from phf_ray.blocks.shard_on_disk import ShardOnDisk, bytes_of
from phf_ray.blocks.shards import BlockArrays, decode_channel, decode_shard
from phf_ray.errors import DataError

HELD_BYTES = 512 << 20


class BlockReader:
    """Reads blocks by their position in the training order, from any position.

    A shard is read whole, because all its rows are needed close together, and two shards per corpus are held. Memory:
    `HELD_BYTES` of them, and one shard, at most 64 MiB; the others are held on the local disk.
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
        self._held: OrderedDict[int, _InMemory | ShardOnDisk] = OrderedDict()
        self._num_held = 2 * len(order.manifest.corpora)
        self._bytes_held = 0
        """Of the shards in memory."""

    def read(self, begin: int, end: int) -> BlockArrays:
        """Return the blocks at positions [begin, end), in order. Positions count on across epochs."""
        places = self._order.locate(begin, end)
        shape = (end - begin, self._length)
        out = BlockArrays(np.empty(shape, np.int32), np.empty(shape, np.float32), np.empty(shape, np.uint8), {})
        channels: dict[str, NDArray[np.float32]] = {}
        for number in np.unique(places.shards).tolist():
            chosen = places.shards == number
            blocks = self._shard(number).blocks(places.rows[chosen])
            out.input_ids[chosen] = blocks.input_ids
            out.token_scores[chosen] = blocks.token_scores
            out.token_kinds[chosen] = blocks.token_kinds
            for name, channel in blocks.channels.items():
                channels.setdefault(name, np.empty(shape, np.float32))[chosen] = channel
        out = out._replace(channels=channels)
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

    def _shard(self, number: int) -> "_InMemory | ShardOnDisk":
        """Return a shard, and hold it. One that found no room in memory stays on disk: corpora take turns, so that
        moving the others out would bring all of them in and out with every batch.
        """
        if number not in self._held:
            shard = self._read_shard(number)
            while len(self._held) >= self._num_held:
                self._drop(self._held.popitem(last=False)[1])
            size = bytes_of(shard)
            if self._bytes_held + size <= HELD_BYTES:
                self._held[number] = _InMemory(shard, size)
                self._bytes_held += size
            else:
                self._held[number] = ShardOnDisk(shard)
        self._held.move_to_end(number)
        return self._held[number]

    def _drop(self, shard: "_InMemory | ShardOnDisk") -> None:
        if isinstance(shard, ShardOnDisk):
            shard.close()
        else:
            self._bytes_held -= shard.size

    def _read_shard(self, number: int) -> BlockArrays:
        expected = self._shards[number]
        path = f"{self._root}/{expected.file}"
        shard = decode_shard(read_block_file(path), source=path)
        self._check(shard.input_ids, expected, path=path, remedy="delete the folder and build the blocks again")
        beside = {name: self._channel(name, expected) for name in self._channels}
        return shard._replace(channels={**shard.channels, **beside})


@dataclass(frozen=True, slots=True)
class _InMemory:
    shard: BlockArrays
    size: int

    def blocks(self, rows: NDArray[np.int64]) -> BlockArrays:
        shard = self.shard
        channels = {name: channel[rows] for name, channel in shard.channels.items()}
        return BlockArrays(shard.input_ids[rows], shard.token_scores[rows], shard.token_kinds[rows], channels)
