"""Battles of Chatbot Arena as `lmarena-ai/arena-human-preference-55k` has them: `prompt`, `response_a` and `response_b`
are JSON lists of turns, and one of `winner_model_a`, `winner_model_b` and `winner_tie` is 1.

As in other battles, only those of one turn compare two answers to one prompt (`battles.py`).
"""

import json
from typing import Any

from phf_ray.feedback.formats.base import (
    TIE,
    Converted,
    FeedbackFormat,
    Reading,
    Record,
    UnfitRecord,
    number_of,
    text_of,
)
from phf_ray.feedback.formats.battles import compared
from phf_ray.feedback.rows import Comparison
from phf_ray.generation.chat.prompts import ASSISTANT, USER, Message

_TEXTS = ("prompt", "response_a", "response_b")
_WINNERS = {"winner_model_a": 1.0, "winner_model_b": 2.0, "winner_tie": TIE}


def convert(record: Record, _: Reading) -> Converted:
    prompts, first, second = (_turns(record, name) for name in _TEXTS)
    if not len(prompts) == len(first) == len(second):
        raise UnfitRecord(
            "unequal_lists", f"{len(prompts)} prompts, {len(first)} answers of one side and {len(second)} of the other"
        )
    prompt, one, other = compared(_messages(prompts, first), _messages(prompts, second), names=_TEXTS[1:])
    row = Comparison(prompt, one, other, _preference(record))
    notes = ({"generator": record.get("model_a")}, {"generator": record.get("model_b")})
    return Converted((row,), frozenset({*_TEXTS, "model_a", "model_b"}), notes=(notes,))


def _turns(record: Record, name: str) -> list[str]:
    """Return the turns of a column. Raises UnfitRecord if it holds no list of texts, such as one with null."""
    turns: Any = record.get(name)
    if not isinstance(turns, list):
        try:
            turns = json.loads(text_of(record, name))
        except (ValueError, RecursionError):
            raise UnfitRecord("bad_json", f"column {name!r} holds no JSON list of turns") from None
    if not isinstance(turns, list):
        raise UnfitRecord("not_text", f"column {name!r} holds a {type(turns).__name__}, not a list of turns")
    for number, turn in enumerate(turns, start=1):
        if turn is None:
            raise UnfitRecord("empty_answer" if name != "prompt" else "no_prompt", f"turn {number} of {name!r} is null")
        if not isinstance(turn, str):
            raise UnfitRecord("not_text", f"turn {number} of {name!r} is a {type(turn).__name__}, not a text")
    return turns


def _messages(prompts: list[str], answers: list[str]) -> tuple[Message, ...]:
    pairs = zip(prompts, answers, strict=True)
    return tuple(message for prompt, answer in pairs for message in (Message(USER, prompt), Message(ASSISTANT, answer)))


def _preference(record: Record) -> float | None:
    """Return what the one winner says; None if not exactly one is 1 and the others 0."""
    values = {name: number_of(record, name) for name in _WINNERS}
    if sorted(values.values(), key=str) != [0.0, 0.0, 1.0]:
        return None
    return next(preference for name, preference in _WINNERS.items() if values[name] == 1)


ARENA = FeedbackFormat(columns=((*_TEXTS, *_WINNERS),), fits=lambda _: True, convert=convert)
