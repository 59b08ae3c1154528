"""`chosen` and `rejected` as TRL has them, with ratings of both: UltraFeedback binarized, Tulu 3, distilabel.

Equal ratings are a tie. Ratings that contradict the names leave nobody knowing which is better: the label is unknown.
Where a rating is missing, the names say it.
"""

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
from phf_ray.feedback.formats.trl import COMPARED, comparison_of
from phf_ray.feedback.rows import Comparison
from phf_ray.generation.chat.prompts import USER, ChatPrompt, Message

_RATINGS = (
    ("score_chosen", "score_rejected"),
    ("chosen_rating", "rejected_rating"),
    ("rating_chosen", "rating_rejected"),
    ("chosen-rating", "rejected-rating"),
)
_MODELS = (("chosen_model", "rejected_model"), ("chosen-model", "rejected-model"))
_ORCA = ("input", "chosen", "rejected", "status")
"""Of distilabel-intel-orca-dpo-pairs, which has its judgement in `status`: unchanged, swapped or tie."""


def _convert(record: Record, _: Reading) -> Converted:
    if "prompt" not in record and all(name in record for name in _ORCA):
        return _converted(_orca(record), record, frozenset({"system", "input", "chosen", "rejected"}))
    return _converted(comparison_of(record, preference_by_ratings(record)), record, COMPARED)


def _convert_ultrafeedback(record: Record, _: Reading) -> Converted:
    # `messages` repeats prompt and chosen.
    return _converted(comparison_of(record, preference_by_ratings(record)), record, COMPARED | {"messages"})


def _converted(row: Comparison, record: Record, columns: frozenset[str]) -> Converted:
    names = next((names for names in _MODELS if names[0] in record), None)
    if names is None:
        return Converted((row,), columns, names_better=True)
    chosen, rejected = ({"generator": record.get(name)} for name in names)
    return Converted((row,), columns | {*names}, names_better=True, notes=((chosen, rejected),))


def preference_by_ratings(record: Record) -> float | None:
    """Return the preference between chosen and rejected, in this order."""
    for names in _RATINGS:
        chosen, rejected = (number_of(record, name) for name in names)
        if chosen is not None and rejected is not None:
            return TIE if chosen == rejected else 1.0 if chosen > rejected else None
    return 1.0


def _orca(record: Record) -> Comparison:
    system = record.get("system")
    given = () if system is None or system == "" else (Message("system", text_of(record, "system")),)
    prompt = ChatPrompt((*given, Message(USER, text_of(record, "input"))))
    preference = {"tie": TIE, "unchanged": 1.0, "swapped": 1.0}.get(str(record["status"]))
    chosen, rejected = text_of(record, "chosen"), text_of(record, "rejected")
    if preference == 1.0 and chosen == rejected:
        raise UnfitRecord("equal_answers", "chosen and rejected are the same")
    return Comparison(prompt, chosen, rejected, preference)


def _has_messages(record: Record) -> bool:
    return isinstance(record["chosen"], list) and isinstance(record["rejected"], list)


ULTRAFEEDBACK = FeedbackFormat(
    columns=(("prompt", "chosen", "rejected", "score_chosen", "score_rejected"),),
    fits=lambda _: True,
    convert=_convert_ultrafeedback,
)
TULU = FeedbackFormat(columns=(("id", "source", "chosen", "rejected"),), fits=_has_messages, convert=_convert)
DISTILABEL = FeedbackFormat(
    columns=(*(("chosen", "rejected", *names) for names in _RATINGS[1:]), _ORCA), fits=lambda _: True, convert=_convert
)
