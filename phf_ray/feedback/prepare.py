"""Turns one record into the rows of a feedback corpus, with their ids, or into Rejected with a reason.

Most records hold one comparison or example; a record of ranked answers holds several, each of which is stored or
rejected for itself.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from phf_ray.characters import half_at
from phf_ray.corpus.json_text import meta_json, parse_json
from phf_ray.feedback.formats.base import Converted, Notes, Pairs, Reading, Record, UnfitRecord
from phf_ray.feedback.formats.table import FORMATS
from phf_ray.feedback.hindsight.records import field_records
from phf_ray.feedback.hindsight.settings import COH, HindsightSettings
from phf_ray.feedback.rows import Comparison, Example, FeedbackRow
from phf_ray.feedback.turn import TURNS, examples_of
from phf_ray.generation.chat.prompts import ChatPrompt, InstructionPrompt, Prompt, TextPrompt, prompt_text
from phf_ray.records import Rejected

KEY_BYTES = 16
NO_COMPARISON = "no_comparison"
USES = (*TURNS, COH)
"""What comparisons can be made into."""


@dataclass(frozen=True, slots=True)
class RowSettings:
    """Everything that decides how a record becomes rows."""

    format: str
    to: str | None = None
    """One of `USES`; None: rows are stored as they are."""
    as_text: bool = False
    pairs: Pairs = "all"
    hindsight: HindsightSettings | None = None
    """For `to: coh`."""

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        hindsight = values.get("hindsight")
        return cls(**{**values, "hindsight": None if hindsight is None else HindsightSettings.from_json(hindsight)})

    @property
    def reading(self) -> Reading:
        return Reading(self.as_text, self.pairs)


@dataclass(frozen=True, slots=True)
class Prepared:
    """One row, or the examples made of one comparison."""

    key: bytes
    """Hash of the content: of equal keys, only the first is stored."""
    rows: tuple[FeedbackRow, ...]


def prepare_record(record: Record, *, source: str, index: int, settings: RowSettings) -> list[Prepared | Rejected]:
    """Turn a record into what it holds: one row, or one for each pair of ranked answers; or into Rejected."""
    try:
        converted = FORMATS[settings.format].convert(record, settings.reading)
    except UnfitRecord as problem:
        return [Rejected(source, index, problem.reason, problem.detail)]
    meta = _meta(record, converted, source, index)
    notes = converted.notes or (({}, {}),) * len(converted.rows)
    prepared: list[Prepared | Rejected] = []
    for row, about in zip(converted.rows, notes, strict=True):
        try:
            prepared.append(_prepare(row, source, meta, about, names_better=converted.names_better, settings=settings))
        except UnfitRecord as problem:
            prepared.append(Rejected(source, index, problem.reason, problem.detail))
    return prepared


def _prepare(
    row: FeedbackRow, source: str, meta: Mapping[str, Any], notes: Notes, *, names_better: bool, settings: RowSettings
) -> Prepared:
    content = _checked_content(row)
    key = _hash(content)
    row_id = _hash(f"[{json.dumps(source)}, {content}]").hex()
    if names_better and is_swapped(row_id):
        notes = notes[1], notes[0]
    row = replace(row, id=row_id, meta=meta_json({**meta, **_numbered(notes)}))
    if isinstance(row, Comparison) and names_better:
        row = in_drawn_order(row)
    if settings.to is None:
        return Prepared(key, (row,))
    if not isinstance(row, Comparison):
        raise UnfitRecord(NO_COMPARISON, f"--to {settings.to} needs comparisons, and this is an example")
    examples = [
        replace(example, id=_hash(json.dumps([row.id, settings.to, number])).hex(), meta=row.meta)
        for number, example in enumerate(_examples(row, settings))
    ]
    if settings.to in TURNS and TURNS[settings.to].drops_equal_examples:
        key = _hash(json.dumps([_content_of(example) for example in examples]))
    return Prepared(key, tuple(examples))


def _examples(row: Comparison, settings: RowSettings) -> Sequence[Example]:
    if settings.to == COH:
        assert settings.hindsight is not None, "the request was checked"
        records = field_records(row, settings.hindsight, format=settings.format)
        return [Example(TextPrompt(prompt_text(row.prompt)), record=record) for record in records]
    assert settings.to is not None
    return examples_of(row, settings.to)


def in_drawn_order(comparison: Comparison) -> Comparison:
    """Swap the answers of half of all comparisons; a hash of the id decides which.

    If the better answer always came first, a judge that always says "the first" would look perfect.
    """
    if not is_swapped(comparison.id):
        return comparison
    preference = None if comparison.preference is None else 3 - comparison.preference
    return replace(comparison, output_1=comparison.output_2, output_2=comparison.output_1, preference=preference)


def is_swapped(row_id: str) -> bool:
    """Whether the answers of this row change places, where the format names the better one."""
    return hashlib.blake2b(row_id.encode(), digest_size=1, person=b"phf-order").digest()[0] % 2 == 1


def _checked_content(row: FeedbackRow) -> str:
    """Return what decides a row, as JSON. Raises UnfitRecord if an answer is empty or can't be stored."""
    answers = (row.output_1, row.output_2) if isinstance(row, Comparison) else (row.completion,)
    is_answered = row.prompt is not None and not (isinstance(row, Example) and row.record is not None)
    if is_answered and not all(answer.strip() for answer in answers):
        raise UnfitRecord("empty_answer", "an answer has no characters besides white space")
    if isinstance(row, Comparison) and row.output_1 == row.output_2 and row.better is not None:
        raise UnfitRecord("equal_answers", "the two answers are the same, and yet one is called better")
    values = _content_of(row)
    content = json.dumps(values)
    if "\\ud" in content:  # characters that JSON writes as two surrogates, or one that has lost its other half
        half = half_at(json.dumps(values, ensure_ascii=False))
        if half is not None:
            raise UnfitRecord("lone_surrogate", f"character {half} is half of a surrogate pair")
    return content


