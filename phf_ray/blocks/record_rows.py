"""Turns a record with fields into a row: what stands in brackets is given, the answers and their ends are learned.

A record is packed whole. One that is longer than a row is cut at its end, and what is left ends with a learned token:
feedback without its answer teaches nothing.
"""

from collections.abc import Sequence

import numpy as np

from phf_ray.blocks.examples import RowLimits
from phf_ray.blocks.stats import PackingStats
from phf_ray.blocks.tokens import TokenRun
from phf_ray.records import TokenKind


def record_row(
    pieces: Sequence[tuple[Sequence[int], bool]], limits: RowLimits, *, adds_end: bool, stats: PackingStats
) -> TokenRun | None:
    """Return the row of a record, given as ids and whether they are learned, or None if no answer fits.

    `adds_end`: end the row with one more end-of-text token, as the original does; else only where the record has none.
    """
    ids = [limits.start_id, *(token for part, _ in pieces for token in part)]
    learned = [False, *(is_learned for part, is_learned in pieces for _ in part)]
    if adds_end or (learned[-1] and ids[-1] != limits.end_id):
        ids, learned = [*ids, limits.end_id], [*learned, True]
    # DIFFERS: phf-ray packs records whole and cuts what is too long at its end; CoH cuts one stream of records
    # anywhere, also between feedback and answer, and lets records see those before them.
    is_cut = len(ids) > limits.length
    if is_cut:
        room = learned[: limits.length]
        length = max((place + 1 for place, is_learned in enumerate(room) if is_learned), default=0)
        ids, learned = ids[:length], learned[:length]
    if not any(learned):
        stats.num_documents_dropped["prompt_has_no_room" if is_cut else "empty_completion"] += 1
        return None
    stats.num_cut["completions"] += is_cut
    kinds = np.where(learned, TokenKind.PLAIN, TokenKind.GIVEN).astype(np.uint8)
    kinds[0] = TokenKind.END_OF_TEXT
    return TokenRun(np.array(ids, np.int32), np.zeros(len(ids), np.float32), kinds)
