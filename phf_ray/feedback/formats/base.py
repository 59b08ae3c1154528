"""What a format is, and the values that all formats read alike."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from phf_ray.corpus.cells import Unreadable
from phf_ray.feedback.rows import FeedbackRow
from phf_ray.feedback.values import finite_number
from phf_ray.generation.chat.prompts import ASSISTANT, Message

Record = Mapping[str, Any]
Notes = tuple[Mapping[str, Any], Mapping[str, Any]]
"""Of two answers, such as `{"generator": "gpt-4"}`. `meta` has them as `generator_1`, `generator_2`."""
TIE = 1.5
JOINED = "joined records"
"""Where a record that was made of several has them (`join.py`)."""


class UnfitRecord(Exception):  # noqa: N818  not an error: the record is rejected with this reason
    """A record that can't become a row."""

    def __init__(self, reason: str, detail: str):
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


Pairs = Literal["all", "best"]


@dataclass(frozen=True, slots=True)
class Reading:
    """What a user may choose about how records are read."""

    as_text: bool = False
    """Keep dialogues as text, not as messages."""
    pairs: Pairs = "all"
    """Of ranked answers: all pairs, or the best with each of the others."""


@dataclass(frozen=True, slots=True)
class Converted:
    """The rows of a record, and the columns that they were made of; all others go to `meta`."""

    rows: tuple[FeedbackRow, ...]
    columns: frozenset[str]
    names_better: bool = False
    """Whether the format names the better answer, which is then `output_1`, so that the order is still to be drawn."""
    notes: tuple[Notes, ...] = ()
    """For each row, what is known of its first answer and of its second. Empty: nothing."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """Parts of the columns that are in no row."""


@dataclass(frozen=True, slots=True)
class FeedbackFormat:
    columns: tuple[tuple[str, ...], ...]
    """Sets of columns, one of which a record must have. Other columns may be there too."""
    fits: Callable[[Record], bool]
    """Whether a record that has such columns is of this format. For formats that share their columns."""
    convert: Callable[[Record, Reading], Converted]
    """Turn a record into rows. Raises UnfitRecord."""
    holds_dialogues: bool = False
    """Whether --as-text means something."""
    joins: str | None = None
    """Column whose text is the same in records that follow each other and are one: {column: text, JOINED: records}.
    Files of such a format are not cut."""

    def columns_in(self, record: Record) -> tuple[str, ...] | None:
        """Return the first set of columns that a record has; None if it has none."""
        return next((names for names in self.columns if all(name in record for name in names)), None)

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


def objects_of(record: Record, name: str) -> list[Mapping[str, Any]]:
    """Return a list of objects. Raises UnfitRecord if the column holds something else.

    `datasets` used to store a list of objects as an object of lists, and many Parquet files have it so.
    """
    value = record.get(name)
    if isinstance(value, dict) and value and all(isinstance(one, list) for one in value.values()):
        lengths = {key: len(one) for key, one in value.items()}
        if len({*lengths.values()}) > 1:
            raise UnfitRecord("unequal_lists", f"column {name!r} holds lists of unequal lengths: {lengths}")
        return [dict(zip(value, cells, strict=True)) for cells in zip(*value.values(), strict=True)]
    if isinstance(value, list) and all(isinstance(one, dict) for one in value):
        return value
    if value is None:
        raise UnfitRecord("no_column", f"no value in column {name!r}")
    if isinstance(value, Unreadable):
        raise UnfitRecord(value.reason, f"column {name!r}: {value.detail}")
    raise UnfitRecord("not_objects", f"column {name!r} holds no list of objects")


def number_of(record: Record, name: str) -> float | None:
    """Return a finite number; None for every other value."""
    return finite_number(record.get(name))


def preference_by_index(record: Record, name: str) -> float | None:
    """Return the preference for answer 0 or answer 1, whichever the column names; None for every other value."""
    value = number_of(record, name)
    return None if value is None else {0.0: 1.0, 1.0: 2.0}.get(value)


def by_people(text: str, what: str) -> str:
    """Return a text of Reddit. Raises UnfitRecord if its author or a moderator took it back."""
    if text.strip().lower() in ("[removed]", "[deleted]"):
        raise UnfitRecord("removed", f"{what} is {text.strip()!r}: it was taken back")
    return text


def preference_of(record: Record, *, zero_is_tie: bool) -> float | None:
    """Return a preference in 1..2; None, unknown, for every other value: nothing says which answer it means.

    `zero_is_tie`: AlpacaFarm's first version wrote a tie as 0.
    """
    value = number_of(record, "preference")
    if value == 0 and zero_is_tie:
        return TIE
    return value if value is not None and 1 <= value <= 2 else None


def judged_columns(preference: float | None, record: Record) -> frozenset[str]:
    """Return the columns that hold the judgement. A preference that is read as another value is kept in `meta`, too."""
    stored = record.get("preference")
    return frozenset({"annotator"} if preference != stored else {"annotator", "preference"})


def annotator_of(record: Record, name: str = "annotator") -> str | None:
    value = record.get(name)
    if isinstance(value, list):  # of MT-bench: ["gpt-4", "pair-v2"]
        return "/".join(map(str, value)) or None
    return None if value is None or value == "" else str(value)
