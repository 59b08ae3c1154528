"""Counts of packed documents, segments and tokens."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from phf_ray.errors import DataError
from phf_ray.measures.histogram import Histogram
from phf_ray.records import TEXT_KINDS, ScoredDocument, TokenBlock, TokenKind


@dataclass(slots=True)
class PackingStats:
    """Counts of packed documents, segments and tokens. Merging the counts of two parts gives the counts of both."""

    num_blocks: int = 0
    num_documents_kept: int = 0
    num_documents_dropped: Counter[str] = field(default_factory=Counter)
    """By reason: empty, lone_surrogate, filtered, unscored, special_token_in_text, held_out. Of
    feedback also empty_completion, prompt_has_no_room, too_long, tie, unknown, template_cannot_hold_it, no_margin and
    no_other_prompt."""
    num_cut: Counter[str] = field(default_factory=Counter)
    """Rows of examples of which a part was cut: `prompts`, `completions`."""
    num_characters_kept: int = 0
    num_characters_dropped: Counter[str] = field(default_factory=Counter)
    """By the same reasons."""
    num_segments: Counter[str] = field(default_factory=Counter)
    """aligned and misaligned by the conditional threshold; dropped_control, which those two include; unscored.
    Segments that own no token are not counted."""
    num_tokens: Counter[str] = field(default_factory=Counter)
    """By lower-case name of TokenKind."""
    scores: Histogram = field(default_factory=Histogram)
    """Scores of content tokens (kind 0), each token counted once."""

    @property
    def num_content_tokens(self) -> int:
        """Tokens of text, scored or not."""
        return sum(self.num_tokens[kind.name.lower()] for kind in TEXT_KINDS)

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
        self.scores.add(block.token_scores[block.token_kinds == TokenKind.CONTENT].astype(np.float64))

    def merge(self, other: "PackingStats") -> None:
        self.num_blocks += other.num_blocks
        self.num_documents_kept += other.num_documents_kept
        self.num_characters_kept += other.num_characters_kept
        for mine, others in (
            (self.num_documents_dropped, other.num_documents_dropped),
            (self.num_characters_dropped, other.num_characters_dropped),
            (self.num_segments, other.num_segments),
            (self.num_tokens, other.num_tokens),
            (self.num_cut, other.num_cut),
        ):
            mine.update(others)
        self.scores.merge(other.scores)

    def to_json(self) -> dict[str, Any]:
        """Return all counts. `from_json` turns them into an equal object."""
        return {
            "num_blocks": self.num_blocks,
            "num_documents_kept": self.num_documents_kept,
            "num_documents_dropped": dict(sorted(self.num_documents_dropped.items())),
            "num_cut": dict(sorted(self.num_cut.items())),
            "num_characters_kept": self.num_characters_kept,
            "num_characters_dropped": dict(sorted(self.num_characters_dropped.items())),
            "num_segments": dict(sorted(self.num_segments.items())),
            "num_tokens": dict(sorted(self.num_tokens.items())),
            "scores": self.scores.to_json(),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "PackingStats":
        """Restore counts. Raises DataError if an older version stored them."""
        if "scores" not in values:
            raise DataError("an older version built a group of token blocks; delete the folder to build it again")
        return cls(
            num_blocks=values["num_blocks"],
            num_documents_kept=values["num_documents_kept"],
            num_documents_dropped=Counter(values["num_documents_dropped"]),
            num_cut=Counter(values.get("num_cut", {})),
            num_characters_kept=values["num_characters_kept"],
            num_characters_dropped=Counter(values["num_characters_dropped"]),
            num_segments=Counter(values["num_segments"]),
            num_tokens=Counter(values["num_tokens"]),
            scores=Histogram.from_json(values["scores"]),
        )
