"""Finds prompts of a feedback corpus that another set has: whole, or 13 words in a row.

The other set is held in memory, a hash for every word, and ours is read past it: the smaller set, such as that of an
evaluation, is the one to name with `--against`.
"""

import contextlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from phf_ray.corpus.cut import Piece
from phf_ray.corpus.find import InputFile
from phf_ray.corpus.overlap import OverlapIndex, shared_words
from phf_ray.corpus.read import read_rows_of
from phf_ray.errors import ConfigError, DataError
from phf_ray.feedback.detect import detect
from phf_ray.feedback.formats.base import Record, UnfitRecord
from phf_ray.feedback.formats.hh import HUMAN_MARK, dialogue
from phf_ray.feedback.formats.table import AUTO
from phf_ray.feedback.plan import FeedbackRequest
from phf_ray.feedback.prepare import Prepared, RowSettings, prepare_record
from phf_ray.generation.chat.prompts import ChatPrompt, Message, Prompt, prompt_text
from phf_ray.records import Rejected

COLUMNS = ("prompt", "instruction", "question", "messages", "text", "texts")
"""Where a record of no known format may hold its prompt; the first that is there is taken."""
MOST_MATCHES = 1000
"""Matches that are kept to be shown. All are counted."""


@dataclass(frozen=True, slots=True)
class OtherSet:
    """A set whose prompts, or texts, are compared with those of a feedback corpus."""

    name: str
    files: tuple[InputFile, ...]
    settings: RowSettings | None
    """How its records become rows; None: they are of no format, but hold one of `COLUMNS`."""

    def prompts(self) -> Iterator[str | None]:
        """Yield the prompts; None for a record that has none."""
        for file in self.files:
            for index, record in read_rows_of(file, Piece(0, 0)):
                yield None if isinstance(record, Rejected) else self._prompt(record, file.source, index)

    def _prompt(self, record: Record, source: str, index: int) -> str | None:
        if self.settings is not None:
            for made in prepare_record(record, source=source, index=index, settings=self.settings):
                if isinstance(made, Prepared) and made.rows[0].prompt is not None:
                    return words_of(made.rows[0].prompt)
        return _in_columns(record)


def find_other_set(source: str) -> OtherSet:
    """Find a set: whatever prepare-feedback reads, a scored corpus, or records with one of `COLUMNS`.

    Raises ConfigError if there is none, or no record at its beginning has a prompt.
    """
    files = FeedbackRequest([source]).find(option="--against").files
    try:
        return OtherSet(source, files, detect(files, RowSettings(AUTO)).settings)
    except (ConfigError, DataError):
        other = OtherSet(source, files, None)
    if not any(prompt is not None for _, prompt in zip(range(100), other.prompts(), strict=False)):
        raise ConfigError(
            f"--against {source} has no prompts: its records are in no format of feedback and have none of the "
            f"columns {', '.join(COLUMNS)}; rename the column that holds them"
        )
    return other


def words_of(prompt: Prompt) -> str:
    """Return a prompt as its words alone: the same question as a text, a message and a dialogue of HH-RLHF is one."""
    if isinstance(prompt, ChatPrompt):
        return _contents(prompt.messages)
    text = prompt_text(prompt)
    if text.lstrip().startswith(HUMAN_MARK.strip()):
        with contextlib.suppress(UnfitRecord):
            return _contents(dialogue(text.rstrip()))
    return text


@dataclass(frozen=True, slots=True)
class Match:
    """A prompt of ours, and one of the other set that it occurs in."""

    prompt: str
    other: str
    words: str | None
    """13 words in a row that both have; None: they are equal but for case, punctuation and white space."""


@dataclass(slots=True)
class PromptOverlap:
    """Which prompts of a feedback corpus another set has."""

    name: str
    num_prompts: int
    """Different prompts of the other set."""
    num_unread: int
    """Records of the other set without a prompt."""
    exact: "array[int]" = field(default_factory=lambda: array("Q"))
    """Keys of our prompts that it has, once for each row."""
    shared: "array[int]" = field(default_factory=lambda: array("Q"))
    """Keys of our prompts that are not there, but share 13 words in a row with one of it."""
    matches: list[Match] = field(default_factory=list)


class PromptFinder:
    """Looks for prompts in one other set."""

    def __init__(self, other: OtherSet):
        texts: dict[str, None] = {}
        num_unread = 0
        for prompt in other.prompts():
            if prompt is None:
                num_unread += 1
            else:
                texts[prompt] = None
        self._texts: Sequence[str] = list(texts)
        self._index = OverlapIndex(self._texts)
        self._shown: set[int] = set()
        self.overlap = PromptOverlap(other.name, len(texts), num_unread)

    def look_for(self, prompt: str, key: int) -> None:
        """Count a row's prompt. `key`: the same for equal prompts."""
        found = self._index.find(prompt)
        if not found.exact and not found.shared:
            return
        (self.overlap.exact if found.exact else self.overlap.shared).append(key)
        if key in self._shown or len(self._shown) >= MOST_MATCHES:
            return
        self._shown.add(key)
        other = self._texts[min(found.exact or found.shared)]
        words = None if found.exact else shared_words(prompt, other)
        self.overlap.matches.append(Match(prompt, other, words))


def _in_columns(record: Record) -> str | None:
    text = next((_as_text(record[name]) for name in COLUMNS if record.get(name) is not None), None)
    given = record.get("input") if "instruction" in record and "prompt" not in record else None
    return f"{text}\n\n{given}" if text is not None and isinstance(given, str) and given else text


def _as_text(value: Any) -> str | None:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return "".join(value)
    if isinstance(value, list) and all(isinstance(one, dict) and isinstance(one.get("content"), str) for one in value):
        return _contents([Message(str(one.get("role")), one["content"]) for one in value])
    return None


def _contents(messages: Sequence[Message]) -> str:
    return "\n\n".join(message.content for message in messages)
