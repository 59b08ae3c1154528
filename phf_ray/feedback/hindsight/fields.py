"""The grammar of `fields`, which says what a record's text is and which parts of it are learned.

    [marker_user+human_0+marker_gpt],gpt_0,<|eos|>

Fields are separated by commas. A field names keys of the record; `a+b` is their texts with a space between them. What
stands in brackets is seen and not learned. `<|bos|>` and `<|eos|>` are the tokenizer's tokens. Each field is tokenized
by itself, and nothing stands between two fields.
"""

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from phf_ray.feedback.rows import FieldRecord

SEPARATOR = " "
_TOKEN = re.compile(r"<\|(.*)\|>")
TOKENS = ("bos", "eos")
MARKER = "marker"
"""Keys that begin with this hold feedback, or say who speaks."""


class FieldsError(ValueError):
    """A record that its fields do not fit; `reason` is for machines."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason


class Field(NamedTuple):
    keys: tuple[str, ...]
    """Empty for a token."""
    token: str | None
    """One of TOKENS; None: a text."""
    is_learned: bool


class FieldPiece(NamedTuple):
    """Part of a record's text, or a token."""

    text: str
    token: str | None
    is_learned: bool


def parse_fields(spec: str) -> tuple[Field, ...]:
    """Parse `fields`. Raises FieldsError."""
    if not spec.strip():
        raise FieldsError("no_fields", "`fields` is empty")
    return tuple(_field(part.strip(), spec) for part in spec.split(","))


def _field(part: str, spec: str) -> Field:
    is_given = part.startswith("[") and part.endswith("]")
    inner = part[1:-1] if is_given else part
    keys = tuple(key.strip() for key in inner.split("+"))
    if not all(keys) or any(mark in inner for mark in "[]"):
        raise FieldsError("bad_fields", f"field {part!r} of {spec!r} names no keys; write a key, or [a+b]")
    token = _TOKEN.fullmatch(inner)
    if token is None:
        return Field(keys, None, not is_given)
    if token[1] not in TOKENS:
        known = " and ".join(f"<|{name}|>" for name in TOKENS)
        raise FieldsError("unknown_token", f"{inner} is unknown; the tokens of a record are {known}")
    return Field((), token[1], not is_given)


def pieces_of(spec: str, texts: Mapping[str, str]) -> tuple[FieldPiece, ...]:
    """Return the parts of a record. Raises FieldsError if a key is missing or nothing is learned."""
    pieces = []
    for field in parse_fields(spec):
        missing = next((key for key in field.keys if not isinstance(texts.get(key), str)), None)
        if missing is not None:
            raise FieldsError("no_field", f"`fields` names {missing!r}, and the record has no text by that name")
        text = SEPARATOR.join(texts[key] for key in field.keys)
        pieces.append(FieldPiece(text, field.token, field.is_learned))
    if not any(piece.is_learned and piece.text.strip() for piece in pieces):
        raise FieldsError("empty_answer", "no text of the record is learned: all fields are in brackets, or blank")
    return tuple(pieces)


def question_of(spec: str, texts: Mapping[str, str]) -> str:
    """Return what the first answer answers, without markers: records with the same question stay together."""
    for key in _given_keys(spec):
        if not key.startswith(MARKER):
            return texts[key]
    return ""


def learned_texts(record: FieldRecord) -> list[str]:
    """Return the texts that are learned: the answers."""
    return [piece.text for piece in pieces_of(record.fields, record.texts) if piece.is_learned and piece.token is None]


def _given_keys(spec: str) -> Iterator[str]:
    for field in parse_fields(spec):
        if field.is_learned and field.token is None:
            return
        if not field.is_learned:
            yield from field.keys
