"""Shards of token blocks as Parquet files: the same bytes for the same blocks."""

import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from phf_ray.errors import DataError
from phf_ray.records import TokenBlock

BYTES_PER_TOKEN = 9
"""Size in memory: int32 id, float32 score, uint8 kind."""
SHARD_BYTES = 64 << 20


class BlockArrays(NamedTuple):
    """n blocks of L tokens: input_ids int32 (n, L), token_scores float32 (n, L), token_kinds uint8 (n, L)."""

    input_ids: NDArray[np.int32]
    token_scores: NDArray[np.float32]
    token_kinds: NDArray[np.uint8]
    channels: Mapping[str, NDArray[np.float32]] = {}
    """Named numbers of each token, float32 (n, L) each: columns of the shard, or of files beside it."""


COLUMNS = ("input_ids", "token_scores", "token_kinds")


def shard_name(group: int, index: int) -> str:
    return f"shard-{group:05d}-{index:03d}.parquet"


def group_name(group: int) -> str:
    return f"group-{group:05d}.json"


def rejected_name(group: int) -> str:
    return f"rejected-{group:05d}.parquet"


def blocks_per_shard(sequence_length: int) -> int:
    return max(1, SHARD_BYTES // (BYTES_PER_TOKEN * sequence_length))


def encode_shard(blocks: Sequence[TokenBlock]) -> bytes:
    """Return a Parquet file, with the same bytes for the same blocks. `blocks` must not be empty."""
    first, length = blocks[0], len(blocks[0].input_ids)
    arrays = {name: [getattr(block, name) for block in blocks] for name in COLUMNS}
    arrays |= {name: [block.channels[name] for block in blocks] for name in first.channels}
    columns = {name: pa.FixedSizeListArray.from_arrays(np.concatenate(parts), length) for name, parts in arrays.items()}
    # Ids rarely repeat within a page, so a dictionary only costs time. Scores and kinds come in runs, which zstd finds.
    return parquet_bytes(pa.table(columns), use_dictionary=False)


def decode_shard(content: bytes, *, source: str) -> BlockArrays:
    try:
        table = pq.read_table(pa.BufferReader(content))
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{source} is not a shard of token blocks: {error}; delete its folder and build again"
        ) from None
    ids, scores, kinds = (_matrix(table, name) for name in COLUMNS)
    channels = {name: _matrix(table, name) for name in table.column_names if name not in COLUMNS}
    return BlockArrays(ids, scores, kinds, channels)


def encode_channel(name: str, values: NDArray[np.float32]) -> bytes:
    """Return a Parquet file with one named number per token of a shard, (n, L)."""
    column = pa.FixedSizeListArray.from_arrays(values.astype(np.float32).reshape(-1), values.shape[1])
    return parquet_bytes(pa.table({name: column}), use_dictionary=False)


def decode_channel(content: bytes, name: str, *, source: str) -> NDArray[np.float32]:
    try:
        return _matrix(pq.read_table(pa.BufferReader(content)), name)
    except (pa.ArrowInvalid, KeyError) as error:
        raise DataError(f"{source} holds no {name}: {error}; delete its folder, and it is computed again") from None


def _matrix(table: pa.Table, name: str) -> NDArray[Any]:
    column = table[name].combine_chunks()
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), column.type.list_size)


def parquet_bytes(table: pa.Table, *, use_dictionary: bool) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", use_dictionary=use_dictionary, write_statistics=False)
    return buffer.getvalue()
