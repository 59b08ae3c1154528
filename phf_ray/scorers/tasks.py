"""What the scoring process and its parent tell each other."""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from phf_ray.records import Scores
from phf_ray.scorers.build import on_cpu


class Place(NamedTuple):
    """What the child is at. Its parent reads it in shared memory."""

    document: int
    """Of the batch; WHOLE_BATCH if the texts may be of several documents, NO_DOCUMENT if the child waits."""
    step: int
    """SEGMENTING, or 1 + number of the scorer."""
    first_text: int
    num_texts: int
    """Each of them can be tried alone; IN_CONTEXT if a scorer takes all texts of a document at once."""

    @property
    def is_in_one_document(self) -> bool:
        return self.document >= 0


PLACE_STRUCT = struct.Struct("qqqq")
"""A Place."""
SEGMENTING = 0
WHOLE_BATCH = -1
NO_DOCUMENT = -2
IN_CONTEXT = 0
IDLE = Place(document=NO_DOCUMENT, step=SEGMENTING, first_text=0, num_texts=0)
SLICE_TEXTS = 512
"""Texts in one call of a scorer: they fill a GPU, and take a core some seconds, less than one text may take."""


@dataclass(frozen=True, slots=True)
class ScoringSetup:
    """What a child builds. Travels to other machines, so it holds configuration only."""

    scorers: tuple[dict[str, Any], ...]
    segmenter: str
    text_timeout_s: float
    num_threads: int | None = None
    """Of one scorer's computations; None: as the environment says, which Ray sets for its actors."""


def without_gpus(setup: ScoringSetup) -> ScoringSetup:
    return replace(setup, scorers=tuple(map(on_cpu, setup.scorers)))


@dataclass(frozen=True, slots=True)
class ScoringTask:
    """One document to score: a text to cut, or segments."""

    text: str | None = None
    texts: tuple[str, ...] | None = None
    scores: Mapping[str, Scores] = field(default_factory=dict)
    """Scores that are known already, by scorer."""
    failures: Mapping[tuple[str, int | None], str] = field(default_factory=dict)
    """Scorer and segment, None for all of them -> the error that it gets, without asking the scorer again."""


@dataclass(frozen=True, slots=True)
class ScoringOutcome:
    texts: Sequence[str] = ()
    scores: Mapping[str, Scores] = field(default_factory=dict)
    problem: tuple[str, str] | None = None
    """Reason and detail where the document could not be cut; it has no segments then."""


@dataclass(frozen=True, slots=True)
class ScoringAnswer:
    """To one batch."""

    outcomes: list[ScoringOutcome]
    truncated: Mapping[str, int]
    """Texts of which a scorer read only the beginning."""
