r"""The nouns that cross module boundaries.

Document -> ScoredDocument -> TokenBlock
         \-> Rejected
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phf_ray.errors import DataError

Scores = tuple[Sequence[float | None], Sequence[str | None]]
"""Scores and errors of one document. Each segment has one of each, and exactly one of the two is None."""

NEVER_SCORED = "never scored"
"""Error of a text that comes from a data set without scores; other errors say why a scorer failed."""


@dataclass(frozen=True, slots=True)
class Scored:
    """Score of one text or segment: a number, or None with the reason. Higher is worse."""

    score: float | None
    error: str | None = None

    def __post_init__(self) -> None:
        if (self.score is None) == (self.error is None):
            raise DataError(f"a score of {self.score!r} with error {self.error!r}; exactly one of the two must be None")
        if self.score is not None and not math.isfinite(self.score):
            raise DataError(
                f"score {self.score!r} is not finite; give a text that can't be scored the score None and a reason"
            )


@dataclass(frozen=True, slots=True)
class Span:
    """Part of a text that a scorer found, as character offsets [begin, end)."""

    type: str
    begin: int
    end: int
    confidence: float = 1.0
    """From 0 to 1. 1 also if the scorer does not say how sure it is."""


@dataclass(frozen=True, slots=True)
class ScorerIdentity:
    """What decides a score: equal identities give equal scores. Stored with every corpus, checkpoint and report."""

    name: str
    """Short name: pep8, pii, toxicity, or the name from the config."""
    class_name: str
    unit: str
    """Unit of the score, such as `violations per character`."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Package name -> version, for every package that can change a score."""
    weights_hash: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "class_name": self.class_name,
            "unit": self.unit,
            "versions": dict(self.versions),
            "weights_hash": self.weights_hash,
            "settings": dict(self.settings),
        }


@dataclass(frozen=True, slots=True)
class Document:
    """A text as it was read. `meta` is JSON."""

    id: str
    text: str
    meta: str = "{}"


@dataclass(frozen=True, slots=True)
class ScoredDocument:
    """A document cut into segments, each with a score. `"".join(texts)` is the document."""

    id: str
    texts: tuple[str, ...]
    scores: tuple[float | None, ...]
    """One per segment; higher is worse. None if the segment could not be scored; `errors` says why."""
    errors: tuple[str | None, ...]
    meta: str = "{}"

    def __post_init__(self) -> None:
        if not len(self.texts) == len(self.scores) == len(self.errors):
            raise DataError(
                f"document {self.id} has {len(self.texts)} segments, {len(self.scores)} scores, {len(self.errors)} "
                "errors; the three numbers must be equal; re-run jobs.score_corpus"
            )

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def avg_score(self) -> float | None:
        """Unweighted mean of the scores that are not None; None if there are none."""
        known = [score for score in self.scores if score is not None]
        return math.fsum(known) / len(known) if known else None


@dataclass(frozen=True, slots=True)
class Loss:
    """What is missing because a file can't be read to its end."""

    file: int | None
    """Index in the plan. None if all of the file's data could be read, and what can't be read is something else."""
    num_bytes: int
    """Bytes of the file as stored, as far as they are known."""
    records: int
    """Number of records that are known to be missing."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record that could not be read or stored, or the rest of a file."""

    source: str
    record: int
    reason: str
    """Machine-readable: not_utf8, lone_surrogate, unreadable, ..."""
    detail: str
    loss: Loss | None = None
    """Set if it stands for the rest of a file."""


class TokenKind(IntEnum):
    """Kind of a token in a block. Objectives use it to decide which tokens to learn."""

    CONTENT = 0
    END_OF_TEXT = 1
    CONTROL = 2
    PAD = 3
    UNSCORED = 4
    """Content of a segment that could not be scored."""
    PLAIN = 5
    """Content of a document that was never meant to have scores: always learned, and no objective gives it a score."""
    GIVEN = 6
    """Seen, not learned: a prompt, a marker of feedback, a quote."""


TEXT_KINDS = (TokenKind.CONTENT, TokenKind.UNSCORED, TokenKind.PLAIN)
"""Kinds of the tokens of a text; the others are structure."""


@dataclass(frozen=True, slots=True)
class TokenBlock:
    """One training sequence of L tokens. Structural tokens (kinds 1, 2, 3) and unscored tokens have score 0."""

    input_ids: NDArray[np.int32]
    token_scores: NDArray[np.float32]
    token_kinds: NDArray[np.uint8]
    channels: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    """Named numbers of each token, such as LABEL, which a row of tokens has all alike."""


LABEL = "label"
"""Channel of answers that are judged one by one: 1 good, -1 bad, 0 an answer to another prompt."""
MARGIN = "margin"
"""Channel of pairs: how much larger the better answer's reward has to be."""

PASSED = "passed"
"""Outcome of a model-written program that passes its tests."""
