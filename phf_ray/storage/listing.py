"""Lists folders and matches globs. An unreadable folder is an error, never skipped."""

import errno
import os
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
from fsspec.utils import glob_translate

from phf_ray.errors import DataError
from phf_ray.storage.at_once import at_once
from phf_ray.storage.files import full_name, is_local


def list_files(
    filesystem: fsspec.AbstractFileSystem, root: str, *, enters: Callable[[str], bool] | None = None
) -> dict[str, dict[str, Any]]:
    """Return the entries of all files below a folder, by path. `enters` decides which subfolders to search; None: all.

    Links to folders are followed, but no folder is listed twice. Raises DataError if a folder can't be listed.
    """
    if not _is_walked(filesystem):
        return _entered(dict(filesystem.find(root, detail=True)), root, enters)
    files: dict[str, dict[str, Any]] = {}
    folders, links, seen = [root.rstrip("/") or "/"], list[str](), set[str]()
    while folders or links:
        # A folder that is also reachable without links keeps that path.
        if not folders:
            folders.append(links.pop(links.index(min(links))))
        new = list(_unseen(filesystem, folders, seen))
        folders = []
        # All folders of one depth at the same time.
        for folder, entries in zip(new, at_once(partial(_entries, filesystem), new), strict=True):
            for entry in entries:
                name = str(entry["name"]).rstrip("/")
                is_link = _is_link_to_folder(filesystem, entry)
                if entry["type"] != "directory" and not is_link:
                    files[name] = entry
                elif name != folder and (enters is None or enters(name)):
                    (links if is_link else folders).append(name)
    return files


def _unseen(filesystem: fsspec.AbstractFileSystem, folders: Sequence[str], seen: set[str]) -> Iterator[str]:
    """Yield the folders that are not in `seen` by another path, and add them to it."""
    if not is_local(filesystem):
        yield from folders
        return
    for folder, target in zip(folders, at_once(os.path.realpath, folders), strict=True):
        if target not in seen:
            seen.add(target)
            yield folder


def _is_link_to_folder(filesystem: fsspec.AbstractFileSystem, entry: dict[str, Any]) -> bool:
    return bool(entry.get("islink")) and is_local(filesystem) and Path(entry["name"]).is_dir()


def _entered(
    files: dict[str, dict[str, Any]], root: str, enters: Callable[[str], bool] | None
) -> dict[str, dict[str, Any]]:
    """Return the files that are in no folder below `root` that `enters` refuses. Asks once about each folder."""
    if enters is None:
        return files
    root = root.rstrip("/")
    known = {root: True}

    def is_entered(folder: str) -> bool:
        if folder not in known:
            known[folder] = len(folder) <= len(root) or (is_entered(posixpath.dirname(folder)) and enters(folder))
        return known[folder]

    return {name: entry for name, entry in files.items() if is_entered(posixpath.dirname(name))}


def match_files(
    filesystem: fsspec.AbstractFileSystem, pattern: str, *, enters: Callable[[str], bool] | None = None
) -> dict[str, dict[str, Any]]:
    """Like `list_files`, for the files that match a glob. Skips folders that can't contain a match."""
    if not _is_walked(filesystem):
        found = filesystem.glob(pattern, detail=True)
        files = {name: entry for name, entry in found.items() if entry["type"] != "directory"}
        return _entered(files, glob_root(pattern), enters)
    parts = pattern.split("/")

    def may_match(folder: str) -> bool:
        depth = folder.count("/") + 1
        if "**" in parts[:depth]:
            return True
        return depth < len(parts) and re.match(glob_translate("/".join(parts[:depth])), folder) is not None

    def is_searched(folder: str) -> bool:
        return may_match(folder) and (enters is None or enters(folder))

    matches = re.compile(glob_translate(pattern)).match
    return {
        name: entry
        for name, entry in list_files(filesystem, glob_root(pattern), enters=is_searched).items()
        if matches(name)
    }


def glob_root(pattern: str) -> str:
    """Return the folder before the first wildcard. For a path without wildcards, return its parent folder."""
    return posixpath.dirname(re.split(r"[*?[]", pattern, maxsplit=1)[0])


def is_glob(path: str) -> bool:
    return re.search(r"[*?[]", path) is not None


def follow(filesystem: fsspec.AbstractFileSystem, entry: dict[str, Any]) -> dict[str, Any] | None:
    """Return the entry or, for a link, the entry of its target under the link's name. None if the link is broken.

    A local listing gives the time of the link itself, which stays the same when the target changes.
    """
    if not entry.get("islink") and entry["type"] in ("file", "directory"):
        return entry
    try:
        return dict(filesystem.info(entry["name"]))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise


def stamp_of(entry: Mapping[str, Any]) -> str:
    """Return a text that changes whenever the file does: ETag, hash of a file on the hub, or modification time.

    Empty if the store's entry has none of them.
    """
    keys = ("ETag", "etag", "blob_id", "mtime", "LastModified", "updated", "created")
    return next((str(entry[key]) for key in keys if entry.get(key)), "")


def _is_walked(filesystem: fsspec.AbstractFileSystem) -> bool:
    """Whether `find` is fsspec's own, which silently skips a folder that it can't list.

    Its `on_error` does not help: `walk` does not pass it on to subfolders.
    """
    return getattr(filesystem.find, "__func__", None) is fsspec.AbstractFileSystem.find


def _entries(filesystem: fsspec.AbstractFileSystem, folder: str) -> list[dict[str, Any]]:
    try:
        return list(filesystem.ls(folder, detail=True))
    except FileNotFoundError:
        return []  # removed after its parent was listed
    except OSError as error:
        raise DataError(
            f"{full_name(filesystem, folder)} can't be listed: {type(error).__name__}: {error}; make it readable, or "
            "give the other folders next to it, or a glob that excludes it"
        ) from error


def entries_of(filesystem: fsspec.AbstractFileSystem, paths: Sequence[str]) -> list[dict[str, Any] | None]:
    """Return the entries of files, with one listing per folder and not a round trip per file. None: a broken link."""
    folders = sorted({posixpath.dirname(path) for path in paths})
    listings = at_once(lambda folder: filesystem.ls(folder, detail=True), folders)
    listed = {str(entry["name"]): entry for entries in listings for entry in entries}
    return [follow(filesystem, listed[path]) if path in listed else dict(filesystem.info(path)) for path in paths]
