"""The report of a run: the curve with its intervals, and the best and worst answers to some prompts."""

from collections.abc import Mapping, Sequence
from typing import Any

from phf_ray.evaluation.report.page import render_page, shown_plots
from phf_ray.evaluation.report.plots import PALETTE, Plot, add_legend, new_axes
from phf_ray.rollouts.best_of_n.picks import Picks
from phf_ray.rollouts.best_of_n.request import BestOfNRequest

_NUM_SHOWN = 10
"""Prompts whose answers are shown."""


def best_of_n_page(
    request: BestOfNRequest,
    manifest: Mapping[str, Any],
    curve: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    picks: Picks,
) -> str:
    """Return the whole page. Answers may be hostile: every text is escaped."""
    has_gold = request.gold is not None
    return render_page(
        "best_of_n.html.jinja",
        package="phf_ray.rollouts.best_of_n",
        n=request.n,
        intro=[
            f"{request.decoder or 'Given answers'}, {manifest['prompts']:,} prompts, {manifest['samples']:,} samples; "
            f"reward: {request.scorer}" + (f"; gold: {request.gold.called}" if request.gold is not None else "") + "."
        ],
        warnings=manifest["warnings"],
        plots=shown_plots([_plot(curve, by_kl=False), _plot(curve, by_kl=True)]),
        columns=["n", "reward", "interval", *(["gold", "interval"] if has_gold else []), "KL at most", "prompts"],
        points=[_cells(point, has_gold=has_gold) for point in curve["points"]],
        level=f"{curve['level']:.0%}",
        kl=curve["kl"],
        samples=_samples(request, rows, picks),
    )


def _cells(point: Mapping[str, Any], *, has_gold: bool) -> list[str]:
    shown = _estimate(point["proxy"]) + (_estimate(point["gold"]) if has_gold else [])
    number = "-" if point["proxy"] is None else f"{point['proxy']['num_prompts']:,}"
    return [str(point["n"]), *shown, f"{point['kl_upper_bound']:.3f}", number]


def _estimate(estimate: Mapping[str, Any] | None) -> list[str]:
    if estimate is None:
        return ["-", "-"]
    interval = estimate["interval"]
    return [f"{estimate['mean']:.4g}", "-" if interval is None else f"{interval[0]:.4g} to {interval[1]:.4g}"]


def _plot(curve: Mapping[str, Any], *, by_kl: bool) -> Plot:
    figure, axes = new_axes()
    for name, color in (("proxy", PALETTE[0]), ("gold", PALETTE[1])):
        points = [point for point in curve["points"] if point[name] is not None]
        if not points:
            continue
        across = [point["kl_upper_bound" if by_kl else "n"] for point in points]
        label = "reward" if name == "proxy" else "gold"
        axes.plot(
            across, [point[name]["mean"] for point in points], color=color, marker="o", markersize=4, linewidth=1.8,
            label=label, gid=f"mark-{label}",
        )  # fmt: skip
        bounds = [point[name]["interval"] or [point[name]["mean"]] * 2 for point in points]
        axes.fill_between(across, [low for low, _ in bounds], [high for _, high in bounds], color=color, alpha=0.18)
    axes.set_xlabel("KL from the model, at most (nats)" if by_kl else "n")
    axes.set_ylabel("reward")
    add_legend(axes)
    what = "the upper bound of its KL" if by_kl else "n"
    caption = f"Reward of the best of n by {what}, with {curve['level']:.0%} intervals. Up is better."
    return Plot(None, "curve-by-kl" if by_kl else "curve", caption, figure)


def _samples(
    request: BestOfNRequest, rows: Sequence[Mapping[str, Any]], picks: Picks
) -> list[tuple[str, tuple[str, str], tuple[str, str]]]:
    found: list[tuple[str, tuple[str, str], tuple[str, str]]] = []
    for number, best in enumerate(picks.best_S):
        if best is None or len(found) == _NUM_SHOWN:
            continue
        own = [row for row in rows[number * request.n : (number + 1) * request.n] if row["reward"] is not None]
        worst = min(own, key=lambda row: (row["reward"], row["sample"]))
        shown = request.prompts[number].instruction
        found.append((shown, _shown("best", rows[number * request.n + best]), _shown("worst", worst)))
    return found


def _shown(which: str, row: Mapping[str, Any]) -> tuple[str, str]:
    gold = "" if row["gold"] is None else f", gold {row['gold']:.4g}"
    return f"{which}: reward {row['reward']:.4g}{gold} (sample {row['sample']})", row["completion"]
