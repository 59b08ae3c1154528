"""Tells what a folder holds, by its files, and reads it."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from phf_ray.corpus.layout import MANIFEST, PLAN
from phf_ray.errors import ConfigError
from phf_ray.feedback.layout import is_feedback_corpus
from phf_ray.judging.board.stored import holds_board
from phf_ray.rollouts.best_of_n.plan import STAGE as BEST_OF_N
from phf_ray.rollouts.frontier.boards import FrontierBoard, read_annotated, read_board
from phf_ray.rollouts.frontier.from_best_of_n import read_best_of_n
from phf_ray.rollouts.frontier.from_reports import REPORT, read_comparison, read_evaluation
from phf_ray.rollouts.frontier.from_rounds import read_rounds
from phf_ray.rollouts.frontier.methods import FrontierMethod
from phf_ray.rollouts.frontier.stored_json import stored_json
from phf_ray.runs.directory import ROLLOUTS

_MOST_NAMED = 8


@dataclass(frozen=True, slots=True)
class ReadSource:
    methods: Sequence[FrontierMethod] = ()
    boards: Sequence[FrontierBoard] = ()


class _Kind(NamedTuple):
    what: str
    holds: Callable[[Path], bool]
    read: Callable[[Path, str | None, str], ReadSource]
    """Of folder, the user's name for it, and the folder as the user writes it."""


def read_source(given: str) -> ReadSource:
    """Read `[NAME=]DIR`. Raises ConfigError for what is no folder of a kind that the frontier shows."""
    name, path = split_source(given)
    if not path.is_dir():
        what = "is a file" if path.is_file() else "is not there"
        raise ConfigError(f"{path} {what}; give folders: {accepted()}")
    kind = kind_of(path)
    if kind is None:
        raise ConfigError(_unknown(path))
    return kind.read(path, name, str(path))


def accepted() -> str:
    return "; ".join(kind.what for kind in _KINDS)


def kind_of(path: Path) -> _Kind | None:
    return next((kind for kind in _KINDS if kind.holds(path)), None)


def split_source(given: str) -> tuple[str | None, Path]:
    """Return name and folder of `[NAME=]DIR`."""
    name, separator, path = given.partition("=")
    # A folder may have the sign in its name.
    if not separator or "/" in name or Path(given).exists():
        return None, Path(given)
    if not name or not path:
        raise ConfigError(f"{given}: write NAME=DIR, or DIR alone")
    return name, Path(path)


def _unknown(path: Path) -> str:
    if (path / "asked.json").exists():
        report = path.parent.parent
        return f"{path} holds the answers of one model; give the folder of the report against the base, {report}"
    if (path / "config.json").exists() and ((path / "checkpoints").exists() or (path / "phf.json").exists()):
        return (
            f"{path} holds a model or a run of phf train-lm, and nothing there says what its answers are worth; "
            f"measure it with phf evaluate-lm, and give its output. Accepted are: {accepted()}"
        )
    inside = sorted(str(one) for one in path.iterdir() if one.is_dir() and kind_of(one) is not None)
    if inside:
        shown = ", ".join(inside[:_MOST_NAMED]) + (", ..." if len(inside) > _MOST_NAMED else "")
        return f"{path} is no result itself, but holds some; name them: {shown}"
    return f"nothing in {path} is known here. Accepted are: {accepted()}"


def _holds_rounds(path: Path) -> bool:
    return (path / ROLLOUTS).is_dir() and not (path / "asked.json").exists()


def _holds_best_of_n(path: Path) -> bool:
    return any(BEST_OF_N in _object(path / name) for name in (MANIFEST, PLAN))


def _holds_comparison(path: Path) -> bool:
    models = _object(path / REPORT).get("models")
    return isinstance(models, list) and bool(models) and isinstance(models[0], dict) and "kl_upper_bound" in models[0]


def _holds_evaluation(path: Path) -> bool:
    return {"table", "arms", "scenarios", "scorer"} <= _object(path / REPORT).keys()


def _holds_comparisons(path: Path) -> bool:
    return is_feedback_corpus(str(path)) and _object(path / MANIFEST).get("kind") == "comparisons"


def _object(path: Path) -> dict[str, Any]:
    """A damaged file tells nothing of what it was."""
    try:
        return stored_json(path)
    except Exception:  # noqa: BLE001
        return {}


def _own(path: Path) -> str:
    return path.resolve().name


def _called(name: str | None, methods: Sequence[FrontierMethod]) -> list[FrontierMethod]:
    return [
        method if name is None else dataclasses.replace(method, name=f"{name}: {method.name}") for method in methods
    ]


_KINDS = (
    _Kind(
        "a run of phf train-rl",
        _holds_rounds,
        lambda path, name, source: ReadSource([read_rounds(path, name=name or _own(path), source=source)]),
    ),
    _Kind(
        "the output of phf best-of-n",
        _holds_best_of_n,
        lambda path, name, source: ReadSource([read_best_of_n(path, name=name or _own(path), source=source)]),
    ),
    _Kind(
        "a report of models against their base (phf rounds: OUTPUT/rounds; phf align: OUTPUT/align)",
        _holds_comparison,
        lambda path, name, source: ReadSource(_called(name, read_comparison(path, source=source))),
    ),
    _Kind(
        "the output of phf evaluate-lm (phf pareto: OUTPUT/pareto)",
        _holds_evaluation,
        lambda path, name, source: ReadSource(_called(name, read_evaluation(path, source=source))),
    ),
    _Kind(
        "the output of phf leaderboard",
        lambda path: holds_board(str(path)),
        lambda path, name, source: ReadSource(boards=[read_board(path, name=name or _own(path), source=source)]),
    ),
    _Kind(
        "the output of phf annotate",
        _holds_comparisons,
        lambda path, name, source: ReadSource(boards=[read_annotated(path, name=name or _own(path), source=source)]),
    ),
)
