"""Opens input files, compressed or not, and tells a damaged file from a store that failed temporarily."""

import contextlib
import io
import posixpath
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from phf_ray.corpus.decompress import (
    CODECS,
    ZSTD_HEADER_BYTES,
    DamageError,
    Decompressed,
    TrailingBytesError,
    zstd_window,
)
from phf_ray.corpus.find import InputFile
from phf_ray.errors import DataError
from phf_ray.storage.files import is_local, open_filesystem

MAX_DOCUMENT_BYTES = 64 << 20
"""Longer documents are rejected as `too_large`: checkers need many times their size in memory."""

CHUNK_BYTES = 1 << 20

_BUFFER = 64 << 10

# A name of a column that is not UTF-8 is found when Arrow's schema is asked for it.
UNREADABLE = (OSError, EOFError, DamageError, pa.ArrowException, UnicodeDecodeError)


def raise_if_passing(file: InputFile, error: Exception) -> None:
    """Raise DataError if a second try may read the file. Return if the file itself is damaged."""
    if isinstance(error, FileNotFoundError):
        # The file was there when the input was found, so this machine lacks something, not the corpus.
        raise DataError(
            f"{file.name} was removed after the job began, or this machine can't see it; restore it, or share its "
            "folder with all machines"
        ) from error
    lasting = not isinstance(error, OSError) or isinstance(error, PermissionError)
    if not lasting and not is_local(open_filesystem(file.name)[0]):
        # Arrow raises the same errors for a failing store and for a damaged page.
        raise DataError(
            f"{file.name}: {type(error).__name__}: {error}; run the same command again; if the error comes back, the "
            "file is damaged: leave it out"
        ) from error


class InputStream(io.BufferedReader):
    """A stream of uncompressed bytes that gives all it can before it raises the damage of its file."""

    @property
    def damage(self) -> Exception | None:
        """Why the file can't be read beyond what was read so far. None if no damage was met."""
        return self.raw.damage if isinstance(self.raw, Decompressed) else None

    def raise_if_cut(self) -> None:
        """Raise the damage if the last bytes that were read lack their continuation."""
        if self.damage is not None and not isinstance(self.damage, TrailingBytesError):
            raise self.damage

    def read(self, size: int | None = -1, /) -> bytes:
        return self._unless_damaged(super().read(size), size)

    def readline(self, size: int | None = -1, /) -> bytes:
        return self._unless_damaged(super().readline(size), size)

    def _unless_damaged(self, data: bytes, size: int | None) -> bytes:
        if not data and size != 0 and self.damage is not None:
            raise self.damage
        return data


def open_lines(name: str) -> InputStream:
    """Open a file, decompressed if its suffix says so. `read` and `readline` raise one of UNREADABLE at a damage."""
    filesystem, path = open_filesystem(name)
    raw: Any = filesystem.open(path, "rb")
    codec = CODECS.get(posixpath.splitext(name)[1].lower())
    return InputStream(raw, CHUNK_BYTES) if codec is None else InputStream(Decompressed(raw, codec), _BUFFER)


def text_lines(name: str) -> Iterator[str]:
    """Yield the lines of a UTF-8 file, without a byte order mark. Raises one of UNREADABLE at a damage."""
    with open_lines(name) as stream:
        codec = "utf-8-sig"
        with contextlib.suppress(TrailingBytesError):  # the text is complete
            while line := stream.readline():
                if not line.endswith(b"\n"):
                    stream.raise_if_cut()
                yield line.decode(codec)
                codec = "utf-8"


def has_wide_window(file: InputFile) -> bool:
    """Whether reading the file takes more than 128 MB of memory, the most that `zstd` uses unless it is told to."""
    if not file.path.lower().endswith(".zst"):
        return False
    filesystem, path = open_filesystem(file.name)
    try:
        with filesystem.open(path, "rb") as raw:
            return zstd_window(raw.read(ZSTD_HEADER_BYTES)) > 128 << 20
    except UNREADABLE:
        return False  # reading the file will say why


def skip_bytes(stream: InputStream, num_bytes: int, *, seekable: bool) -> None:
    if seekable:
        stream.seek(num_bytes)
        return
    while num_bytes > 0:
        num_bytes -= len(stream.read(min(CHUNK_BYTES, num_bytes))) or num_bytes
