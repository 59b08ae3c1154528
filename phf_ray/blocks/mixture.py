"""The data that training draws from: one stream of all corpora or, with weights, one stream per corpus."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from phf_ray.blocks.manifest import BlockManifest, CorpusTokens
from phf_ray.blocks.order import ROUND_POSITIONS, rounded_shares
from phf_ray.errors import DataError


@dataclass(frozen=True, slots=True)
class Mixture:
    """The corpora that training draws from, as one or, with weights, each with its share of the blocks."""

    corpora: Sequence[CorpusTokens]
    shares: Sequence[float]

    @classmethod
    def of(cls, manifest: BlockManifest, weights: Sequence[float] | None) -> "Mixture":
        """Build a mixture. Raises DataError if there are weights but the manifest has no counts per corpus."""
        if weights is not None and not manifest.by_corpus:
            raise DataError(
                "dataset.weights needs the counts of each corpus, and an older version built these token blocks "
                "without them; delete their folder and build them again"
            )
        return cls.from_counts([manifest.whole()] if weights is None else manifest.by_corpus, weights)

    @classmethod
    def from_counts(cls, corpora: Sequence[CorpusTokens], weights: Sequence[float] | None) -> "Mixture":
        """`corpora`: if there are no weights, one entry for all corpora together."""
        shares = (
            [1.0] if weights is None else (rounded_shares(weights, num_corpora=len(corpora)) / ROUND_POSITIONS).tolist()
        )
        return cls(tuple(corpora), shares)

    def _parts(self) -> list[tuple[float, CorpusTokens]]:
        """Return the corpora that training draws from, with their shares."""
        return [
            (share, corpus)
            for share, corpus in zip(self.shares, self.corpora, strict=True)
            if share > 0 and corpus.num_blocks > 0
        ]

    def tokens_per_block(self, kind: Literal["content", "all"]) -> float:
        """Return the mean number of tokens per block."""
        return sum(
            share * (corpus.num_tokens if kind == "all" else corpus.num_content_tokens) / corpus.num_blocks
            for share, corpus in self._parts()
        )

    def epochs_in(self, num_blocks: float) -> float:
        """Return the passes through the data. With weights: a mean over blocks, each counting its own corpus."""
        return sum(share * share * num_blocks / corpus.num_blocks for share, corpus in self._parts())

    def score_mean_and_std(self) -> tuple[float | None, float | None]:
        """Return mean and standard deviation over content tokens with a score, each counted as often as it is drawn."""
        scored = [
            (share * corpus.num_scored_tokens / corpus.num_blocks, corpus.score_mean, corpus.score_std)
            for share, corpus in self._parts()
        ]
        known = [(tokens, mean, std) for tokens, mean, std in scored if mean is not None and std is not None]
        if len(known) <= 1:
            return known[0][1:] if known else (None, None)
        num_tokens = sum(tokens for tokens, _, _ in known)
        mean = sum(tokens * one for tokens, one, _ in known) / num_tokens
        variance = sum(tokens * (std**2 + (one - mean) ** 2) for tokens, one, std in known) / num_tokens
        return mean, math.sqrt(variance)
