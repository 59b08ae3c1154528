"""Puts behind each answer its prompt with the answer of another prompt, from which KTO estimates its KL.

Of the examples of a window each lends its answer to one other, so that both kinds of rows hold the same answers. Who
lends depends on the examples and their order alone: blocks are the same for any number of workers and any seed.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from phf_ray.blocks.examples import RowLimits, run_of
from phf_ray.blocks.stats import PackingStats
from phf_ray.blocks.tokens import TokenRun
from phf_ray.generation.chat.token_rows import TokenRow, token_row
from phf_ray.records import LABEL, TokenKind

WINDOW = 1024
"""Examples that lend to one another, at least; fewer if a group of parts has fewer."""


@dataclass(frozen=True, slots=True)
class ExampleRow:
    prompt: str
    """The whole prompt, by which two rows have the same one or not."""
    row: TokenRun


def with_mismatched(
    examples: Iterable[ExampleRow], limits: RowLimits, *, stats: PackingStats
) -> Iterator[list[TokenRun]]:
    """Yield units of two rows. An example in a window without another prompt is dropped and counted."""
    held: list[ExampleRow] = []
    for example in examples:
        held.append(example)
        # The last window is never small: what remains at the end is held back by a whole window.
        if len(held) == 2 * WINDOW:
            yield from _units(held[:WINDOW], limits, stats=stats)
            held = held[WINDOW:]
    yield from _units(held, limits, stats=stats)


def _units(held: Sequence[ExampleRow], limits: RowLimits, *, stats: PackingStats) -> Iterator[list[TokenRun]]:
    for example, lender in zip(held, lenders([example.prompt for example in held]), strict=True):
        if lender is None:
            stats.num_documents_dropped["no_other_prompt"] += 1
        else:
            yield [example.row, _mismatched(example.row, held[lender].row, limits)]


# DIFFERS: phf-ray lets the examples of a window of the corpus lend to one another, and never an answer to the same
# prompt; TRL those of each micro-batch, whatever their prompts, which compat: trl does not bring back.
def lenders(prompts: Sequence[str]) -> list[int | None]:
    """Return, for each example, the place of another one with another prompt; None if there is no other prompt.

    With equal prompts side by side, the example that lends is as many places before as the commonest prompt has
    examples (as in TRL, if no prompt occurs twice). If that is more than half of all, some lend several times.
    """
    by_prompt: dict[str, list[int]] = {}
    for place, prompt in enumerate(prompts):
        by_prompt.setdefault(prompt, []).append(place)
    if len(by_prompt) < 2:
        return [None] * len(prompts)
    order = [place for places in by_prompt.values() for place in places]
    turn = max(map(len, by_prompt.values()))
    found: list[int | None] = [None] * len(prompts)
    for at, place in enumerate(order):
        candidates = (order[(at - back) % len(order)] for back in range(turn, turn + len(order)))
        found[place] = next(other for other in candidates if prompts[other] != prompts[place])
    return found


def _mismatched(row: TokenRun, lender: TokenRun, limits: RowLimits) -> TokenRun:
    prompt = row.ids[row.kinds == TokenKind.GIVEN].tolist()
    answer = lender.ids[lender.kinds == TokenKind.PLAIN].tolist()
    if limits.cuts_end:
        kept = answer[: limits.length - 1 - len(prompt)]
        return run_of(TokenRow(int(row.ids[0]), prompt, kept, False, len(kept) < len(answer))).with_number(LABEL, 0.0)
    # An answer that was cut has no end, and gets none here.
    joined = token_row(prompt, answer, length=limits.length, start_id=int(row.ids[0]), end_id=answer[-1])
    return run_of(joined).with_number(LABEL, 0.0)
