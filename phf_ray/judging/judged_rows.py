"""The rows that annotate writes: comparisons, whose `meta` holds what has no column of its own."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from phf_ray.feedback.layout import RowForm
from phf_ray.feedback.manifest import FeedbackStats
from phf_ray.feedback.rows import Comparison
from phf_ray.generation.chat.prompts import InstructionPrompt, prompt_text
from phf_ray.judging.failures import Verdicts, count_verdicts
from phf_ray.judging.pairs import BOTH_COLUMNS, INPUT_KEYS, OUTPUT_KEYS, Judgement, Pair
from phf_ray.judging.question import Failure

FORM = RowForm("comparisons", "instruction")
_TEXTS = {*INPUT_KEYS, *OUTPUT_KEYS}
_encoded = json.JSONEncoder(default=str).encode
_GIVEN = "given_"
"""Before a column of the input that has the name of one of ours, such as the preference of a human."""


def comparison_of(row: Mapping[str, Any], pair: Pair, judgement: Judgement) -> Comparison:
    ours = judgement.as_row()
    prompt = InstructionPrompt(pair.instruction, pair.input)
    given = {}
    others = row.keys() - _TEXTS
    if others:
        made = {"id": pair.key, "prompt": prompt_text(prompt)}
        taken = {*ours, *made, *BOTH_COLUMNS}
        before = _GIVEN
        # A corpus that was judged before has such columns already: a human's preference, say, which is not to be lost.
        while any(f"{before}{name}" in row for name in taken):
            before += _GIVEN
        given = {
            f"{before}{name}" if name in taken else name: value
            for name, value in row.items()
            if name in others and not (name in made and value in (None, made[name]))
        }
    said = {
        name: value for name, value in ours.items() if name not in ("preference", "annotator") and value is not None
    }
    return Comparison(
        prompt=prompt,
        output_1=pair.output_1,
        output_2=pair.output_2,
        preference=judgement.preference,
        annotator=judgement.annotator,
        id=pair.key,
        meta=_encoded({**given, **said}),
    )


@dataclass(slots=True)
class JudgingStats:
    """Counts of one part, or of all parts, which add up."""

    rows: FeedbackStats = field(default_factory=FeedbackStats)
    annotators: Counter[str] = field(default_factory=Counter)
    """Rows by annotator."""
    judged_by: Counter[str] = field(default_factory=Counter)
    """Rows by what gave their label: judge, noise, identical, stored."""
    failures: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(annotator, kind of the reason) -> rows without a judgement."""
    example: str = ""
    """The first reason."""
    verdicts: Verdicts = field(default_factory=dict)
    """What each annotator's judge said of the answers as they stood before it."""
    price: float = 0.0
    """Sum over rows of what their answers cost, whenever they were paid for. An answer that serves two rows, because
    their prompts are the same, counts in both: what was paid is in the cache's ledger."""

    def add(self, comparison: Comparison, judgement: Judgement) -> None:
        self.rows.add(comparison)
        self.annotators[judgement.annotator] += 1
        self.judged_by[judgement.source] += 1
        if judgement.error is not None:
            self.failures[judgement.annotator, Failure(judgement.error).kind] += 1
            self.example = self.example or judgement.error
        count_verdicts([judgement], self.verdicts)
        self.price += judgement.price or 0.0

    def merge(self, other: "JudgingStats") -> None:
        self.rows.merge(other.rows)
        self.annotators += other.annotators
        self.judged_by += other.judged_by
        self.failures += other.failures
        self.example = self.example or other.example
        for name, counts in other.verdicts.items():
            self.verdicts.setdefault(name, Counter()).update(counts)
        self.price += other.price

    def to_json(self) -> dict[str, Any]:
        return {
            "rows": self.rows.to_json(),
            "annotators": dict(sorted(self.annotators.items())),
            "judged_by": dict(sorted(self.judged_by.items())),
            "failures": [[*key, count] for key, count in sorted(self.failures.items())],
            "example": self.example,
            "verdicts": {name: dict(sorted(counts.items())) for name, counts in sorted(self.verdicts.items())},
            "price": self.price,
        }

    def described(self) -> dict[str, Any]:
        """Return what the manifest says beside the counts of rows."""
        values = self.to_json()
        failures: dict[str, dict[str, int]] = {}
        for (name, kind), count in sorted(self.failures.items()):
            failures.setdefault(name, {})[kind] = count
        return {**{name: values[name] for name in ("annotators", "judged_by", "price")}, "failures": failures}

    @classmethod
    def from_text(cls, text: str) -> Self:
        return cls.from_json(json.loads(text))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        return cls(
            rows=FeedbackStats.from_json(values["rows"]),
            annotators=Counter(values["annotators"]),
            judged_by=Counter(values["judged_by"]),
            failures=Counter({(name, kind): count for name, kind, count in values["failures"]}),
            example=values["example"],
            verdicts={name: Counter(counts) for name, counts in values["verdicts"].items()},
            price=values["price"],
        )
