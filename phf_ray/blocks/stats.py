"""Counts of what was packed. The counts of two parts add up to those of both."""

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phf_ray.records import ScoredDocument, TokenBlock, TokenKind

# Scores are counted in bins whose borders grow by 2^(1/32), with a bin of its own for zero and mirrored for negative
# scores; a quantile read from them is within 1.1% of the true one.
_BINS_PER_OCTAVE = 32
# The smallest float32 is 2^-149; with this offset every bin of a positive score has a positive number.
_BIN_OFFSET = 160 * _BINS_PER_OCTAVE
QUANTILE_RELATIVE_ERROR = 2 ** (0.5 / _BINS_PER_OCTAVE) - 1


@dataclass(slots=True)
class PackingStats:
    """Counts of what was packed. Sums of two parts are the counts of both (`merge`)."""

    num_blocks: int = 0
    num_documents_kept: int = 0
    num_documents_dropped: Counter[str] = field(default_factory=Counter)
    """By reason: empty, lone_surrogate, filtered, unscored, special_token_in_text, held_out."""
    num_characters_kept: int = 0
    num_characters_dropped: Counter[str] = field(default_factory=Counter)
    """By reason, as the documents."""
    num_segments: Counter[str] = field(default_factory=Counter)
    """aligned and misaligned by the conditional threshold, dropped_control among them, unscored. Segments that own no
    token are not counted."""
    num_tokens: Counter[str] = field(default_factory=Counter)
    """By lower-case name of TokenKind."""
    score_sum: float = 0.0
    score_square_sum: float = 0.0
    score_min: float = math.inf
    score_max: float = -math.inf
    score_bins: Counter[int] = field(default_factory=Counter)
    """Scores of content tokens (kind 0), in log bins."""

    @property
    def num_content_tokens(self) -> int:
        """Tokens of text, scored or not."""
        return self.num_tokens["content"] + self.num_tokens["unscored"]

    @property
    def mean(self) -> float | None:
        """Mean score of the content tokens that have one; None without any."""
        scored = self.num_tokens["content"]
        return self.score_sum / scored if scored else None

    @property
    def std(self) -> float | None:
        """Population standard deviation of the scores of content tokens."""
        scored = self.num_tokens["content"]
        if not scored:
            return None
        mean = self.score_sum / scored
        return math.sqrt(max(0.0, self.score_square_sum / scored - mean * mean))

    def quantile(self, q: float) -> float | None:
        """The score that a share q of the content tokens does not exceed, within QUANTILE_RELATIVE_ERROR."""
        remaining = q * self.num_tokens["content"]
        for number in sorted(self.score_bins):
            remaining -= self.score_bins[number]
            if remaining <= 0:
                return min(max(_bin_middle(number), self.score_min), self.score_max)
        return self.score_max if self.score_bins else None

    def drop(self, document: ScoredDocument, *, reason: str) -> None:
        self.num_documents_dropped[reason] += 1
        self.num_characters_dropped[reason] += sum(map(len, document.texts))

    def keep(self, document: ScoredDocument) -> None:
        self.num_documents_kept += 1
        self.num_characters_kept += sum(map(len, document.texts))

    def add_block(self, block: TokenBlock) -> None:
        self.num_blocks += 1
        for kind, count in enumerate(np.bincount(block.token_kinds).tolist()):
            if count:
                self.num_tokens[TokenKind(kind).name.lower()] += count
        values, counts = np.unique(block.token_scores[block.token_kinds == TokenKind.CONTENT], return_counts=True)
        if not len(values):
            return
        scores = values.astype(np.float64)
        self.score_sum += float(scores @ counts)
        self.score_square_sum += float((scores * scores) @ counts)
        self.score_min = min(self.score_min, float(scores[0]))
        self.score_max = max(self.score_max, float(scores[-1]))
        for number, count in zip(_bins(scores).tolist(), counts.tolist(), strict=True):
            self.score_bins[number] += count

    def merge(self, other: "PackingStats") -> None:
        self.num_blocks += other.num_blocks
        self.num_documents_kept += other.num_documents_kept
        self.score_sum += other.score_sum
        self.score_square_sum += other.score_square_sum
        self.score_min = min(self.score_min, other.score_min)
        self.score_max = max(self.score_max, other.score_max)
        self.num_characters_kept += other.num_characters_kept
        for mine, others in (
            (self.num_documents_dropped, other.num_documents_dropped),
            (self.num_characters_dropped, other.num_characters_dropped),
            (self.num_segments, other.num_segments),
            (self.num_tokens, other.num_tokens),
        ):
            mine.update(others)
        self.score_bins.update(other.score_bins)

    def to_json(self) -> dict[str, Any]:
        """All counts, from which `from_json` makes an equal object. JSON has no infinity: no score, no range."""
        return {
            "num_blocks": self.num_blocks,
            "num_documents_kept": self.num_documents_kept,
            "num_documents_dropped": dict(sorted(self.num_documents_dropped.items())),
            "num_characters_kept": self.num_characters_kept,
            "num_characters_dropped": dict(sorted(self.num_characters_dropped.items())),
            "num_segments": dict(sorted(self.num_segments.items())),
            "num_tokens": dict(sorted(self.num_tokens.items())),
            "score_sum": self.score_sum,
            "score_square_sum": self.score_square_sum,
            "score_range": [self.score_min, self.score_max] if self.score_bins else None,
            "score_bins": {str(number): count for number, count in sorted(self.score_bins.items())},
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "PackingStats":
        low, high = values["score_range"] or (math.inf, -math.inf)
        return cls(
            num_blocks=values["num_blocks"],
            num_documents_kept=values["num_documents_kept"],
            num_documents_dropped=Counter(values["num_documents_dropped"]),
            num_characters_kept=values["num_characters_kept"],
            num_characters_dropped=Counter(values["num_characters_dropped"]),
            num_segments=Counter(values["num_segments"]),
            num_tokens=Counter(values["num_tokens"]),
            score_sum=values["score_sum"],
            score_square_sum=values["score_square_sum"],
            score_min=low,
            score_max=high,
            score_bins=Counter({int(number): count for number, count in values["score_bins"].items()}),
        )


def _bins(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """Number of each score's bin; bins are ordered as scores are."""
    magnitude = np.abs(scores)
    exponent = np.log2(magnitude, out=np.zeros_like(magnitude), where=magnitude > 0)
    numbers = np.floor(exponent * _BINS_PER_OCTAVE) + _BIN_OFFSET
    return np.where(magnitude > 0, np.sign(scores) * numbers, 0).astype(np.int64)


def _bin_middle(number: int) -> float:
    if number == 0:
        return 0.0
    return math.copysign(2.0 ** ((abs(number) - _BIN_OFFSET + 0.5) / _BINS_PER_OCTAVE), number)
