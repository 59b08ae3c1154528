"""Cuts input files into pieces of work, between records, and groups the pieces into shards."""

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from phf_ray.corpus import streams
from phf_ray.corpus.arrow_files import ARROW, open_arrow
from phf_ray.corpus.find import InputFile
from phf_ray.corpus.json_values import is_by_lines, json_values
from phf_ray.corpus.parquet_end import parquet_metadata
from phf_ray.corpus.streams import UNREADABLE, has_wide_window, open_lines, raise_if_passing, skip_bytes
from phf_ray.storage.at_once import at_once

_PIECES_FROM_BEGIN = 32
"""Approximate number of pieces of a compressed file or JSON array. Reaching a piece means reading the file from the
beginning, so all pieces together read the file 16 times."""

_one_wide = threading.Lock()
"""Held while a file is cut that takes much memory to decompress, up to 2 GB: only one such file is cut at a time."""

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
    num_blank: int = field(default=0, compare=False)
    """Blank lines, which are no records, if they were counted."""

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
    files: Sequence[InputFile],
    *,
    shard_bytes: int,
    limit: int | None = None,
    max_bytes: int | None = None,
    text_share: Callable[[InputFile, Piece], float] = lambda _file, _piece: 1.0,
    first_file: int = 0,
) -> Iterator[list[Piece]]:
    """Yield the pieces of each shard, in file order. Small files are grouped; large ones are cut between records.

    `limit`: total number of records; a blank line is none. `max_bytes`: enough bytes of text; the rest is neither read
    nor planned. `text_share`: text per byte of a piece, to compare with `max_bytes`. `first_file`: index of files[0]
    in the plan.
    """
    shard: list[Piece] = []
    size, text_bytes = 0, 0.0
    sure = len(files) if max_bytes is None else _num_up_to(files, max_bytes)
    pieces = _pieces(files, shard_bytes, exact=limit is not None, num_sure=0 if limit is not None else sure)
    for piece in _limited(pieces, limit, files):
        shard.append(Piece(piece.file + first_file, piece.num_bytes, piece.begin, piece.end, piece.offset))
        size += piece.num_bytes
        if size >= shard_bytes:
            yield shard
            shard, size = [], 0
        if max_bytes is not None:
            text_bytes += piece.num_bytes * text_share(files[piece.file], piece)
            if text_bytes >= max_bytes:
                break
    if shard:
        yield shard


def _limited(pieces: Iterator[Piece], limit: int | None, files: Sequence[InputFile]) -> Iterator[Piece]:
    if limit is None:
        yield from pieces
        return
    left = limit
    for piece in pieces:
        assert piece.end is not None
        records = piece.end - piece.begin - piece.num_blank
        end = piece.end
        if left <= records:
            end = _line_after(files[piece.file], piece, left) if piece.num_blank else piece.begin + left
        share = (end - piece.begin) / max(1, piece.end - piece.begin)
        yield Piece(piece.file, round(piece.num_bytes * share), piece.begin, end, piece.offset)
        left -= records
        if left <= 0:
            return


def _line_after(file: InputFile, piece: Piece, num_records: int) -> int:
    """Return the number of the line after the first `num_records` lines of a piece that are not blank."""
    line, left = piece.begin, num_records
    with open_lines(file.name) as stream:
        skip_bytes(stream, piece.offset, seekable=not file.is_compressed)
        is_blank = True
        while left and (content := stream.readline(streams.CHUNK_BYTES)):
            is_blank = is_blank and not content.strip()
            if content.endswith(b"\n"):
                line, left, is_blank = line + 1, left - (not is_blank), True
    return line + (left > 0)


def _num_up_to(files: Sequence[InputFile], num_bytes: int) -> int:
    """Return the number of files, from the first, without which there are fewer bytes of text.

    Ends before a compressed file: how much it holds is not known before it is read.
    """
    before = itertools.accumulate((file.text_bytes for file in files), initial=0)
    pairs = zip(files, before, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda one: one[1] < num_bytes and not one[0].is_compressed, pairs))


