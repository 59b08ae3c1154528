"""Checks whether a good score comes from short or repetitive text."""

from collections.abc import Mapping
from typing import Any


def check_not_degenerate(report: Mapping[str, Any], *, arm: str, baseline: str) -> list[str]:
    """Return why a good score of `arm` is no success: texts under half as long or as diverse as those of `baseline`.

    One sentence per scenario and reason; empty if nothing is wrong.
    """
    rows = {(row["scenario"], row["arm"]): row for row in report["table"]}
    problems = []
    for scenario in dict.fromkeys(name for name, _ in rows):
        ours, theirs = rows[scenario, arm], rows[scenario, baseline]
        for key in ("length", "distinct-2-grams", "distinct-2-grams_corpus"):
            if theirs[key] is None:
                problems.append(f"{scenario}: {baseline} has no {key} to compare with; draw more or longer samples")
            elif ours[key] is None or ours[key] < theirs[key] / 2:
                shown = "undefined" if ours[key] is None else f"{ours[key]:.4g}"
                problems.append(f"{scenario}: {key} of {arm} is {shown}, under half of {baseline}'s {theirs[key]:.4g}")
    return problems
