"""Scorers in this process: replicas run them, and tests call them without Ray. Only scorers that need torch load it."""

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import Any, TypeVar

from phf_ray.corpus.segments import build_segmenter
from phf_ray.records import Scored, Span
from phf_ray.scorers.base import FindsSpans, HasClasses, Scorer, failure
from phf_ray.scorers.build import build_scorer, on_cpu
from serve.backends import TOO_LONG, ScoredJson
from serve.errors import ApiError
from serve.schemas import ScorerIdentityBody
from serve.settings import ServedScorer

Answer = TypeVar("Answer")


def _why_not(scorer: Scorer, text: str) -> str:
    return scorer.score_all([text])[0].error or "no reason given"


def _not_analyzed(index: int, reason: str | None) -> ApiError:
    # An empty list for this text would claim that it has no spans.
    return ApiError(400, f"the text at index {index} can't be analyzed: {reason}", "text")


class LocalScorer:
    """A scorer in its own thread: scorers are not thread-safe, and scoring keeps a CPU busy."""

    def __init__(self, served: ServedScorer):
        self._scorer = build_scorer(served.scorer if served.num_gpus else on_cpu(served.scorer))
        self._identity = ScorerIdentityBody.model_validate(self._scorer.identity().to_json())
        self._identity_json = self._identity.model_dump_json().encode()
        self._segmenter = build_segmenter(served.segmenter or self._scorer.default_segmenter)
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="scorer")
        self._max_waiting = served.max_waiting
        self._num_waiting = 0
        self._max_text_chars = served.max_text_chars
        self._running_since: float | None = None

    @property
    def name(self) -> str:
        return self._scorer.name

    async def score(self, texts: Sequence[str], *, segments: bool) -> ScoredJson:
        return await self._in_thread(lambda: self._score(texts, segments=segments))

    async def spans(self, texts: Sequence[str]) -> list[list[Span]]:
        scorer = self._scorer
        if not isinstance(scorer, FindsSpans):
            raise ApiError(400, f"the scorer {self.name} finds no spans", "scorer")
        for index, text in enumerate(texts):
            reason = self._too_long(text)
            if reason is not None:
                raise _not_analyzed(index, reason)

        def found(index: int, text: str) -> list[Span]:
            try:
                return scorer.spans(text)
            except Exception as error:  # noqa: BLE001  libraries can raise anything, as in scoring
                raise _not_analyzed(index, failure(error).error) from None

        return await self._in_thread(lambda: [found(index, text) for index, text in enumerate(texts)])

    async def class_scores(self, texts: Sequence[str]) -> list[dict[str, float] | str]:
        scorer = self._scorer
        if not isinstance(scorer, HasClasses):
            raise ApiError(400, f"the scorer {self.name} has no classes", "scorer")

        def work() -> list[dict[str, float] | str]:
            def judged(short: Sequence[str]) -> list[dict[str, float] | str]:
                found = scorer.class_scores(short)
                return [scores or _why_not(self._scorer, text) for text, scores in zip(short, found, strict=True)]

            return self._for_each(texts, judged, too_long=lambda reason: reason)

        return await self._in_thread(work)

    async def segment_spans(self, text: str) -> list[tuple[int, int]]:
        ends = list(accumulate(map(len, await self._in_thread(lambda: self._segmenter(text)))))
        return list(zip([0, *ends], ends, strict=False))

    async def identity(self) -> ScorerIdentityBody:
        return self._identity

    async def _in_thread(self, work: Callable[[], Answer]) -> Answer:
        if self._num_waiting >= self._max_waiting:
            raise ApiError(429, f"{self._num_waiting} requests wait for the scorer {self.name}; try again later")
        self._num_waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, self._timed, work)
        finally:
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

    def _too_long(self, text: str) -> str | None:
        """Return why the text is not scored if it is too long, else None."""
        if len(text) <= self._max_text_chars:
            return None
        return f"{TOO_LONG}: the text has {len(text)} characters, the limit is {self._max_text_chars}; send it in parts"

    def _for_each(
        self,
        texts: Sequence[str],
        judged: Callable[[Sequence[str]], Sequence[Answer]],
        *,
        too_long: Callable[[str], Answer],
    ) -> list[Answer]:
        """Return one answer per text: from `judged` if the text is short enough, else from `too_long` of the reason."""
        refused = [self._too_long(text) for text in texts]
        short = [text for text, reason in zip(texts, refused, strict=True) if reason is None]
        answers = iter(judged(short) if short else [])
        return [next(answers) if reason is None else too_long(reason) for reason in refused]

    def _score(self, texts: Sequence[str], *, segments: bool) -> ScoredJson:
        scored = self._for_each(texts, self._scorer.score_all, too_long=lambda reason: Scored(None, reason))
        items = [
            {
                "index": index,
                "score": one.score,
                "error": one.error,
                "segments": self._score_segments(text) if segments and self._too_long(text) is None else None,
            }
            for index, (text, one) in enumerate(zip(texts, scored, strict=True))
        ]
        data = json.dumps(items, allow_nan=False).encode()
        return ScoredJson(self._identity_json, data, num_failed=sum(one.score is None for one in scored))

    def _score_segments(self, text: str) -> list[dict[str, Any]]:
        parts = self._segmenter(text)
        scored: list[Scored] = self._scorer.score_segments(parts)
        segments, begin = [], 0
        for part, one in zip(parts, scored, strict=True):
            end = begin + len(part)
            segments.append({"begin": begin, "end": end, "score": one.score, "error": one.error})
            begin = end
        return segments
