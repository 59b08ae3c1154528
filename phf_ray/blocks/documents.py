"""Decides which documents are packed, and counts why the others are not."""

import math
import re
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from phf_ray.blocks.settings import PackingConfig
from phf_ray.blocks.stats import PackingStats
from phf_ray.records import NEVER_SCORED, ScoredDocument, TokenKind

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def kept_documents(
    documents: Iterable[ScoredDocument], *, config: PackingConfig, stats: PackingStats
) -> Iterator[ScoredDocument]:
    for document in documents:
        reason = _reason_to_drop(document, config)
        if reason is None:
            yield _as_one_segment(document) if config.per_document else document
        else:
            stats.drop(document, reason=reason)


def _reason_to_drop(document: ScoredDocument, config: PackingConfig) -> str | None:
    if not any(document.texts):
        return "empty"
    if any(_LONE_SURROGATE.search(text) for text in document.texts):
        return "lone_surrogate"
    # DIFFERS: phf-ray decides document by document; the original lets documents through until a token counter has
    # passed skip_tokens, and then some more.
    if config.filter_average == "segments":
        return reason_to_filter(document.avg_score, config)
    return None


def reason_to_filter(average: float | None, config: PackingConfig) -> str | None:
    if config.filter_threshold is None:
        return None
    if average is None or not math.isfinite(average):
        return "unscored"
    return "filtered" if average > config.filter_threshold else None


def _as_one_segment(document: ScoredDocument) -> ScoredDocument:
    if len(document.texts) == 1:
        return document
    # DIFFERS: phf-ray gives a document that is not split one control token, chosen by its average score; the original
    # gives it none.
    average = document.avg_score
    error = None if average is not None else "no segment of the document has a score"
    return ScoredDocument(document.id, (document.text,), (average,), (error,), document.meta)


def average_of_tokens(document: ScoredDocument, owners: NDArray[np.int64]) -> float | None:
    """Return the mean score of the tokens that have one; None if no token has one."""
    scores = scores_of_segments(document)[owners]
    scores = scores[np.isfinite(scores)]
    return float(scores.mean()) if len(scores) else None


def kinds_of_segments(document: ScoredDocument) -> NDArray[np.uint8]:
    """Return the kind of each segment's tokens."""
    kinds = np.where(np.isfinite(scores_of_segments(document)), TokenKind.CONTENT, TokenKind.UNSCORED)
    return np.where([error == NEVER_SCORED for error in document.errors], TokenKind.PLAIN, kinds).astype(np.uint8)


def scores_of_segments(document: ScoredDocument) -> NDArray[np.float64]:
    return np.array([math.nan if score is None else score for score in document.scores], np.float64)
