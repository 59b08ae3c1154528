"""AlpacaFarm's rows: `instruction[, input], output` and `instruction[, input], output_1, output_2[, preference]`."""

from phf_ray.feedback.formats.base import (
    Converted,
    FeedbackFormat,
    Reading,
    Record,
    annotator_of,
    judged_columns,
    preference_of,
    text_of,
)
from phf_ray.feedback.rows import Comparison, Example
from phf_ray.generation.chat.prompts import InstructionPrompt

_PROMPT = frozenset({"instruction", "input"})


def convert(record: Record, _: Reading) -> Converted:
    given = "" if record.get("input") is None else text_of(record, "input")
    prompt = InstructionPrompt(text_of(record, "instruction"), given)
    if "output_1" not in record:
        return Converted((Example(prompt, text_of(record, "output")),), _PROMPT | {"output"})
    preference = preference_of(record, zero_is_tie=True)
    row = Comparison(prompt, text_of(record, "output_1"), text_of(record, "output_2"), preference, annotator_of(record))
    return Converted((row,), _PROMPT | {"output_1", "output_2"} | judged_columns(preference, record))


ALPACA = FeedbackFormat(
    columns=(("instruction", "output_1", "output_2"), ("instruction", "output")),
    fits=lambda _: True,
    convert=convert,
)
