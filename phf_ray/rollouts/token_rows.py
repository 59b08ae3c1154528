"""Prompts and answers as rows of tokens, and numbers of each token at their places. Pure numpy.

A row is an end-of-text token, a prompt that is given, and the answer as it was drawn; like a row of an example (see
`blocks/examples.py`), but that the answer's end of text is there only if the model wrote it.

Shapes: R rows, T tokens of the longest answer, S tokens of a block.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from phf_ray.records import TokenKind

Numbers = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class TokenRows:
    """Rows beside each other, padded on the right: a `BlockSlice`."""

    input_ids: NDArray[np.int32]
    token_kinds: NDArray[np.uint8]
    begins: NDArray[np.int64]
    """Where each row's answer begins."""
    lengths: NDArray[np.int64]
    """Of each answer."""
    channels: Numbers = dataclasses.field(default_factory=dict)

    @property
    def token_scores(self) -> NDArray[np.float32]:
        return np.zeros(self.input_ids.shape, np.float32)

    def part(self, rows: NDArray[np.int64]) -> "TokenRows":
        """Return some of the rows, no wider than the longest of them."""
        width = int((self.begins + self.lengths)[rows].max(initial=2))
        return TokenRows(
            self.input_ids[rows, :width],
            self.token_kinds[rows, :width],
            self.begins[rows],
            self.lengths[rows],
            {name: channel[rows, :width] for name, channel in self.channels.items()},
        )

    def learned(self, keep_R: NDArray[np.bool_], numbers: Numbers) -> "TokenRows":
        """Return the rows with these numbers (R, T) at the answers' tokens; rows that are not kept are only given."""
        kinds = np.where(
            (self.token_kinds == TokenKind.PLAIN) & ~keep_R[:, None], int(TokenKind.GIVEN), self.token_kinds
        ).astype(np.uint8)
        channels = {name: self.spread(values_RT) for name, values_RT in numbers.items()}
        return dataclasses.replace(self, token_kinds=kinds, channels=channels)

    def spread(self, values_RT: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return numbers of the answers' tokens at these tokens, and 0 elsewhere, (R, S)."""
        spread_RS = np.zeros(self.input_ids.shape, np.float32)
        for row, (begin, length) in enumerate(zip(self.begins, self.lengths, strict=True)):
            spread_RS[row, begin : begin + length] = values_RT[row, :length]
        return spread_RS

    def answers(self, values_RS: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Return what stands at each answer's tokens."""
        return [
            values[begin : begin + length]
            for values, begin, length in zip(values_RS, self.begins, self.lengths, strict=True)
        ]

    def paired(self, pairs: NDArray[np.int64]) -> "TokenRows":
        """Return blocks of two rows behind each other, the chosen one first; without pairs, an empty block."""
        length_P2 = (self.begins + self.lengths)[pairs]
        num_units, width = max(len(pairs), 1), int(length_P2.sum(axis=1).max(initial=2))
        ids = np.full((num_units, width), self.input_ids[0, 0], np.int32)
        kinds = np.full((num_units, width), int(TokenKind.PAD), np.uint8)
        channels = {name: np.zeros((num_units, width), np.float32) for name in self.channels}
        for unit, (rows, lengths) in enumerate(zip(pairs, length_P2, strict=True)):
            place = 0
            for row, length in zip(rows, lengths, strict=True):
                to = slice(place, place + length)
                ids[unit, to], kinds[unit, to] = self.input_ids[row, :length], self.token_kinds[row, :length]
                for name, channel in channels.items():
                    channel[unit, to] = self.channels[name][row, :length]
                place += length
        # All of a pair counts as its answer: what matters is how wide it is.
        widths = np.concatenate([length_P2.sum(axis=1), np.zeros(num_units - len(pairs), np.int64)])
        return TokenRows(ids, kinds, np.zeros(num_units, np.int64), widths, channels)


def token_rows(
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    *,
    pad_id: int,
    has_control: Sequence[bool] = (),
) -> TokenRows:
    """Return the rows. `prompts` begin with the end-of-text token; an empty answer stands for one that failed.

    `has_control`: whether a prompt's second token is a control token; by default none has one.
    """
    begins = np.array([len(prompt) for prompt in prompts], np.int64)
    lengths = np.array([len(answer) for answer in answers], np.int64)
    width = int((begins + lengths).max(initial=2))
    ids = np.full((len(prompts), width), pad_id, np.int32)
    kinds = np.full((len(prompts), width), int(TokenKind.PAD), np.uint8)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        end = len(prompt) + len(answer)
        ids[row, : len(prompt)], ids[row, len(prompt) : end] = prompt, answer
        kinds[row, : len(prompt)], kinds[row, len(prompt) : end] = int(TokenKind.GIVEN), int(TokenKind.PLAIN)
        kinds[row, 0] = int(TokenKind.END_OF_TEXT)
        if has_control and has_control[row]:
            kinds[row, 1] = int(TokenKind.CONTROL)
    return TokenRows(ids, kinds, begins, lengths)
