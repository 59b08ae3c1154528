"""Draws the plots of a report. Only this file imports matplotlib."""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from phf_ray.checkpoint import split_model_id
from phf_ray.evaluation.report.records import Evaluation, Sample
from phf_ray.measures.pareto import pareto_front

# Readable on white and on near-black.
PALETTE = ("#4c8fd0", "#e07b39", "#3fa06a", "#cf5b7c", "#9676c9", "#9a8f3c", "#3aa6b0", "#a06a4c")
# Colors in the PNG files; on the page the theme's colors replace them.
INK, FAINT, SOFT = "#1c2431", "#d5dbe4", "#5b6676"


@dataclass(frozen=True, slots=True)
class Plot:
    scenario: str | None
    """None: the plot shows the training run, or belongs to `group`."""
    name: str
    caption: str
    figure: Figure
    group: str = ""
    """Group of plots that belong to no scenario."""


def draw_plots(report: Mapping[str, Any], samples: Sequence[Sample], evaluation: Evaluation) -> list[Plot]:
    unit = str(report["scorer"].get("unit", "score"))
    colors = {arm.name: PALETTE[number % len(PALETTE)] for number, arm in enumerate(evaluation.arms)}
    plots = []
    for scenario in evaluation.scenarios:
        rows = [row for row in report["table"] if row["scenario"] == scenario.name and row["score"] is not None]
        if not rows:
            continue
        curves = [point for point in report["curves"] if point["scenario"] == scenario.name]
        scores = {
            arm.name: [
                s.score for s in samples if (s.scenario, s.arm) == (scenario.name, arm.name) and s.score is not None
            ]
            for arm in evaluation.arms
        }
        plots += [
            Plot(
                scenario.name,
                f"{scenario.name}-mean",
                f"Mean score with its {evaluation.level:.0%} interval. Left is better.",
                _plot_means(rows, colors, unit=unit),
            ),
            Plot(
                scenario.name,
                f"{scenario.name}-distribution",
                "Share of samples that score above a value. Lower is better.",
                _plot_distribution(scores, colors, unit=unit),
            ),
            Plot(
                scenario.name,
                f"{scenario.name}-max-at-k",
                "Expected largest score of k samples, with its interval. Lower is better.",
                _plot_max_at_k(curves, colors, unit=unit),
            ),
        ]
        if any(row["kl_per_byte"] is not None for row in rows):
            plots.append(
                Plot(
                    scenario.name,
                    f"{scenario.name}-pareto",
                    "Mean score against the distance from the reference model, with intervals and standard errors. "
                    "Lower left is better; no arm beats those on the dotted line in both.",
                    _plot_pareto(rows, colors, unit=unit),
                )
            )
    if any(arm.loss for arm in evaluation.arms):
        # One curve per model, whatever control tokens it is sampled with.
        losses = {
            split_model_id(arm.name)[0]: (arm.loss, colors[arm.name]) for arm in reversed(evaluation.arms) if arm.loss
        }
        plots.append(
            Plot(
                None,
                "training-loss",
                "Training loss by tokens seen. A conditional model's mean includes its "
                "control tokens, which are easier to guess than text and tell what follows: its curve does not "
                "compare with those of other methods.",
                _plot_losses(losses),
            )
        )
    if report["red_team"]:
        for key, what in (
            ("best_prompt_score", "of the worst prompt so far"),
            ("best_10_prompt_score", "of the 10 worst prompts so far"),
            ("round_average_score", "of the prompts of the round"),
        ):
            plots.append(
                Plot(
                    None,
                    f"red-team-{key.removesuffix('_score').replace('_', '-')}",
                    f"Under attack: mean score {what}, over trials, with its {evaluation.level:.0%} interval. Lower is "
                    "better.",
                    _plot_red_team(report["red_team"], colors, key=key, unit=unit),
                    group="red team",
                )
            )
    return plots


