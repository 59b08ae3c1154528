"""Turns a record of an input file into a Document, a Segmented document, or Rejected with a reason."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from phf_ray.corpus import streams
from phf_ray.corpus.cells import Unreadable
from phf_ray.corpus.columns import META_COLUMNS, TEXT_COLUMNS
from phf_ray.corpus.json_text import as_json, meta_json, parse_json
from phf_ray.corpus.layout import document_id
from phf_ray.corpus.reader import id_of
from phf_ray.records import Document, Rejected, Scores


@dataclass(frozen=True, slots=True)
class Segmented:
    """A document that is already cut into segments, with scores that need not be computed again."""

    id: str
    texts: tuple[str, ...]
    meta: str
    scores: Mapping[str, Scores] = field(default_factory=dict)
    """Scorer name -> scores and errors, for scorers whose scores are reused."""


Record = Document | Segmented | Rejected


def too_large(source: str, record: int) -> Rejected:
    return Rejected(
        source, record, "too_large", f"more than {streams.MAX_DOCUMENT_BYTES} bytes; split it into documents"
    )


def document_of(text: str, *, source: str, record: int, meta: Mapping[str, Any]) -> Document | Rejected:
    problem = _problem_of(text)
    if problem is not None:
        return Rejected(source, record, *problem)
    return Document(document_id(source, record, text), text, meta_json(meta))


def _problem_of(text: str) -> tuple[str, str] | None:
    """Return reason and detail if the text can't be stored, otherwise None."""
    if not text:
        return "empty", "the document has no characters"
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError as error:
        return "lone_surrogate", f"character {error.start} is half of a surrogate pair"
    if size > streams.MAX_DOCUMENT_BYTES:
        return "too_large", f"{size} bytes, more than {streams.MAX_DOCUMENT_BYTES}; split it into documents"
    return None


def record_of(
    record: Mapping[str, Any],
    *,
    source: str,
    index: int,
    text_column: str | None,
    reuse: Mapping[str, tuple[str, str]] | None = None,
    keep: Sequence[str] = (),
) -> Record:
    """Turn a record into a document. `keep`: columns to put into its metadata besides `META_COLUMNS`."""
    names = (text_column,) if text_column else TEXT_COLUMNS
    name = next((name for name in names if record.get(name) is not None), None)
    if name is None:
        return Rejected(source, index, "no_text", f"no value in column {' or '.join(map(repr, names))}")
    content = record[name]
    origin = {"source": source, "record": index}
    kept = _kept(record, keep)
    if isinstance(content, str):
        known = {key: record[key] for key in META_COLUMNS if record.get(key) is not None}
        return document_of(content, source=source, record=index, meta={**kept, **known, **origin})
    for value in content if isinstance(content, list) else [content]:
        if isinstance(value, Unreadable):
            return Rejected(source, index, value.reason, f"column {name!r}: {value.detail}")
    if not isinstance(content, list) or not all(isinstance(segment, str) for segment in content):
        return Rejected(source, index, "not_text", f"column {name!r} holds neither a string nor a list of strings")
    problem = _problem_of("".join(content))
    if problem is not None:
        return Rejected(source, index, *problem)
    return _segmented(record, content, origin=origin, reuse=reuse or {}, kept=kept)


def _kept(record: Mapping[str, Any], keep: Sequence[str]) -> dict[str, Any]:
    """Return the columns to keep. `source` and `record` get other names: those say where the document came from."""
    renamed = {"source": "source_column", "record": "record_column"}
    return {renamed.get(name, name): record[name] for name in keep if record.get(name) is not None}


def _segmented(
    record: Mapping[str, Any],
    texts: list[str],
    *,
    origin: Mapping[str, Any],
    reuse: Mapping[str, tuple[str, str]],
    kept: Mapping[str, Any],
) -> Segmented | Rejected:
    source, index = origin["source"], origin["record"]
    known: dict[str, Any] = {
        scorer: (record.get(scores), record.get(errors)) for scorer, (scores, errors) in reuse.items()
    }
    for scorer, columns in known.items():
        if not all(isinstance(column, list) and len(column) == len(texts) for column in columns):
            detail = f"not one score and one error of {scorer} for each of {len(texts)} segments"
            return Rejected(source, index, "bad_scores", detail)
    return Segmented(
        id=id_of(record) or document_id(source, index, "".join(texts)),
        texts=tuple(texts),
        meta=_meta_with(record.get("meta") if "meta" in record else origin, kept),
        scores=known,
    )


def _meta_with(meta: Any, kept: Mapping[str, Any]) -> str:
    """Return metadata as JSON. Columns that are kept are added to it; they replace none of its keys."""
    text = as_json(meta) if isinstance(meta, str) else meta_json(meta or {})
    if not kept:
        return text
    values = parse_json(text)
    return meta_json({**kept, **(values if isinstance(values, dict) else {"meta": values})})
