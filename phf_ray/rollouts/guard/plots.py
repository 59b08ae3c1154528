"""Draws the plots of a run of rounds, in the look of the evaluation's report."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from phf_ray.evaluation.report.plots import PALETTE, SOFT, Plot, add_legend, new_axes
from phf_ray.measures.clusters import ClusteredMean
from phf_ray.measures.overoptimization import OveroptimizationFit
from phf_ray.rollouts.figures import RoundFigures
from phf_ray.rollouts.guard.summary import RoundsSummary

_MOST_MARKS = 40
"""More rounds are drawn as a line without marks."""
_FIT_POINTS = 200


class Curve(NamedTuple):
    name: str
    read: Callable[[RoundFigures], ClusteredMean | float | None]
    color: str = PALETTE[0]


_REWARD = Curve("reward", lambda figures: figures.reward)
_GOLD = Curve("gold", lambda figures: figures.gold, PALETTE[1])
_SHARES = (
    Curve("truncated", lambda figures: figures.truncated),
    Curve("empty", lambda figures: figures.empty, PALETTE[1]),
    Curve("repeated", lambda figures: figures.duplicates, PALETTE[2]),
    Curve("equal rewards", lambda figures: figures.constant_groups, PALETTE[3]),
)
_DIVERSITY = (
    Curve("of an answer", lambda figures: figures.distinct_2),
    Curve("of the round", lambda figures: figures.distinct_2_corpus, PALETTE[1]),
)
_LABELS = {"reward": "reward (proxy)", "gold": "gold reward"}


def draw_round_plots(summary: RoundsSummary) -> list[Plot]:
    """Draw what the run has figures for."""
    rounds = summary.rounds
    rewards = [_REWARD, *([_GOLD] if any(figures.gold for figures in rounds) else [])]
    has_kl = any(figures.kl for figures in rounds)
    return [
        *([_against_kl(summary, curve) for curve in rewards] if has_kl else []),
        *(_reward_by_round(summary, curve) for curve in rewards),
        *([_kl_by_round(summary)] if has_kl else []),
        _by_round(
            rounds,
            [Curve("length", lambda figures: figures.num_tokens)],
            name="length-by-round",
            label="tokens per answer",
            caption="Tokens per answer, with the end of text.",
        ),
        _by_round(
            rounds,
            _DIVERSITY,
            name="diversity-by-round",
            label="distinct-2",
            caption="Different pairs of words among all pairs: in an answer, on average, and in the whole round, where "
            "the share falls as the text grows.",
        ),
        _by_round(
            rounds,
            [curve for curve in _SHARES if any(curve.read(figures) is not None for figures in rounds)],
            name="shares-by-round",
            label="share",
            caption="Share of answers that did not end, have no word, or repeat another; and of prompts whose answers "
            "all have the same reward.",
        ),
    ]


def _by_round(rounds: Sequence[RoundFigures], curves: Sequence[Curve], *, name: str, label: str, caption: str) -> Plot:
    """Return a plot of figures that are never below 0."""
    figure, axes = new_axes()
    for curve in curves:
        _draw(axes, rounds, curve, name)
    axes.set_ylim(bottom=0)
    _finish(axes, label)
    return Plot(None, name, caption, figure)


def _reward_by_round(summary: RoundsSummary, curve: Curve) -> Plot:
    figure, axes = new_axes()
    name = f"{curve.name}-by-round"
    _draw(axes, summary.rounds, curve, name)
    if curve is _GOLD and summary.peak is not None:
        _mark_peak(axes, summary.peak, summary.peak.round)
    _mark_stop(axes, summary)
    _finish(axes, _LABELS[curve.name])
    caption = f"Mean {_LABELS[curve.name]} with its 95% interval, in which the answers to one prompt are one draw."
    return Plot(None, name, caption, figure)


def _kl_by_round(summary: RoundsSummary) -> Plot:
    figure, axes = new_axes()
    _draw(axes, summary.rounds, Curve("KL", lambda figures: figures.kl), "kl-by-round")
    caption = "KL from the reference (k1) with its 95% interval."
    if summary.rules.kl is not None:
        axes.axhline(summary.rules.kl, color=SOFT, linestyle=":", linewidth=1.4, label="bound")
        caption += f" The run stops above the bound, {summary.rules.kl:g}."
    _mark_stop(axes, summary)
    _finish(axes, "KL (nats per answer)")
    return Plot(None, "kl-by-round", caption, figure)


def _against_kl(summary: RoundsSummary, curve: Curve) -> Plot:
    figure, axes = new_axes()
    points = [
        (figures.kl.mean, found)
        for figures in summary.rounds
        if figures.kl and isinstance(found := curve.read(figures), ClusteredMean)
    ]
    kls, means = [kl for kl, _ in points], [found.mean for _, found in points]
    # The order of the rounds.
    axes.plot(kls, means, color=curve.color, linewidth=0.8, alpha=0.45)
    container = axes.errorbar(
        kls, means, yerr=[_half(found) for _, found in points], fmt="o", color=curve.color, markersize=4.5,
        elinewidth=1, label=curve.name,
    )  # fmt: skip
    container.lines[0].set_gid(f"mark-{curve.name}-against-kl")
    peak = summary.peak
    if curve is _GOLD and peak is not None and peak.kl is not None:
        _mark_peak(axes, peak, peak.kl.mean)
    caption = f"Mean {_LABELS[curve.name]} of each round against its distance from the reference, with 95% intervals."
    fit = summary.fits.get(curve.name)
    if isinstance(fit, OveroptimizationFit):
        end = max(kls)
        grid = [end * step / _FIT_POINTS for step in range(_FIT_POINTS + 1)]
        axes.plot(grid, [fit.at(kl) for kl in grid], color=SOFT, linestyle="--", linewidth=1.4, label="fit")
        caption += " The dashed line is a fit, not a measurement."
    axes.set_xlabel("KL from the reference (nats per answer)")
    axes.set_ylabel(_LABELS[curve.name])
    if len(axes.get_legend_handles_labels()[1]) > 1:
        add_legend(axes)
    return Plot(None, f"{curve.name}-against-kl", caption, figure)


def _draw(axes: Any, rounds: Sequence[RoundFigures], curve: Curve, plot: str) -> None:
    known = [(figures.round, value) for figures in rounds if (value := curve.read(figures)) is not None]
    means = [value.mean if isinstance(value, ClusteredMean) else value for _, value in known]
    axes.plot(
        [number for number, _ in known], means, color=curve.color, label=curve.name, markersize=4, linewidth=1.8,
        marker="o" if len(known) <= _MOST_MARKS else None, gid=f"mark-{plot}-{curve.name}",
    )  # fmt: skip
    banded = [
        (number, value.interval)
        for number, value in known
        if isinstance(value, ClusteredMean) and value.interval is not None
    ]
    axes.fill_between(
        [number for number, _ in banded], [interval.low for _, interval in banded],
        [interval.high for _, interval in banded], color=curve.color, alpha=0.15, linewidth=0,
    )  # fmt: skip


def _mark_peak(axes: Any, peak: RoundFigures, place: float) -> None:
    assert peak.gold is not None
    axes.plot(
        [place], [peak.gold.mean], marker="o", markersize=11, markerfacecolor="none", markeredgewidth=1.8,
        color=_GOLD.color, linestyle="none", label=f"highest (round {peak.round})", gid="mark-gold-peak",
    )  # fmt: skip


def _mark_stop(axes: Any, summary: RoundsSummary) -> None:
    if summary.stop_round is not None and not summary.decision.learns:
        axes.axvline(summary.stop_round, color=SOFT, linestyle="--", linewidth=1.2, label="stopped")


def _finish(axes: Any, label: str) -> None:
    axes.locator_params(axis="x", integer=True)
    axes.set_xlabel("round")
    axes.set_ylabel(label)
    if len(axes.get_legend_handles_labels()[1]) > 1:
        add_legend(axes)


def _half(found: ClusteredMean) -> float:
    return 0.0 if found.interval is None else found.interval.high - found.mean
