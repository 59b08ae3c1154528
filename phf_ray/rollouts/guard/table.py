"""The table of rounds: its columns, and figures as text."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from phf_ray.measures.clusters import ClusteredMean
from phf_ray.rollouts.figures import RoundFigures


class _Column(NamedTuple):
    title: str
    help: str
    read: Callable[[RoundFigures], str]


def rounds_table(rounds: Sequence[RoundFigures]) -> tuple[list[tuple[str, str]], list[list[str]]]:
    """Return title and explanation of each column that the run has figures for, and the cells of each round."""
    columns = _columns(rounds)
    titles = [(column.title, column.help) for column in columns]
    return titles, [[column.read(figures) for column in columns] for figures in rounds]


def _columns(rounds: Sequence[RoundFigures]) -> list[_Column]:
    names = dict.fromkeys(name for figures in rounds for name in figures.rewards)
    columns = [
        _Column("round", "its number", lambda figures: str(figures.round)),
        _Column(
            "reward", "mean of what is learned from, with half of its 95% interval", lambda f: _with_interval(f.reward)
        ),
    ]
    if len(names) > 1:
        columns += [_named_reward(name) for name in names]
    if any(figures.gold for figures in rounds):
        columns.append(_Column("gold", "mean reward that is never learned from", lambda f: _with_interval(f.gold)))
    if any(figures.kl for figures in rounds):
        columns += [
            _Column("KL", "k1, nats per answer", lambda f: _with_interval(f.kl)),
            _Column("per token", "k1, nats per token", lambda f: _number(f.kl_per_token)),
            _Column("k3", "k3, nats per answer", lambda f: _number(f.kl_k3)),
        ]
    return [*columns, *_TEXT_COLUMNS]


def _named_reward(name: str) -> _Column:
    return _Column(name, f"mean of the reward {name}", lambda figures: _mean(figures.rewards.get(name)))


_TEXT_COLUMNS = (
    _Column("entropy", "-log p of the answers, nats per token", lambda f: _number(f.entropy_per_token)),
    _Column("tokens", "tokens per answer", lambda f: _mean(f.num_tokens)),
    _Column("chars", "characters per answer", lambda f: _mean(f.num_chars)),
    _Column("distinct-2", "mean over answers of different / all pairs of words", lambda f: _number(f.distinct_2)),
    _Column("truncated", "share of answers that did not end", lambda f: _percent(f.truncated)),
    _Column("empty", "share of answers without a word", lambda f: _percent(f.empty)),
    _Column("repeated", "share of answers that repeat another", lambda f: _percent(f.duplicates)),
    _Column("equal", "share of prompts whose answers all have one reward", lambda f: _percent(f.constant_groups)),
    _Column("answers", "answers that were drawn", lambda f: f"{f.num_drawn:,}"),
    _Column("no reward", "answers without one", lambda f: f"{f.num_without_reward:,}"),
    _Column("weights", "of the policy that answered", lambda f: f.weights),
)


def _mean(found: ClusteredMean | None) -> str:
    return "-" if found is None else _number(found.mean)


def _with_interval(found: ClusteredMean | None) -> str:
    if found is None or found.interval is None:
        return _mean(found)
    return f"{_number(found.mean)} +- {found.interval.high - found.mean:.2g}"


def _number(value: float | None) -> str:
    # Noise around 0 is no figure of three digits.
    return "-" if value is None else f"{0.0 if abs(value) < 1e-12 else value:.3g}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
