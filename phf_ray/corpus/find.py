"""Finds the input files of a job: folders, globs, files, URLs, hub ids, scored corpora.

Size and time stamp (or ETag) identify a file, so a changed input is noticed without reading it.
"""

import posixpath
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import fsspec
from fsspec.utils import glob_translate

from phf_ray.corpus.decompress import CODECS
from phf_ray.corpus.kinds import LINES, SUFFIXES, FileKind, KindRules, kind_by_suffix, remedy_for, split_suffixes
from phf_ray.corpus.layout import is_scored_corpus
from phf_ray.corpus.reader import may_hold_data
from phf_ray.corpus.sources import Source, known_source
from phf_ray.corpus.splits import is_for_training, training_files, visible_folders
from phf_ray.corpus.stored import sized_parts
from phf_ray.errors import ConfigError
from phf_ray.storage.at_once import at_once
from phf_ray.storage.data_set_names import is_hub_url, parse_data_set
from phf_ray.storage.data_sets import DataSet, open_data_set
from phf_ray.storage.files import full_name, open_filesystem, store_errors
from phf_ray.storage.listing import entries_of, follow, glob_root, is_glob, list_files, match_files, stamp_of

_DANGLING, _HIDDEN, _CARD = "dangling links", "hidden files", "cards and caches of data sets"
"""Keys in `Found.ignored`, next to the suffixes."""

_SAVED = {"dataset_dict.json", "dataset_info.json"}
"""Files of which `datasets` writes one into each data set that it saves."""
_DESCRIPTIONS = _SAVED | {"dataset_infos.json", "state.json"}
_CARDS = (".md", ".rst", ".py", ".pyi")

_INPUTS = 8
"""Inputs that are searched at the same time; each of them lists many folders at once."""

# Text compresses about fourfold. Only used to decide which files are large.
_EXPANSION = {**dict.fromkeys(CODECS, 4), ".parquet": 3}


@dataclass(frozen=True, slots=True)
class InputFile:
    root: str
    """Folder or URL that `path` is relative to."""
    path: str
    kind: FileKind
    size: int
    stamp: str
    """Changes whenever the file does: ETag, hash of a file on the hub, or modification time."""

    @property
    def name(self) -> str:
        return posixpath.join(self.root, self.path)

    @property
    def source(self) -> str:
        """`path` in a form that can be stored: a name on disk need not be UTF-8."""
        return self.path.encode(errors="backslashreplace").decode()

    @property
    def text_bytes(self) -> int:
        """Estimated bytes of uncompressed text in the file."""
        return self.size * _EXPANSION.get(self._suffix, 1)

    @property
    def is_compressed(self) -> bool:
        return self._suffix in CODECS

    @property
    def has_lines_suffix(self) -> bool:
        """Whether the name says that the file has one JSON record per line. `.json` may also hold an array."""
        return split_suffixes(self.path)[0] in LINES

    @property
    def _suffix(self) -> str:
        return posixpath.splitext(self.path)[1].lower()


@dataclass(frozen=True, slots=True)
class Found:
    """All input files, each once, ordered by root as the user gave them, then by path."""

    files: tuple[InputFile, ...]
    ignored: Counter[str]
    """Suffix, `_DANGLING` or another kind -> number of skipped files or folders."""
    other_splits: tuple[str, ...] = ()
    """Data files that were left out because their data set has a split to train on."""
    sources: Mapping[str, Source] = field(default_factory=dict)
    """Input -> what it is, if it is a data set or its licence is known."""


@dataclass(slots=True)
class _FoundIn:
    """What one input holds; see `Found`."""

    files: list[InputFile]
    ignored: Counter[str] = field(default_factory=Counter)
    others: list[str] = field(default_factory=list)