def _pieces(files: Sequence[InputFile], target: int, *, exact: bool, num_sure: int) -> Iterator[Piece]:
    """`exact`: every piece knows its number of records. `num_sure`: files, from the first, that will be needed.

    They are cut at the same time: to find where records begin, a file must be read. Of the others, each is read when it
    is its turn, and not before: those before it may be enough.
    """

    def is_cut(file: InputFile) -> bool:
        return file.kind != "text" and (exact or file.text_bytes > target)

    large = [(index, file) for index, file in enumerate(files) if is_cut(file)]
    cuts = itertools.chain[Iterable[Piece]](
        at_once(lambda one: _all_of(one[1], target, one[0]), [one for one in large if one[0] < num_sure]),
        (_cut(file, target, index, counts_blank=exact) for index, file in large if index >= num_sure),
    )
    for index, file in enumerate(files):
        if is_cut(file):
            yield from next(cuts)
        else:
            yield Piece(index, file.text_bytes, end=1 if file.kind == "text" else None)


def _all_of(file: InputFile, target: int, index: int) -> list[Piece]:
    with _one_wide if has_wide_window(file) else contextlib.nullcontext():
        return list(_cut(file, target, index))


def _cut(file: InputFile, target: int, index: int, *, counts_blank: bool = False) -> Iterator[Piece]:
    last = Piece(index, 0)
    try:
        for last in _cut_by_kind(file, target, index, counts_blank=counts_blank):
            yield last
    except UNREADABLE as error:
        raise_if_passing(file, error)
        # The reader will stop at the same place and reject the rest of the file with the reason.
        yield Piece(index, 0, last.end or 0, _TO_THE_END, last.offset + last.num_bytes)


def _cut_by_kind(file: InputFile, target: int, index: int, *, counts_blank: bool) -> Iterator[Piece]:
    if file.kind == "table":
        return _cut_table(file, target, index)
    by_lines = is_by_lines(file)
    if file.is_compressed or not by_lines:
        target = max(target, file.text_bytes // _PIECES_FROM_BEGIN)
    if not by_lines:
        return _cut_values(file, target, index)
    return _cut_lines(file, target, index, _BlankLines() if counts_blank else None)


def _cut_lines(file: InputFile, target: int, index: int, blank: "_BlankLines | None" = None) -> Iterator[Piece]:
    """Yield consecutive pieces of about `target` bytes. Reads the file once."""
    begin = line = start = position = 0
    with open_lines(file.name) as stream:
        while chunk := stream.read(streams.CHUNK_BYTES):
            newlines = chunk.count(b"\n")
            if blank is not None:
                blank.add(chunk)
            if newlines and position + len(chunk) - start >= target:
                cut = position + chunk.rindex(b"\n") + 1
                yield Piece(index, cut - start, begin, line + newlines, start, blank.take() if blank else 0)
                begin, start = line + newlines, cut
            line += newlines
            position += len(chunk)
    if position > start:
        num_blank = blank.take(is_last=True) if blank else 0
        yield Piece(index, position - start, begin, line + 1, start, num_blank)


class _BlankLines:
    """Counts blank lines in consecutive chunks of a file."""

    def __init__(self) -> None:
        self._count = 0
        self._is_blank = True
        """Whether the line that has no end yet is blank so far."""

    def add(self, chunk: bytes) -> None:
        *complete, rest = chunk.split(b"\n")
        for line in complete:
            self._count += self._is_blank and not line.strip()
            self._is_blank = True
        self._is_blank = self._is_blank and not rest.strip()

    def take(self, *, is_last: bool = False) -> int:
        """Return the blank lines that ended since the last call; the last line of a file has no end."""
        count = self._count + (is_last and self._is_blank)
        self._count = 0
        return count


def _cut_values(file: InputFile, target: int, index: int) -> Iterator[Piece]:
    """Like `_cut_lines`, for JSON that is not written by line. Pieces have no offset."""
    begin = end = size = 0
    with open_lines(file.name) as stream:
        for record in json_values(stream):
            end += 1
            size += len(record or b"")
            if size >= target:
                yield Piece(index, size, begin, end)
                begin, size = end, 0
    if end > begin:
        yield Piece(index, size, begin, end)


def _cut_table(file: InputFile, target: int, index: int) -> Iterator[Piece]:
    if file.path.lower().endswith(ARROW):
        with open_arrow(file.name) as (_, batches):
            rows = sum(map(len, batches))
        size = file.size
    else:
        metadata = parquet_metadata(file.name, size=file.size)
        rows = metadata.num_rows
        size = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    count = max(1, min(rows, -(-size // target)))
    edges = [rows * part // count for part in range(count + 1)]
    for begin, end in itertools.pairwise(edges):
        yield Piece(index, size // count, begin, end)
