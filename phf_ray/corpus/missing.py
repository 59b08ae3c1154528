"""Finds out how much of a file is missing after the place where reading it ended."""

from phf_ray.corpus.cut import Piece
from phf_ray.corpus.decompress import DamageError, TrailingBytesError
from phf_ray.corpus.find import InputFile
from phf_ray.corpus.parquet_end import parquet_metadata
from phf_ray.corpus.streams import UNREADABLE
from phf_ray.records import Loss

_STRAY_BYTES = 4096
"""So many bytes after the data of a file are no loss: a line end, a checksum, the error page of a web server."""


def loss_of(file: InputFile, piece: Piece, index: int, error: Exception) -> Loss:
    """Return what is lost of a piece whose reading ended before record `index` because of `error`."""
    if isinstance(error, TrailingBytesError):
        rest = file.size - (error.position or 0)
        return Loss(None, rest if rest > _STRAY_BYTES else 0, 0)
    if file.kind == "table":
        return _loss_of_rows(file, piece, index)
    if isinstance(error, DamageError):
        return Loss(piece.file, file.size - (file.size if error.position is None else error.position), 1)
    return _loss_of_rest(file, piece, index)


def _loss_of_rows(file: InputFile, piece: Piece, index: int) -> Loss:
    try:
        rows = parquet_metadata(file.name, size=file.size).num_rows
    except UNREADABLE:
        return _loss_of_rest(file, piece, index)
    missing = max(1, (rows if piece.end is None else min(piece.end, rows)) - index)
    return Loss(piece.file, file.size * missing // max(1, rows), missing)


def _loss_of_rest(file: InputFile, piece: Piece, index: int) -> Loss:
    """Without knowing the size of the records that were read, only a file of which none was read has a known loss."""
    return Loss(piece.file, 0 if index else file.size, 1)