def _content_of(row: FeedbackRow) -> list[Any]:
    if isinstance(row, Comparison):
        return [_prompt_content(row.prompt), row.output_1, row.output_2, row.preference, row.annotator]
    if row.prompt is None:
        return ["conversation", [[message.role, message.content] for message in row.conversation]]
    if row.record is not None:
        return ["fields", row.record.fields, sorted(row.record.texts.items())]
    return [_prompt_content(row.prompt), row.completion, row.label, row.control]


def _prompt_content(prompt: Prompt) -> list[Any]:
    if isinstance(prompt, TextPrompt):
        return ["text", prompt.text]
    if isinstance(prompt, InstructionPrompt):
        return ["instruction", prompt.instruction, prompt.input]
    assert isinstance(prompt, ChatPrompt)
    return ["messages", [[message.role, message.content] for message in prompt.messages]]


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=KEY_BYTES).digest()


def _meta(record: Mapping[str, Any], converted: Converted, source: str, index: int) -> dict[str, Any]:
    """Return the columns that are no part of the row, and where the record came from."""
    renamed = {"source": "source_column", "record": "record_column"}
    others = {
        renamed.get(name, name): _nested(value)
        for name, value in record.items()
        if name not in converted.columns and value is not None
    }
    return {**others, **converted.meta, "source": source, "record": index}


def _numbered(notes: Notes) -> dict[str, Any]:
    """Return what is known of each answer, by names that end with its number."""
    return {
        f"{name}_{number}": value
        for number, about in enumerate(notes, 1)
        for name, value in about.items()
        if value is not None
    }


def _nested(value: Any) -> Any:
    """Return metadata that is stored as JSON, as that of our own corpora is, as the values that it holds."""
    if isinstance(value, str) and value.startswith("{"):
        try:
            return parse_json(value)
        except ValueError:
            return value
    return value
