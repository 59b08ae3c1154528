"""The rows of a run: samples and their rewards, as columns of a part and as what was counted of them."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import pyarrow as pa

from phf_ray.errors import IncompleteError
from phf_ray.judging.question import Failure
from phf_ray.rollouts.rewards import Rewards
from phf_ray.rollouts.sampling import SampledAnswer

SAMPLE_SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("sample", pa.int32()),
        ("completion", pa.string()),
        ("completion_ids", pa.list_(pa.int32())),
        ("finish_reason", pa.string()),
        ("error", pa.string()),
    ]
)
NOT_SAMPLED = Rewards(None)
"""The rewards of a sample that could not be drawn; its own row has the reason."""

_NEVER_TOO_MANY = 10
"""This many failures never stop a run, if they are at most half of all samples."""
TRANSIENT = ("unanswered", "refused", "malformed", "model_failed")
"""Kinds of failures that the next start may not meet, and tries again."""


def reward_schema(names: Sequence[str]) -> pa.Schema:
    rewards = [(f"reward_{name}", pa.float64()) for name in names]
    return pa.schema(
        [
            ("prompt_id", pa.string()),
            ("sample", pa.int32()),
            ("reward", pa.float64()),
            *rewards,
            ("gold", pa.float64()),
            ("error", pa.string()),
        ]
    )


def sample_row(prompt_id: str, sample: int, said: SampledAnswer | Failure) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(SAMPLE_SCHEMA.names)
    row |= {"prompt_id": prompt_id, "sample": sample}
    if isinstance(said, Failure):
        return row | {"error": said.reason}
    ids = None if said.completion_ids is None else list(said.completion_ids)
    return row | {"completion": said.completion, "completion_ids": ids, "finish_reason": said.finish_reason}


def reward_row(sample: Mapping[str, Any], said: Rewards, names: Sequence[str]) -> dict[str, Any]:
    return {
        "prompt_id": sample["prompt_id"],
        "sample": sample["sample"],
        "reward": said.reward,
        **{f"reward_{name}": said.by_name.get(name) for name in names},
        "gold": said.gold,
        "error": said.error,
    }


def columns_of(rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> dict[str, list[Any]]:
    found = list(rows)
    return {name: [row[name] for row in found] for name in schema.names}


@dataclass(slots=True)
class BestOfNStats:
    """Counts of one part, or of all parts, which add up."""

    rows: int = 0
    failed_rows: int = 0
    """Samples that could not be drawn, or lack a reward."""
    finish_reasons: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    """`sample: kind`, or `reward name: kind` -> samples."""
    example: str = ""
    """The first reason."""

    def add(self, sample: Mapping[str, Any], said: Rewards | None) -> None:
        """`said`: the rewards; None if none are asked for."""
        self.rows += 1
        if sample["error"] is not None:
            self._fail(f"sample: {Failure(sample['error']).kind}", sample["error"])
            self.failed_rows += 1
            return
        self.finish_reasons[str(sample["finish_reason"])] += 1
        for name, failure in ({} if said is None else said.failures).items():
            self._fail(f"reward {name}: {failure.kind}", f"{name}: {failure.reason}")
        self.failed_rows += said is not None and bool(said.failures)

    def _fail(self, kind: str, reason: str) -> None:
        self.failures[kind] += 1
        self.example = self.example or reason

    def merge(self, other: "BestOfNStats") -> None:
        self.rows += other.rows
        self.failed_rows += other.failed_rows
        self.finish_reasons += other.finish_reasons
        self.failures += other.failures
        self.example = self.example or other.example

    @property
    def has_transient(self) -> bool:
        """Whether something failed that the next start may not meet."""
        return any(kind.rpartition(": ")[2] in TRANSIENT for kind in self.failures)

    def check(self, max_failed_fraction: float, *, num_samples: int) -> None:
        """Raise IncompleteError if more than this share of all samples failed."""
        most = max(max_failed_fraction * num_samples, min(_NEVER_TOO_MANY, num_samples / 2))
        if self.failed_rows > most:
            raise IncompleteError(
                f"{self.failed_rows} of {num_samples} samples have no answer or no reward, more than "
                f"max_failed_fraction {max_failed_fraction:g}: {self.summary()}; the first: {self.example}. All that "
                "succeeded is kept; mend the cause, or raise --max-failed-fraction, and start the same command again"
            )

    def summary(self) -> str:
        return "; ".join(f"{count} {kind}" for kind, count in sorted(self.failures.items()))

    def to_json(self) -> dict[str, Any]:
        return {
            "samples": self.rows,
            "failed": self.failed_rows,
            "finish_reasons": dict(sorted(self.finish_reasons.items())),
            "failures": dict(sorted(self.failures.items())),
            "example": self.example,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        return cls(
            values["samples"],
            values["failed"],
            Counter(values["finish_reasons"]),
            Counter(values["failures"]),
            values["example"],
        )
