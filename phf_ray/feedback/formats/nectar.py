"""Nectar: `prompt` (a dialogue) and `answers` with `rank`, 1 the best. Seven ranked answers are 21 pairs.

`--pairs best` makes 6 of them: the best with each of the others.
"""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from phf_ray.feedback.formats.base import (
    TIE,
    Converted,
    FeedbackFormat,
    Notes,
    Reading,
    Record,
    UnfitRecord,
    number_of,
    objects_of,
    text_of,
)
from phf_ray.feedback.formats.hh import dialogue
from phf_ray.feedback.rows import Comparison
from phf_ray.generation.chat.prompts import ChatPrompt, Prompt, TextPrompt

Answer = Mapping[str, Any]


def convert(record: Record, reading: Reading) -> Converted:
    text = text_of(record, "prompt")
    # A space follows the last mark.
    prompt: Prompt = TextPrompt(text) if reading.as_text else ChatPrompt(dialogue(text.rstrip()))
    answers = objects_of(record, "answers")
    pairs = list(_pairs(answers, reading))
    if not pairs:
        raise UnfitRecord("not_two_answers", f"column 'answers' holds {len(answers)} answers, which are no pair")
    return Converted(
        rows=tuple(
            Comparison(prompt, text_of(first, "answer"), text_of(second, "answer"), _preference(first, second))
            for first, second in pairs
        ),
        columns=frozenset({"prompt", "answers"}),
        names_better=True,
        notes=tuple(_notes(first, second) for first, second in pairs),
    )


def _pairs(answers: list[Answer], reading: Reading) -> Iterator[tuple[Answer, Answer]]:
    """Yield pairs, the better answer first. Answers without a rank come last."""
    ranks = [number_of(answer, "rank") for answer in answers]
    order = sorted(range(len(answers)), key=lambda index: (ranks[index] is None, ranks[index] or 0.0))
    pairs = itertools.combinations([answers[index] for index in order], 2)
    return itertools.islice(pairs, max(0, len(answers) - 1)) if reading.pairs == "best" else pairs


def _preference(first: Answer, second: Answer) -> float | None:
    ranks = number_of(first, "rank"), number_of(second, "rank")
    if None in ranks:
        return None
    return TIE if ranks[0] == ranks[1] else 1.0


def _notes(first: Answer, second: Answer) -> Notes:
    one, other = ({"generator": answer.get("model"), "rank": answer.get("rank")} for answer in (first, second))
    return one, other


NECTAR = FeedbackFormat(
    columns=(("prompt", "answers"),),
    fits=lambda record: isinstance(record["answers"], list | dict),
    convert=convert,
    holds_dialogues=True,
)
