"""Says in a sentence what each arm of a report shows, and warns if its texts or its interval can't bear it."""

from collections.abc import Mapping, Sequence
from typing import Any

from phf_ray.evaluation.report.degenerate import degenerate_signs
from phf_ray.evaluation.report.records import Evaluation

_FEWEST_GROUPS = 20
"""A bootstrap over fewer prompts gives intervals that are too narrow (Cameron, Gelbach and Miller 2008)."""


def draw_verdicts(
    table: Sequence[Mapping[str, Any]], differences: Sequence[Mapping[str, Any]], evaluation: Evaluation
) -> list[dict[str, Any]]:
    """Return a verdict for each row of the table: `scenario`, `arm`, `baseline`, `text`, `warnings`.

    Arms are compared with the first one that has no control token, or else with the first. `baseline` is None for that
    one itself.
    """
    arms = evaluation.arms
    baseline = next((arm.name for arm in arms if arm.control is None), arms[0].name)
    units = {one.name: "samples" if one.num_prompts is None else "prompts" for one in evaluation.scenarios}
    rows = {(row["scenario"], row["arm"]): row for row in table}
    pairs = {(pair["scenario"], pair["first"], pair["second"]): pair for pair in differences}
    found = []
    for row in table:
        theirs = None if row["arm"] == baseline else rows[row["scenario"], baseline]
        signs = degenerate_signs(row, theirs)
        degenerate = f"the texts look degenerate, so the score says little: {'; '.join(signs)}"
        found.append(
            {
                "scenario": row["scenario"],
                "arm": row["arm"],
                "baseline": None if theirs is None else baseline,
                "text": _score_of(row) if theirs is None else _compared(row, theirs, pairs),
                "warnings": ([degenerate] if signs else []) + _interval_warnings(row, unit=units[row["scenario"]]),
            }
        )
    return found


def _score_of(row: Mapping[str, Any]) -> str:
    if row["score"] is None:
        return "no sample has a score"
    return f"mean score {row['score']:.3g}" + _in_brackets(row["score_ci"], ".3g")


def _compared(
    row: Mapping[str, Any], theirs: Mapping[str, Any], pairs: Mapping[tuple[str, str, str], Mapping[str, Any]]
) -> str:
    ours, base = row["score"], theirs["score"]
    if ours is None:
        return _score_of(row)
    if base is None:
        return f"{_score_of(row)}; {theirs['arm']} has no score to compare with"
    difference, ci = _difference(row, theirs, pairs)
    text = f"{_score_of(row)}, {_ratio(ours, base)} {theirs['arm']}'s {base:.3g}; the difference "
    if difference is None or ci is None:
        return text + "has no interval, so nothing says whether it is noise"
    verdict = "can't be told from noise" if ci[0] <= 0 <= ci[1] else "is beyond the noise"
    return text + f"{difference:+.3g}{_in_brackets(ci, '+.3g')} {verdict}"


def _difference(
    row: Mapping[str, Any], theirs: Mapping[str, Any], pairs: Mapping[tuple[str, str, str], Mapping[str, Any]]
) -> tuple[float | None, list[float] | None]:
    """Return ours minus theirs; each pair is stored once, in the order of the arms."""
    pair = pairs.get((row["scenario"], row["arm"], theirs["arm"]))
    if pair is not None:
        return pair["difference"], pair["ci"]
    pair = pairs[row["scenario"], theirs["arm"], row["arm"]]
    difference, ci = pair["difference"], pair["ci"]
    return None if difference is None else -difference, None if ci is None else [-ci[1], -ci[0]]


def _ratio(ours: float, base: float) -> str:
    if ours == base:
        return "equal to"
    if base <= 0 or ours < 0:
        return "against"
    return f"{1 - ours / base:.0%} below" if ours < base else f"{ours / base:.3g} times"


def _in_brackets(ci: Sequence[float] | None, digits: str) -> str:
    return "" if ci is None else f" ({ci[0]:{digits}} to {ci[1]:{digits}})"


def _interval_warnings(row: Mapping[str, Any], *, unit: str) -> list[str]:
    """`unit`: what was drawn independently."""
    number = row["num_groups"]
    if row["other_share_bound"] is not None:
        return [
            f"all {row['num_scored']} samples score {row['score']:.3g}, so there is no interval; from {number} {unit} "
            f"follows only that at most {row['other_share_bound']:.2%} of all {unit} score otherwise"
        ]
    if unit == "prompts" and 1 < number < _FEWEST_GROUPS:
        return [f"the interval rests on {number} prompts and is too narrow; use {_FEWEST_GROUPS} or more"]
    return []
