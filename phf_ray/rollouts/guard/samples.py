"""Which answers the page shows: those to the same prompts side by side where prompts come back, else random ones."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise

from phf_ray.rollouts.figures import RolloutRow, RoundFigures
from phf_ray.rollouts.guard.stop import gold_peak

NUM_PROMPTS = 6
_MOST_ROUNDS = 4


@dataclass(frozen=True, slots=True)
class ShownAnswer:
    round: int
    row: RolloutRow


@dataclass(frozen=True, slots=True)
class SampleChoice:
    are_same_prompts: bool
    groups: tuple[tuple[ShownAnswer, ...], ...]
    """Each: answers of several rounds to one prompt; or, if no prompt came back, answers of one round."""


def choose_samples(
    rounds: Sequence[RoundFigures],
    read_round: Callable[[int], Sequence[RolloutRow]],
    *,
    seed: int = 0,
) -> SampleChoice:
    """Choose answers to show. The choice follows from the seed and the prompts alone, and never from a reward.

    A prompt's answers come from the first round that has it, the last, and those nearest the peak of gold and the
    middle between.
    """
    places: defaultdict[str, list[int]] = defaultdict(list)
    for figures in rounds:
        for prompt in figures.prompt_ids:
            places[prompt].append(figures.round)
    peak = gold_peak(rounds)
    peak_round = None if peak is None else peak.round
    # Those whose first and last round lie furthest apart; among equals, by lot.
    repeated = sorted(
        (prompt for prompt, found in places.items() if len(found) > 1),
        key=lambda prompt: (places[prompt][0] - places[prompt][-1], _lot(seed, prompt)),
    )[:NUM_PROMPTS]
    if repeated:
        wanted: defaultdict[int, list[str]] = defaultdict(list)
        for prompt in repeated:
            for number in _spread(places[prompt], peak_round):
                wanted[number].append(prompt)
        found = {number: _by_prompt(read_round(number), ids, seed) for number, ids in sorted(wanted.items())}
        return SampleChoice(
            True,
            tuple(
                tuple(ShownAnswer(number, mine[prompt]) for number, mine in found.items() if prompt in mine)
                for prompt in repeated
            ),
        )
    groups = []
    by_number = {figures.round: figures for figures in rounds}
    for number in _spread([*by_number], peak_round):
        ids = sorted(by_number[number].prompt_ids, key=lambda prompt: _lot(seed, prompt))[:NUM_PROMPTS]
        rows = _by_prompt(read_round(number), ids, seed)
        groups.append(tuple(ShownAnswer(number, rows[prompt]) for prompt in ids))
    return SampleChoice(False, tuple(groups))


def _spread(numbers: Sequence[int], peak: int | None) -> list[int]:
    """Return the first, the last, that nearest the peak, and that nearest the middle between the two furthest apart."""
    chosen = {numbers[0], numbers[-1]}
    if peak is not None:
        chosen.add(min(numbers, key=lambda number: abs(number - peak)))
    while len(chosen) < min(_MOST_ROUNDS, len(numbers)):
        ordered = sorted(chosen)
        gaps = [(high - low, low, high) for low, high in pairwise(ordered)]
        free = [
            (low, high, [number for number in numbers if low < number < high])
            for _, low, high in sorted(gaps, reverse=True)
        ]
        low, high, between = next(gap for gap in free if gap[2])
        chosen.add(min(between, key=lambda number: abs(2 * number - low - high)))
    return sorted(chosen)


def _by_prompt(rows: Sequence[RolloutRow], prompts: Sequence[str], seed: int) -> dict[str, RolloutRow]:
    """Return one answer for each prompt, drawn by lot."""
    found: defaultdict[str, list[RolloutRow]] = defaultdict(list)
    for row in rows:
        if row.prompt_id in prompts:
            found[row.prompt_id].append(row)
    return {prompt: min(mine, key=lambda row: _lot(seed, f"{prompt}/{row.sample}")) for prompt, mine in found.items()}


def _lot(seed: int, name: str) -> str:
    return blake2b(f"{seed}/{name}".encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
