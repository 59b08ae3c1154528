"""Counts and score distributions of a corpus. The parts' statistics add up to those of the whole corpus."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from phf_ray.corpus.losses import Losses
from phf_ray.measures.histogram import Histogram
from phf_ray.records import Rejected, Scores


@dataclass(slots=True)
class ScorerStats:
    """Score distributions and failures of one scorer."""

    segment_histogram: Histogram = field(default_factory=Histogram)
    document_histogram: Histogram = field(default_factory=Histogram)
    """Distribution of the documents' unweighted means over their scored segments."""
    failed: Counter[str] = field(default_factory=Counter)
    """Segments without a score, by reason: the part of their error before the colon."""
    truncated: int = 0
    """Segments of which the scorer read only the beginning."""

    def add(self, documents: Sequence[Scores]) -> list[float | None]:
        """Count documents. Return the average score of each, None if no segment has a score."""
        averages: list[float | None] = []
        segments: list[float] = []
        for scores, errors in documents:
            known = [score for score in scores if score is not None]
            segments += known
            averages.append(math.fsum(known) / len(known) if known else None)
            self.failed.update(reason_of(error) for error in errors if error is not None)
        self.segment_histogram.add(np.array(segments))
        self.document_histogram.add(np.array([average for average in averages if average is not None]))
        return averages

    def merge(self, other: "ScorerStats") -> None:
        self.segment_histogram.merge(other.segment_histogram)
        self.document_histogram.merge(other.document_histogram)
        self.failed += other.failed
        self.truncated += other.truncated

    def to_json(self) -> dict[str, Any]:
        return {
            "failed": dict(sorted(self.failed.items())),
            "truncated": self.truncated,
            "segment_histogram": self.segment_histogram.to_json(),
            "document_histogram": self.document_histogram.to_json(),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        return cls(
            segment_histogram=Histogram.from_json(values["segment_histogram"]),
            document_histogram=Histogram.from_json(values["document_histogram"]),
            failed=Counter(values["failed"]),
            truncated=values["truncated"],
        )


def reason_of(error: str) -> str:
    return error.partition(":")[0].strip()


@dataclass(slots=True)
class CorpusStats:
    """Counts of one part, or of all parts."""

    scorers: dict[str, ScorerStats] = field(default_factory=dict)
    documents: int = 0
    segments: int = 0
    characters: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    """Records that became no document, by reason. `unreadable` and `trailing_bytes` stand for the rest of a file."""
    losses: Losses = field(default_factory=Losses)
    cut_elsewhere: int = 0
    """Documents whose segments the input gave, and nobody knows which segmenter cut them."""

    def reject(self, record: Rejected) -> None:
        self.rejected[record.reason] += 1
        if record.loss is not None:
            self.losses.add(record.loss)

    def merge(self, other: "CorpusStats") -> None:
        self.documents += other.documents
        self.segments += other.segments
        self.characters += other.characters
        self.rejected += other.rejected
        self.losses.merge(other.losses)
        self.cut_elsewhere += other.cut_elsewhere
        for name, stats in other.scorers.items():
            self.scorers.setdefault(name, ScorerStats()).merge(stats)

    @property
    def num_failed(self) -> int:
        """Number of missing segment scores, over all scorers."""
        return sum(stats.failed.total() for stats in self.scorers.values())

    def to_json(self) -> dict[str, Any]:
        return {
            "documents": self.documents,
            "segments": self.segments,
            "characters": self.characters,
            "rejected": dict(sorted(self.rejected.items())),
            **({"losses": self.losses.to_json()} if self.losses else {}),
            **({"cut_elsewhere": self.cut_elsewhere} if self.cut_elsewhere else {}),
            "scorers": {name: stats.to_json() for name, stats in self.scorers.items()},
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        return cls(
            scorers={name: ScorerStats.from_json(stats) for name, stats in values["scorers"].items()},
            documents=values["documents"],
            segments=values["segments"],
            characters=values["characters"],
            rejected=Counter(values["rejected"]),
            losses=Losses.from_json(values["losses"]) if "losses" in values else Losses(),
            cut_elsewhere=values.get("cut_elsewhere", 0),
        )
