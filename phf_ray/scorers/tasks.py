"""The messages between the scoring process and its parent."""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from phf_ray.records import Scores
from phf_ray.scorers.build import on_cpu


class Place(NamedTuple):
    """The child's current position. The parent reads it from shared memory."""

    document: int
    """Index in the batch; WHOLE_BATCH if texts may come from several documents, NO_DOCUMENT if the child is idle."""
    step: int
    """SEGMENTING, or 1 + index of the scorer."""
    first_text: int
    num_texts: int
    """Number of texts that can be retried one by one; IN_CONTEXT if a scorer takes a document's texts all at once."""

    @property
    def is_in_one_document(self) -> bool:
        return self.document >= 0


PLACE_STRUCT = struct.Struct("qqqq")
"""Binary form of a Place."""
SEGMENTING = 0
WHOLE_BATCH = -1
NO_DOCUMENT = -2
IN_CONTEXT = 0
IDLE = Place(document=NO_DOCUMENT, step=SEGMENTING, first_text=0, num_texts=0)
SLICE_TEXTS = 512
"""Texts per call of a scorer. They fill a GPU, and take one core a few seconds, less than the timeout of one text."""


@dataclass(frozen=True, slots=True)
class ScoringSetup:
    """What a child process builds. It holds only configuration, because it is sent to other machines."""

    scorers: tuple[dict[str, Any], ...]
    segmenter: str
    text_timeout_s: float
    num_threads: int | None = None
    """Threads for one scorer's computations; None: as the environment says, which Ray sets for its actors."""


def without_gpus(setup: ScoringSetup) -> ScoringSetup:
    return replace(setup, scorers=tuple(map(on_cpu, setup.scorers)))


@dataclass(frozen=True, slots=True)
class ScoringTask:
    """One document to score: a text to cut, or segments."""

    text: str | None = None
    texts: tuple[str, ...] | None = None
    scores: Mapping[str, Scores] = field(default_factory=dict)
    """Scores that are already known, by scorer."""
    failures: Mapping[tuple[str, int | None], str] = field(default_factory=dict)
    """(scorer, segment; None: all segments) -> the error to store instead of asking the scorer again."""


@dataclass(frozen=True, slots=True)
class ScoringOutcome:
    texts: Sequence[str] = ()
    scores: Mapping[str, Scores] = field(default_factory=dict)
    problem: tuple[str, str] | None = None
    """Reason and detail if the document could not be cut into segments; it has none then."""


@dataclass(frozen=True, slots=True)
class ScoringAnswer:
    """The answer to one batch."""

    outcomes: list[ScoringOutcome]
    truncated: Mapping[str, int]
    """Scorer -> number of texts of which it read only the beginning."""


Ask = Literal["score", "classes", "spans", "cut"]
"""What to ask the first scorer about a text: its score, its score per class, or the spans found in it; or its
segments."""


@dataclass(frozen=True, slots=True)
class TextQuestion:
    """Asks one thing about each of some texts that have nothing to do with each other."""

    ask: Ask
    texts: tuple[str, ...]
    size: int
    """Number of texts per call of the scorer, if it takes several in one call."""
    failures: Mapping[int, str] = field(default_factory=dict)
    """Index of a text -> the answer to give instead of asking the scorer again."""
    prompts: tuple[str, ...] | None = None
    """To score: the prompt that each text answers; None: texts are judged as they are."""

    @property
    def whole_texts(self) -> tuple[str, ...]:
        """All that the scorer reads of each text."""
        prompts = self.prompts
        return self.texts if prompts is None else tuple(map("".join, zip(prompts, self.texts, strict=True)))


@dataclass(frozen=True, slots=True)
class TextAnswers:
    found: list[Any]
    """One answer per text. A str is the reason why there is none."""
