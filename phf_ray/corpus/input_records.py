"""Turns a record of an input file into a Document, a Segmented document, or Rejected with a reason."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from phf_ray.corpus import streams
from phf_ray.corpus.cells import Unreadable
from phf_ray.corpus.columns import META_COLUMNS, TEXT_COLUMNS
from phf_ray.corpus.json_text import as_json, meta_json
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
) -> Record:
    name = text_column or next((name for name in TEXT_COLUMNS if name in record), None)
    content = None if name is None else record.get(name)
    if content is None:
        return Rejected(source, index, "no_text", f"no value in column {name!r}" if name else "no text column")
    if isinstance(content, str):
        origin = {"source": source, "record": index}
        kept = {key: record[key] for key in META_COLUMNS if record.get(key) is not None}
        return document_of(content, source=source, record=index, meta={**kept, **origin})
    for value in content if isinstance(content, list) else [content]:
        if isinstance(value, Unreadable):
            return Rejected(source, index, value.reason, f"column {name!r}: {value.detail}")
    if not isinstance(content, list) or not all(isinstance(segment, str) for segment in content):
        return Rejected(source, index, "not_text", f"column {name!r} holds neither a string nor a list of strings")
    return _segmented(record, content, source=source, index=index, reuse=reuse or {})


def _segmented(
    record: Mapping[str, Any],
    texts: list[str],
    *,
    source: str,
    index: int,
    reuse: Mapping[str, tuple[str, str]],
) -> Segmented | Rejected:
    problem = _problem_of("".join(texts))
    if problem is not None:
        return Rejected(source, index, *problem)
    known: dict[str, Any] = {
        scorer: (record.get(scores), record.get(errors)) for scorer, (scores, errors) in reuse.items()
    }
    for scorer, columns in known.items():
        if not all(isinstance(column, list) and len(column) == len(texts) for column in columns):
            detail = f"not one score and one error of {scorer} for each of {len(texts)} segments"
            return Rejected(source, index, "bad_scores", detail)
    meta = record.get("meta") if "meta" in record else {"source": source, "record": index}
    return Segmented(
        id=id_of(record) or document_id(source, index, "".join(texts)),
        texts=tuple(texts),
        meta=as_json(meta) if isinstance(meta, str) else meta_json(meta or {}),
        scores=known,
    )
