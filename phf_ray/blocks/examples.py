"""Packs examples and pairs of answers into token blocks, whole.

A row is an end-of-text token, a prompt that is given, a completion that is learned, and the end-of-text token that ends
it. Prompt and completion are tokenized apart and joined, so no token spans the border. The rows of a unit (the two
answers of a pair, the chosen one first; a labelled answer and a mismatched one) stay together in one block, so whatever
shuffles or deals blocks never tears them apart. Training keeps attention inside each row (`training.document_mask`).

`generation/chat/token_rows.py` cuts what does not fit.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from phf_ray.blocks.stats import PackingStats
from phf_ray.blocks.tokens import TokenRun, cut_blocks
from phf_ray.generation.chat.token_rows import TokenRow, token_row
from phf_ray.records import TokenBlock, TokenKind

WINDOW_UNITS = 1024
"""Units that are packed together. More would fill blocks a little better, and hold more of a corpus in memory."""


@dataclass(frozen=True, slots=True)
class AnswerIds:
    """Ids of a prompt and its completion, without the tokens that begin and end a row."""

    prompt: Sequence[int]
    completion: Sequence[int]
    control: Sequence[int] = ()
    """Control token before the prompt. It is never cut: without it, nothing says which answers are bad."""


@dataclass(frozen=True, slots=True)
class RowLimits:
    """What a row may hold."""

    length: int
    """Tokens of a row, with its structural tokens."""
    start_id: int
    """Id of the token that begins a row."""
    end_id: int
    """Id of the token that ends a completion."""
    cuts_end: bool = False
    """Whether what does not fit is cut at the end of a row, and not at the beginning of its prompt."""


def rows_of_unit(answers: Sequence[AnswerIds], limits: RowLimits, *, stats: PackingStats) -> list[TokenRun] | None:
    """Return the rows of a unit, or None, with the reason counted, if nothing of it can be learned.

    `empty_completion`: an answer has no token. `prompt_has_no_room`: an answer takes the whole row, and an answer
    without its question teaches nothing.
    """
    cut: Counter[str] = Counter()
    rows = []
    for answer in answers:
        if not answer.completion:
            stats.num_documents_dropped["empty_completion"] += 1
            return None
        row = token_row(
            answer.prompt,
            answer.completion,
            length=limits.length - len(answer.control),
            start_id=limits.start_id,
            end_id=limits.end_id,
        )
        cut["completions"] += row.is_completion_cut
        cut["prompts"] += row.is_prompt_cut
        if answer.prompt and not row.prompt:
            stats.num_documents_dropped["prompt_has_no_room"] += 1
            return None
        rows.append(run_of(row._replace(prompt=[*answer.control, *row.prompt])))
    stats.num_cut.update(+cut)
    return rows


def runs_of(rows: Sequence[TokenRow], *, drops_cut: bool, stats: PackingStats) -> list[TokenRun] | None:
    """Return the rows of a unit that were made elsewhere, or None, with the reason counted.

    `prompt_has_no_room`: nothing of an answer is left. `too_long`: a row was cut, and `drops_cut` keeps none of those.
    """
    cut = sum(row.is_completion_cut for row in rows)
    reason = "too_long" if drops_cut and cut else None
    if not all(row.completion for row in rows):
        reason = "prompt_has_no_room"
    if reason is not None:
        stats.num_documents_dropped[reason] += 1
        return None
    stats.num_cut.update(Counter(completions=cut) if cut else {})
    return [run_of(row) for row in rows]


def conversation_row(
    pieces: Sequence[tuple[Sequence[int], bool]], limits: RowLimits, *, stats: PackingStats
) -> TokenRun | None:
    """Return the row of a conversation, given as ids and whether the assistant says them, or None if it has no answer.

    A conversation that does not fit is cut at its end.
    """
    ids = [limits.start_id, *(token for part, _ in pieces for token in part)]
    learned = [False, *(is_answer for part, is_answer in pieces for _ in part)]
    if learned[-1] and ids[-1] != limits.end_id:
        ids, learned = [*ids, limits.end_id], [*learned, True]
    is_cut = len(ids) > limits.length
    ids, learned = ids[: limits.length], learned[: limits.length]
    if not any(learned):
        stats.num_documents_dropped["no_answer" if not is_cut else "prompt_has_no_room"] += 1
        return None
    stats.num_cut["completions"] += is_cut
    kinds = np.where(learned, TokenKind.PLAIN, TokenKind.GIVEN).astype(np.uint8)
    kinds[0] = TokenKind.END_OF_TEXT
    return TokenRun(np.array(ids, np.int32), np.zeros(len(ids), np.float32), kinds)


def run_of(row: TokenRow) -> TokenRun:
    """The prompt is given, the completion learned."""
    ids = np.array(row.ids, np.int32)
    kinds = np.full(len(ids), TokenKind.PLAIN, np.uint8)
    kinds[: 1 + len(row.prompt)] = TokenKind.GIVEN
    kinds[0] = TokenKind.END_OF_TEXT
    return TokenRun(ids, np.zeros(len(ids), np.float32), kinds)


def pack_units(units: Iterable[Sequence[TokenRun]], *, length: int, pad_id: int) -> Iterator[TokenBlock]:
    """Yield blocks that hold whole units, in an order that depends on the units alone.

    Units are taken WINDOW_UNITS at a time; of these the longest is placed first, into the first block that has room.
    """
    window: list[Sequence[TokenRun]] = []
    for unit in units:
        window.append(unit)
        if len(window) == WINDOW_UNITS:
            yield from _packed(window, length=length, pad_id=pad_id)
            window = []
    yield from _packed(window, length=length, pad_id=pad_id)


def _packed(units: Sequence[Sequence[TokenRun]], *, length: int, pad_id: int) -> Iterator[TokenBlock]:
    sizes = [sum(len(row.ids) for row in unit) for unit in units]
    blocks: list[list[int]] = []
    room: list[int] = []
    # Sorting is stable, so units of one length keep their order.
    for number in sorted(range(len(units)), key=lambda index: -sizes[index]):
        place = next((index for index, left in enumerate(room) if left >= sizes[number]), None)
        if place is None:
            place = len(blocks)
            blocks.append([])
            room.append(length)
        blocks[place].append(number)
        room[place] -= sizes[number]
    for chosen in blocks:
        rows = [row for number in sorted(chosen) for row in units[number]]
        yield from cut_blocks(rows, length=length, pad_id=pad_id)
