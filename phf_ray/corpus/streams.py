"""Opens input files, compressed or not, and tells a damaged file from a store that failed temporarily."""

import gzip
import io
import zlib

import pyarrow as pa
import zstandard

from phf_ray.corpus.find import InputFile
from phf_ray.errors import DataError
from phf_ray.storage.files import is_local, open_filesystem

MAX_DOCUMENT_BYTES = 64 << 20
"""Longer documents are rejected as `too_large`: checkers need many times their size in memory."""

COMPRESSED = (".gz", ".zst")

CHUNK_BYTES = 1 << 20

# At most this much of a damaged archive is lost before the damage.
_BUFFER = 16 << 10

# A name of a column that is not UTF-8 is found when Arrow's schema is asked for it.
UNREADABLE = (OSError, EOFError, zlib.error, zstandard.ZstdError, pa.ArrowException, UnicodeDecodeError)


def raise_if_passing(file: InputFile, error: Exception) -> None:
    """Raise DataError if a second try may read the file. Return if the file itself is damaged."""
    if isinstance(error, FileNotFoundError):
        # The file was there when the input was found, so this machine lacks something, not the corpus.
        raise DataError(
            f"{file.name} was removed after the job began, or this machine can't see it; restore it, or share its "
            "folder with all machines"
        ) from error
    lasting = not isinstance(error, OSError) or isinstance(error, gzip.BadGzipFile | PermissionError)
    if not lasting and not is_local(open_filesystem(file.name)[0]):
        # Arrow raises the same errors for a failing store and for a damaged page.
        raise DataError(
            f"{file.name}: {type(error).__name__}: {error}; run the same command again; if the error comes back, the "
            "file is damaged: leave it out"
        ) from error


def open_lines(name: str) -> io.BufferedReader:
    """Open a file as a stream of uncompressed bytes."""
    filesystem, path = open_filesystem(name)
    raw = filesystem.open(path, "rb")
    if name.endswith(".gz"):
        return io.BufferedReader(gzip.GzipFile(fileobj=raw), _BUFFER)
    if name.endswith(".zst"):
        stream = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True, closefd=True)
        return io.BufferedReader(stream, _BUFFER)
    return raw if isinstance(raw, io.BufferedReader) else io.BufferedReader(raw, CHUNK_BYTES)


def skip_bytes(stream: io.BufferedReader, num_bytes: int, *, seekable: bool) -> None:
    if seekable:
        stream.seek(num_bytes)
        return
    while num_bytes > 0:
        num_bytes -= len(stream.read(min(CHUNK_BYTES, num_bytes))) or num_bytes
