"""Rewarders as a user would write them."""

import os
import signal
from pathlib import Path

from phf_ray.judging.question import Failure
from phf_ray.rollouts.rewards import Rewarder


class WordRewarder(Rewarder):
    """How often an answer says `word`. `nan`, `None` and `FAIL` in an answer do what they say."""

    def __init__(self, word="the"):
        self._word = word

    @property
    def identity(self):
        return {"word": self._word}

    def rewards(self, answers):
        return [self._reward(answer.completion) for answer in answers]

    def _reward(self, text):
        if "FAIL" in text:
            return Failure("unlucky: the answer says FAIL")
        if "None" in text:
            return None
        return float("nan") if "nan" in text else float(text.split().count(self._word))


class ShortRewarder(WordRewarder):
    """Loses a reward."""

    def rewards(self, answers):
        return super().rewards(answers)[1:]


class NotOne:
    pass


class DyingRewarder(WordRewarder):
    """Kills its process at the first call of all, as a machine's loss would."""

    def __init__(self, mark, word="the"):
        super().__init__(word)
        self._mark = Path(mark)

    def rewards(self, answers):
        if not self._mark.exists():
            self._mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().rewards(answers)
