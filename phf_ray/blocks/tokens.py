"""Cuts runs of tokens of any length into blocks."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from phf_ray.records import TokenBlock, TokenKind


@dataclass(frozen=True, slots=True)
class TokenRun:
    """Arrays like those of TokenBlock, of any length."""

    ids: NDArray[np.int32]
    scores: NDArray[np.float32]
    kinds: NDArray[np.uint8]


def cut_blocks(parts: Iterable[TokenRun], *, length: int, pad_id: int | None) -> Iterator[TokenBlock]:
    """Yield blocks of the concatenated parts. The incomplete last one is padded, or dropped if `pad_id` is None."""
    held: list[TokenRun] = []
    size = 0
    for part in parts:
        held.append(part)
        size += len(part.ids)
        if size < length:
            continue
        joined = _join(held)
        whole = size // length * length
        for begin in range(0, whole, length):
            span = slice(begin, begin + length)
            yield TokenBlock(joined.ids[span].copy(), joined.scores[span].copy(), joined.kinds[span].copy())
        # Copy the rest, so that the last few tokens do not keep a long document in memory.
        held = [TokenRun(joined.ids[whole:].copy(), joined.scores[whole:].copy(), joined.kinds[whole:].copy())]
        size -= whole
    if size and pad_id is not None:
        missing = length - size
        held.append(
            TokenRun(
                np.full(missing, pad_id, np.int32),
                np.zeros(missing, np.float32),
                np.full(missing, TokenKind.PAD, np.uint8),
            )
        )
        joined = _join(held)
        yield TokenBlock(joined.ids, joined.scores, joined.kinds)


def _join(parts: Sequence[TokenRun]) -> TokenRun:
    return TokenRun(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.kinds for part in parts]),
    )
