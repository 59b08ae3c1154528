"""Checks whether a good score comes from texts that are worth nothing: short, repetitive, empty or without letters."""

from collections.abc import Mapping
from typing import Any

_HALVED = ("length", "distinct-2-grams", "distinct-2-grams_corpus")
"""Figures that must not fall under half of the baseline's."""
_GROWN = {
    "empty": "of its samples are empty",
    "few_letters": "of its samples are digits, signs and white space with few letters",
    "duplicates": "of its samples repeat another one",
    "repetition": "of a sample's word 4-grams repeat an earlier one",
}
"""Shares that must not double, and what they are of."""
_LEAST_GROWN = 0.1
"""A share below this is no sign, whatever the baseline's."""
_LARGE = {"empty": 0.5, "few_letters": 0.5, "repetition": 0.5}
"""Shares above these are signs whatever the baseline's. Good short answers to one prompt may well repeat each other."""


def check_not_degenerate(report: Mapping[str, Any], *, arm: str, baseline: str) -> list[str]:
    """Return why a good score of `arm` is no success: its texts are worse than those of `baseline`.

    One sentence per scenario and reason; empty if nothing is wrong. A figure that the baseline lacks is a reason, too.
    """
    rows = {(row["scenario"], row["arm"]): row for row in report["table"]}
    problems = []
    for scenario in dict.fromkeys(name for name, _ in rows):
        ours, theirs = rows[scenario, arm], rows[scenario, baseline]
        for key in _HALVED:
            if theirs[key] is None:
                problems.append(f"{scenario}: {baseline} has no {key} to compare with; draw more or longer samples")
        problems += [f"{scenario}: {sign}" for sign in degenerate_signs(ours, theirs)]
    return problems


def degenerate_signs(row: Mapping[str, Any], baseline: Mapping[str, Any] | None) -> list[str]:
    """Return what in a row of the table says that its texts are degenerate, a phrase each.

    `baseline`: the row of the same scenario that it is compared with; None: only shares that are large by themselves
    count.
    """
    found = [] if baseline is None else _fallen(row, baseline)
    for key, what in _GROWN.items():
        share = row[key]
        if share is None:
            continue
        if baseline is not None and baseline[key] is not None and share >= max(_LEAST_GROWN, 2 * baseline[key]):
            found.append(f"{share:.0%} {what}; {baseline[key]:.0%} with {baseline['arm']}")
        elif share > _LARGE.get(key, 1.0):
            found.append(f"{share:.0%} {what}")
    return found


def _fallen(row: Mapping[str, Any], baseline: Mapping[str, Any]) -> list[str]:
    found = []
    for key in _HALVED:
        ours, theirs = row[key], baseline[key]
        if theirs is not None and (ours is None or ours < theirs / 2):
            shown = "undefined" if ours is None else f"{ours:.4g}"
            found.append(f"{key} of {row['arm']} is {shown}, under half of {baseline['arm']}'s {theirs:.4g}")
    return found
