"""Rows of Parquet and Arrow files, batch by batch."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from phf_ray.corpus.writer import FLUSH_CHARACTERS
from phf_ray.storage.files import is_local, open_filesystem

_READ_ROWS = 256


def read_rows(
    path: str, *, columns: Sequence[str] | None = None, begin: int = 0, end: int | None = None
) -> Iterator[dict[str, Any]]:
    """Yield rows [begin, end) of a Parquet or Arrow file. Row groups outside this range are not read."""
    for batch in read_batches(path, columns=columns, begin=begin, end=end):
        yield from batch.to_pylist()


def read_batches(path: str, *, columns: Sequence[str] | None, begin: int, end: int | None) -> Iterator[pa.RecordBatch]:
    filesystem, inner = open_filesystem(path)
    with filesystem.open(inner, "rb") as file:
        skip = begin
        if path.endswith(".arrow"):
            source = pa.memory_map(inner) if is_local(filesystem) else file
            reader: Iterable[pa.RecordBatch] = pa.ipc.open_stream(source)
        else:
            parquet = pq.ParquetFile(file)
            groups, skip = _groups_from(parquet.metadata, begin)
            wanted = None if columns is None else [name for name in columns if name in parquet.schema_arrow.names]
            reader = parquet.iter_batches(
                batch_size=rows_per_batch(parquet.metadata), row_groups=groups, columns=wanted
            )
        left = None if end is None else end - begin
        for batch in reader:
            if skip >= len(batch):
                skip -= len(batch)
                continue
            rows = batch.slice(skip, left)
            skip = 0
            yield rows
            if left is not None:
                left -= len(rows)
                if left <= 0:
                    return


def _groups_from(metadata: pq.FileMetaData, begin: int) -> tuple[list[int], int]:
    """Return the row groups from the one that holds row `begin`, and how many of its rows come before that row."""
    first = 0
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        if begin < first + rows:
            return list(range(group, metadata.num_row_groups)), begin - first
        first += rows
    return [], 0


def rows_per_batch(metadata: pq.FileMetaData) -> int:
    """Return the number of rows in about 4 MB, so that long documents do not pile up in memory."""
    size = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    per_row = size / max(1, metadata.num_rows)
    return int(min(_READ_ROWS, max(1, FLUSH_CHARACTERS // max(1.0, per_row))))
