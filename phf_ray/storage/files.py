"""Files on a local disk or an object store, by path or URL. `write_file` leaves a complete file or none."""

import contextlib
import os
import re
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

from phf_ray.errors import ConfigError, DataError

_CHAIN = re.compile("(zip|tar|libarchive|dir|simplecache|filecache|blockcache|cached|reference)(://.*)?::.*://")
"""URLs in a row, as fsspec understands them. It also takes `std::map.md` for two."""


def open_filesystem(path: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the file system of a local path or URL, and the path inside that file system."""
    try:
        if "::" in path and not _CHAIN.match(path):
            protocol = fsspec.core.split_protocol(path)[0] or "file"
            driver = fsspec.get_filesystem_class(protocol)
            return fsspec.filesystem(protocol, **driver._get_kwargs_from_urls(path)), driver._strip_protocol(path)
        return fsspec.core.url_to_fs(path)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{path}: {error}; give a path or a URL such as s3://bucket/folder") from None


def is_local(filesystem: fsspec.AbstractFileSystem) -> bool:
    return isinstance(filesystem, LocalFileSystem)


def full_name(filesystem: fsspec.AbstractFileSystem, path: str) -> str:
    """Return the path or URL that `open_filesystem` resolves to this place."""
    return path if is_local(filesystem) else str(filesystem.unstrip_protocol(path))


@contextlib.contextmanager
def store_errors(path: str) -> Iterator[None]:
    """Raise a DataError with the disk's or store's own words if it can't say what is at `path`."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path} can't be accessed: {type(error).__name__}: {error}; check its permissions and, for an object "
            "store, its credentials, its endpoint and the network"
        ) from error


def write_file(path: str | Path, content: bytes, *, scratch: Path | None = None) -> None:
    """Write a complete file, or nothing. Creates missing folders.

    An object store gets one PUT. On a disk, the content is written to `scratch`, by default a hidden file in the same
    folder, and then renamed.
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


def write_temporary(path: Path, content: bytes) -> None:
    """Write a local file that is gone before anybody could read half of it, without waiting for the disk."""
    path.write_bytes(content)


def write_text(path: str | Path, text: str) -> None:
    """Write text with `write_file`, encoded as UTF-8."""
    write_file(path, text.encode("utf-8"))


def write_lines(file: Path, lines: Iterable[str]) -> int:
    """Write a local file line by line, and return their number. It appears whole; `lines` end in line breaks."""
    scratch = file.parent / f".phf-{uuid.uuid4().hex}"
    number = 0
    try:
        with scratch.open("w", encoding="utf-8") as written:
            for line in lines:
                written.write(line)
                number += 1
        publish(scratch, file)
    finally:
        scratch.unlink(missing_ok=True)
    return number


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

    Without this wait, a power failure can leave the new name without its content.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
