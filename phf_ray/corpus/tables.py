"""Rows of Parquet and Arrow files, batch by batch."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from phf_ray.corpus.arrow_files import ARROW, open_arrow
from phf_ray.corpus.cells import rows_of
from phf_ray.corpus.writer import FLUSH_CHARACTERS
from phf_ray.storage.files import open_filesystem

_READ_ROWS = 256


def read_rows(
    path: str, *, columns: Sequence[str] | None = None, begin: int = 0, end: int | None = None
) -> Iterator[dict[str, Any]]:
    """Yield rows [begin, end) of a Parquet or Arrow file. Row groups outside this range are not read.

    A cell that Python can't represent is `Unreadable`.
    """
    for batch in read_batches(path, columns=columns, begin=begin, end=end):
        yield from rows_of(batch)


def read_batches(path: str, *, columns: Sequence[str] | None, begin: int, end: int | None) -> Iterator[pa.RecordBatch]:
    """Yield rows [begin, end), in batches that hold about 4 MB. `columns`: names, of which a file may lack some."""
    if path.lower().endswith(ARROW):
        with open_arrow(path) as (_, batches):
            yield from _rows_between((_selected(batch, columns) for batch in batches), skip=begin, end=end, begin=begin)
        return
    filesystem, inner = open_filesystem(path)
    with filesystem.open(inner, "rb") as file:
        parquet = pq.ParquetFile(file)
        groups, skip = _groups_from(parquet.metadata, begin)
        wanted = None if columns is None else [name for name in columns if name in parquet.schema_arrow.names]
        reader = parquet.iter_batches(batch_size=rows_per_batch(parquet.metadata), row_groups=groups, columns=wanted)
        yield from _rows_between(reader, skip=skip, begin=begin, end=end)


def _selected(batch: pa.RecordBatch, columns: Sequence[str] | None) -> pa.RecordBatch:
    if columns is None:
        return batch
    return batch.select([index for index, name in enumerate(batch.schema.names) if name in columns])


def _rows_between(
    batches: Iterable[pa.RecordBatch], *, skip: int, begin: int, end: int | None
) -> Iterator[pa.RecordBatch]:
    """Yield the rows after the first `skip` rows, end - begin of them at most."""
    left = None if end is None else end - begin
    for batch in batches:
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
