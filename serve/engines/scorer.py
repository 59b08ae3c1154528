"""Scorers as replicas run them, and as tests call them without Ray.

The scorer runs in a child process (`phf_ray.scorers.process`): a text that it never finishes, or that crashes it, gets
a reason instead of an answer, and requests that wait go on. This process loads no torch.
"""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import accumulate
from typing import Any, TypeVar

from phf_ray.records import Scored, Span
from phf_ray.scorers.base import FindsSpans, HasClasses, ReadsPrompts
from phf_ray.scorers.build import on_cpu, scorer_class
from phf_ray.scorers.process import ScoringProcess
from phf_ray.scorers.tasks import Ask, ScoringSetup, ScoringTask
from serve.backends import TOO_LONG, ScoredJson
from serve.errors import ApiError
from serve.schemas import ScorerIdentityBody, lone_surrogate_in
from serve.settings import ServedScorer

Answer = TypeVar("Answer")


IsWanted = Callable[[], bool]
"""Whether somebody still waits for the answer."""


def _not_analyzed(index: int, reason: str) -> ApiError:
    # An empty list for this text would claim that it has no spans.
    return ApiError(400, f"the text at index {index} can't be analyzed: {reason}", "text")


class LocalScorer:
    """A scorer in its own process, asked from one thread: the scorer answers one request at a time."""

    def __init__(self, served: ServedScorer):
        """Raises what building the scorer raises."""
        config = dict(served.scorer) if served.num_gpus else on_cpu(served.scorer)
        self._class = scorer_class(config["class_name"])
        segmenter = served.segmenter or self._class.default_segmenter
        self._process = ScoringProcess(ScoringSetup((config,), segmenter, text_timeout_s=served.text_timeout_s))
        [identity] = self._process.identities
        self._identity = ScorerIdentityBody.model_validate(identity.to_json())
        self._identity_json = self._identity.model_dump_json().encode()
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="scorer")
        self._max_waiting = served.max_waiting
        self._num_waiting = 0
        self._max_text_chars = served.max_text_chars
        self._running_since: float | None = None

    @property
    def name(self) -> str:
        return self._identity.name

    @property
    def pid(self) -> int:
        """Process id of the scorer's own process."""
        return self._process.pid

    def close(self) -> None:
        """End the scorer's process."""
        self._executor.shutdown()
        self._process.close()

    async def score(self, texts: Sequence[str], *, segments: bool, prompts: Sequence[str] | None = None) -> ScoredJson:
        if prompts is not None and not issubclass(self._class, ReadsPrompts):
            raise ApiError(400, f"the scorer {self.name} judges texts without prompts; leave prompts out", "prompts")
        return await self._in_thread(
            lambda is_wanted: self._score(texts, is_wanted, segments=segments, prompts=prompts)
        )

    async def spans(self, texts: Sequence[str]) -> list[list[Span]]:
        if not issubclass(self._class, FindsSpans):
            raise ApiError(400, f"the scorer {self.name} finds no spans", "scorer")
        for index, text in enumerate(texts):
            reason = self._refused(text)
            if reason is not None:
                raise _not_analyzed(index, reason)
        found = await self._in_thread(lambda is_wanted: self._ask("spans", texts, is_wanted))
        for index, spans in enumerate(found):
            if isinstance(spans, str):
                raise _not_analyzed(index, spans)
        return found

    async def class_scores(self, texts: Sequence[str]) -> list[dict[str, float] | str]:
        if not issubclass(self._class, HasClasses):
            raise ApiError(400, f"the scorer {self.name} has no classes", "scorer")
        return await self._in_thread(lambda is_wanted: self._ask("classes", texts, is_wanted))

    async def segment_spans(self, text: str) -> list[tuple[int, int]]:
        [parts] = await self._in_thread(lambda is_wanted: self._ask("cut", [text], is_wanted))
        if isinstance(parts, str):
            raise ApiError(400, f"the text can't be cut into segments: {parts}")
        ends = list(accumulate(map(len, parts)))
        return list(zip([0, *ends], ends, strict=False))

    async def identity(self) -> ScorerIdentityBody:
        return self._identity

    async def _in_thread(self, work: Callable[[IsWanted], Answer]) -> Answer:
        if self._num_waiting >= self._max_waiting:
            raise ApiError(429, f"{self._num_waiting} requests wait for the scorer {self.name}; try again later")
        self._num_waiting += 1
        is_given_up = threading.Event()
        run = partial(work, lambda: not is_given_up.is_set())
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, self._timed, run)
        finally:
            # If the caller is gone, no further text of this request may hold up the others.
            is_given_up.set()
            self._num_waiting -= 1

    def _timed(self, work: Callable[[], Answer]) -> Answer:
        self._running_since = time.monotonic()
        try:
            return work()
        finally:
            self._running_since = None

    @property
    def running_s(self) -> float:
        """Seconds that the scorer has worked on its current request; 0 if it is idle."""
        since = self._running_since
        return 0.0 if since is None else time.monotonic() - since

    def _refused(self, text: str) -> str | None:
        """Return why the scorer is not asked about the text, or None if it is."""
        if len(text) > self._max_text_chars:
            return (
                f"{TOO_LONG}: the text has {len(text)} characters, the limit is {self._max_text_chars}; send it in "
                "parts"
            )
        surrogate = lone_surrogate_in(text)
        return None if surrogate is None else f"lone_surrogate: {surrogate}"

    def _ask(
        self, ask: Ask, texts: Sequence[str], is_wanted: IsWanted, *, prompts: Sequence[str] | None = None
    ) -> list[Any]:
        """Return one answer per text, or as a str the reason why there is none."""
        read = texts if prompts is None else list(map("".join, zip(prompts, texts, strict=True)))
        refused = [self._refused(text) for text in read]
        places = [place for place, reason in enumerate(refused) if reason is None]
        asked = [texts[place] for place in places]
        before = None if prompts is None else [prompts[place] for place in places]
        answers = iter(self._process.ask(ask, asked, prompts=before, is_wanted=is_wanted) if asked else [])
        return [next(answers) if reason is None else reason for reason in refused]

    def _score(
        self, texts: Sequence[str], is_wanted: IsWanted, *, segments: bool, prompts: Sequence[str] | None = None
    ) -> ScoredJson:
        found = self._ask("score", texts, is_wanted, prompts=prompts)
        scored = [Scored(None, one) if isinstance(one, str) else one for one in found]
        items = [
            {
                "index": index,
                "score": one.score,
                "error": one.error,
                "segments": self._score_segments(text) if segments and is_wanted() else None,
            }
            for index, (text, one) in enumerate(zip(texts, scored, strict=True))
        ]
        data = json.dumps(items, allow_nan=False).encode()
        return ScoredJson(self._identity_json, data, num_failed=sum(one.score is None for one in scored))

    def _score_segments(self, text: str) -> list[dict[str, Any]] | None:
        """Cut and score as in a corpus; None if the text is refused as a whole."""
        if self._refused(text) is not None:
            return None
        # One text at a time: what is in a batch with a segment can move the last bit of a model's score.
        self._process.submit([ScoringTask(text=text)])
        [outcome] = self._process.collect().outcomes
        if outcome.problem is not None:
            return [{"begin": 0, "end": len(text), "score": None, "error": ": ".join(outcome.problem)}]
        scores, errors = outcome.scores[self.name]
        ends = list(accumulate(map(len, outcome.texts)))
        return [
            {"begin": begin, "end": end, "score": score, "error": error}
            for begin, end, score, error in zip([0, *ends][: len(ends)], ends, scores, errors, strict=True)
        ]
