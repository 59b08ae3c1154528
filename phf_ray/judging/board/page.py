"""The page of a leaderboard: turns figures into text for the template `board.html.jinja`."""

from collections.abc import Mapping, Sequence
from typing import Any

from phf_ray.evaluation.report.page import render_page, shown_plots
from phf_ray.evaluation.report.plots import Plot
from phf_ray.evaluation.report.table import format_cell
from phf_ray.judging.board.rows import NOT_NAMED
from phf_ray.judging.board.table import row_notes, standings_table

_MOST_OPEN = 12
"""Longer tables are folded."""
_MOST_COLUMNS = 30
"""A wider matrix is left to leaderboard.json."""


def board_page(board: Mapping[str, Any], plots: Sequence[Plot]) -> str:
    """Return the whole page, which needs no network and no script. Names may be hostile: every text is escaped."""
    titles, cells = standings_table(board["models"])
    return render_page(
        "board.html.jinja",
        package="phf_ray.judging.board",
        intro=_intro(board),
        warnings=board["warnings"],
        columns=titles,
        models=[(row["name"], values) for row, values in zip(board["models"], cells, strict=True)],
        notes=[note for row in board["models"] for note in row_notes(row)],
        length_control=board["length_control"],
        published=[_published(row) for row in board["published"]],
        plots=shown_plots(plots),
        level=f"{board['level']:.0%}",
        ratings=[rating_cells(row) for row in board["ratings"]["players"]],
        rating_notes=rating_notes(board["ratings"]),
        matrix=matrix_cells(board["matrix"]),
        differences=[_difference(row) for row in board["differences"]],
        most_open=_MOST_OPEN,
        baselines=[_baseline(row) for row in board["baselines"]],
        human=[_human(row) for row in board["human"]],
        consistency=[_consistency(row) for row in board["consistency"]],
        rows_file=board["rows"],
        num_resamples=board["num_resamples"],
    )


def _intro(board: Mapping[str, Any]) -> list[str]:
    references = [f"{row['name']} ({row['avg_length']:,} characters on average)" for row in board["references"]]
    outside = {row["name"] for row in board["references"]}
    beside = "" if all(outside.issuperset(row["references"]) for row in board["models"]) else ", and each other"
    annotators = ", ".join(f"{name} ({count:,} rows)" for name, count in board["annotators"].items())
    price = "the rows name no price" if board["price"] is None else f"price {board['price']:,.4f}"
    missing = board["n_rows_without_price"]
    if board["price"] is not None and missing:
        price += f", not counting {missing:,} rows without one"
    return [
        f"Against {', '.join(references)}{beside}." if references else "Every model was ranked against others.",
        f"Judged by {annotators}.",
        f"{board['n_rows']:,} rows, {board['n_draws_of_rows']:,} draws (both orders of a pair, and copies of one "
        f"verdict, are one draw); {price}.",
    ]


def _published(row: Mapping[str, Any]) -> list[str]:
    figures = [format_cell(row, key, digits) for key, digits in (("win_rate", ".2f"), ("standard_error", ".2f"))]
    return [row["name"], row["version"], *figures, *(format_cell(row, key, "d") for key in ("n_total", "avg_length"))]


def rating_cells(row: Mapping[str, Any]) -> list[str]:
    keys = ("bradley_terry", "bradley_terry_interval", "elo", "elo_interval")
    figures = ["NaN" if row[key] is None else format_cell(row, key, ".0f") for key in keys]
    return [row["name"], *figures, f"{row['n_battles']:,}"]


def rating_notes(ratings: Mapping[str, Any]) -> list[str]:
    told = {
        "Bradley-Terry": ratings["bradley_terry_reason"],
        "intervals of Bradley-Terry": ratings["bradley_terry_interval_reason"],
        "Elo": ratings["elo_reason"],
    }
    if told["Bradley-Terry"]:
        del told["intervals of Bradley-Terry"]
    return [f"{name}: NaN: {reason}" for name, reason in told.items() if reason]


def matrix_cells(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return names, and for each row's name its cells (percent, text, title); None if there is little to see.

    Where all were judged against one model, the matrix is one row of what the standings say.
    """
    names = sorted({row[side] for row in rows for side in ("first", "second")})
    if len(rows) < len(names) or len(names) > _MOST_COLUMNS:
        return None
    cells: dict[tuple[str, str], tuple[float, str, str]] = {}
    for row in rows:
        for first, second, rate in (
            (row["first"], row["second"], row["win_rate"]),
            (row["second"], row["first"], 100 - row["win_rate"]),
        ):
            cells[first, second] = (rate, f"{rate:.0f}", f"{first} beats {second}: {rate:.1f}% of {row['n_total']:,}")
    return {"names": names, "rows": [(first, [cells.get((first, second)) for second in names]) for first in names]}


def _difference(row: Mapping[str, Any]) -> list[str]:
    if row["p_value_holm"] is None:
        shown = "-" if row["difference"] is None else f"{row['difference']:+.2f}"
        return [f"{row['first']} - {row['second']}", shown, "-", "-", row["reason"], f"{row['n_prompts']:,}"]
    return [
        f"{row['first']} - {row['second']}",
        f"{row['difference']:+.2f}",
        format_cell(row, "interval", "+.2f"),
        f"{row['p_value_holm']:.2g}",
        "yes" if row["significant"] else "no",
        f"{row['n_prompts']:,}",
    ]


def _baseline(row: Mapping[str, Any]) -> list[str]:
    return [
        row["name"],
        format_cell(row, "agreement", ".1%"),
        format_cell(row, "interval", ".1%"),
        f"{row['n_decided']:,}",
    ]


def _human(row: Mapping[str, Any]) -> list[str]:
    return [
        row["name"] + (" (baseline)" if row["is_baseline"] else ""),
        format_cell(row, "accuracy", ".1%"),
        format_cell(row, "accuracy_interval", ".1%"),
        f"{row['n_decided']:,}",
        format_cell(row, "kappa", ".3f"),
        format_cell(row, "kappa_interval", ".3f"),
    ]


def _consistency(row: Mapping[str, Any]) -> list[str]:
    return [
        row["annotator"] or NOT_NAMED,
        f"{row['n_pairs']:,}",
        format_cell(row, "consistency", ".1%"),
        format_cell(row, "position_bias", "+.3f"),
        format_cell(row, "p_value", ".2g"),
    ]
