"""Reads scored corpora: phf-ray's own, and the unmodified data sets published with the original code."""

import json
import logging
import math
import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import fsspec

from phf_ray.corpus.arrow_files import ARROW
from phf_ray.corpus.cells import Unreadable
from phf_ray.corpus.json_text import meta_json, storable
from phf_ray.corpus.layout import MANIFEST, PLAN, REJECTED, SUCCESS, document_id, has_ours, parts_in
from phf_ray.corpus.manifest import CorpusManifest
from phf_ray.corpus.splits import is_hidden, some_names, training_files, visible_folders
from phf_ray.corpus.tables import read_rows
from phf_ray.errors import DataError
from phf_ray.records import ScoredDocument
from phf_ray.storage.data_sets import open_data_set, open_source
from phf_ray.storage.files import full_name, store_errors
from phf_ray.storage.listing import list_files, match_files

log = logging.getLogger(__name__)


def list_parts(path: str) -> list[str]:
    """List the files of a scored corpus in order, to be read with `read_part`.

    `path` is a folder that jobs.score_corpus wrote, or any folder, file, glob, URL or hub id of a data set with
    columns `texts` and `scores` (Parquet, or Arrow as `datasets` saves it), with a choice of configuration and split.
    """
    filesystem, root = open_source(path)
    with store_errors(path):
        return [full_name(filesystem, part) for part in _list_parts(path, filesystem, root)]


def find_tables(path: str) -> list[str]:
    """List the Parquet and Arrow files of any data set in order; none if it has none, or does not exist."""
    with store_errors(path):
        filesystem, root = open_source(path)
        return [
            full_name(filesystem, file) for file in _files_of(path, filesystem, root, tells=False) if _is_table(file)
        ]


def _list_parts(path: str, filesystem: fsspec.AbstractFileSystem, root: str) -> Sequence[str]:
    parts = _files_of(path, filesystem, root)
    if not parts:
        raise DataError(
            f"{path} holds no scored corpus (no .parquet or .arrow files); give the --output of "
            "jobs.score_corpus, or a data set with columns texts and scores"
        )
    return parts


def _files_of(path: str, filesystem: fsspec.AbstractFileSystem, root: str, *, tells: bool = True) -> Sequence[str]:
    data_set = open_data_set(path, option="data set")
    if data_set is not None and not has_ours(filesystem, root, PLAN):
        return [file for file in (posixpath.join(root, name) for name in data_set.files) if _is_table(file)]
    if filesystem.isfile(root):
        return [root]
    if filesystem.isdir(root):
        if not filesystem.exists(posixpath.join(root, SUCCESS)) and has_ours(filesystem, root, PLAN):
            raise DataError(f"{path} is not finished (it has no {SUCCESS}); run its jobs.score_corpus command again")
        parts = parts_in(filesystem, root)
        _check_number(filesystem, root, parts)
        parts = parts or data_files(list_files(filesystem, root, enters=_may_be_entered), root, tells=tells)
    else:
        parts = sorted(match_files(filesystem, root, enters=visible_folders(filesystem, Counter(), pattern=root)))
    return parts


def _check_number(filesystem: fsspec.AbstractFileSystem, root: str, parts: Sequence[str]) -> None:
    """Refuse a corpus if parts were added or removed by hand: its statistics and thresholds would fit other data."""
    file = posixpath.join(root, MANIFEST)
    if not filesystem.exists(posixpath.join(root, SUCCESS)) or not filesystem.exists(file):
        return
    try:
        expected = json.loads(filesystem.cat_file(file))["num_parts"]
    except (ValueError, KeyError, TypeError):
        return  # `read_corpus_manifest` says what is wrong with the manifest.
    if expected != len(parts):
        raise DataError(
            f"{root} has {len(parts)} parts, but its {MANIFEST} says {expected}; remove {SUCCESS} and run its "
            "jobs.score_corpus command again, which removes foreign parts and writes missing ones"
        )


