"""Cuts runs of tokens of any length into blocks."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from phf_ray.records import TokenBlock, TokenKind


@dataclass(frozen=True, slots=True)
class TokenRun:
    """Arrays like those of TokenBlock, of any length."""

    ids: NDArray[np.int32]
    scores: NDArray[np.float32]
    kinds: NDArray[np.uint8]
    channels: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    def part(self, span: slice) -> "TokenRun":
        """Return a copy, so that a few tokens do not keep a long document in memory."""
        channels = {name: numbers[span].copy() for name, numbers in self.channels.items()}
        return TokenRun(self.ids[span].copy(), self.scores[span].copy(), self.kinds[span].copy(), channels)

    def with_number(self, name: str, number: float) -> "TokenRun":
        """Return the run with a channel in which each token has this number."""
        channels = {**self.channels, name: np.full(len(self.ids), number, np.float32)}
        return TokenRun(self.ids, self.scores, self.kinds, channels)


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
            yield _block(joined.part(slice(begin, begin + length)))
        held = [joined.part(slice(whole, None))]
        size -= whole
    if size and pad_id is not None:
        missing = length - size
        held.append(
            TokenRun(
                np.full(missing, pad_id, np.int32),
                np.zeros(missing, np.float32),
                np.full(missing, TokenKind.PAD, np.uint8),
                {name: np.zeros(missing, np.float32) for name in held[0].channels},
            )
        )
        yield _block(_join(held))


def _block(run: TokenRun) -> TokenBlock:
    return TokenBlock(run.ids, run.scores, run.kinds, run.channels)


def _join(parts: Sequence[TokenRun]) -> TokenRun:
    return TokenRun(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.kinds for part in parts]),
        {name: np.concatenate([part.channels[name] for part in parts]) for name in parts[0].channels},
    )
