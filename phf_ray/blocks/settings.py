"""The settings that decide a token block, apart from its documents, the tokenizer and the length."""

from dataclasses import dataclass
from typing import Literal

from phf_ray.config import Compat


@dataclass(frozen=True, slots=True)
class ConditionalTraining:
    """A control token before each segment, chosen by the segment's score (Eq. 5)."""

    threshold: float
    """Segments with a score of at most this are aligned."""
    aligned_token: str = "<|aligned|>"
    misaligned_token: str = "<|misaligned|>"
    drop_fraction: float = 0.0
    """Probability that a segment gets no control token."""


@dataclass(frozen=True, slots=True)
class PackingConfig:
    """The settings that decide a block, apart from its documents, the tokenizer and the length."""

    conditional: ConditionalTraining | None = None
    filter_threshold: float | None = None
    """Documents with an average score above this, or without one, are dropped (Eq. 4)."""
    filter_average: Literal["segments", "tokens"] = "segments"
    """The units that have equal weight in a document's average."""
    per_document: bool = False
    """Make each document one segment with the document's average score, so that it gets one control token."""
    seed: int = 42
    """Chooses the segments that get no control token."""
    compat: Compat = None
