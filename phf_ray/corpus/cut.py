"""Cuts input files into pieces of work, between records, and groups the pieces into shards."""

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq

from phf_ray.corpus import streams
from phf_ray.corpus.arrow_files import ARROW, open_arrow
from phf_ray.corpus.find import InputFile
from phf_ray.corpus.streams import COMPRESSED, UNREADABLE, open_lines, raise_if_passing
from phf_ray.storage.files import open_filesystem

_COMPRESSED_PIECES = 32
"""Approximate number of pieces of a compressed file. Reaching a piece means reading the file from the beginning, so all
pieces together read the file 16 times."""

_CUT_AT_ONCE = 16
"""Number of files cut at the same time. To find where records begin, a file must be read, and reading from an object
store is mostly waiting."""

_TO_THE_END = 1 << 62


@dataclass(frozen=True, slots=True)
class Piece:
    """Records [begin, end) of a file. If `end` is None, the piece extends to the end of the file."""

    file: int
    """Index in the list of files."""
    num_bytes: int
    begin: int = 0
    end: int | None = None
    offset: int = 0
    """Where record `begin` starts, in bytes of uncompressed text (lines only)."""

    def to_json(self) -> list[int | None]:
        return [self.file, self.num_bytes, self.begin, self.end, self.offset]

    @classmethod
    def from_json(cls, values: Sequence[Any]) -> "Piece":
        file, num_bytes, begin, end, offset = values
        return cls(file=file, num_bytes=num_bytes, begin=begin, end=end, offset=offset)


def shard_bytes(total: int) -> int:
    """Return the bytes of text per shard. They depend only on the size of the corpus, so a plan fits any cluster.

    About 32 shards of a small corpus keep a few actors busy to the end. A lost shard of 16 MB costs some seconds of
    work. More than 16,384 shards would burden the driver.
    """
    return max(512 << 10, min(16 << 20, total // 32), min(64 << 20, total // 16384))


def plan_shards(
    files: Sequence[InputFile], *, shard_bytes: int, limit: int | None = None, first_file: int = 0
) -> Iterator[list[Piece]]:
    """Yield the pieces of each shard, in file order. Small files are grouped; large ones are cut between records.

    `limit`: total number of records. `first_file`: index of files[0] in the plan.
    """
    shard: list[Piece] = []
    size = 0
    for piece in _limited(_pieces(files, shard_bytes, exact=limit is not None), limit):
        shard.append(Piece(piece.file + first_file, piece.num_bytes, piece.begin, piece.end, piece.offset))
        size += piece.num_bytes
        if size >= shard_bytes:
            yield shard
            shard, size = [], 0
    if shard:
        yield shard


def _limited(pieces: Iterator[Piece], limit: int | None) -> Iterator[Piece]:
    if limit is None:
        yield from pieces
        return
    left = limit
    for piece in pieces:
        assert piece.end is not None
        taken = min(left, piece.end - piece.begin)
        share = taken / max(1, piece.end - piece.begin)
        yield Piece(piece.file, round(piece.num_bytes * share), piece.begin, piece.begin + taken, piece.offset)
        left -= taken
        if left <= 0:
            return


def _pieces(files: Sequence[InputFile], target: int, *, exact: bool) -> Iterator[Piece]:
    """`exact`: every piece knows its number of records."""

    def is_cut(file: InputFile) -> bool:
        return file.kind != "text" and (exact or file.text_bytes > target)

    large = [(index, file) for index, file in enumerate(files) if is_cut(file)]
    with ThreadPoolExecutor(_CUT_AT_ONCE) as threads:
        # The first files reach the limit, so the others are not read.
        cuts = (
            (_cut(file, target, index) for index, file in large)
            if exact
            else threads.map(lambda one: list(_cut(one[1], target, one[0])), large)
        )
        for index, file in enumerate(files):
            if is_cut(file):
                yield from next(cuts)
            else:
                yield Piece(index, file.size, end=1) if file.kind == "text" else Piece(index, file.text_bytes)


def _cut(file: InputFile, target: int, index: int) -> Iterator[Piece]:
    cut = _cut_lines if file.kind == "lines" else _cut_table
    least = file.text_bytes // _COMPRESSED_PIECES if file.path.endswith(COMPRESSED) else 0
    last = Piece(index, 0)
    try:
        for last in cut(file, max(target, least), index):
            yield last
    except UNREADABLE as error:
        raise_if_passing(file, error)
        # The reader will stop at the same place and reject the rest of the file with the reason.
        yield Piece(index, 0, last.end or 0, _TO_THE_END, last.offset + last.num_bytes)


def _cut_lines(file: InputFile, target: int, index: int) -> Iterator[Piece]:
    """Yield consecutive pieces of about `target` bytes. Reads the file once."""
    begin = line = start = position = 0
    with open_lines(file.name) as stream:
        while chunk := stream.read(streams.CHUNK_BYTES):
            newlines = chunk.count(b"\n")
            if newlines and position + len(chunk) - start >= target:
                cut = position + chunk.rindex(b"\n") + 1
                yield Piece(index, cut - start, begin, line + newlines, start)
                begin, start = line + newlines, cut
            line += newlines
            position += len(chunk)
    if position > start:
        yield Piece(index, position - start, begin, line + 1, start)


def _cut_table(file: InputFile, target: int, index: int) -> Iterator[Piece]:
    if file.path.endswith(ARROW):
        with open_arrow(file.name) as (_, batches):
            rows = sum(map(len, batches))
        size = file.size
    else:
        metadata = parquet_metadata(file.name)
        rows = metadata.num_rows
        size = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    count = max(1, min(rows, -(-size // target)))
    edges = [rows * part // count for part in range(count + 1)]
    for begin, end in itertools.pairwise(edges):
        yield Piece(index, size // count, begin, end)


def parquet_metadata(name: str) -> pq.FileMetaData:
    filesystem, path = open_filesystem(name)
    with filesystem.open(path, "rb") as stream:
        return pq.read_metadata(stream)