def _plot_red_team(rows: Sequence[Mapping[str, Any]], colors: Mapping[str, str], *, key: str, unit: str) -> Figure:
    figure, axes = new_axes()
    for arm, color in colors.items():
        mine = [row for row in rows if row["arm"] == arm and row[key] is not None]
        if not mine:
            continue
        axes.plot(
            [row["round"] for row in mine], [row[key] for row in mine], color=color, label=arm, marker="o",
            markersize=4, linewidth=1.8, gid=f"mark-{key}-{arm}",
        )  # fmt: skip
        banded = [row for row in mine if row[f"{key}_ci"] is not None]
        axes.fill_between(
            [row["round"] for row in banded], [row[f"{key}_ci"][0] for row in banded],
            [row[f"{key}_ci"][1] for row in banded], color=color, alpha=0.15, linewidth=0,
        )  # fmt: skip
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("round of the attack")
    axes.set_ylabel(unit)
    add_legend(axes)
    return figure


def new_axes(*, height: float = 3.2) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.2, height), layout="constrained", facecolor="none")
    axes = figure.add_subplot(facecolor="none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, which="both", labelsize=9)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    axes.grid(visible=True, color=FAINT, linewidth=0.5)
    axes.set_axisbelow(True)
    return figure, axes


_MOST_INSIDE = 3
"""Maximum number of legend entries for which the axes have room."""
_LONG_NAME = 16
"""Of names with more characters, three do not fit side by side."""


def add_legend(axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > _MOST_INSIDE:
        figure = axes.get_figure()
        assert isinstance(figure, Figure)
        columns = 3 if max(map(len, labels)) <= _LONG_NAME else 2
        figure.legend(
            handles, labels, loc="outside lower center", ncols=columns, frameon=False, labelcolor=INK, fontsize=9
        )
    elif labels:
        axes.legend(frameon=False, labelcolor=INK, fontsize=9)


def _plot_means(rows: Sequence[Mapping[str, Any]], colors: Mapping[str, str], *, unit: str) -> Figure:
    points = [
        Point(
            row["arm"], row["score"], row["score_ci"], colors[row["arm"]], f"mark-mean-{row['scenario']}-{row['arm']}"
        )
        for row in rows
    ]
    return plot_points(points, label=f"mean {unit}", left=min(0.0, *(row["score"] for row in rows)))


@dataclass(frozen=True, slots=True)
class Point:
    """A figure of one thing, with its interval."""

    name: str
    value: float
    interval: Sequence[float] | None
    color: str
    id: str
    """Of its mark in the SVG."""
    shown: str | None = None
    """What is written beside it; None: the value in three digits."""


def plot_points(points: Sequence[Point], *, label: str, left: float | None = None) -> Figure:
    """Plot a line for each point, in their order. `left`: where the axis begins at the latest."""
    figure, axes = new_axes(height=max(3.2, 1.2 + 0.34 * len(points)))
    for position, point in enumerate(points):
        value, ci = point.value, point.interval
        error = None if ci is None else [[max(0.0, value - ci[0])], [max(0.0, ci[1] - value)]]
        container = axes.errorbar(
            [value], [position], xerr=error, fmt="o", color=point.color, capsize=4, markersize=7, linewidth=2
        )
        container.lines[0].set_gid(point.id)
        axes.annotate(
            f"{value:.3g}" if point.shown is None else point.shown,
            (value, position),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            color=INK,
            fontsize=9,
        )
    axes.set_yticks(range(len(points)), [point.name for point in points])
    axes.set_ylim(len(points) - 0.4, -0.7)
    if left is not None:
        axes.set_xlim(left=left)
    axes.margins(x=0.08)
    axes.set_xlabel(label)
    axes.grid(visible=False, axis="y")
    return figure


def _plot_distribution(scores: Mapping[str, Sequence[float]], colors: Mapping[str, str], *, unit: str) -> Figure:
    figure, axes = new_axes()
    positive = [score for values in scores.values() for score in values if score > 0]
    for arm, values in scores.items():
        ordered = sorted(values)
        shares = [1 - (rank + 1) / len(ordered) for rank in range(len(ordered))]
        axes.step([ordered[0], *ordered] if ordered else [], [1.0, *shares] if ordered else [], where="post",
                  color=colors[arm], label=arm, linewidth=1.8)  # fmt: skip
    if positive and max(positive) > 20 * min(positive):
        # Zero has no logarithm: below the first power of ten the axis is linear.
        last = math.floor(math.log10(max(positive)))
        first = max(math.ceil(math.log10(min(positive))), last - 4)
        axes.set_xscale("symlog", linthresh=10.0**first, linscale=0.7)
        axes.set_xticks([0.0, *(10.0**power for power in range(first, last + 1))])
        axes.minorticks_off()
    axes.set_ylim(0, 1.02)
    axes.set_xlabel(unit)
    axes.set_ylabel("share of samples above")
    add_legend(axes)
    return figure


def _plot_max_at_k(points: Sequence[Mapping[str, Any]], colors: Mapping[str, str], *, unit: str) -> Figure:
    figure, axes = new_axes()
    for arm, color in colors.items():
        mine = [point for point in points if point["arm"] == arm and point["score_max"] is not None]
        axes.plot(
            [p["k"] for p in mine], [p["score_max"] for p in mine], color=color, label=arm, marker="o", markersize=4,
            linewidth=1.8, gid=f"mark-max-{arm}",
        )  # fmt: skip
        banded = [point for point in mine if point["ci"] is not None]
        axes.fill_between(
            [p["k"] for p in banded], [p["ci"][0] for p in banded], [p["ci"][1] for p in banded], color=color,
            alpha=0.15, linewidth=0,
        )  # fmt: skip
    axes.set_xscale("log")
    ks = sorted({point["k"] for point in points})
    axes.set_xticks(ks, [str(k) for k in ks])
    axes.minorticks_off()
    axes.set_xlabel("k")
    axes.set_ylabel(unit)
    add_legend(axes)
    return figure


def _plot_pareto(rows: Sequence[Mapping[str, Any]], colors: Mapping[str, str], *, unit: str) -> Figure:
    """Plot a point for each arm with a KL, and a line through the arms that no other arm beats in both."""
    figure, axes = new_axes()
    rows = [row for row in rows if row["kl_per_byte"] is not None]
    front = set(pareto_front([(row["arm"], row["score"], row["kl_per_byte"]) for row in rows]))
    best = sorted((row["kl_per_byte"], row["score"]) for row in rows if row["arm"] in front)
    axes.step(*zip(*best, strict=True), where="post", color=SOFT, linestyle=":", linewidth=1.2)
    for row in rows:
        mean, ci, kl = row["score"], row["score_ci"], row["kl_per_byte"]
        container = axes.errorbar(
            [kl],
            [mean],
            xerr=[row["kl_per_byte_error"]],
            yerr=None if ci is None else [[max(0.0, mean - ci[0])], [max(0.0, ci[1] - mean)]],
            fmt="o",
            color=colors[row["arm"]],
            label=row["arm"],
            capsize=3,
            markersize=6,
        )
        container.lines[0].set_gid(f"mark-pareto-{row['scenario']}-{row['arm']}")
    axes.margins(0.15)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("KL from the reference (nats per byte)")
    axes.set_ylabel(unit)
    add_legend(axes)
    return figure


def _plot_losses(losses: Mapping[str, tuple[Sequence[tuple[int, float]], str]]) -> Figure:
    figure, axes = new_axes()
    for model, (points, color) in sorted(losses.items()):
        axes.plot(
            [tokens for tokens, _ in points], [loss for _, loss in points], color=color, label=model, linewidth=1.5
        )
    axes.set_xlabel("tokens seen")
    axes.set_ylabel("loss (nats per token)")
    add_legend(axes)
    return figure


def png_of(figure: Figure) -> bytes:
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=150, facecolor="white", metadata={"Software": None})
    return sink.getvalue()


def svg_of(plot: Plot) -> str:
    import matplotlib

    sink = io.StringIO()
    # Text stays text, and ids are the same every time the plot is drawn.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": plot.name, "font.family": "sans-serif"}):
        plot.figure.savefig(sink, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    drawn = sink.getvalue()
    return (
        drawn[drawn.index("<svg") :]
        .replace(INK, "currentColor")
        .replace(FAINT, "var(--faint)")
        .replace(SOFT, "var(--soft)")
    )
