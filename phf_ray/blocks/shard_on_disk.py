"""A shard of token blocks on the local disk, of which single blocks are read: for more shards than memory holds."""

import os
import tempfile
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from phf_ray.blocks.shards import BlockArrays


class ShardOnDisk:
    """The blocks of a shard in a file that has no name, so that it is gone with the process. Memory: none.

    The file lies in the folder for temporary files (`TMPDIR`). All numbers of a block stand together: a block is one
    read.
    """

    def __init__(self, shard: BlockArrays):
        # Not a view, which would keep the whole array in memory.
        self._arrays = [np.empty((0, array.shape[1]), array.dtype) for array in _arrays_of(shard)]
        self._channels = tuple(shard.channels)
        self._file = tempfile.TemporaryFile(prefix="phf-blocks-")  # noqa: SIM115  (closed by `close`)
        for row in zip(*_arrays_of(shard), strict=True):
            for array in row:
                self._file.write(np.ascontiguousarray(array).data)
        self._file.flush()

    def blocks(self, rows: NDArray[np.int64]) -> BlockArrays:
        """Return the blocks of these rows, in their order."""
        sizes = [array.shape[1] * array.itemsize for array in self._arrays]
        content = np.empty((len(rows), sum(sizes)), np.uint8)
        for place, row in enumerate(rows.tolist()):
            if os.preadv(self._file.fileno(), [content[place].data], row * sum(sizes)) != sum(sizes):
                raise OSError(f"a shard of token blocks on the local disk ends before block {row}; is the disk full?")
        ends = np.cumsum(sizes)[:-1].tolist()
        columns = zip(np.split(content, ends, axis=1), self._arrays, strict=True)
        ids, scores, kinds, *channels = (np.ascontiguousarray(one).view(array.dtype) for one, array in columns)
        return BlockArrays(ids, scores, kinds, dict(zip(self._channels, channels, strict=True)))

    def close(self) -> None:
        self._file.close()


def _arrays_of(shard: BlockArrays) -> Sequence[NDArray[np.generic]]:
    return [shard.input_ids, shard.token_scores, shard.token_kinds, *shard.channels.values()]


def bytes_of(shard: BlockArrays) -> int:
    return sum(array.nbytes for array in _arrays_of(shard))
