"""Picks records spread evenly over the input, without reading all of it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from phf_ray.corpus import streams
from phf_ray.corpus.cut import Piece, parquet_metadata
from phf_ray.corpus.find import InputFile
from phf_ray.corpus.streams import COMPRESSED, UNREADABLE, open_lines, raise_if_passing

_SAMPLED_PLACES = 32
"""In one file, at least a chunk apart: on an object store each is a round trip or two."""


@dataclass(frozen=True, slots=True)
class SampledPiece:
    """The first records of a piece."""

    piece: Piece
    num_records: int


def plan_sample(files: Sequence[InputFile], *, num_records: int) -> Iterator[SampledPiece]:
    """About so many records, spread evenly over the bytes of the files, without reading them through.

    Compressed files are read at their begin only, larger ones of uncompressed lines or Parquet at several places. The
    numbers of records in a line file are not told right.
    """
    step = max(1, len(files) // num_records)
    total = sum(file.text_bytes for file in files[::step])
    for index in range(0, len(files), step):
        file = files[index]
        wanted = max(1, round(num_records * file.text_bytes / max(1, total)))
        places = min(wanted, _SAMPLED_PLACES, max(1, file.size // streams.CHUNK_BYTES))
        for piece in _sampled_pieces(file, index, places):
            yield SampledPiece(piece, -(-wanted // places))


def _sampled_pieces(file: InputFile, index: int, places: int) -> Iterator[Piece]:
    whole = Piece(index, file.text_bytes)
    if file.kind == "lines" and not file.path.endswith(COMPRESSED):
        try:
            offsets = {_line_at(file, file.size * place // places) for place in range(places)}
        except UNREADABLE as error:
            raise_if_passing(file, error)
            offsets = {0}  # reading will say why
        for offset in sorted(offsets):
            yield replace(whole, offset=offset)
    elif file.path.endswith(".parquet"):
        try:
            rows = parquet_metadata(file.name).num_rows
        except UNREADABLE as error:
            raise_if_passing(file, error)
            rows = 0  # reading will say why
        for begin in sorted({rows * place // places for place in range(places)}):
            yield replace(whole, begin=begin)
    else:
        yield whole


def _line_at(file: InputFile, position: int) -> int:
    """Where the first line begins after this position; at 0 and in the last line: the begin of the file."""
    if position == 0:
        return 0
    with open_lines(file.name) as stream:
        stream.seek(position)
        stream.readline(streams.MAX_DOCUMENT_BYTES)
        found = stream.tell()
    return found if found < file.size else 0
