"""The records of JSON files as bytes: the lines, or, if the file is not written line by line, the records in it."""

import itertools
from collections.abc import Iterator

from phf_ray.corpus import streams
from phf_ray.corpus.cut import Piece
from phf_ray.corpus.find import InputFile
from phf_ray.corpus.json_values import BYTE_ORDER_MARK, is_by_lines, is_json, json_values
from phf_ray.corpus.streams import InputStream, open_lines, skip_bytes


def json_records(file: InputFile, piece: Piece) -> Iterator[tuple[int, bytes | None]]:
    """Yield index and bytes of each record of a piece, None for one of more than `streams.MAX_DOCUMENT_BYTES`.

    Skips blank lines, which have an index, and byte order marks. Raises one of UNREADABLE at a damage of the file.
    """
    by_lines = is_by_lines(file)
    with open_lines(file.name) as stream:
        if by_lines:
            skip_bytes(stream, piece.offset, seekable=not file.is_compressed)
            records = _lines(stream)
        else:
            records = itertools.islice(json_values(stream), piece.begin, None)
        indices = itertools.count(piece.begin) if piece.end is None else range(piece.begin, piece.end)
        for index, record in zip(indices, records, strict=False):
            if record is None:
                yield index, None
            elif record := record.removeprefix(BYTE_ORDER_MARK).strip():
                yield index, record


def _lines(stream: InputStream) -> Iterator[bytes | None]:
    while line := stream.readline(streams.MAX_DOCUMENT_BYTES + 1):
        if not line.endswith(b"\n"):
            if len(line) > streams.MAX_DOCUMENT_BYTES:
                while line and not line.endswith(b"\n"):
                    line = stream.readline(streams.CHUNK_BYTES)
                yield None
                continue
            if stream.damage is not None and not is_json(line):
                stream.raise_if_cut()
        yield line
