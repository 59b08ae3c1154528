"""HelpSteer3's preferences: `context` (messages), `response1`, `response2`, `overall_preference`.

The preference goes from -3 (the first answer is much better) over 0 (about the same) to 3 (the second is much better).
"""

from phf_ray.feedback.formats.base import (
    TIE,
    Converted,
    FeedbackFormat,
    Reading,
    Record,
    UnfitRecord,
    messages_of,
    number_of,
    text_of,
)
from phf_ray.feedback.rows import Comparison
from phf_ray.generation.chat.prompts import ChatPrompt

_MOST = 3


def convert(record: Record, _: Reading) -> Converted:
    context = messages_of(record, "context")
    if not context:
        raise UnfitRecord("no_prompt", "column 'context' has no messages")
    strength = number_of(record, "overall_preference")
    known = strength is not None and abs(strength) <= _MOST
    preference = TIE + strength / (2 * _MOST) if known and strength is not None else None
    row = Comparison(ChatPrompt(context), text_of(record, "response1"), text_of(record, "response2"), preference)
    return Converted((row,), frozenset({"context", "response1", "response2"}))


HELPSTEER3 = FeedbackFormat(
    columns=(("context", "response1", "response2", "overall_preference"),), fits=lambda _: True, convert=convert
)
