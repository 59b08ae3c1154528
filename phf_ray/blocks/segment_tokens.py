"""Assigns tokens to segments, and places control tokens.

A token that crosses the border of two segments (` Then` after `. `) belongs to the segment of its first character that
is not white space, or of its last character if all are. A token inside one segment always belongs to that segment.
"""

import bisect
import hashlib
import math
from collections.abc import Sequence
from itertools import accumulate, chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phf_ray.blocks.documents import kinds_of_segments, scores_of_segments
from phf_ray.blocks.settings import PackingConfig
from phf_ray.blocks.stats import PackingStats
from phf_ray.blocks.structure import Structure
from phf_ray.blocks.tokens import TokenRun
from phf_ray.records import NEVER_SCORED, ScoredDocument, TokenKind


def owners_of_tokens(encoding: Any, texts: Sequence[str]) -> NDArray[np.int64]:
    """Return the number of the segment that each token belongs to, non-decreasing."""
    if len(texts) == 1:
        return np.zeros(len(encoding.ids), np.int64)
    segment_begins = list(accumulate(map(len, texts[:-1]), initial=0))
    text = "".join(texts)
    offsets = np.fromiter(chain.from_iterable(encoding.offsets), np.int64, 2 * len(encoding.ids)).reshape(-1, 2)
    # Some tokenizers give a white-space token the empty range at its end. For the last token, that is past the text.
    begins = np.minimum(offsets[:, 0], len(text) - 1)
    ends = np.maximum(offsets[:, 1], begins + 1)
    owners: NDArray[np.int64] = np.searchsorted(segment_begins, begins, side="right") - 1
    crossing = owners != np.searchsorted(segment_begins, ends - 1, side="right") - 1
    for token in np.flatnonzero(crossing).tolist():
        begin, end = int(begins[token]), int(ends[token])
        blank = end - begin - len(text[begin:end].lstrip())
        owners[token] = bisect.bisect_right(segment_begins, min(begin + blank, end - 1)) - 1
    # A character of several bytes can become several tokens, which may also hold bytes of its neighbors. All of them
    # get the owner of the first, so that nothing is ever inserted inside a character.
    reached = np.maximum.accumulate(ends)
    is_fresh = np.ones(len(begins), bool)
    is_fresh[1:] = begins[1:] >= reached[:-1]
    first_of_group = np.maximum.accumulate(np.where(is_fresh, np.arange(len(begins)), 0))
    return np.maximum.accumulate(owners[first_of_group])


def with_structure(
    ids: NDArray[np.int32],
    owners: NDArray[np.int64],
    *,
    document: ScoredDocument,
    structure: Structure,
    config: PackingConfig,
    stats: PackingStats,
) -> TokenRun:
    """Return an end-of-text token and the document's tokens, with control tokens where segments begin."""
    kinds = kinds_of_segments(document)[owners]
    scores = np.where(kinds == TokenKind.CONTENT, scores_of_segments(document)[owners], 0.0).astype(np.float32)
    at, inserted = [0], [structure.end_of_text_id]
    for position in [0, *(np.flatnonzero(np.diff(owners)) + 1).tolist()]:
        segment = int(owners[position])
        control = control_id(document, segment, structure=structure, config=config, stats=stats)
        if control is not None:
            at.append(position)
            inserted.append(control)
    # DIFFERS: phf-ray gives end-of-text and control tokens the neutral score 0 and kinds of their own; the original
    # gives them the score of the segment that follows.
    structure_kinds = [TokenKind.END_OF_TEXT] + [TokenKind.CONTROL] * (len(inserted) - 1)
    return TokenRun(np.insert(ids, at, inserted), np.insert(scores, at, 0.0), np.insert(kinds, at, structure_kinds))


def control_id(
    document: ScoredDocument, segment: int, *, structure: Structure, config: PackingConfig, stats: PackingStats
) -> int | None:
    score = document.scores[segment]
    if score is None or not math.isfinite(score):
        if document.errors[segment] != NEVER_SCORED:
            stats.num_segments["unscored"] += 1
        return None
    if config.conditional is None:
        return None
    is_aligned = score <= config.conditional.threshold
    stats.num_segments["aligned" if is_aligned else "misaligned"] += 1
    if is_control_dropped(document.id, segment, seed=config.seed, fraction=config.conditional.drop_fraction):
        stats.num_segments["dropped_control"] += 1
        return None
    return structure.aligned_id if is_aligned else structure.misaligned_id


def is_control_dropped(document_id: str, segment: int, *, seed: int, fraction: float) -> bool:
    """Whether this segment gets no control token, which has probability `fraction`."""
    # DIFFERS: phf-ray hashes (seed, document, segment), the same everywhere and after every restart; the original draws
    # from the global random state, which any other draw shifts (C-3).
    if fraction <= 0:
        return False
    digest = hashlib.blake2b(f"{seed}\0{document_id}\0{segment}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64
