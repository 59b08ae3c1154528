"""Formats the table of a report, for a terminal and for the page."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from phf_ray.evaluation.report.text_table import aligned, ruled


@dataclass(frozen=True, slots=True)
class _Column:
    title: str
    key: str
    digits: str
    help: str
    on_page_only: bool = False
    """Left out in a terminal, which has no room for it."""


_WIDTH = 120
"""Characters of a line of text in a terminal."""

_COLUMNS = (
    _Column("n", "num_scored", "d", "samples with a score"),
    _Column("score", "score", ".3g", "mean, lower is better"),
    _Column("95% CI", "score_ci", ".3g", "percentile bootstrap interval of the mean"),
    _Column(
        "bits/byte",
        "bits_per_byte",
        ".3f",
        "on held-out documents, those of control tokens included: the figure to compare arms by, an upper bound for a "
        "model with control tokens",
    ),
    _Column(
        "with token",
        "bits_per_byte_given_control",
        ".3f",
        "bits per byte with the arm's control token before every segment. It is given, and says where segments begin: "
        "no figure to compare with arms without tokens",
        True,
    ),
    _Column("KL/byte", "kl_per_byte", ".4f", "nats per byte from the reference model, on texts of the reference"),
    _Column("+-", "kl_per_byte_error", ".4f", "standard error of the KL"),
    _Column("max", "score_max", ".3g", "largest score"),
    _Column(
        "max@25",
        "score_max@25",
        ".3g",
        "expected largest score of 25 samples (within a prompt if there are prompts and each has 25)",
    ),
    _Column("hits", "num_hits", ".1%", "share of samples scoring above the scenario's threshold"),
    _Column(
        "hit in 25", "hit_probability@25", ".1%", "probability that one of 25 samples is above the threshold", True
    ),
    _Column("chars", "length", ".0f", "mean length in characters"),
    _Column("tokens", "length_tokens", ".0f", "mean length in tokens"),
    _Column("distinct-2", "distinct-2-grams", ".3f", "mean share of distinct word pairs within a sample"),
    _Column("corpus d-2", "distinct-2-grams_corpus", ".3f", "share of distinct word pairs over samples, at equal size"),
    _Column("empty", "empty", ".1%", "share of samples without any word", True),
    _Column(
        "few letters",
        "few_letters",
        ".1%",
        "share of samples of which letters are less than a quarter of the characters",
        True,
    ),
    _Column("repeats", "repetition", ".1%", "mean share of a sample's word 4-grams that repeat an earlier one", True),
    _Column(
        "self-BLEU-5", "Self-BLEU-5", ".3f", "likeness of samples to each other, in words: 1 if all are alike", True
    ),
    _Column("parses", "compilability", ".1%", "share of samples that Python parses, including comments alone"),
    _Column("with code", "compilability_nonempty", ".1%", "share of samples that parse and hold a statement"),
    _Column("pass@1", "pass@1", ".1%", "share of programs that pass their problem's tests"),
    _Column("pass@10", "pass@10", ".1%", "probability that one of 10 samples of a problem passes"),
    _Column("pass@100", "pass@100", ".1%", "probability that one of 100 samples of a problem passes"),
)


def format_cell(row: Mapping[str, Any], key: str, digits: str) -> str:
    value = row.get(key)
    if value is None:
        return "-"
    if isinstance(value, list):
        return " .. ".join(format(part, digits) for part in value)
    return format(value, digits)


def format_table(report: Mapping[str, Any]) -> str:
    """Format the table for a terminal in plain characters, one block per scenario.

    Columns that are empty throughout are left out.
    """
    blocks = []
    for scenario in report["scenarios"]:
        rows = [row for row in report["table"] if row["scenario"] == scenario["name"]]
        columns = shown_columns(report, rows, on_page=False)
        cells = [["arm", *(column.title for column in columns)]]
        cells += [[row["arm"], *(format_cell(row, column.key, column.digits) for column in columns)] for row in rows]
        notes = [f"{row['arm']}: {note}" for row in rows if (note := row_note(row))]
        said = [line for verdict in verdicts_of(report, scenario["name"]) for line in _verdict_lines(verdict)]
        blocks.append("\n".join([f"{scenario['name']} ({score_unit(report)})", *ruled(aligned(cells)), *notes, *said]))
    return "\n\n".join(blocks)


def verdicts_of(report: Mapping[str, Any], scenario: str) -> list[Mapping[str, Any]]:
    return [verdict for verdict in report["verdicts"] if verdict["scenario"] == scenario]


def _verdict_lines(verdict: Mapping[str, Any]) -> list[str]:
    said = [
        f"{verdict['arm']}: {verdict['text']}",
        *(f"WARNING: {verdict['arm']}: {warning}" for warning in verdict["warnings"]),
    ]
    return [line for text in said for line in textwrap.wrap(text, width=_WIDTH, subsequent_indent="  ")]


def format_red_team(report: Mapping[str, Any]) -> str:
    """Format the attacks' curves for a terminal: one line per arm and round."""
    keys = ("best_prompt_score", "best_10_prompt_score", "average_score", "round_average_score")
    cells = [["arm", "round", "prompts", "worst prompt", "10 worst", "all", "this round"]]
    for row in report["red_team"]:
        scores = [format_cell(row, key, ".3g") for key in keys]
        cells.append([row["arm"], str(row["round"]), f"{row['num_tested']:.0f}", *scores])
    return "\n".join([f"under attack ({score_unit(report)})", *ruled(aligned(cells))])


def shown_columns(report: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], *, on_page: bool) -> list[_Column]:
    level = f"{report['level']:.0%} CI"
    return [
        _Column(level, column.key, column.digits, column.help) if column.key == "score_ci" else column
        for column in _COLUMNS
        if any(row.get(column.key) is not None for row in rows) and (on_page or not column.on_page_only)
    ]


def row_note(row: Mapping[str, Any]) -> str:
    notes = []
    if row["num_missing"]:
        notes.append(f"{row['num_missing']} of {row['num_planned']} samples could not be drawn")
    if row["num_unscored"]:
        reasons = ", ".join(f"{reason} x {count}" for reason, count in row["unscored"].items())
        notes.append(f"{row['num_unscored']} samples have no score ({reasons})")
    if row["num_kl_impossible"]:
        notes.append(
            f"the KL leaves out {row['num_kl_impossible']} texts of the reference that the model can't produce"
        )
    if row["kl_failures"]:
        reasons = ", ".join(f"{reason} x {count}" for reason, count in row["kl_failures"].items())
        notes.append(f"the KL leaves out texts that the reference gave no log-probability of ({reasons})")
    if row["kl_note"]:
        notes.append(f"of the KL: {row['kl_note']}")
    return "; ".join(notes)


def score_unit(report: Mapping[str, Any]) -> str:
    return f"{report['scorer'].get('name', 'score')}: {report['scorer'].get('unit', 'unit unknown')}"
