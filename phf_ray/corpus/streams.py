"""Opens input files, compressed or not, and tells a damaged file from a store that failed for a moment."""

import gzip
import io
import zlib

import pyarrow as pa
import zstandard

from phf_ray.corpus.find import InputFile
from phf_ray.errors import DataError
from phf_ray.storage.files import is_local, open_filesystem

MAX_DOCUMENT_BYTES = 64 << 20
"""A longer document is rejected as `too_large`: checkers need many times its size in memory."""

COMPRESSED = (".gz", ".zst")

CHUNK_BYTES = 1 << 20

# Of a damaged archive at most so much is lost before the damage.
_BUFFER = 16 << 10

UNREADABLE = (OSError, EOFError, zlib.error, zstandard.ZstdError, pa.ArrowInvalid, pa.ArrowException)


def raise_if_passing(file: InputFile, error: Exception) -> None:
    """Raises DataError where a second try may read the file; returns where the file itself is damaged."""
    if isinstance(error, FileNotFoundError):
        # It was there when the input was found: on this machine something is missing, not in the corpus.
        raise DataError(f"{file.name} is gone since the job began, or this machine does not see it") from error
    lasting = not isinstance(error, OSError) or isinstance(error, gzip.BadGzipFile | PermissionError)
    if not lasting and not is_local(open_filesystem(file.name)[0]):
        # Arrow's errors do not tell a store that fails from a damaged page.
        raise DataError(
            f"{file.name}: {type(error).__name__}: {error}; run the same command again, and if it ends in the same, "
            "leave the file out: it is damaged"
        ) from error


def open_lines(name: str) -> io.BufferedReader:
    """Uncompressed bytes of the file."""
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
