"""Formats the standings: the table for a terminal and the page, and `leaderboard.csv`."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from phf_ray.evaluation.report.table import format_cell
from phf_ray.evaluation.report.text_table import aligned, ruled

CSV_COLUMNS = (
    "win_rate",
    "standard_error",
    "n_wins",
    "n_wins_base",
    "n_draws",
    "n_total",
    "discrete_win_rate",
    "mode",
    "avg_length",
    "length_controlled_winrate",
)
"""AlpacaFarm's and AlpacaEval's, behind a column without a name that holds the model's."""
MEASURED = "measured"
"""`mode` of a row that was computed here; a published row has `published` and its version."""

_COLUMNS = (
    ("win rate", "win_rate", ".2f", "percent; a draw is half a win"),
    ("+-", "standard_error", ".2f", "standard error as AlpacaFarm has it: each row is a draw"),
    ("interval", "interval", ".1f", "rows of one prompt are one draw"),
    ("length-contr.", "length_controlled_win_rate", ".2f", "win rate at equal lengths; the fit is not regularised"),
    ("discrete", "discrete_win_rate", ".2f", "every preference rounded to a win, a draw or a loss"),
    ("corrected", "corrected_win_rate", ".2f", "discrete win rate, corrected for the judge's errors on human labels"),
    ("n", "n_total", "d", "pairs that were judged"),
    ("wins", "n_wins", "d", "pairs in which the model's answer is the better one"),
    ("losses", "n_wins_base", "d", "pairs in which the reference's answer is the better one"),
    ("draws", "n_draws", "d", "pairs without a better answer"),
    ("failed", "n_failed", "d", "pairs without a preference, which count nowhere"),
    ("chars", "avg_length", "d", "mean length of the answers in characters"),
    ("price", "price", ".4f", "what the judgements cost, as far as the rows say"),
)


def standings_table(models: Sequence[Mapping[str, Any]]) -> tuple[list[tuple[str, str]], list[list[str]]]:
    """Return (title, help) of the columns, and the cells of each row behind its name; empty columns are left out."""
    columns = [column for column in _COLUMNS if any(_cell(row, *column[1:3]) != "-" for row in models)]
    cells = [[_cell(row, key, digits) for _, key, digits, _ in columns] for row in models]
    return [(title, told) for title, _, _, told in columns], cells


def _cell(row: Mapping[str, Any], key: str, digits: str) -> str:
    """Return the figure; NaN if there is a reason why it is not defined, which stands below the table."""
    if key == "length_controlled_win_rate" and row["length_controlled_reason"]:
        return "NaN"
    return format_cell(row, key, digits)


def format_board(board: Mapping[str, Any]) -> str:
    """Format the standings for a terminal, with what a reader must know below."""
    titles, cells = standings_table(board["models"])
    lines = [["model", *(title for title, _ in titles)]]
    lines += [[row["name"], *values] for row, values in zip(board["models"], cells, strict=True)]
    notes = [note for row in board["models"] for note in row_notes(row)]
    notes += [f"warning: {warning}" for warning in board["warnings"]]
    if board["ratings"]["bradley_terry_reason"]:
        notes.append(f"no Bradley-Terry ratings: {board['ratings']['bradley_terry_reason']}")
    for row in board["published"]:
        notes.append(
            f"published ({row['version']}): {row['name']} {row['win_rate']:.2f} +- {row['standard_error']:.2f}"
        )
    return "\n".join([*ruled(aligned(lines)), *notes])


def row_notes(row: Mapping[str, Any]) -> list[str]:
    """Return what the row's figures don't say."""
    notes = []
    if row["failures"]:
        reasons = ", ".join(f"{reason} x {count:,}" for reason, count in row["failures"].items())
        notes.append(f"{row['name']}: {row['n_failed']:,} pairs were not judged ({reasons})")
    if row["length_controlled_reason"]:
        notes.append(f"{row['name']}: length-controlled win rate NaN: {row['length_controlled_reason']}")
    if row["interval_note"]:
        notes.append(f"{row['name']}: {row['interval_note']}")
    if row["n_empty_answers"]:
        notes.append(f"{row['name']}: {row['n_empty_answers']:,} answers are empty")
    return notes


def csv_of(board: Mapping[str, Any]) -> str:
    """Return `leaderboard.csv`: the models, and published rows if they are shown, by win rate."""
    rows = [{**row, "mode": MEASURED} for row in board["models"]]
    for row in board["published"]:
        mark = f"published {row['version']}"
        rows.append({**row, "name": f"{row['name']} ({mark})", "mode": mark})
    rows.sort(key=lambda row: (row["win_rate"] is None, -row["win_rate"] if row["win_rate"] is not None else 0.0))
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(["", *CSV_COLUMNS])
    for row in rows:
        values = {**row, "length_controlled_winrate": row.get("length_controlled_win_rate")}
        writer.writerow([row["name"], *("" if values.get(name) is None else values[name] for name in CSV_COLUMNS)])
    return sink.getvalue()
