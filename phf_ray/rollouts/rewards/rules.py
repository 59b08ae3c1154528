"""Rules that any reward worth its price must differ from: the longer answer is better, or the shorter one."""

from collections.abc import Sequence
from typing import Any, Literal

from phf_ray.judging.question import Failure
from phf_ray.rollouts.rewards.base import AnsweredPrompt, Rewarder


class RuleRewarder(Rewarder):
    def __init__(self, rule: Literal["longer", "shorter"]):
        self._rule = rule
        self._sign = 1.0 if rule == "longer" else -1.0

    @property
    def identity(self) -> dict[str, Any]:
        return {"rule": self._rule}

    def rewards(self, answers: Sequence[AnsweredPrompt]) -> list[float | Failure]:
        return [self._sign * len(answer.completion) for answer in answers]
