"""Rows of judgements, as they are stored by `phf annotate`, AlpacaFarm and AlpacaEval, and their checks."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from phf_ray.characters import half_at, whole_characters
from phf_ray.errors import DataError
from phf_ray.feedback.values import unfolded
from phf_ray.generation.chat.prompts import InstructionPrompt, prompt_text
from phf_ray.judging.dialogues import text_of_messages
from phf_ray.judging.pairs import NOT_PARSED, OLD_TIE
from phf_ray.measures.preferences import DRAW

NO_REASON = "no reason given"
NO_VERDICT = "not parsed"
NO_ANSWER, NO_REFERENCE_ANSWER = "no_answer", "no_reference_answer"
"""Kinds of errors of pairs that no judge saw, because the model, or the reference, gave no answer."""
NOT_NAMED = "not named"
"""Stands for the annotator of rows that name none."""
_PRICES = ("price", "price_per_example", "preference_price_per_example")
"""The second and the third are AlpacaEval's."""
NOISE = "noise"
_SOURCES = ("judge", NOISE, "identical", "stored")


@dataclass(frozen=True, slots=True)
class JudgedRow:
    """One judgement of two answers to one prompt."""

    instruction: str
    input: str
    output_1: str
    output_2: str
    generator_1: str
    """Model that wrote answer 1; for a leaderboard, the reference."""
    generator_2: str
    """Model that is ranked."""
    preference: float | None
    """1: answer 1 is better; 2: answer 2; 1.5: a draw; None: not judged."""
    annotator: str | None = None
    error: str | None = None
    """Why there is no preference; None if there is one."""
    order: str | None = None
    """`12` if the judge saw answer 1 first, `21` if answer 2, `both` if it was asked twice; None if nothing says so."""
    preference_12: float | None = None
    """With order `both`: the preference when answer 1 was shown first, of the answers as they stand here."""
    preference_21: float | None = None
    price: float | None = None
    human_preference: float | None = None
    source: str | None = None
    """What gave the preference, if the row says so: judge, noise, identical, stored."""

    @property
    def prompt(self) -> str:
        return prompt_text(InstructionPrompt(self.instruction, self.input))

    @property
    def lacks_answer(self) -> bool:
        return self.preference is None and is_lack_of_answer(self.error)


def is_lack_of_answer(error: str | None) -> bool:
    """Whether this is why a pair was shown to no judge: one of its answers does not exist."""
    return error is not None and error.partition(":")[0] in (NO_ANSWER, NO_REFERENCE_ANSWER)


def judged_row(record: Mapping[str, Any], place: str, *, generators: Sequence[str] | None = None) -> JudgedRow:
    """Return the row that a record of a file holds. `generators`: names of both models, for rows without names.

    A column that is not there may be in `meta`, which is JSON. Raises DataError, with `place`, for a record that is no
    judgement.
    """
    record = unfolded(record)
    names = [record.get("generator_1"), record.get("generator_2")]
    if generators is not None:
        names = [given or name for given, name in zip(names, generators, strict=True)]
    for number, name in enumerate(names, 1):
        if not isinstance(name, str) or not name:
            raise DataError(
                f"{place}: generator_{number} is {name!r}, but a leaderboard needs the names of both models; write "
                "them into the rows, or give them with --generators REFERENCE MODEL"
            )
        _whole(name, f"generator_{number}", place)
    preference, error = _verdict(record, place)
    return JudgedRow(
        instruction=instruction_of(record, place),
        input=optional_text(record, "input", place) or "",
        output_1=text_of(record, "output_1", place),
        output_2=text_of(record, "output_2", place),
        generator_1=str(names[0]),
        generator_2=str(names[1]),
        preference=preference,
        annotator=optional_text(record, "annotator", place),
        error=error,
        order=_order(record, place),
        preference_12=preference_of(record, "preference_12", place),
        preference_21=preference_of(record, "preference_21", place),
        price=_price(record, place),
        human_preference=preference_of(record, "human_preference", place),
        source=_source_in(record),
    )


def instruction_of(record: Mapping[str, Any], place: str) -> str:
    """Return the instruction, or what stands in its place: a prompt, or messages."""
    messages = record.get("messages")
    if isinstance(messages, list) and messages:
        return _whole(text_of_messages(messages, place), "messages", place)
    name = "instruction" if record.get("instruction") is not None else "prompt"
    if not isinstance(record.get(name), str) or not record[name]:
        raise DataError(
            f"{place} has no instruction (its columns: {', '.join(map(str, record))}); each row needs one, or a prompt"
        )
    return _whole(record[name], name, place)


def text_of(record: Mapping[str, Any], name: str, place: str) -> str:
    if not isinstance(record.get(name), str):
        raise DataError(f"{place}: {name} is {_shown(record.get(name))}, not a text; each answer must be one text")
    return _whole(record[name], name, place)


def preference_of(record: Mapping[str, Any], name: str, place: str) -> float | None:
    """Return the preference in 1..2; None if there is none (null, NaN, or AlpacaEval's -1)."""
    value = record.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"{place}: {name} is {_shown(value)}, not a number; write 1, 2, 1.5 for a draw, or null")
    if math.isnan(value) or value == NOT_PARSED:
        return None
    if value == OLD_TIE:
        return DRAW
    if not 1 <= value <= 2:
        raise DataError(
            f"{place}: {name} is {value:g}, which is not between 1 (answer 1 is better) and 2 (answer 2 is better); "
            "write 1.5 for a draw, and null for a pair that was not judged"
        )
    return float(value)


def _verdict(record: Mapping[str, Any], place: str) -> tuple[float | None, str | None]:
    if "preference" not in record:
        raise DataError(
            f"{place} has no preference (its columns: {', '.join(map(str, record))}); judge the rows first, with phf "
            "annotate, or give model outputs with --outputs and --reference"
        )
    preference = preference_of(record, "preference", place)
    if preference is not None:
        return preference, None
    error = record.get("error")
    if error:
        return None, whole_characters(str(error))
    return None, NO_VERDICT if record["preference"] == NOT_PARSED else NO_REASON


def _source_in(record: Mapping[str, Any]) -> str | None:
    """Return what gave the preference; None if the columns don't say, such as a `source` that names a data set."""
    given = (record.get(name) for name in ("source", "source_column"))
    return next((str(one) for one in given if one in _SOURCES), None)


def _order(record: Mapping[str, Any], place: str) -> str | None:
    order = record.get("order")
    if order is None:
        return None
    if str(order) not in ("12", "21", "both"):
        raise DataError(
            f"{place}: order is {_shown(order)}; write 12 if the judge saw answer 1 first, 21 if answer 2, both or null"
        )
    return str(order)


def _price(record: Mapping[str, Any], place: str) -> float | None:
    for name in _PRICES:
        value = record.get(name)
        if value is None or value != value:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or math.isinf(value):
            raise DataError(f"{place}: {name} is {_shown(value)}; write what the judgement cost, or null")
        return float(value)
    return None


def optional_text(record: Mapping[str, Any], name: str, place: str) -> str | None:
    value = record.get(name)
    if value is None or value != value:
        return None
    if not isinstance(value, str):
        raise DataError(f"{place}: {name} is {_shown(value)}, not a text")
    return _whole(value, name, place)


def _whole(text: str, name: str, place: str) -> str:
    if (half := half_at(text)) is not None:
        raise DataError(f"{place}: {name}: character {half} is half of a surrogate pair; mend or remove it")
    return text


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
