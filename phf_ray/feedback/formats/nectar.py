"""Nectar: `prompt` (a dialogue) and `answers` with `rank`, 1 the best. Seven ranked answers are 21 pairs.

`--pairs best` makes 6 of them: the best with each of the others.
"""

from collections.abc import Mapping
from typing import Any

from phf_ray.feedback.formats.base import (
    Converted,
    FeedbackFormat,
    Notes,
    Reading,
    Record,
    number_of,
    objects_of,
    text_of,
)
from phf_ray.feedback.formats.hh import dialogue
from phf_ray.feedback.formats.ranked import ranked_pairs
from phf_ray.feedback.rows import Comparison
from phf_ray.generation.chat.prompts import ChatPrompt, Prompt, TextPrompt

Answer = Mapping[str, Any]


def convert(record: Record, reading: Reading) -> Converted:
    text = text_of(record, "prompt")
    # A space follows the last mark.
    prompt: Prompt = TextPrompt(text) if reading.as_text else ChatPrompt(dialogue(text.rstrip()))
    answers = objects_of(record, "answers")
    pairs = list(ranked_pairs(answers, [number_of(answer, "rank") for answer in answers], reading))
    return Converted(
        rows=tuple(
            Comparison(prompt, text_of(first, "answer"), text_of(second, "answer"), preference)
            for first, second, preference in pairs
        ),
        columns=frozenset({"prompt", "answers"}),
        names_better=True,
        notes=tuple(_notes(first, second) for first, second, _ in pairs),
    )


def _notes(first: Answer, second: Answer) -> Notes:
    one, other = ({"generator": answer.get("model"), "rank": answer.get("rank")} for answer in (first, second))
    return one, other


NECTAR = FeedbackFormat(
    columns=(("prompt", "answers"),),
    fits=lambda record: isinstance(record["answers"], list | dict),
    convert=convert,
    holds_dialogues=True,
)
