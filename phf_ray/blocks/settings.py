"""What a token block depends on besides its documents, the tokenizer and the length."""

from dataclasses import dataclass
from typing import Literal

from phf_ray.config import Compat


@dataclass(frozen=True, slots=True)
class ConditionalTraining:
    """A control token before each segment, by its score (Eq. 5)."""

    threshold: float
    """Segments scoring at most this are aligned."""
    aligned_token: str = "<|aligned|>"
    misaligned_token: str = "<|misaligned|>"
    drop_fraction: float = 0.0
    """Probability, per segment, of no control token."""


@dataclass(frozen=True, slots=True)
class PackingConfig:
    """What a block depends on beside its documents, the tokenizer and the length."""

    conditional: ConditionalTraining | None = None
    filter_threshold: float | None = None
    """Documents whose average score is above this, or that have none, are dropped (Eq. 4)."""
    filter_average: Literal["segments", "tokens"] = "segments"
    """What counts alike in the average of a document."""
    per_document: bool = False
    """Each document is one segment that scores its average: one control token per document."""
    seed: int = 42
    """Of the segments that get no control token."""
    compat: Compat = None
