"""An annotator shows pairs to its judge and returns verdicts on them, as they were shown."""

import asyncio
import json
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from phf_ray.config import AnnotatorConfig, ParserConfig, ScoreServer
from phf_ray.judging.judges.base import Judge
from phf_ray.judging.judges.by_score import preference_by_scores, shown_to_scorer
from phf_ray.judging.pairs import Pair, Preference
from phf_ray.judging.parsers import read_verdicts
from phf_ray.judging.prompts import JudgePrompt
from phf_ray.judging.question import Answer, Asker, Failure, Question
from phf_ray.judging.score_server import scoring_question

_AT_ONCE = 64
"""Pairs that a judge in this process gets in one call."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge said of one pair."""

    preference: Preference | Failure
    """Between the answers as they were shown."""
    raw: str | None = None
    price: float | None = None
    seconds: float | None = None


class Annotator(ABC):
    batch_size: int
    """Pairs that are shown together."""

    def __init__(self, config: AnnotatorConfig):
        self.config = config
        self.name = config.name
        self.batch_size = config.batch_size

    @abstractmethod
    async def verdicts(self, shown: Sequence[Pair], asker: Asker | None) -> list[Verdict]:
        """Return one verdict per pair, at most `batch_size` of them."""


class LocalAnnotator(Annotator):
    """Its judge is in this process."""

    def __init__(self, config: AnnotatorConfig, judge: Judge):
        super().__init__(config)
        self.batch_size = _AT_ONCE
        self._judge = judge
        # Models and checkers are not made for several threads. (A lock of asyncio belongs to one event loop.)
        self._turn = threading.Lock()

    async def verdicts(self, shown: Sequence[Pair], asker: Asker | None) -> list[Verdict]:  # noqa: ARG002
        return [Verdict(said) for said in await asyncio.to_thread(self._prefer, shown)]

    def _prefer(self, shown: Sequence[Pair]) -> Sequence[Preference | Failure]:
        with self._turn:
            return self._judge.prefer(shown)


@dataclass(frozen=True, slots=True)
class Manner:
    """How a judge behind a URL is asked and understood."""

    judge: str
    """URL and model."""
    prompts: tuple[JudgePrompt, JudgePrompt]
    """For rows without an input, and with one."""
    parser: ParserConfig
    decoding: Mapping[str, Any]
    seed: int


class AskedAnnotator(Annotator):
    """Its judge is behind a URL."""

    def __init__(self, config: AnnotatorConfig, manner: Manner):
        super().__init__(config)
        self._manner = manner

    def question(self, shown: Sequence[Pair]) -> Question:
        """Return what is asked about the pairs, which all have an input or all have none."""
        manner = self._manner
        rendered = manner.prompts[bool(shown[0].input)].render(shown)
        if isinstance(rendered, str):
            return Question(manner.judge, prompt=rendered, decoding=manner.decoding, seed=manner.seed)
        return Question(manner.judge, messages=rendered, decoding=manner.decoding, seed=manner.seed)

    async def verdicts(self, shown: Sequence[Pair], asker: Asker | None) -> list[Verdict]:
        assert asker is not None, "checked before anything is judged"
        answer = await asker.ask(self.question(shown))
        if isinstance(answer, Failure):
            return [Verdict(answer)] * len(shown)
        # The pairs that fill up a prompt cost something, but nobody reads their verdicts.
        said = read_verdicts(self._manner.parser, answer, num=self.batch_size)
        price = None if answer.price is None else answer.price / len(shown)
        preferences = [said] * len(shown) if isinstance(said, Failure) else said[: len(shown)]
        return [Verdict(one, raw=answer.text, price=price, seconds=answer.seconds / len(shown)) for one in preferences]


class ServedScorerAnnotator(Annotator):
    """Its judge compares scores that a server gives."""

    def __init__(self, config: AnnotatorConfig, server: ScoreServer, *, judge: str):
        """`judge`: whom questions name."""
        super().__init__(config)
        self.batch_size = max(1, server.texts_at_once // 2)
        self._server, self._judge, self._biases = server, judge, config.judge.biased_scorer

    async def verdicts(self, shown: Sequence[Pair], asker: Asker | None) -> list[Verdict]:
        assert asker is not None, "checked before anything is judged"
        said = await asyncio.gather(
            *(
                asker.ask(
                    scoring_question(
                        self._judge,
                        self._server,
                        instruction=pair.whole_instruction,
                        answer=shown_to_scorer(answer, self._biases),
                    )
                )
                for pair in shown
                for answer in (pair.output_1, pair.output_2)
            )
        )
        return [
            self._verdict(pair, first, second) for pair, first, second in zip(shown, said[::2], said[1::2], strict=True)
        ]

    def _verdict(self, pair: Pair, first: Answer | Failure, second: Answer | Failure) -> Verdict:
        scores = [one if isinstance(one, Failure) else float(one.text) for one in (first, second)]
        if isinstance(first, Failure) or isinstance(second, Failure):
            return Verdict(preference_by_scores(pair, scores[0], scores[1], self._biases))
        return Verdict(
            preference_by_scores(pair, scores[0], scores[1], self._biases),
            raw=json.dumps(scores),
            seconds=first.seconds + second.seconds,
        )
