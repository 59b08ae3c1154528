"""Chooses the files of a data set: those to train on if it has splits, and none of the folders of other programs."""

import posixpath
import re
from collections import Counter
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

import fsspec

from phf_ray.corpus.json_text import storable

HIDDEN_FOLDERS = "folders whose names begin with _ or ."

_WORD = re.compile(r"[^\W\d_]+")
_TRAINING = {"train", "training"}


def training_files(files: Sequence[str]) -> list[str]:
    """Return the files whose path has the word `train` or `training`; all files if there are none.

    A word is a run of letters: `data/train-00000.parquet` has it, `constrained/0.parquet` does not. The folders that
    hold all of the files don't count: their names are not those of splits.
    """
    root = posixpath.commonpath([posixpath.dirname(file) for file in files]) if files else ""
    return [file for file in files if is_for_training(file, root)] or list(files)


def is_for_training(file: str, root: str) -> bool:
    return not _TRAINING.isdisjoint(_WORD.findall(posixpath.relpath(file, root).lower()))


def some_names(names: Sequence[str], *, most: int = 10) -> str:
    """Return the names in one line that can be printed, and the number of those that it has no room for."""
    return storable(", ".join(names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


def is_hidden(folder: str) -> bool:
    """Whether programs keep a folder of this name for themselves: .git, _temporary, _delta_log, __pycache__."""
    return posixpath.basename(folder).startswith((".", "_"))


def visible_folders(
    filesystem: fsspec.AbstractFileSystem, ignored: Counter[str], *, pattern: str = ""
) -> Callable[[str], bool]:
    """Return a function that says whether to enter a folder, and counts the hidden ones.

    A part of `pattern` that begins with _ or . asks for the folders that it matches. A Python package is source code,
    whatever its name: `_pytest`, `pip/_internal`.
    """
    asked = [part for part in pattern.split("/") if is_hidden(part)]

    def enters(folder: str) -> bool:
        name = posixpath.basename(folder)
        if not is_hidden(name) or any(fnmatchcase(name, part) for part in asked):
            return True
        if name.startswith("_") and filesystem.exists(posixpath.join(folder, "__init__.py")):
            return True
        ignored[HIDDEN_FOLDERS] += 1
        return False

    return enters
