"""Writes what a reward model said of comparisons: figures as JSON and as a table, and the rewards row by row."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from phf_ray.evaluation.report.page import visible_text
from phf_ray.evaluation.report.text_table import aligned
from phf_ray.evaluation.rewards.judged import JudgedItem
from phf_ray.generation.chat.prompts import prompt_text
from phf_ray.storage.files import write_text

RESULT, TABLE, ROWS = "reward.json", "reward.txt", "rows.jsonl"

_COLUMNS = {
    "num_judged": "judged",
    "num_failed": "failed",
    "accuracy": "accuracy",
    "interval": "95%",
    "accuracy_of_longer": "longer wins",
    "margin": "margin",
    "calibration_error": "calibration error",
    "accuracy_chosen_longer": "chosen longer",
    "accuracy_chosen_shorter": "chosen shorter",
}


def write_result(folder: Path, judged: Sequence[JudgedItem], result: Mapping[str, Any]) -> str:
    """Write all files, reward.json last, and return the table."""
    rows = "".join(json.dumps(_row(one)) + "\n" for one in judged)
    table = table_of(result)
    write_text(folder / ROWS, rows)
    write_text(folder / TABLE, table)
    write_text(folder / RESULT, json.dumps(result, indent=2) + "\n")
    return table


def table_of(result: Mapping[str, Any]) -> str:
    """Return a line for all comparisons and one for each subset."""
    lines = [["", *_COLUMNS.values()]]
    for name, figures in {**result["subsets"], "all": result["all"]}.items():
        lines.append([visible_text(name), *(_shown(figures[key]) for key in _COLUMNS)])
    if result["subsets"]:
        empty = [""] * len(_COLUMNS)
        empty[list(_COLUMNS).index("accuracy")] = _shown(result["mean_of_subsets"])
        lines.append(["mean of the subsets", *empty])
    return "".join(f"{line.rstrip()}\n" for line in aligned(lines))


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict):
        return f"{value['low']:.3f}-{value['high']:.3f}"
    return str(value) if isinstance(value, int) else f"{value:.3f}"


def _row(judged: JudgedItem) -> dict[str, Any]:
    item = judged.item
    return {
        "id": item.id,
        "subset": item.subset,
        "prompt": prompt_text(item.prompt),
        "chosen_rewards": list(judged.chosen),
        "rejected_rewards": list(judged.rejected),
        "chosen_lengths": [len(answer) for answer in item.chosen],
        "rejected_lengths": [len(answer) for answer in item.rejected],
        "error": judged.error,
    }
