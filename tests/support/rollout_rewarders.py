"""Rewarders of a user's own, for tests."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from phf_ray.judging.question import Failure
from phf_ray.rollouts.rewards.base import AnsweredPrompt, Rewarder


class Away(Rewarder):
    """Fails every `every`-th answer while a file is there, and counts in another one how many it was asked."""

    def __init__(self, folder: str, every: int = 2):
        self._folder, self._every = Path(folder), every

    @property
    def identity(self) -> dict[str, Any]:
        return {"name": "away"}

    def rewards(self, answers: Sequence[AnsweredPrompt]) -> list[float | Failure]:
        with (self._folder / "asked").open("a") as file:
            file.write("x" * len(answers))
        is_away = (self._folder / "away").exists()
        return [
            Failure("server_away: nobody answers")
            if is_away and number % self._every == 0
            else float(len(one.completion))
            for number, one in enumerate(answers)
        ]


class Constant(Rewarder):
    """Likes all answers alike."""

    @property
    def identity(self) -> dict[str, Any]:
        return {"name": "constant"}

    def rewards(self, answers: Sequence[AnsweredPrompt]) -> list[float | Failure]:
        return [1.0] * len(answers)


class NotANumber(Rewarder):
    """Says NaN of the first answer."""

    @property
    def identity(self) -> dict[str, Any]:
        return {"name": "nan"}

    def rewards(self, answers: Sequence[AnsweredPrompt]) -> list[float | Failure]:
        return [float("nan") if number == 0 else float(number) for number in range(len(answers))]


class Meanwhile(Rewarder):
    """Likes long answers. Before the first rewards, something else happens, once."""

    happens: Callable[[], object] | None = None

    @property
    def identity(self) -> dict[str, Any]:
        return {"name": "meanwhile"}

    def rewards(self, answers: Sequence[AnsweredPrompt]) -> list[float | Failure]:
        happens, Meanwhile.happens = Meanwhile.happens, None
        if happens is not None:
            happens()
        return [float(len(one.completion)) for one in answers]
