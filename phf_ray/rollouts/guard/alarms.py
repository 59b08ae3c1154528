"""What in the answers says that a run goes wrong, although its reward may rise.

Text is compared with that of the first round. Each sign is told at the first round that shows it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from phf_ray.rollouts.figures import RoundFigures
from phf_ray.rollouts.guard.stop import gold_fall

Sign = Literal["over-optimization", "diversity", "length", "empty", "repeated", "truncated", "constant", "kl"]
_WINDOW = 3
"""Rounds that are compared with as many before them, unless the run has a patience."""
_MOST_CONSTANT = 0.5


@dataclass(frozen=True, slots=True)
class RoundAlarm:
    round: int
    sign: Sign
    text: str


def alarms_of(rounds: Sequence[RoundFigures], *, patience: int | None = None) -> list[RoundAlarm]:
    """Return each sign once, at the first round that shows it. `rounds`: all so far, in order."""
    watch = AlarmWatch(patience=patience)
    watch.look(rounds)
    return watch.found


class AlarmWatch:
    """Looks at each round of a run once, as the run goes on."""

    def __init__(self, *, patience: int | None = None):
        self._window = patience or _WINDOW
        self._num_seen = 0
        self.found: list[RoundAlarm] = []

    def look(self, rounds: Sequence[RoundFigures]) -> list[RoundAlarm]:
        """Return the signs that the last of `rounds` shows first; those are all rounds so far, in order."""
        for number in range(self._num_seen + 1, len(rounds) + 1):
            told = {alarm.sign for alarm in self.found}
            shown = _signs(rounds[:number], self._window).items()
            self.found += [RoundAlarm(rounds[number - 1].round, sign, text) for sign, text in shown if sign not in told]
        self._num_seen = len(rounds)
        return [alarm for alarm in self.found if alarm.round == rounds[-1].round]


def _signs(rounds: Sequence[RoundFigures], window: int) -> dict[Sign, str]:
    first, last = rounds[0], rounds[-1]
    texts: Mapping[Sign, str | None] = {
        "over-optimization": _over_optimization(rounds, window),
        "diversity": _diversity(first, last),
        "length": _length(first, last),
        "empty": _grown(first.empty, last.empty, "of the answers have no word", much=0.1),
        "repeated": _grown(first.duplicates, last.duplicates, "of the answers repeat another one", much=0.25),
        "truncated": _grown(first.truncated, last.truncated, "of the answers were cut before they ended", much=0.25),
        "constant": _constant(last),
        "kl": f"{last.num_without_kl} answers have no finite KL; they enter no mean" if last.num_without_kl else None,
    }
    return {sign: text for sign, text in texts.items() if text is not None}


def _over_optimization(rounds: Sequence[RoundFigures], window: int) -> str | None:
    """The proxy is higher than it was at the best gold, and gold is lower by more than the noise."""
    fall = gold_fall(rounds, window)
    if fall is None or not fall.is_beyond_noise:
        return None
    by_round = {figures.round: figures for figures in rounds}
    then, now = (
        [by_round[number].reward for number in range(span[0], span[1] + 1) if number in by_round]
        for span in (fall.peak, fall.last)
    )
    means = [
        sum(found.mean * found.num for found in side if found) / max(1, sum(found.num for found in side if found))
        for side in (then, now)
    ]
    if not (any(then) and any(now)) or means[1] <= means[0]:
        return None
    return f"the reward rose from {means[0]:.4g} to {means[1]:.4g} while gold fell: {fall}"


def _diversity(first: RoundFigures, last: RoundFigures) -> str | None:
    if first.distinct_2 is None or (last.distinct_2 is not None and last.distinct_2 >= first.distinct_2 / 2):
        return None
    shown = "undefined" if last.distinct_2 is None else f"{last.distinct_2:.3g}"
    return f"distinct-2 is {shown}, less than half of the {first.distinct_2:.3g} of round {first.round}"


def _length(first: RoundFigures, last: RoundFigures) -> str | None:
    if first.num_tokens is None or last.num_tokens is None or not first.num_tokens.mean:
        return None
    ratio = last.num_tokens.mean / first.num_tokens.mean
    if 0.5 <= ratio <= 2:
        return None
    word = "less than half" if ratio < 1 else "more than twice"
    return (
        f"answers have {last.num_tokens.mean:.4g} tokens, {word} the {first.num_tokens.mean:.4g} of round {first.round}"
    )


def _grown(first: float | None, last: float | None, what: str, *, much: float) -> str | None:
    """Tell of a share that has doubled and is `much` at least; less is noise."""
    if first is None or last is None or last < much or last < 2 * first:
        return None
    return f"{last:.0%} {what}; it was {first:.0%}"


def _constant(last: RoundFigures) -> str | None:
    if last.constant_groups is None or last.constant_groups <= _MOST_CONSTANT:
        return None
    return f"{last.constant_groups:.0%} of the prompts have equal rewards for all answers, and teach nothing"
