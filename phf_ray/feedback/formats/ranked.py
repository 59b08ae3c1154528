"""Answers that are ranked or rated: every pair of them is a comparison, or the best with each of the others."""

import itertools
from collections.abc import Iterator, Sequence
from typing import TypeVar

from phf_ray.feedback.formats.base import TIE, Reading, UnfitRecord

Answer = TypeVar("Answer")


def ranked_pairs(
    answers: Sequence[Answer], ranks: Sequence[float | None], reading: Reading
) -> Iterator[tuple[Answer, Answer, float | None]]:
    """Yield pairs, the better answer first, and its preference: 1, 1.5 for equal ranks, None if one is missing.

    ranks: the lowest is the best; answers without one come last. Raises UnfitRecord for fewer than two answers.
    """
    if len(answers) < 2:
        raise UnfitRecord("not_two_answers", f"{len(answers)} answers to this prompt, which are no pair")
    order = sorted(range(len(answers)), key=lambda index: (ranks[index] is None, ranks[index] or 0.0))
    pairs = itertools.combinations(order, 2)
    for first, second in itertools.islice(pairs, len(answers) - 1) if reading.pairs == "best" else pairs:
        yield answers[first], answers[second], _preference(ranks[first], ranks[second])


def _preference(first: float | None, second: float | None) -> float | None:
    if first is None or second is None:
        return None
    return TIE if first == second else 1.0
