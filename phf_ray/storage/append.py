"""Adds lines to a local file, each whole or not at all, also from several processes."""

import fcntl
import os
from pathlib import Path

from phf_ray.errors import DataError
from phf_ray.storage.files import sync


def append_line(path: Path, line: str | None) -> None:
    """Add a line and wait until it is on the disk. None: only make sure that the file is there and can be written.

    A line that a crash cut off stays, on a line of its own. Raises DataError if the disk does not take the line; the
    file is then as before. Raises OSError if the file can't be opened.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        size = os.fstat(descriptor).st_size
        if line is not None:
            begin = b"" if not size or os.pread(descriptor, 1, size - 1) == b"\n" else b"\n"
            _write(descriptor, begin + line.encode() + b"\n", path=path, size=size)
    finally:
        os.close(descriptor)
    if not size:
        sync(path.parent)


def _write(descriptor: int, content: bytes, *, path: Path, size: int) -> None:
    try:
        written = os.write(descriptor, content)
        if written == len(content):
            os.fsync(descriptor)
            return
        problem = f"only {written} of {len(content)} bytes were taken"
    except OSError as error:
        problem = str(error)
    os.ftruncate(descriptor, size)
    raise DataError(f"{path}: the line was not stored ({problem}); free some space and try again")
