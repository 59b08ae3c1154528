"""Our own columns: `prompt, output_1, output_2[, preference]`, `prompt, completion` and `messages`.

`messages` may stand in place of `prompt`, so a feedback corpus is input too.
"""

from phf_ray.feedback.formats import trl
from phf_ray.feedback.formats.base import (
    Converted,
    FeedbackFormat,
    Reading,
    Record,
    UnfitRecord,
    annotator_of,
    judged_columns,
    messages_of,
    preference_of,
    text_of,
)
from phf_ray.feedback.rows import Comparison, Example
from phf_ray.generation.chat.prompts import ChatPrompt, InstructionPrompt, Prompt, TextPrompt

_PROMPT = frozenset({"prompt", "messages", "instruction", "input"})
_OWN = frozenset({"messages", "instruction", "control"})
"""Columns that only our own examples have besides `completion`."""


def convert(record: Record, reading: Reading) -> Converted:
    if "output_1" in record:
        preference = preference_of(record, zero_is_tie=False)
        row = Comparison(
            _prompt(record), text_of(record, "output_1"), text_of(record, "output_2"), preference, annotator_of(record)
        )
        return Converted((row,), _PROMPT | {"output_1", "output_2"} | judged_columns(preference, record))
    if "completion" not in record:
        return trl.convert(record, reading)
    control = record.get("control")
    if control not in (None, "good", "bad"):
        raise UnfitRecord("bad_control", f"control {control!r} is neither good nor bad")
    label = record.get("label")
    if label is not None and not isinstance(label, bool):
        raise UnfitRecord("bad_label", f"label {label!r} is neither true nor false")
    row_of_one = Example(_prompt(record), text_of(record, "completion"), label=label, control=control)
    return Converted((row_of_one,), _PROMPT | {"completion", "label", "control"})


def _prompt(record: Record) -> Prompt:
    if record.get("messages") is not None:
        messages = messages_of(record, "messages")
        if not messages:
            raise UnfitRecord("no_prompt", "column 'messages' has no messages")
        return ChatPrompt(messages)
    if isinstance(record.get("instruction"), str) and isinstance(record.get("input"), str):
        return InstructionPrompt(record["instruction"], record["input"])
    return TextPrompt(text_of(record, "prompt"))


PLAIN = FeedbackFormat(
    columns=(
        ("prompt", "output_1", "output_2"),
        ("messages", "output_1", "output_2"),
        ("prompt", "completion"),
        ("messages", "completion"),
        ("messages",),
    ),
    # `prompt, completion` and `messages` alone are TRL's too, whose cells may be texts or messages.
    fits=lambda record: "output_1" in record or ("completion" in record and not _OWN.isdisjoint(record)),
    convert=convert,
)
