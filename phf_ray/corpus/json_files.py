"""The records of files as bytes: the lines, or, if a JSON file is not written line by line, the records in it."""

import itertools
from collections.abc import Callable, Iterator

from phf_ray.corpus import streams
from phf_ray.corpus.cut import Piece
from phf_ray.corpus.find import InputFile
from phf_ray.corpus.json_values import BYTE_ORDER_MARK, is_by_lines, is_json, json_values
from phf_ray.corpus.streams import InputStream, open_lines, skip_bytes


def json_records(file: InputFile, piece: Piece) -> Iterator[tuple[int, bytes | None]]:
    """Yield index and bytes of each record of a piece, None for one of more than `streams.MAX_DOCUMENT_BYTES`.

    Skips blank lines, which have an index, and byte order marks. Raises one of UNREADABLE at a damage of the file.
    """
    records = raw_lines(file, piece, is_whole=is_json) if is_by_lines(file) else _raw_values(file, piece)
    for index, record in records:
        if record is None:
            yield index, None
        elif record := record.removeprefix(BYTE_ORDER_MARK).strip():
            yield index, record


def raw_lines(
    file: InputFile, piece: Piece, *, is_whole: Callable[[bytes], bool] = lambda _: False
) -> Iterator[tuple[int, bytes | None]]:
    """Yield index and bytes of each line of a piece, None for one of more than `streams.MAX_DOCUMENT_BYTES`.

    `is_whole`: whether a line without end, before a damage of the file, lacks nothing but its end.
    """
    with open_lines(file.name) as stream:
        skip_bytes(stream, piece.offset, seekable=not file.is_compressed)
        yield from _numbered(piece, _lines(stream, is_whole))


def _raw_values(file: InputFile, piece: Piece) -> Iterator[tuple[int, bytes | None]]:
    with open_lines(file.name) as stream:
        yield from _numbered(piece, itertools.islice(json_values(stream), piece.begin, None))


def _numbered(piece: Piece, records: Iterator[bytes | None]) -> Iterator[tuple[int, bytes | None]]:
    indices = itertools.count(piece.begin) if piece.end is None else range(piece.begin, piece.end)
    return zip(indices, records, strict=False)


def _lines(stream: InputStream, is_whole: Callable[[bytes], bool]) -> Iterator[bytes | None]:
    while line := stream.readline(streams.MAX_DOCUMENT_BYTES + 1):
        if not line.endswith(b"\n"):
            if len(line) > streams.MAX_DOCUMENT_BYTES:
                while line and not line.endswith(b"\n"):
                    line = stream.readline(streams.CHUNK_BYTES)
                yield None
                continue
            if stream.damage is not None and not is_whole(line):
                stream.raise_if_cut()
        yield line
