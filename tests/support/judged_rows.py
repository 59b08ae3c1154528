"""Rows of judgements, made on the spot."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from phf_ray.judging.board.rows import JudgedRow, judged_row


def record(number: int, preference: float | None, **changes: Any) -> dict[str, Any]:
    """A judgement on prompt `number`."""
    return {
        "instruction": f"prompt {number}",
        "input": "",
        "output_1": f"the reference's answer to {number}",
        "output_2": f"answer to {number}",
        "generator_1": "reference",
        "generator_2": "model",
        "annotator": "judge",
        "preference": preference,
        **changes,
    }


def of_counts(model: str, wins: int, losses: int, draws: int, **changes: Any) -> list[dict[str, Any]]:
    preferences = [2.0] * wins + [1.0] * losses + [1.5] * draws
    return [
        record(number, preference, generator_2=model, output_2=f"{model} says {number}", **changes)
        for number, preference in enumerate(preferences)
    ]


def rows_of(records: Iterable[Mapping[str, Any]]) -> list[JudgedRow]:
    return [judged_row(one, f"record {number}") for number, one in enumerate(records)]


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> str:
    path.write_text("".join(json.dumps(one) + "\n" for one in records), encoding="utf-8")
    return str(path)
