"""The table of methods: its columns, and figures as text. What is missing is said in words."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from phf_ray.rollouts.frontier.methods import FrontierMethod, FrontierPoint, Measurement


class _Column(NamedTuple):
    title: str
    help: str
    read: Callable[[FrontierMethod], str]


NOT_MEASURED, NOT_STORED = "not measured", "not stored"


class FrontierTable(NamedTuple):
    columns: list[tuple[str, str]]
    """Title and explanation."""
    rows: list[list[str]]


def worth_table(methods: Sequence[FrontierMethod]) -> FrontierTable:
    return _table(_WORTH, methods)


def cost_table(methods: Sequence[FrontierMethod]) -> FrontierTable:
    return _table(_COST, methods)


def _table(columns: Sequence[_Column], methods: Sequence[FrontierMethod]) -> FrontierTable:
    return FrontierTable(
        [(column.title, column.help) for column in columns],
        [[column.read(method) for column in columns] for method in methods],
    )


def frontier_text(methods: Sequence[FrontierMethod]) -> list[list[str]]:
    """Return the table's head and rows for a terminal, which has no room for all of it."""
    columns = [column for column in (*_WORTH, *_COST[1:]) if column.title in _IN_TERMINAL]
    return [[column.title for column in columns], *([column.read(method) for column in columns] for method in methods)]


def _peak(method: FrontierMethod) -> FrontierPoint | None:
    """The point with the highest gold; without gold, the last."""
    return method.peak or (method.points[-1] if method.points else None)


def _gold(point: FrontierPoint | None) -> str:
    return NOT_MEASURED if point is None else shown_measurement(point.gold)


def _kl(point: FrontierPoint | None) -> str:
    if point is None or point.across is None:
        return NOT_MEASURED
    return shown_measurement(point.kl) if point.kl is not None else f"at most {point.across:.3g}"


def _base_gold(method: FrontierMethod) -> str:
    if method.kind in ("base", "model"):
        return ""
    return "not drawn" if method.base is None else _gold(method.base)


def _last(method: FrontierMethod) -> FrontierPoint | None:
    return method.points[-1] if len(method.points) > 1 else None


def _of_last(read: Callable[[FrontierPoint | None], str]) -> Callable[[FrontierMethod], str]:
    return lambda method: "" if _last(method) is None else read(_last(method))


def _proxy(point: FrontierPoint | None) -> str:
    return NOT_MEASURED if point is None else shown_measurement(point.proxy)


def _stop(method: FrontierMethod) -> str:
    if method.kind != "rounds":
        return ""
    if method.stop is None:
        return "no"
    return method.stop.where if method.stop.happened else f"would have, {method.stop.where}"


def _stored(value: float | None, digits: str, method: FrontierMethod) -> str:
    if value is None:
        return "" if method.kind == "base" else NOT_STORED
    return format(value, digits)


def shown_measurement(found: Measurement | None) -> str:
    if found is None:
        return NOT_MEASURED
    # Noise around 0 is no figure of three digits.
    mean = 0.0 if abs(found.mean) < 1e-6 else found.mean
    if found.interval is None:
        return f"{mean:.3g}"
    low, high = found.interval
    return f"{mean:.3g} [{_bound(low)}, {_bound(high)}]"


def _bound(value: float) -> str:
    return f"{0.0 if abs(value) < 1e-6 else value:.3g}"


_METHOD = _Column("method", "a run, a choice among n answers, or a model", lambda method: method.title)
_WORTH = (
    _METHOD,
    _Column(
        "peak gold",
        "highest mean gold reward, with its 95% interval; of many noisy means it is high by luck, too",
        lambda method: _gold(_peak(method)),
    ),
    _Column("at", "round or n of the peak", lambda method: "" if method.peak is None else method.peak.where),
    _Column(
        "KL there",
        "nats per answer, with its 95% interval; of a best of n its upper bound",
        lambda method: _kl(_peak(method)),
    ),
    _Column("gold of its base", "of its own answers at KL 0: round 0, or n = 1", _base_gold),
    _Column("last gold", "of the last round, or of the largest n", _of_last(_gold)),
    _Column("last proxy", "what it learned from or chose by, at the same place", _of_last(_proxy)),
    _Column("last KL", "at the same place", _of_last(_kl)),
    _Column("guard stops", "where rollouts.stop stopped the run, or would have", _stop),
)
_COST = (
    _METHOD,
    _Column(
        "minutes",
        "of a run's last start; of a model, as its report counts them",
        lambda method: _stored(method.minutes, ".1f", method),
    ),
    _Column("tokens drawn", "of all its answers", lambda method: _stored(method.tokens_drawn, ",", method)),
    _Column(
        "tokens learned",
        "seen in training",
        lambda method: "none" if method.kind == "best of n" else _stored(method.tokens_learned, ",", method),
    ),
)
_IN_TERMINAL = ("method", "peak gold", "at", "KL there", "last gold", "guard stops", "minutes")
