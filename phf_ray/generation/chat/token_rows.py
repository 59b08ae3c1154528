"""Joins the tokens of a prompt and its answer into the row that a model reads, the same in training and in scoring.

A row is the token that begins it, the prompt, the completion, and the token that ends it. A completion that does not
fit is cut at its end, and then has no end; a prompt is cut at its beginning.
"""

from collections.abc import Sequence
from typing import NamedTuple


class TokenRow(NamedTuple):
    start_id: int
    prompt: list[int]
    completion: list[int]
    """With the token that ends it, unless it is cut."""
    is_prompt_cut: bool
    is_completion_cut: bool

    @property
    def ids(self) -> list[int]:
        return [self.start_id, *self.prompt, *self.completion]


def token_row(prompt: Sequence[int], completion: Sequence[int], *, length: int, start_id: int, end_id: int) -> TokenRow:
    """`length`: tokens of the row at most."""
    room = length - 1
    ended = list(completion)
    # Some chat templates end an answer with the same token.
    if not ended or ended[-1] != end_id:
        ended.append(end_id)
    kept = ended[:room]
    room -= len(kept)
    given = list(prompt)[max(0, len(prompt) - room) :]
    return TokenRow(start_id, given, kept, len(given) < len(prompt), len(kept) < len(ended))
