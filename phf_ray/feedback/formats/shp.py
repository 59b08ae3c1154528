"""Stanford Human Preferences: `history`, `human_ref_A`, `human_ref_B`, `labels` (1: A is preferred, 0: B)."""

from phf_ray.feedback.formats.base import (
    Converted,
    FeedbackFormat,
    Reading,
    Record,
    by_people,
    preference_by_index,
    text_of,
)
from phf_ray.feedback.rows import Comparison
from phf_ray.generation.chat.prompts import TextPrompt

_TEXTS = ("history", "human_ref_A", "human_ref_B")


def convert(record: Record, _: Reading) -> Converted:
    history, first, second = (by_people(text_of(record, name), f"column {name!r}") for name in _TEXTS)
    by_index = preference_by_index(record, "labels")
    # 1 names A, which comes first.
    preference = None if by_index is None else 3 - by_index
    return Converted((Comparison(TextPrompt(history), first, second, preference),), frozenset(_TEXTS))


SHP = FeedbackFormat(columns=((*_TEXTS, "labels"),), fits=lambda _: True, convert=convert)
