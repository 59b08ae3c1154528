"""When a run of rounds stops: a KL above its bound, gold that has fallen from its peak, or all rounds done.

A decision follows from the figures of the rounds so far and from nothing else, so a resumed run decides the same. It is
asked for when a round's answers have been rewarded, and says whether the round is still learned.

Gold is noisy, and the highest of many noisy rounds is high by luck. So the last `gold_patience` rounds together are
compared with the best `gold_patience` rounds in a row before them, and the run stops only if they are lower by more
than the noise: below the bound of the difference at 2.5% / (2 m (m + 1)), where m counts the earlier rows of rounds
that could have been the best. Of runs whose gold stays the same, 2 to 4% stop within 150 rounds for a patience of 3 or
5, and 4 to 7% for 1 (measured with 16 and 64 prompts a round, normal and binary gold). At 2.5% alone, all of them
would. The 2 halves these stops, and costs up to 3 rounds where gold rises by a standard deviation in 20 rounds and
falls again in 40. Bonferroni's bound over all rounds, m^2 in place of 2 m, would halve them again and cost 2 to 23.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from phf_ray.errors import ConfigError
from phf_ray.measures.clusters import ClusterSums, clustered_difference, pooled
from phf_ray.rollouts.figures import RoundFigures

StopRule = Literal["kl", "gold", "rounds"]
_ONE_SIDED = 0.025


@dataclass(frozen=True, slots=True)
class StopRules:
    """None: the rule is off."""

    kl: float | None = None
    """Largest KL from the reference, in nats per answer (k1)."""
    gold_patience: int | None = None
    """Rounds that are compared with as many before them."""
    rounds: int | None = None

    def __post_init__(self) -> None:
        if self.kl is not None and not self.kl > 0:
            raise ConfigError(f"stop at a KL of {self.kl:g}: the KL of a policy from itself is 0; give more than 0")
        for name, value in (("gold_patience", self.gold_patience), ("rounds", self.rounds)):
            if value is not None and value < 1:
                raise ConfigError(f"{name} {value} is no number of rounds; give 1 or more")


@dataclass(frozen=True, slots=True)
class StopDecision:
    rule: StopRule | None
    """Which rule stops the run; None: it goes on."""
    reasons: tuple[str, ...]
    """What each rule saw, in a sentence; that of `rule` first."""

    @property
    def stops(self) -> bool:
        return self.rule is not None

    @property
    def learns(self) -> bool:
        """Whether the last round is still learned. Not if its answers show that the policy has gone too far."""
        return self.rule in (None, "rounds")


@dataclass(frozen=True, slots=True)
class GoldFall:
    """The last rounds against the best rounds in a row before them."""

    peak: tuple[int, int]
    """First and last round of the best."""
    last: tuple[int, int]
    peak_mean: float
    last_mean: float
    is_beyond_noise: bool | None
    """None: rounds with fewer than 2 prompts have no interval."""
    num_earlier: int

    def __str__(self) -> str:
        word = {True: "below it by more than the noise", False: "within the noise", None: "of unknown noise"}
        what = word[self.is_beyond_noise] if self.last_mean < self.peak_mean else "no lower"
        return (
            f"{_rounds(self.last)} have a mean gold reward of {self.last_mean:.4g}, the best before them, "
            f"{_rounds(self.peak)}, {self.peak_mean:.4g}: {what}"
        )


def decide(rounds: Sequence[RoundFigures], rules: StopRules) -> StopDecision:
    """Return whether the run stops after these rounds, which are all so far, in order."""
    found: list[tuple[StopRule, bool, str]] = []
    if rounds and rules.kl is not None:
        found.append(("kl", *_check_kl(rounds, rules.kl)))
    if rounds and rules.gold_patience is not None:
        found.append(("gold", *_check_gold(rounds, rules.gold_patience)))
    if rounds and rules.rounds is not None:
        found.append(("rounds", *_check_rounds(rounds, rules.rounds)))
    rule = next((rule for rule, stops, _ in found if stops), None)
    return StopDecision(rule, tuple(reason for name, _, reason in sorted(found, key=lambda one: one[0] != rule)))


def first_stop(rounds: Sequence[RoundFigures], rules: StopRules) -> tuple[int, StopDecision] | None:
    """Return the number of rounds after which the run stops, and why. None if it has not stopped yet."""
    for number in range(1, len(rounds) + 1):
        decision = decide(rounds[:number], rules)
        if decision.stops:
            return number, decision
    return None


def gold_fall(rounds: Sequence[RoundFigures], patience: int) -> GoldFall | None:
    """Compare the last rounds with the best before them. None with fewer than 2 x patience rounds with gold."""
    measured = [figures for figures in rounds if figures.gold_by_prompt]
    num_earlier = len(measured) - 2 * patience + 1
    if num_earlier < 1:
        return None
    starts = range(num_earlier)
    best = max(starts, key=lambda start: _mean(measured[start : start + patience]))
    peak, last = measured[best : best + patience], measured[-patience:]
    difference = clustered_difference(_sums(peak), _sums(last))
    assert difference is not None
    low = difference.low(_ONE_SIDED / (2 * num_earlier * (num_earlier + 1)))
    return GoldFall(
        peak=(peak[0].round, peak[-1].round),
        last=(last[0].round, last[-1].round),
        peak_mean=_mean(peak),
        last_mean=_mean(last),
        is_beyond_noise=None if low is None else low > 0,
        num_earlier=num_earlier,
    )


def gold_peak(rounds: Sequence[RoundFigures]) -> RoundFigures | None:
    """Return the first round with the highest mean gold reward."""
    measured = [figures for figures in rounds if figures.gold is not None]
    return max(measured, key=lambda figures: figures.gold.mean, default=None)  # type: ignore[union-attr]


def _check_kl(rounds: Sequence[RoundFigures], bound: float) -> tuple[bool, str]:
    kl = rounds[-1].kl
    if kl is None:
        return False, f"round {rounds[-1].round} has no KL, because it has no log-probabilities of a reference"
    comparison = "above" if kl.mean > bound else "not above"
    return kl.mean > bound, f"round {rounds[-1].round} has a KL of {kl.mean:.4g} nats, {comparison} {bound:g}"


def _check_gold(rounds: Sequence[RoundFigures], patience: int) -> tuple[bool, str]:
    fall = gold_fall(rounds, patience)
    if fall is None:
        measured = sum(bool(figures.gold_by_prompt) for figures in rounds)
        return False, f"{measured} rounds have gold rewards; gold is compared from {2 * patience} rounds on"
    return fall.is_beyond_noise is True, str(fall)


def _check_rounds(rounds: Sequence[RoundFigures], number: int) -> tuple[bool, str]:
    return len(rounds) >= number, f"{len(rounds)} of {number} rounds are done"


def _sums(rounds: Sequence[RoundFigures]) -> ClusterSums:
    return pooled(figures.gold_by_prompt for figures in rounds)


def _mean(rounds: Sequence[RoundFigures]) -> float:
    golds = [figures.gold for figures in rounds if figures.gold is not None]
    return math.fsum(gold.mean * gold.num for gold in golds) / sum(gold.num for gold in golds)


def _rounds(span: tuple[int, int]) -> str:
    return f"round {span[0]}" if span[0] == span[1] else f"rounds {span[0]} to {span[1]}"
