"""What a training is fed: one stream of all corpora or, with weights, one stream for each."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from phf_ray.blocks.manifest import BlockManifest, CorpusTokens
from phf_ray.blocks.order import ROUND_POSITIONS, rounded_shares
from phf_ray.errors import DataError


@dataclass(frozen=True, slots=True)
class Mixture:
    """What a training is fed: the corpora as one or, with weights, each with its share of the blocks."""

    corpora: Sequence[CorpusTokens]
    shares: Sequence[float]

    @classmethod
    def of(cls, manifest: BlockManifest, weights: Sequence[float] | None) -> "Mixture":
        """Raises DataError for weights where the blocks don't say what each corpus holds."""
        if weights is not None and not manifest.by_corpus:
            raise DataError(
                "dataset.weights need the counts of each corpus, which these token blocks of an older version lack; "
                "delete their folder and build them again"
            )
        return cls.from_counts([manifest.whole()] if weights is None else manifest.by_corpus, weights)

    @classmethod
    def from_counts(cls, corpora: Sequence[CorpusTokens], weights: Sequence[float] | None) -> "Mixture":
        """`corpora`: of all as one where there are no weights."""
        shares = (
            [1.0] if weights is None else (rounded_shares(weights, num_corpora=len(corpora)) / ROUND_POSITIONS).tolist()
        )
        return cls(tuple(corpora), shares)

    def _parts(self) -> list[tuple[float, CorpusTokens]]:
        """What is drawn from, with its share."""
        return [
            (share, corpus)
            for share, corpus in zip(self.shares, self.corpora, strict=True)
            if share > 0 and corpus.num_blocks > 0
        ]

    def tokens_per_block(self, kind: Literal["content", "all"]) -> float:
        """A mean."""
        return sum(
            share * (corpus.num_tokens if kind == "all" else corpus.num_content_tokens) / corpus.num_blocks
            for share, corpus in self._parts()
        )

    def epochs_in(self, num_blocks: float) -> float:
        """Passes through the data; with weights the mean over the blocks, each of which counts its own corpus."""
        return sum(share * share * num_blocks / corpus.num_blocks for share, corpus in self._parts())

    def score_mean_and_std(self) -> tuple[float | None, float | None]:
        """Over the content tokens that have a score, as often as they are drawn."""
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
