"""Tells by its name how an input file is read, and by its first bytes if the name does not say."""

import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import fsspec

from phf_ray.corpus.arrow_files import ARROW
from phf_ray.corpus.decompress import CODECS, Decompressed
from phf_ray.storage.at_once import at_once
from phf_ray.storage.files import full_name
from phf_ray.storage.listing import is_glob

FileKind = Literal["text", "lines", "table", "text_lines"]
"""A document; JSON records by line or otherwise; rows; a document per line. No name says the last: the user asks."""

LINES = (".jsonl", ".ndjson", ".jsonlines")

SUFFIXES: dict[str, FileKind] = {
    **dict.fromkeys((".py", ".pyi", ".txt", ".text", ".md", ".rst"), "text"),
    **dict.fromkeys(LINES, "lines"),
    **dict.fromkeys((".parquet", *ARROW), "table"),
}
_UNPACK = "unpack it"
_CONVERT = "convert it to JSON lines or Parquet"
_NOT_READ = {
    **dict.fromkeys((".zip", ".tar", ".tgz", ".7z", ".rar", ".lz4", ".lzma", ".br", ".z"), _UNPACK),
    **dict.fromkeys((".csv", ".tsv"), _CONVERT),
    ".ipynb": "convert it with `jupyter nbconvert --to script`",
}
"""Suffixes of files that are never read as text, and what to do with them."""

_HEAD_BYTES = 4096
# Two characters, because configuration files begin with brackets, too.
_JSON_BEGIN = re.compile(rb'(\xef\xbb\xbf)?\s*(\{\s*"|\[\s*\{)')


def remedy_for(suffix: str) -> str | None:
    """Say what to do with a file whose suffix says that it can't be read. None: other suffixes say nothing."""
    if suffix in SUFFIXES:
        return f"unpack it to {suffix}: such tables are compressed within"
    return _NOT_READ.get(suffix)


def split_suffixes(name: str) -> tuple[str, str]:
    """Return the suffix and the suffix of a compression after it, in lower case; each is empty if there is none."""
    root, suffix = posixpath.splitext(name.lower())
    return (posixpath.splitext(root)[1], suffix) if suffix in CODECS else (suffix, "")


@dataclass(frozen=True, slots=True)
class KindRules:
    """Decides how each file of an input is read, and which ones are left out."""

    text_suffixes: frozenset[str] | None = None
    """Take only text files with these suffixes, unless the user names others. None: take all."""
    known: Mapping[str, FileKind] = field(default_factory=dict)
    """Path or URL -> kind of files that are taken in any case."""

    def in_folder(self, filesystem: fsspec.AbstractFileSystem, name: str) -> FileKind | None:
        """Return the kind of a file in a folder that is an input. None: it is left out."""
        kind = kind_by_suffix(name)
        if kind == "text" and self.text_suffixes is not None and split_suffixes(name)[0] not in self.text_suffixes:
            kind = None
        return self.known.get(full_name(filesystem, name), kind)

    def by_glob(
        self, filesystem: fsspec.AbstractFileSystem, names: Sequence[str], *, pattern: str
    ) -> Iterator[FileKind | None]:
        """Like `in_folder`, for files that a glob matches. What the glob ends with is what the user wants."""
        end = posixpath.basename(pattern).lower()
        for name, kind in zip(names, self.by_names(filesystem, names), strict=True):
            suffix = split_suffixes(name)[0]
            is_wanted = not is_glob(end) or (suffix != "" and suffix == split_suffixes(end)[0])
            is_left_out = kind == "text" and self.text_suffixes is not None and suffix not in self.text_suffixes
            yield self.known.get(full_name(filesystem, name), None if is_left_out and not is_wanted else kind)

    def by_names(self, filesystem: fsspec.AbstractFileSystem, names: Sequence[str]) -> Iterator[FileKind | None]:
        """Yield what `by_name` returns for each file. Looks at the same time into those whose names do not say it."""
        unsaid = [name for name in names if not split_suffixes(name)[0]]
        looked = at_once(lambda name: self.by_name(filesystem, name), unsaid)
        return (self.by_name(filesystem, name) if split_suffixes(name)[0] else next(looked) for name in names)

    def by_name(self, filesystem: fsspec.AbstractFileSystem, name: str) -> FileKind | None:
        """Return the kind of a file that the user named: text, unless its name or content says otherwise.

        None: a file of this kind can't be read.
        """
        suffix, compression = split_suffixes(name)
        if known := self.known.get(full_name(filesystem, name)):
            return known
        if suffix in _NOT_READ or (compression and SUFFIXES.get(suffix) == "table"):
            return None
        if suffix == ".json" or (not suffix and _begins_as_json(filesystem, name)):
            return "lines"
        return kind_by_suffix(name) or "text"


def kind_by_suffix(name: str) -> FileKind | None:
    """Return the kind that the suffix of a file names, in any case; None if it names none."""
    suffix, compression = split_suffixes(name)
    if compression and suffix == ".json":
        return "lines"
    kind = SUFFIXES.get(suffix)
    return None if compression and kind == "table" else kind


def _begins_as_json(filesystem: fsspec.AbstractFileSystem, name: str) -> bool:
    try:
        with filesystem.open(name, "rb") as raw:
            codec = CODECS.get(split_suffixes(name)[1])
            head = raw.read(_HEAD_BYTES) if codec is None else Decompressed(raw, codec).read(_HEAD_BYTES)
    except PermissionError:
        return False  # reading the file will say why
    return _JSON_BEGIN.match(head) is not None
