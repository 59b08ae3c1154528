"""Files on a local disk or an object store, by path or URL; the one writer that leaves a whole file or none."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

from phf_ray.errors import ConfigError, DataError


def open_filesystem(path: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a local path or URL, and the path in it."""
    try:
        return fsspec.core.url_to_fs(path)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{path}: {error}; give a path or a URL such as s3://bucket/folder") from None


def is_local(filesystem: fsspec.AbstractFileSystem) -> bool:
    return isinstance(filesystem, LocalFileSystem)


def full_name(filesystem: fsspec.AbstractFileSystem, path: str) -> str:
    """What `open_filesystem` turns back into the same place."""
    return path if is_local(filesystem) else str(filesystem.unstrip_protocol(path))


@contextlib.contextmanager
def store_errors(path: str) -> Iterator[None]:
    """Raises DataError with the words of a store or disk that says neither what is there nor that nothing is."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path} can't be looked at: {type(error).__name__}: {error}; check that you may read it, and for an "
            "object store its credentials, its endpoint and the network"
        ) from error


def write_file(path: str | Path, content: bytes, *, scratch: Path | None = None) -> None:
    """Write all of a file, given by path or URL, or nothing of it; folders that are missing are made.

    An object store gets one PUT. On a disk the file is written under the name `scratch`, by default a hidden one beside
    it, and then renamed.
    """
    filesystem, inner = open_filesystem(str(path))
    if not is_local(filesystem):
        filesystem.pipe_file(inner, content)
        return
    final = Path(inner)
    final.parent.mkdir(parents=True, exist_ok=True)
    scratch = scratch or final.with_name(f".{final.name}-{uuid.uuid4().hex[:8]}")
    scratch.write_bytes(content)
    publish(scratch, final)


def write_text(path: str | Path, text: str) -> None:
    """`write_file` for text in UTF-8."""
    write_file(path, text.encode("utf-8"))


def remove_file(path: str) -> None:
    filesystem, inner = open_filesystem(path)
    with contextlib.suppress(FileNotFoundError):
        filesystem.rm_file(inner)


def publish(scratch: Path, final: Path) -> None:
    """Give a finished file or folder on the same disk its final name."""
    sync(scratch)
    scratch.replace(final)
    sync(final.parent)


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk.

    Without it, a machine that loses power can be left with the new name and no content.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
