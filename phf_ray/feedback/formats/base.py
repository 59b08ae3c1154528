"""What a format is, and the values that all formats read alike."""

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from phf_ray.corpus.cells import Unreadable
from phf_ray.feedback.rows import FeedbackRow
from phf_ray.generation.chat.prompts import ASSISTANT, Message

Record = Mapping[str, Any]


class UnfitRecord(Exception):  # noqa: N818  not an error: the record is rejected with this reason
    """A record that can't become a row."""

    def __init__(self, reason: str, detail: str):
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Converted:
    """A row, and the columns of the record that it was made of; all others go to `meta`."""

    row: FeedbackRow
    columns: frozenset[str]
    names_better: bool = False
    """Whether the format names the better answer, which is then `output_1`, so that the order is still to be drawn."""


@dataclass(frozen=True, slots=True)
class FeedbackFormat:
    columns: tuple[tuple[str, ...], ...]
    """Sets of columns, one of which a record must have. Other columns may be there too."""
    fits: Callable[[Record], bool]
    """Whether a record that has such columns is of this format. For formats that share their columns."""
    convert: Callable[[Record, bool], Converted]
    """Turn a record into a row; the flag is --as-text. Raises UnfitRecord."""

    def has_columns(self, record: Record) -> bool:
        return any(all(name in record for name in names) for names in self.columns)

    def __str__(self) -> str:
        return " | ".join(", ".join(names) for names in self.columns)


def text_of(record: Record, name: str) -> str:
    """Return a text. Raises UnfitRecord if there is none."""
    value = record.get(name)
    if isinstance(value, str):
        return value
    if value is None:
        raise UnfitRecord("no_column", f"no value in column {name!r}")
    if isinstance(value, Unreadable):
        raise UnfitRecord(value.reason, f"column {name!r}: {value.detail}")
    raise UnfitRecord("not_text", f"column {name!r} holds a {type(value).__name__}, not a text")


def common_beginning(first: str, second: str) -> str:
    return os.path.commonprefix([first, second])  # noqa: RUF071  its characters are wanted, not folders


def messages_of(record: Record, name: str) -> tuple[Message, ...]:
    """Return a list of messages. Raises UnfitRecord if the column holds something else."""
    value = record.get(name)
    if not isinstance(value, list):
        text_of(record, name)
        raise UnfitRecord("not_messages", f"column {name!r} holds a text, not messages")
    return tuple(_message(one, f"column {name!r}, message {index}") for index, one in enumerate(value))


def _message(value: Any, where: str) -> Message:
    if not isinstance(value, dict) or not isinstance(value.get("role"), str):
        raise UnfitRecord("not_messages", f"{where} is no object with a role")
    if value.get("tool_calls"):
        raise UnfitRecord("tool_calls", f"{where} calls a tool, which can't be stored")
    content = value.get("content")
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        content = "".join(str(part.get("text") or "") for part in content)
    if not isinstance(content, str):
        raise UnfitRecord("not_messages", f"{where} has no text")
    return Message(value["role"], content)


def answer_of(messages: tuple[Message, ...], name: str) -> str:
    """Return the text of the one answer that these messages are."""
    if [message.role for message in messages] != [ASSISTANT]:
        roles = ", ".join(message.role for message in messages) or "nothing"
        raise UnfitRecord("not_one_answer", f"column {name!r} holds {roles} after the prompt, not one answer")
    return messages[0].content


def preference_of(record: Record, *, zero_is_tie: bool) -> float | None:
    """Return a preference in 1..2; None, unknown, for every other value: nothing says which answer it means.

    `zero_is_tie`: AlpacaFarm's first version wrote a tie as 0.
    """
    value = record.get("preference")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    if value == 0 and zero_is_tie:
        return 1.5
    return float(value) if 1 <= value <= 2 else None


def judged_columns(preference: float | None, record: Record) -> frozenset[str]:
    """Return the columns that hold the judgement. A preference that is read as another value is kept in `meta`, too."""
    stored = record.get("preference")
    return frozenset({"annotator"} if preference != stored else {"annotator", "preference"})


def annotator_of(record: Record) -> str | None:
    value = record.get("annotator")
    return None if value is None or value == "" else str(value)
