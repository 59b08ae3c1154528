"""What is judged and what came of it: a pair of answers, and a judgement on it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from phf_ray.characters import half_at
from phf_ray.errors import DataError
from phf_ray.storage.hashing import digest

Preference = float
"""1: the first answer is better; 2: the second; between them for degrees, 1.5 a tie."""

OLD_TIE, NOT_PARSED = 0, -1
"""What AlpacaFarm stored as the preference of a tie, and AlpacaEval for an answer that it couldn't read."""

INPUT_KEYS = ("instruction", "input")
OUTPUT_KEYS = ("output_1", "output_2")


@dataclass(frozen=True)
class Pair:
    """An instruction and two answers to it."""

    instruction: str
    input: str
    """What the instruction is about; empty if it needs nothing."""
    output_1: str
    output_2: str

    @property
    def whole_instruction(self) -> str:
        return f"{self.instruction}\n\n{self.input}" if self.input else self.instruction

    @cached_property
    def key(self) -> str:
        """Hash of the four texts, equal in every process."""
        return digest([self.instruction, self.input, self.output_1, self.output_2], size=16)

    def with_key(self, key: str) -> "Pair":
        """Take over a key that was computed before: hashing long texts takes longer than most steps."""
        self.__dict__["key"] = key
        return self

    def swapped(self) -> "Pair":
        return replace(self, output_1=self.output_2, output_2=self.output_1)


@dataclass(frozen=True, slots=True)
class Judgement:
    """What an annotator says of a pair, whichever way it was shown."""

    annotator: str
    preference: Preference | None
    """Of the pair as its row has it. None: nobody knows, and `error` says why."""
    error: str | None = None
    source: Literal["judge", "noise", "identical", "stored"] = "judge"
    """noise: drawn by `p_label_flip`; identical: a tie without a judge; stored: given by an earlier call."""
    order: Literal["12", "21", "both"] | None = None
    """How the judge saw it. None: no judge did."""
    raw: str | None = None
    """The judge's words."""
    price: float | None = None
    seconds: float | None = None
    in_both_orders: tuple[Preference | None, Preference | None] | None = None
    """With order `both`: the preferences when shown as 12 and as 21, both of the pair as its row has it."""

    def as_row(self) -> dict[str, Any]:
        """Return the columns that a judgement adds to its pair."""
        both = {} if self.in_both_orders is None else dict(zip(BOTH_COLUMNS, self.in_both_orders, strict=True))
        return {
            "annotator": self.annotator,
            "preference": self.preference,
            "error": self.error,
            "source": self.source,
            "order": self.order,
            "price": self.price,
            "seconds": self.seconds,
            "raw": self.raw,
            **both,
        }


BOTH_COLUMNS = ("preference_12", "preference_21")


def pair_of(row: Mapping[str, Any], *, number: int) -> Pair:
    """Return the pair of a row. A missing input, and one that is None, is empty.

    Raises DataError that names the row if it lacks a text, or has one that can be neither sent nor stored.
    """
    for key in ("instruction", *OUTPUT_KEYS):
        value = row.get(key)
        if not isinstance(value, str):
            raise DataError(
                f"row {number}: {key!r} is {'missing' if key not in row else repr(value)[:80]}; every row needs the "
                f"texts instruction, output_1 and output_2; this one has {', '.join(map(str, row)) or 'nothing'}"
            )
    if not row["instruction"].strip() and not row.get("input"):
        raise DataError(f"row {number}: the instruction is empty; there is nothing to judge answers by")
    given = row.get("input")
    if given is not None and not isinstance(given, str):
        raise DataError(f"row {number}: 'input' is {given!r:.80}; it must be a text, or null")
    for key in (*INPUT_KEYS, *OUTPUT_KEYS):
        if (half := half_at(row.get(key) or "")) is not None:
            raise DataError(f"row {number}: {key!r}: character {half} is half of a surrogate pair; mend or remove it")
    return Pair(row["instruction"], given or "", row["output_1"], row["output_2"])


def unique_pairs(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[Pair]]:
    """Return the rows without later copies of a pair, and their pairs."""
    kept: dict[Pair, dict[str, Any]] = {}
    for number, row in enumerate(rows, start=1):
        kept.setdefault(pair_of(row, number=number), row)
    return list(kept.values()), list(kept)
