"""HelpSteer2, and HelpSteer before it: each record is one answer with five ratings of 0 to 4, and records of one prompt
follow each other. The more helpful answer is better, as its authors train on it; the other ratings are in `meta`.

Its preferences are a file of their own, `preference.jsonl.gz`: `prompt, response_1, response_2, preference_strength`,
from -3 (the first is much better) to 3 (the second is).
"""

import re

from phf_ray.feedback.formats.base import (
    JOINED,
    TIE,
    Converted,
    FeedbackFormat,
    Reading,
    Record,
    UnfitRecord,
    number_of,
    text_of,
)
from phf_ray.feedback.formats.ranked import ranked_pairs
from phf_ray.feedback.rows import Comparison
from phf_ray.generation.chat.prompts import ASSISTANT, USER, ChatPrompt, Message

_RATINGS = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
_MOST = 3
_TURN = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")
"""Begins the later turns of a prompt."""


def convert(record: Record, reading: Reading) -> Converted:
    prompt = _prompt(record)
    answers = record.get(JOINED, [record])
    ratings = [number_of(answer, "helpfulness") for answer in answers]
    pairs = list(ranked_pairs(answers, [None if one is None else -one for one in ratings], reading))
    return Converted(
        rows=tuple(
            Comparison(prompt, text_of(first, "response"), text_of(second, "response"), preference)
            for first, second, preference in pairs
        ),
        columns=frozenset({"prompt", "response", *_RATINGS, JOINED}),
        names_better=True,
        notes=tuple((_others(first), _others(second)) for first, second, _ in pairs),
    )


def convert_preference(record: Record, _: Reading) -> Converted:
    prompt = _prompt(record)
    strength = number_of(record, "preference_strength")
    known = strength is not None and abs(strength) <= _MOST
    preference = TIE + strength / (2 * _MOST) if known and strength is not None else None
    row = Comparison(prompt, text_of(record, "response_1"), text_of(record, "response_2"), preference)
    return Converted((row,), frozenset({"prompt", "response_1", "response_2"}))


def _prompt(record: Record) -> ChatPrompt:
    first, *later = _TURN.split(text_of(record, "prompt"))
    messages = [Message(USER, first)]
    for role, text in zip(later[::2], later[1::2], strict=True):
        messages.append(Message(USER if role == "User" else ASSISTANT, text))
    roles = [message.role for message in messages]
    if roles != [USER, ASSISTANT] * (len(roles) // 2) + [USER]:
        raise UnfitRecord("not_a_dialogue", f"the turns of the prompt are of {', '.join(roles)}; the last is a user's")
    if not messages[-1].content.strip():
        raise UnfitRecord("no_prompt", "the last turn of column 'prompt' is empty")
    return ChatPrompt(tuple(messages))


def _others(answer: Record) -> Record:
    return {name: value for name, value in answer.items() if name not in ("prompt", "response")}


HELPSTEER2 = FeedbackFormat(
    columns=(("prompt", "response", *_RATINGS),),
    fits=lambda _: True,
    convert=convert,
    joins="prompt",
)
HELPSTEER2_PREFERENCE = FeedbackFormat(
    columns=(("prompt", "response_1", "response_2", "preference_strength"),),
    fits=lambda _: True,
    convert=convert_preference,
)
