"""Asks several rewarders, adds their rewards by weight, and looks at what they say. Pure, but for the rewarders."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from phf_ray.errors import ConfigError
from phf_ray.judging.question import Failure
from phf_ray.rollouts.rewards.base import AnsweredPrompt, Rewarder


@dataclass(frozen=True, slots=True)
class Rewards:
    """What one answer is worth."""

    reward: float | None
    """The sum of weight times reward; None if one of them is missing."""
    by_name: Mapping[str, float | None] = field(default_factory=dict)
    gold: float | None = None
    """None: not asked for, or missing."""
    failures: Mapping[str, Failure] = field(default_factory=dict)
    """Name, or gold -> why that reward is missing."""

    @property
    def error(self) -> str | None:
        """Why rewards are missing, `name: kind: details` for each; None if none is."""
        return "; ".join(f"{name}: {one.reason}" for name, one in self.failures.items()) or None


class WeighedRewarders:
    """Rewarders by name, with their weights, and perhaps a gold one."""

    def __init__(self, rewarders: Mapping[str, tuple[float, Rewarder]], *, gold: Rewarder | None = None):
        self._rewarders = dict(rewarders)
        self._gold = gold

    @property
    def names(self) -> list[str]:
        return list(self._rewarders)

    @property
    def identity(self) -> dict[str, Any]:
        named = {name: {"weight": weight, **one.identity} for name, (weight, one) in self._rewarders.items()}
        return {"rewards": named, "gold": None if self._gold is None else self._gold.identity}

    def rewards(self, answers: Sequence[AnsweredPrompt]) -> list[Rewards]:
        """Return the rewards of each answer, in their order."""
        said = {name: checked_rewards(one, answers, name=name) for name, (_, one) in self._rewarders.items()}
        gold: list[float | Failure] | None = None
        if self._gold is not None:
            gold = checked_rewards(self._gold, answers, name="gold")
        return [
            self._of_one({name: rewards[i] for name, rewards in said.items()}, None if gold is None else gold[i])
            for i in range(len(answers))
        ]

    def _of_one(self, said: Mapping[str, float | Failure], gold: float | Failure | None) -> Rewards:
        numbers = {name: None if isinstance(one, Failure) else one for name, one in said.items()}
        weighed = [
            self._rewarders[name][0] * number if number is not None else None for name, number in numbers.items()
        ]
        known = [one for one in weighed if one is not None]
        missing = {**said, **({} if gold is None else {"gold": gold})}
        reward = _sum(known) if len(known) == len(weighed) else None
        if isinstance(reward, Failure):
            missing["weighted sum"] = reward
        return Rewards(
            reward=None if isinstance(reward, Failure) else reward,
            by_name=numbers,
            gold=gold if not isinstance(gold, Failure) else None,
            failures={name: one for name, one in missing.items() if isinstance(one, Failure)},
        )


def _sum(weighed: Sequence[float]) -> float | Failure:
    try:
        total = math.fsum(weighed)
    except (OverflowError, ValueError) as error:  # ValueError: of inf and -inf
        return Failure(f"not_finite: {error}")
    return total if math.isfinite(total) else Failure(f"not_finite: the sum of the weighted rewards is {total}")


def checked_rewards(rewarder: Rewarder, answers: Sequence[AnsweredPrompt], *, name: str) -> list[float | Failure]:
    """Ask, and look at the answers: a NaN that entered a mean would spoil all of it. Raises ConfigError if there are
    more or fewer than answers."""
    said = list(rewarder.rewards(answers)) if answers else []
    if len(said) != len(answers):
        raise ConfigError(f"reward {name}: rewards() returned {len(said)} rewards for {len(answers)} answers")
    return [_checked(one, name) for one in said]


def _checked(said: Any, name: str) -> float | Failure:
    if isinstance(said, Failure):
        return said
    if said is None:
        return Failure("no_reward: the rewarder said None")
    try:
        number = float(said)
    except (TypeError, ValueError):
        raise ConfigError(f"reward {name}: rewards() returned {said!r:.80}; return numbers, or a Failure") from None
    if not math.isfinite(number):
        return Failure(f"not_finite: the reward is {number}")
    return number
