"""The base class of rewarders. A reward is a number, higher for better answers, or a Failure with the reason."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from phf_ray.judging.question import Failure
from phf_ray.rollouts.prompts import RolloutPrompt


@dataclass(frozen=True, slots=True)
class AnsweredPrompt:
    """What a rewarder sees."""

    prompt: RolloutPrompt
    completion: str
    finish_reason: str
    """stop: the model ended its answer; length: it was cut."""


class Rewarder(ABC):
    """Says what answers are worth. A rewarder of your own derives from this: `class_name: my_module:MyRewarder`.

    Every process builds its own, once, because building may load weights.
    """

    @property
    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What can change a reward, as JSON: the hash of weights, settings. A run with another one is another run."""

    @abstractmethod
    def rewards(self, answers: Sequence[AnsweredPrompt]) -> list[float | Failure]:
        """Return a reward for each answer, in their order.

        Neither the order of answers nor the other answers may change a reward.
        """
