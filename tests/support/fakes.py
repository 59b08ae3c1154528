"""Scorers whose results are easy to compute by hand, and which misbehave on demand."""

import os
import re
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from phf_ray.records import Scored, Span
from phf_ray.scorers.base import Scorer, ScorerSettings


class LengthSettings(ScorerSettings):
    name: str = "length"
    delay_s: float = 0.0
    """Seconds per document."""
    gate: str | None = None
    """A document that says GATE waits until this file exists. If one says PASS, a file names its process."""


class LengthScorer(Scorer):
    """A text's score is its number of characters. `HANG`, `CRASH` and `FAIL` in a text do what they say."""

    Settings = LengthSettings
    unit = "characters"
    packages = ()

    def score_all(self, texts: Sequence[str]) -> list[Scored]:
        return [self._score(text) for text in texts]

    def score_segments(self, segments: Sequence[str]) -> list[Scored]:
        time.sleep(self._settings.delay_s)
        return self.score_all(segments)

    def _score(self, text: str) -> Scored:
        if "HANG" in text:
            # Backtracking inside C that takes longer than the age of the universe.
            re.match(r"(a+)+$", "a" * 80 + "b")
        if "CRASH" in text:
            os.kill(os.getpid(), signal.SIGKILL)
        if "FAIL" in text:
            return Scored(None, "unlucky: the text says FAIL")
        if "RAISE" in text:
            raise RuntimeError("the scorer has a bug")
        if "PASS" in text and self._settings.gate is not None:
            _note(Path(self._settings.gate), "passed")
        if "GATE" in text and self._settings.gate is not None:
            _wait_at(Path(self._settings.gate))
        return Scored(float(len(text)))

    def _identity_settings(self) -> dict[str, Any]:
        return {}


class FindingScorer(LengthScorer):
    """A LengthScorer that can say where: the span `word` is the whole text, and its class `long` is its score."""

    def spans(self, text: str) -> list[Span]:
        score = self._score(text).score
        return [Span("word", 0, int(score))] if score else []

    def class_scores(self, texts: Sequence[str]) -> list[dict[str, float] | None]:
        return [None if scored.score is None else {"long": scored.score} for scored in self.score_all(texts)]


def _note(gate: Path, what: str) -> None:
    """While the gate is closed, write a file named after the parent of the scorer's process."""
    if not gate.exists():
        gate.with_name(f"{gate.name}.{what}.{os.getppid()}").touch()


def _wait_at(gate: Path) -> None:
    _note(gate, "waits")
    while not gate.exists():
        time.sleep(0.01)


class WordSettings(ScorerSettings):
    name: str = "words"
    device: str = "auto"
    delay_s: float = 0.0
    """Seconds per text."""


class WordScorer(Scorer):
    """A text's score is its number of words. Scores batches of documents, as models do, on a GPU if there is one."""

    Settings = WordSettings
    unit = "words"
    packages = ("torch",)
    runs_on_device = True
    is_batched = True

    def __init__(self, settings: WordSettings):
        super().__init__(settings)
        self._settings: WordSettings = settings

    def score_all(self, texts: Sequence[str]) -> list[Scored]:
        if any("HANG" in text for text in texts):
            re.match(r"(a+)+$", "a" * 80 + "b")
        if any("RAISE" in text for text in texts):
            raise RuntimeError("the scorer has a bug")
        time.sleep(self._settings.delay_s * len(texts))
        self.num_truncated += sum("LONG" in text for text in texts)
        return [Scored(float(len(text.split()))) for text in texts]


class ThreadSettings(ScorerSettings):
    name: str = "threads"


class ThreadScorer(Scorer):
    """A text's score is the number of threads that torch computes with."""

    Settings = ThreadSettings
    unit = "threads"
    packages = ("torch",)

    def score_all(self, texts: Sequence[str]) -> list[Scored]:
        import torch

        return [Scored(float(torch.get_num_threads()))] * len(texts)
