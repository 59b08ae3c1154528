"""Metrics rows: how to parse a line of metrics.jsonl, and the step and kind of a row."""

import json
from collections.abc import Mapping
from typing import Any

STEP = "train/global_step"
EVALUATION = "evaluation/wall_s"
"""Only rows of samples and KL have this key."""

EVALUATION_SETS = "eval/sets_wall_s"
"""Only rows of evaluation sets have this key."""

ROUND = "rollouts/round"
"""Only rows of rounds have this key."""


def parse_row(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and STEP in row else None


def row_key(row: Mapping[str, Any]) -> tuple[int, str]:
    """Return the step and the kind of a row."""
    kind = next(
        (name for name in ("train/loss", EVALUATION, EVALUATION_SETS, ROUND, "debugging/num_segments") if name in row),
        "eval",
    )
    return int(row[STEP]), kind