def find_files(
    inputs: Sequence[str],
    *,
    text_suffixes: frozenset[str] | None = None,
    known: Sequence[InputFile] = (),
    sources: Mapping[str, Source] | None = None,
    option: str = "--input",
) -> Found:
    """Find the files under folders, globs, files, URLs, data sets of the hub or in folders, and scored corpora.

    `text_suffixes`: of the text files, take only those with these suffixes (lower case), unless an input names others.
    `known`: files of an earlier search, which keep their kind and are not left out. `sources`: its sources; of a data
    set of the hub, the same commit is read again. `option`: the user's name for an input, for errors.
    Raises ConfigError if an input does not exist or holds nothing to read.
    """
    files: dict[str, InputFile] = {}
    ignored: Counter[str] = Counter()
    others: list[str] = []
    rules = KindRules(text_suffixes, {file.name: file.kind for file in known})
    all_sources: dict[str, Source] = {}
    data_sets: dict[str, DataSet | None] = {}
    for source in inputs:
        before = (sources or {}).get(source)
        if before is not None and is_hub_url(before.root):
            all_sources[source] = before
        else:
            data_sets[source] = open_data_set(source, option=option)
            all_sources |= known_source(source, data_sets[source])

    def find(source: str) -> _FoundIn:
        if source not in data_sets:
            return _FoundIn([file for file in known if file.root == all_sources[source].root])
        data_set, found = data_sets[source], _FoundIn([])
        with store_errors(f"{option} {source}"):
            if data_set is None:
                found.files += _find(source, rules, found.ignored, found.others, option=option)
            else:
                found.files += _find_in(data_set, rules, option=option)
        return found

    # Each input costs round trips of its own, and users give single files by the thousand.
    for source, found in zip(inputs, at_once(find, inputs, most=_INPUTS), strict=True):
        ignored += found.ignored
        others += found.others
        if not found.files:
            raise ConfigError(f"{option} {source}: {_nothing(ignored, rules)}")
        for file in found.files:
            files.setdefault(file.name, file)
    return Found(files=tuple(files.values()), ignored=ignored, other_splits=tuple(others), sources=all_sources)


def would_read(source: str, folder: str, *, names: Iterable[str]) -> bool:
    """Whether the input `source` would include files with these names in `folder`, which is a full name."""
    data_set = parse_data_set(source)
    if is_hub_url(source) or (data_set is not None and not data_set.is_local):
        return False
    includes = _includes(source if data_set is None else data_set.place)
    return any(includes(posixpath.join(folder, name)) for name in names)


def read_by(inputs: Iterable[str], files: Iterable[InputFile]) -> list[InputFile]:
    """Return the files that folders and globs of these inputs include, also those that are gone.

    Nobody can tell that of a split of a data set: it is what its files are now.
    """
    tests = [_includes(source) for source in inputs if parse_data_set(source) is None]
    return [file for file in files if any(includes(file.name) for includes in tests)]


def _includes(source: str) -> Callable[[str], bool]:
    """Return whether a folder or a glob includes a file, which is a full name."""
    filesystem, path = open_filesystem(source)
    path = path.rstrip("/")
    with store_errors(f"--input {source}"):
        is_folder = filesystem.isdir(path or "/")
    place = full_name(filesystem, path)
    if is_folder:
        return lambda name: name.startswith(f"{place}/")
    pattern = re.compile(glob_translate(place))
    return lambda name: is_glob(path) and pattern.match(name) is not None


def _nothing(ignored: Counter[str], rules: KindRules) -> str:
    known = ", ".join(sorted({*SUFFIXES} if rules.text_suffixes is None else _taken(rules.text_suffixes)))
    others = ", ".join(_described(suffix, count) for suffix, count in ignored.most_common(5))
    seen = f"only files of other kinds ({others})" if others else "no files"
    return (
        f"{seen}; give a folder with {known} files (text and JSON lines may be compressed: {', '.join(CODECS)}), or a "
        "quoted glob such as 'folder/**/*.c' to read other files: JSON as records, the rest as text"
    )


def _taken(text_suffixes: frozenset[str]) -> set[str]:
    return {suffix for suffix, kind in SUFFIXES.items() if kind != "text" or suffix in text_suffixes}


def _described(suffix: str, count: int) -> str:
    remedy = remedy_for(suffix)
    return f"{count} {suffix or 'without suffix'}" + (f": {remedy}" if remedy and suffix not in SUFFIXES else "")


def _find(
    source: str, rules: KindRules, ignored: Counter[str], others: list[str], *, option: str
) -> Iterator[InputFile]:
    filesystem, path = open_filesystem(source)
    path = path.rstrip("/") or "/"
    if filesystem.isfile(path):
        kind = rules.by_name(filesystem, path)
        if kind is None:
            suffix = split_suffixes(path)[0]
            raise ConfigError(f"{option} {source}: can't read such a {suffix} file; {remedy_for(suffix)}")
        yield _input_file(filesystem, posixpath.dirname(path), filesystem.info(path), kind)
    elif filesystem.isdir(path):
        yield from _find_in_folder(source, filesystem, path, rules, ignored=ignored, others=others)
    elif is_glob(path):
        root = glob_root(path)
        entries = match_files(filesystem, path, enters=visible_folders(filesystem, ignored, pattern=path))
        followed = [(name, follow(filesystem, entries[name])) for name in sorted(entries)]
        ignored[_DANGLING] += sum(entry is None for _, entry in followed)
        there = {name: entry for name, entry in followed if entry is not None and entry["type"] == "file"}
        kinds = rules.by_glob(filesystem, [*there], pattern=path)
        for (name, entry), kind in zip(there.items(), kinds, strict=True):
            if kind is None:
                ignored[split_suffixes(name)[0]] += 1
            else:
                yield _input_file(filesystem, root, entry, kind)
    else:
        raise ConfigError(f"{option} {source} does not exist; give a folder, a file, a quoted glob, a URL or a hub id")


