"""Reads scored corpora: phf-ray's own, and the unmodified data sets published with the original code."""

import json
import math
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import fsspec

from phf_ray.corpus.layout import MANIFEST, PLAN, REJECTED, SUCCESS, TEMPORARY, document_id, has_ours, parts_in
from phf_ray.corpus.manifest import CorpusManifest
from phf_ray.corpus.tables import read_rows
from phf_ray.errors import DataError
from phf_ray.records import ScoredDocument
from phf_ray.storage.files import full_name, store_errors
from phf_ray.storage.listing import list_files, match_files, open_source


def list_parts(path: str) -> list[str]:
    """List the files of a scored corpus in order, to be read with `read_part`.

    `path` is a folder that jobs.score_corpus wrote, or any folder, file, glob, URL or hub id of a data set with
    columns `texts` and `scores` (Parquet, or Arrow as `datasets` saves it).
    """
    with store_errors(path):
        filesystem, root = open_source(path)
        return [full_name(filesystem, part) for part in _list_parts(path, filesystem, root)]


def _list_parts(path: str, filesystem: fsspec.AbstractFileSystem, root: str) -> Sequence[str]:
    if filesystem.isfile(root):
        return [root]
    if filesystem.isdir(root):
        if not filesystem.exists(posixpath.join(root, SUCCESS)) and has_ours(filesystem, root, PLAN):
            raise DataError(f"{path} is not finished (it has no {SUCCESS}); run its jobs.score_corpus command again")
        parts = parts_in(filesystem, root)
        _check_number(filesystem, root, parts)
        parts = parts or data_files(list_files(filesystem, root, enters=_may_hold_data), root)
    else:
        parts = sorted(match_files(filesystem, root))
    if not parts:
        raise DataError(
            f"{path} holds no scored corpus (no .parquet or .arrow files); give the --output of "
            "jobs.score_corpus, or a data set with columns texts and scores"
        )
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


def data_files(files: Iterable[str], root: str) -> list[str]:
    visible = [
        file
        for file in sorted(files)
        if file.endswith((".parquet", ".arrow"))
        and all(_may_hold_data(part) for part in posixpath.relpath(file, root).split("/"))
    ]
    # If the data set has splits, use the one to train on.
    return [file for file in visible if "train" in posixpath.relpath(file, root)] or visible


def _may_hold_data(path: str) -> bool:
    name = posixpath.basename(path)
    return not name.startswith((".", "cache-")) and name not in (REJECTED, TEMPORARY)


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
    """Return the id of a record; empty if it has none."""
    identifier = record.get("id")
    return "" if identifier is None else str(identifier)


def meta_text(record: Mapping[str, Any]) -> str:
    meta = record.get("meta")
    return meta if isinstance(meta, str) else json.dumps(meta or {}, ensure_ascii=True, default=str)


def has_manifest(path: str) -> bool:
    """Whether jobs.score_corpus wrote a manifest for this corpus. Other data sets have none."""
    filesystem, root = open_source(path)
    with store_errors(path):
        return bool(filesystem.isdir(root)) and has_ours(filesystem, root, MANIFEST)


def read_corpus_manifest(path: str) -> CorpusManifest:
    """Return the manifest of a corpus that jobs.score_corpus wrote. See `stored` for data sets without one."""
    list_parts(path)
    if not has_manifest(path):
        raise DataError(f"{path} has no {MANIFEST} of jobs.score_corpus; give the --output of a scoring job")
    filesystem, root = open_source(path)
    try:
        with store_errors(path):
            content = filesystem.cat_file(posixpath.join(root, MANIFEST))
        return CorpusManifest.from_json(json.loads(content))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}/{MANIFEST} is not a manifest of a scored corpus: {error!r}; score it again") from None