def data_files(files: Iterable[str], root: str, *, tells: bool = True) -> list[str]:
    """Return the tables of a data set in a folder, in order; if it has splits, those to train on.

    `tells`: whether to log which files are left out.
    """
    tables = [file for file in sorted(files) if _is_table(file) and may_hold_data(file)]
    chosen = training_files(tables)
    if tells and len(chosen) < len(tables):
        others = [posixpath.relpath(file, root) for file in tables if file not in set(chosen)]
        log.info("%s: reading the split to train on; leaving out %s", root, some_names(others))
    return chosen


def _is_table(file: str) -> bool:
    return file.lower().endswith((".parquet", *ARROW))


def may_hold_data(file: str) -> bool:
    """Whether a file can be part of a data set, by its name: `datasets` keeps results of its own next to the data."""
    return not posixpath.basename(file).startswith((".", "cache-"))


def _may_be_entered(folder: str) -> bool:
    return may_hold_data(folder) and not is_hidden(folder) and posixpath.basename(folder) != REJECTED


def read_corpus(path: str) -> Iterator[ScoredDocument]:
    """Yield all documents of a corpus, by part and then by row. Memory: a few hundred documents."""
    for part in list_parts(path):
        yield from read_part(part)


def read_part(path: str) -> Iterator[ScoredDocument]:
    """Yield the documents of one file from `list_parts`, in order."""
    for row, record in enumerate(read_rows(path)):
        yield scored_document(record, source=posixpath.basename(path), row=row)


def scored_document(record: Mapping[str, Any], *, source: str, row: int) -> ScoredDocument:
    """Convert a row of a phf-ray corpus or of the original's data (`meta` a struct or absent, no id, no errors)."""
    texts = record.get("texts")
    scores = record.get("scores")
    if texts is None or scores is None:
        raise DataError(
            f"{source}, row {row}: no texts or no scores (columns: {', '.join(record)}); "
            "a scored corpus has both, see jobs.score_corpus"
        )
    for name, cell in (("texts", texts), ("scores", scores)):
        for value in cell if isinstance(cell, list) else [cell]:
            if isinstance(value, Unreadable):
                raise DataError(f"{source}, row {row}: column {name!r} can't be read: {value.detail}")
    if None in texts:
        raise DataError(f"{source}, row {row}: segment {texts.index(None)} of texts is null; segments must be strings")
    values = [score if score is not None and math.isfinite(score) else None for score in scores]
    errors = record.get("errors")
    if errors is None:
        errors = [None if value is not None else "unknown: the data set has no score here" for value in values]
    return ScoredDocument(
        id=id_of(record) or document_id(source, row, "".join(texts)),
        texts=tuple(texts),
        scores=tuple(values),
        errors=tuple(errors),
        meta=meta_text(record),
    )


def id_of(record: Mapping[str, Any]) -> str:
    """Return the id of a record; empty if it has none, or one that can't be read."""
    identifier = record.get("id")
    if identifier is None or isinstance(identifier, Unreadable):
        return "" if identifier is None or identifier.shown is None else identifier.shown
    try:
        return storable(str(identifier))
    except (ValueError, RecursionError):
        return meta_json(identifier)


def meta_text(record: Mapping[str, Any]) -> str:
    meta = record.get("meta")
    return meta if isinstance(meta, str) else meta_json(meta or {})


def find_corpus_manifest(path: str) -> CorpusManifest | None:
    """Return the manifest that jobs.score_corpus wrote for this corpus; None for other data sets.

    Does not look at the parts; see `list_parts`.
    """
    filesystem, root = open_source(path)
    try:
        with store_errors(path):
            if not filesystem.isdir(root) or not has_ours(filesystem, root, MANIFEST):
                return None
            content = filesystem.cat_file(posixpath.join(root, MANIFEST))
        return CorpusManifest.from_json(json.loads(content))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}/{MANIFEST} is not a manifest of a scored corpus: {error!r}; score it again") from None


def read_corpus_manifest(path: str) -> CorpusManifest:
    """Return the manifest of a corpus that jobs.score_corpus wrote. See `stored` for data sets without one."""
    list_parts(path)
    manifest = find_corpus_manifest(path)
    if manifest is None:
        raise DataError(f"{path} has no {MANIFEST} of jobs.score_corpus; give the --output of a scoring job")
    return manifest
