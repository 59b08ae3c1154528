"""Draws gold and proxy against KL, with all methods on one plot."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from phf_ray.evaluation.report.plots import INK, PALETTE, Plot, add_legend, new_axes
from phf_ray.judging.board.plots import plot_label
from phf_ray.measures.overoptimization import OveroptimizationFit
from phf_ray.rollouts.frontier.alike import group_alike
from phf_ray.rollouts.frontier.methods import Distance, FrontierMethod, FrontierPoint, Measurement

Worth = Literal["gold", "proxy"]

_HEIGHT = 4.2
_FIT_POINTS = 200
_AXES: dict[Distance, str] = {
    "from the base": "KL from the base (nats per answer)",
    "of the reference": "KL of the reference from the model (nats per text)",
}
_LABELS: dict[Worth, str] = {"gold": "gold reward", "proxy": "reward (proxy)"}
_TICKS = (0, 0.1, 0.25, 0.5, 1, 2, 4, 7, 10, 15, 20, 30, 40, 60, 80, 100, 150, 200, 300, 400, 600, 1000)
_MOST_TICKS = 9


def draw_frontier(methods: Sequence[FrontierMethod]) -> list[Plot]:
    """Draw a plot of gold and one of proxy for each direction of the KL that was measured."""
    colors = colors_of(methods)
    plots = []
    for distance in _AXES:
        there = [method for method in methods if method.distance == distance]
        for worth in _LABELS:
            shown = [method for method in there if any(_has(point, worth) for point in method.points)]
            plots += [
                _plot(group, colors, distance=distance, worth=worth, number=number)
                for number, group in enumerate(_apart(shown, worth))
            ]
    return plots


def _apart(methods: Sequence[FrontierMethod], worth: Worth) -> list[list[FrontierMethod]]:
    """Return the methods of each plot: different proxies have different units. Of one kind, none is taken for another
    without need.
    """
    if worth == "gold" or not methods:
        return [list(methods)] if methods else []
    groups, unknown = group_alike(methods, "proxy")
    if len(groups) <= 1:
        return [list(methods)]
    return [*groups, *([unknown] if unknown else [])]


def colors_of(methods: Sequence[FrontierMethod]) -> dict[str, str]:
    """Return the color of each title. A run and the model that it made have the same name and color."""
    names = list(dict.fromkeys(method.name for method in methods if method.kind != "base"))
    found = {name: PALETTE[number % len(PALETTE)] for number, name in enumerate(names)}
    return {method.title: INK if method.kind == "base" else found[method.name] for method in methods}


def _has(point: FrontierPoint, worth: Worth) -> bool:
    return point.across is not None and getattr(point, worth) is not None


def _plot(
    methods: Sequence[FrontierMethod], colors: dict[str, str], *, distance: Distance, worth: Worth, number: int
) -> Plot:
    name = f"{worth}-against-kl" + ("" if distance == "from the base" else "-of-the-reference")
    name += f"-{number + 1}" if number else ""
    figure, axes = new_axes(height=_HEIGHT)
    for method in methods:
        _draw(axes, method, colors[method.title], worth, name)
    _scale(axes, methods, worth)
    axes.margins(y=0.12)
    axes.set_xlabel(_AXES[distance])
    axes.set_ylabel(_LABELS[worth])
    add_legend(axes)
    return Plot(None, name, " ".join(_caption(methods, worth)), figure)


def _caption(methods: Sequence[FrontierMethod], worth: Worth) -> list[str]:
    points = [point for method in methods for point in method.points if _has(point, worth)]
    lines = [
        f"Mean {_LABELS[worth]} against KL, with 95% intervals where rows allow them; the axis of KL grows as its "
        "root. Up and to the left is better."
    ]
    if any(point.is_base for point in points):
        lines.append("At KL 0 stand the base's own answers.")
    if any(point.kl is None for point in points):
        lines.append(
            "Hollow triangles stand at the upper bound of their KL, log n - (n - 1)/n: the KL itself is lower."
        )
    if worth == "gold" and any(method.kind == "rounds" for method in methods):
        lines.append("A ring marks the round with the highest gold, which is high by luck, too.")
    if any(method.stop is not None and _at_stop(method, worth) is not None for method in methods):
        lines.append("A cross marks the round at which the guard stops a run, or would have.")
    if any(isinstance(method.fits.get(worth), OveroptimizationFit) for method in methods):
        lines.append("Dashed lines are fits, not measurements.")
    below = sum((point.across or 0.0) < 0 for point in points)
    if below:
        are = "1 estimate of KL is" if below == 1 else f"{below} estimates of KL are"
        lines.append(f"{are} below 0, by chance, and drawn at 0.")
    return lines


def _draw(axes: Any, method: FrontierMethod, color: str, worth: Worth, plot: str) -> None:
    points = [point for point in method.points if _has(point, worth)]
    across = [_across(point) for point in points]
    found: list[Measurement] = [getattr(point, worth) for point in points]
    means = [one.mean for one in found]
    is_bound = points[0].kl is None
    if len(points) > 1:
        axes.plot(across, means, color=color, linewidth=1.0, alpha=0.5)
    container = axes.errorbar(
        across, means, xerr=_bars([point.kl for point in points], across), yerr=_bars(found, means),
        fmt="<" if is_bound else {"rounds": "o", "base": "*"}.get(method.kind, "D"), color=color,
        markerfacecolor="none" if is_bound else color, markersize=9 if method.kind == "base" else 5, elinewidth=0.8,
        capsize=0 if len(points) > 1 else 3, label=_label(method.title),
    )  # fmt: skip
    container.lines[0].set_gid(f"mark-{plot}-{_label(method.title)}")
    peak, stop = method.peak, _at_stop(method, worth)
    if worth == "gold" and method.kind == "rounds" and peak is not None and peak.across is not None and peak.gold:
        axes.plot(
            [_across(peak)], [peak.gold.mean], marker="o", markersize=11, markerfacecolor="none", markeredgewidth=1.6,
            color=color, linestyle="none", gid=f"mark-peak-{_label(method.title)}",
        )  # fmt: skip
    if stop is not None:
        axes.plot(
            [_across(stop)], [getattr(stop, worth).mean], marker="x", markersize=11, markeredgewidth=2, color=color,
            linestyle="none", gid=f"mark-stop-{plot}-{_label(method.title)}",
        )  # fmt: skip
    fit = method.fits.get(worth)
    if isinstance(fit, OveroptimizationFit):
        grid = [max(across) * (step / _FIT_POINTS) ** 2 for step in range(_FIT_POINTS + 1)]
        axes.plot(grid, [fit.at(kl) for kl in grid], color=color, linestyle="--", linewidth=1.2)


def _at_stop(method: FrontierMethod, worth: Worth) -> FrontierPoint | None:
    if method.stop is None:
        return None
    where = method.stop.where
    return next((point for point in method.points if point.where == where and _has(point, worth)), None)


def _across(point: FrontierPoint) -> float:
    return max(0.0, point.across or 0.0)


def _bars(found: Sequence[Measurement | None], drawn: Sequence[float]) -> list[list[float]]:
    """Return the lengths of the bars, down and up; 0 where there is no interval."""
    pairs = [
        (0.0, 0.0) if one is None or one.interval is None else (at - one.interval[0], one.interval[1] - at)
        for one, at in zip(found, drawn, strict=True)
    ]
    return [[max(0.0, low) for low, _ in pairs], [max(0.0, high) for _, high in pairs]]


def _scale(axes: Any, methods: Sequence[FrontierMethod], worth: Worth) -> None:
    """The axis of KL grows as its root, as distances do in Gao et al. (2022); small and large KL are both seen."""
    most = max(_right(point) for method in methods for point in method.points if _has(point, worth)) or 0.1
    axes.set_xscale("function", functions=(_root, _square))
    ticks: list[float] = []
    for tick in _TICKS:
        if tick <= 1.05 * most and (not ticks or _root(tick) - _root(ticks[-1]) >= _root(most) / _MOST_TICKS):
            ticks.append(tick)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    # Left of 0 is room for the marks at 0.
    axes.set_xlim(left=-1e-3 * most, right=1.12 * most)
    axes.minorticks_off()


def _right(point: FrontierPoint) -> float:
    high = point.kl.interval[1] if point.kl is not None and point.kl.interval is not None else 0.0
    return max(high, _across(point))


def _root(values: Any) -> Any:
    return np.sign(values) * np.sqrt(np.abs(values))


def _square(values: Any) -> Any:
    return np.sign(values) * np.square(values)


def _label(name: str) -> str:
    """matplotlib leaves what begins with `_` out of legends."""
    shown = plot_label(name)
    return f" {shown}" if shown.startswith("_") else shown
