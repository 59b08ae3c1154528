"""Draws the plots of a leaderboard, in the look of the evaluation's report."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from phf_ray.evaluation.report.page import visible_text
from phf_ray.evaluation.report.plots import FAINT, PALETTE, SOFT, Plot, Point, add_legend, new_axes, plot_points

_MOST_LINES = len(PALETTE)
"""More lines can't be told apart by their colors."""
_LONGEST_LABEL = 36
"""Characters, for which a plot has room."""


def draw_board_plots(board: Mapping[str, Any]) -> list[Plot]:
    """Draw what can be drawn; ratings that are not defined have no plot."""
    models = [row for row in board["models"] if row["win_rate"] is not None]
    colors = {row["name"]: PALETTE[number % len(PALETTE)] for number, row in enumerate(models)}
    level = f"{board['level']:.0%}"
    plots = [
        Plot(
            None,
            "win-rates",
            f"Win rate against the reference with its {level} interval, clustered by prompt. Right is better.",
            plot_points([_win_rate_point(row, colors) for row in models], label="win rate (%)"),
        )
    ]
    ratings = [row for row in board["ratings"]["players"] if row["bradley_terry"] is not None]
    if ratings:
        points = [
            Point(
                plot_label(row["name"]),
                row["bradley_terry"],
                row["bradley_terry_interval"],
                colors.get(row["name"], SOFT),
                f"mark-rating-{plot_label(row['name'])}",
                f"{row['bradley_terry']:.0f}",
            )
            for row in ratings
        ]
        caption = f"Bradley-Terry ratings in Elo points around 1000, with {level} intervals from resampling prompts."
        plots.append(Plot(None, "ratings", caption, plot_points(points, label="rating")))
    if board["by_length_difference"]:
        plots.append(_length_plot(board, colors))
    checks = _check_points(board)
    if checks:
        what = "humans" if board["human"] else "the judge"
        caption = f"How often the better answer is named as {what} name it, with 95% intervals."
        if not board["human"]:
            caption = "How often a judge that knows nothing of the answers agrees with the judge, with 95% intervals."
        plots.append(Plot(None, "agreement", caption, plot_points(checks, label=f"agreement with {what} (%)")))
    return plots


def plot_label(name: str) -> str:
    """Return the name as matplotlib can write it: short, and without formulas and hidden characters."""
    shown = visible_text(" ".join(name.split()))
    return (shown if len(shown) <= _LONGEST_LABEL else f"{shown[: _LONGEST_LABEL - 3]}...").replace("$", r"\$")


def _win_rate_point(row: Mapping[str, Any], colors: Mapping[str, str]) -> Point:
    label = plot_label(row["name"])
    return Point(label, row["win_rate"], row["interval"], colors[row["name"]], f"mark-win-rate-{label}")


def _length_plot(board: Mapping[str, Any], colors: Mapping[str, str]) -> Plot:
    figure, axes = new_axes()
    by_model: defaultdict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in board["by_length_difference"]:
        by_model[row["name"]].append(row)
    shown = [name for name in colors if name in by_model][:_MOST_LINES]
    for name in shown:
        mine = by_model[name]
        axes.plot(
            [row["longer_by"] for row in mine], [row["win_rate"] for row in mine], color=colors[name],
            label=plot_label(name), marker="o", markersize=4, linewidth=1.8, gid=f"mark-length-{plot_label(name)}",
        )  # fmt: skip
    axes.axhline(50, color=SOFT, linestyle=":", linewidth=1.2)
    axes.axvline(0, color=FAINT, linewidth=1.2)
    axes.set_ylim(-2, 102)
    axes.set_xlabel("characters by which the model's answer is longer")
    axes.set_ylabel("win rate (%)")
    add_legend(axes)
    left_out = f" The {len(shown)} best of {len(by_model)} models." if len(shown) < len(by_model) else ""
    caption = f"Win rate by how much longer the answer is than the reference's, in bins of equal size.{left_out}"
    return Plot(None, "win-rate-by-length", caption, figure)


def _check_points(board: Mapping[str, Any]) -> list[Point]:
    rows: Sequence[Mapping[str, Any]] = board["human"] or [
        {"name": row["name"], "accuracy": row["agreement"], "accuracy_interval": row["interval"], "is_baseline": True}
        for row in board["baselines"]
    ]
    return [
        Point(
            plot_label(row["name"]),
            100 * row["accuracy"],
            None if row["accuracy_interval"] is None else [100 * bound for bound in row["accuracy_interval"]],
            SOFT if row["is_baseline"] else PALETTE[0],
            f"mark-agreement-{plot_label(row['name'])}",
        )
        for row in rows
        if row["accuracy"] is not None
    ]
