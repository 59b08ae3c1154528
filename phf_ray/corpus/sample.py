"""Picks records spread evenly over the input, without reading all of it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from phf_ray.corpus import streams
from phf_ray.corpus.cut import Piece
from phf_ray.corpus.find import InputFile
from phf_ray.corpus.json_values import is_by_lines
from phf_ray.corpus.parquet_end import parquet_metadata
from phf_ray.corpus.streams import UNREADABLE, open_lines, raise_if_passing

_SAMPLED_PLACES = 32
"""Maximum per file, at least a chunk apart: on an object store each place costs a round trip or two."""


@dataclass(frozen=True, slots=True)
class SampledPiece:
    """The first records of a piece."""

    piece: Piece
    num_records: int


def plan_sample(files: Sequence[InputFile], *, num_records: int) -> Iterator[SampledPiece]:
    """Yield pieces with about `num_records` records, spread evenly over the bytes of the files.

    Compressed files are read only at the beginning. Larger files of uncompressed lines or Parquet are read at several
    places. Record numbers in a line file are wrong, because its earlier records are not counted.
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
    if file.kind == "lines" and not file.is_compressed:
        try:
            places = places if is_by_lines(file) else 1
            offsets = {_line_at(file, file.size * place // places) for place in range(places)}
        except UNREADABLE as error:
            raise_if_passing(file, error)
            offsets = {0}  # reading the file will say why
        for offset in sorted(offsets):
            yield replace(whole, offset=offset)
    elif file.path.lower().endswith(".parquet"):
        try:
            rows = parquet_metadata(file.name, size=file.size).num_rows
        except UNREADABLE as error:
            raise_if_passing(file, error)
            rows = 0  # reading the file will say why
        for begin in sorted({rows * place // places for place in range(places)}):
            yield replace(whole, begin=begin)
    else:
        yield whole


def _line_at(file: InputFile, position: int) -> int:
    """Return the byte where the first line after `position` begins; 0 if `position` is 0 or in the last line."""
    if position == 0:
        return 0
    with open_lines(file.name) as stream:
        stream.seek(position)
        stream.readline(streams.MAX_DOCUMENT_BYTES)
        found = stream.tell()
    return found if found < file.size else 0
