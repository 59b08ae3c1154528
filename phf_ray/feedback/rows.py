"""The rows of a feedback corpus."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from phf_ray.generation.chat.prompts import Message, Prompt

Verdict = Literal["first", "second", "tie", "unknown"]


@dataclass(frozen=True, slots=True)
class FieldRecord:
    """A text in parts, some of them learned; see `hindsight/fields.py`."""

    fields: str
    texts: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt and its answer; a whole conversation, whose prompt is None; or a record with fields."""

    prompt: Prompt | None
    completion: str = ""
    conversation: tuple[Message, ...] = ()
    label: bool | None = None
    """Whether the answer is good, where answers are judged one by one (KTO)."""
    record: FieldRecord | None = None
    """All of the text, the answers too. The prompt is then only what the first answer answers."""
    control: Literal["good", "bad"] | None = None
    """Control token that the answer stands behind, by the name that `phf.json` has for it."""
    id: str = ""
    meta: str = "{}"
    """JSON: where the row came from, and the columns of the source that are no part of it."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """A prompt, two answers, and which is better."""

    prompt: Prompt
    output_1: str
    output_2: str
    preference: float | None
    """1: the first answer is better; 2: the second; between them for degrees, 1.5 a tie; None: unknown."""
    annotator: str | None = None
    id: str = ""
    meta: str = "{}"

    @property
    def verdict(self) -> Verdict:
        if self.preference is None:
            return "unknown"
        return "tie" if self.preference == 1.5 else "first" if self.preference < 1.5 else "second"

    @property
    def better(self) -> str | None:
        """The better answer; None if nothing says which it is."""
        return {"first": self.output_1, "second": self.output_2}.get(self.verdict)

    @property
    def worse(self) -> str | None:
        return {"first": self.output_2, "second": self.output_1}.get(self.verdict)


FeedbackRow = Example | Comparison