def _find_in(data_set: DataSet, rules: KindRules, *, option: str) -> Iterator[InputFile]:
    filesystem, root = open_filesystem(data_set.root)
    if is_scored_corpus(data_set.root):
        yield from _parts_of(data_set.root)
        return
    names = [posixpath.join(root, file) for file in data_set.files]
    kinds = rules.by_names(filesystem, names)
    for name, entry, kind in zip(names, entries_of(filesystem, names), kinds, strict=True):
        if entry is None or kind is None:
            suffix = split_suffixes(name)[0]
            raise ConfigError(f"{option} {data_set.name}: can't read such a {suffix} file; {remedy_for(suffix)}")
        yield _input_file(filesystem, root, {**entry, "name": name}, kind)


def _parts_of(root: str) -> Iterator[InputFile]:
    """Yield the parts of a scored corpus."""
    filesystem, folder = open_filesystem(root)
    for part in sized_parts(root):
        path = posixpath.relpath(open_filesystem(part.file)[1], folder)
        yield InputFile(full_name(filesystem, folder), path, kind="table", size=part.size, stamp=part.stamp)


def _find_in_folder(
    source: str,
    filesystem: fsspec.AbstractFileSystem,
    root: str,
    rules: KindRules,
    *,
    ignored: Counter[str],
    others: list[str],
) -> Iterator[InputFile]:
    if is_scored_corpus(source):
        yield from _parts_of(source)
        return
    entries = list_files(filesystem, root, enters=visible_folders(filesystem, ignored))
    if is_hub_url(source):
        left_out, cards = _left_out(entries, root)
    else:
        saved = _saved_sets(entries)
        left_out, cards = _left_out((name for name in entries if _is_below(name, saved)), root)
    others += [posixpath.relpath(name, root) for name in left_out]
    if cards:
        ignored[_CARD] += len(cards)
    for name in sorted({*entries}.difference(left_out, cards)):
        if posixpath.basename(name).startswith("."):
            ignored[_HIDDEN] += 1
            continue
        suffix = posixpath.splitext(name)[1]
        kind = rules.in_folder(filesystem, name)
        if kind is None:
            ignored[suffix] += 1
            continue
        entry = follow(filesystem, entries[name])
        if entry is None or entry["type"] != "file":
            ignored[_DANGLING if entry is None else suffix] += 1
        else:
            yield _input_file(filesystem, root, entry, kind)


def _left_out(names: Iterable[str], root: str) -> tuple[list[str], list[str]]:
    """Return the files of a data set that are not to be read: those of other splits, then cards and caches."""
    known = sorted(name for name in names if kind_by_suffix(name))
    data = [name for name in known if _is_data(name)] or [name for name in known if is_for_training(name, root)]
    return sorted({*data}.difference(training_files(data))), sorted({*known}.difference(data))


def _saved_sets(names: Iterable[str]) -> set[str]:
    """Return the folders that `datasets` saved."""
    return {posixpath.dirname(name) for name in names if posixpath.basename(name) in _SAVED}


def _is_below(name: str, folders: Collection[str]) -> bool:
    parent = posixpath.dirname(name)
    return bool(folders) and (parent in folders or (parent != name and _is_below(parent, folders)))


def _is_data(name: str) -> bool:
    """Whether a file of a data set of the hub, or saved by `datasets`, holds records, not a description or a result."""
    is_card = name.lower().endswith(_CARDS) or posixpath.basename(name) in _DESCRIPTIONS
    return kind_by_suffix(name) is not None and may_hold_data(name) and not is_card


def _input_file(filesystem: fsspec.AbstractFileSystem, root: str, info: Mapping[str, Any], kind: FileKind) -> InputFile:
    name = str(info["name"])
    return InputFile(
        root=full_name(filesystem, root),
        path=posixpath.relpath(name, root),
        kind=kind,
        size=int(info["size"] or 0),
        stamp=stamp_of(info),
    )
