"""Rows of metrics: their step, their kind, and how a line of metrics.jsonl is read."""

import json
from collections.abc import Mapping
from typing import Any

STEP = "train/global_step"
EVALUATION = "evaluation/wall_s"
"""In the rows of samples and KL, and in no other."""


def parse_row(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and STEP in row else None


def row_key(row: Mapping[str, Any]) -> tuple[int, str]:
    """Step and kind."""
    kind = next((name for name in ("train/loss", EVALUATION, "debugging/num_segments") if name in row), "eval")
    return int(row[STEP]), kind
