"""Has answers scored by a served scorer, or takes their scores from the store.

What is asked at the same time goes in one request. A score costs nothing, so there are no claims and no books: two
processes may have the same text scored, and both get the score that was kept first.
"""

import asyncio
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from phf_ray.errors import PhfError, ServiceError
from phf_ray.http.client import RefusedError
from phf_ray.http.openai_async import AsyncOpenAIClient
from phf_ray.judging.endpoint import MalformedAnswerError
from phf_ray.judging.question import Answer, Failure, Question
from phf_ray.judging.score_server import ScoreServerSettings, bare_url, body_of_scores, path_of_scores, read_scores
from phf_ray.judging.store import Store, keep_answer
from phf_ray.judging.stored_asker import OF_THIS_QUESTION

_LINGER_S = 0.005
"""How long a text waits for others to share its request."""


@dataclass(slots=True)
class _Shared:
    """What the questions of one event loop share."""

    may_send: asyncio.Semaphore
    flights: dict[str, asyncio.Future[Answer | Failure]] = field(default_factory=dict)
    waiting: list[Question] = field(default_factory=list)
    requests: set[asyncio.Task[None]] = field(default_factory=set)
    stopped: PhfError | None = None
    """Why no more is asked."""


class ScoreAsker:
    """An `Asker` of one served scorer. The text of its answers is the score."""

    def __init__(self, store: Store, settings: ScoreServerSettings):
        self._store, self._settings = store, settings
        server = settings.server
        self._client = AsyncOpenAIClient(
            bare_url(server), key=settings.endpoint.key, patience_s=server.patience_s, timeout_s=server.timeout_s
        )
        self._loops: dict[asyncio.AbstractEventLoop, _Shared] = {}
        self._answered_at = 0.0

    async def ask(self, question: Question) -> Answer | Failure:
        key = question.key
        answer = self._store.find(key)
        if answer is not None:
            return answer
        shared = self._in_loop()
        flight = shared.flights.get(key)
        if flight is None:
            flight = shared.flights[key] = asyncio.get_running_loop().create_future()
            shared.waiting.append(question)
            if len(shared.waiting) == 1:
                self._start(shared, self._send_soon(shared))
            elif len(shared.waiting) >= self._settings.server.texts_at_once:
                self._send_waiting(shared)
        return await asyncio.shield(flight)

    async def close(self) -> None:
        """Ask no more, wait for what is under way in this event loop, close the connections."""
        shared = self._in_loop()
        shared.stopped = ServiceError(f"the asker of {self._settings.judge} was closed")
        while shared.requests:
            await asyncio.wait(set(shared.requests))
        del self._loops[asyncio.get_running_loop()]
        await self._client.close()

    def _in_loop(self) -> _Shared:
        running = asyncio.get_running_loop()
        if running not in self._loops:
            self._loops = {loop: shared for loop, shared in self._loops.items() if not loop.is_closed()}
            self._loops[running] = _Shared(asyncio.Semaphore(self._settings.server.max_in_flight))
        return self._loops[running]

    def _start(self, shared: _Shared, work: Any) -> None:
        task = asyncio.ensure_future(work)
        shared.requests.add(task)
        task.add_done_callback(shared.requests.discard)

    async def _send_soon(self, shared: _Shared) -> None:
        await asyncio.sleep(_LINGER_S)
        self._send_waiting(shared)

    def _send_waiting(self, shared: _Shared) -> None:
        waiting, shared.waiting = shared.waiting, []
        size = self._settings.server.texts_at_once
        for begin in range(0, len(waiting), size):
            self._start(shared, self._settle(shared, waiting[begin : begin + size]))

    async def _settle(self, shared: _Shared, questions: Sequence[Question]) -> None:
        """Have the questions answered, keep the answers, and tell those who wait."""
        flights = [shared.flights[question.key] for question in questions]
        try:
            async with shared.may_send:
                if shared.stopped is not None:
                    raise shared.stopped.with_traceback(None)
                answers = await self._answers(questions)
            await self._keep(questions, answers)
            for flight, answer in zip(flights, answers, strict=True):
                flight.set_result(answer)
        except Exception as error:  # noqa: BLE001  raised again where the question came from
            if isinstance(error, PhfError):
                shared.stopped = shared.stopped or error
            for flight in flights:
                flight.set_exception(error)
                flight.exception()  # if nobody waits any more, nobody misses it
        finally:
            for question, flight in zip(questions, flights, strict=True):
                flight.cancel()  # does nothing to one that is done
                shared.flights.pop(question.key, None)

    async def _keep(self, questions: Sequence[Question], answers: Sequence[Answer | Failure]) -> None:
        def keep(db: sqlite3.Connection) -> None:
            for question, answer in zip(questions, answers, strict=True):
                if isinstance(answer, Answer):
                    keep_answer(db, question.key, question, answer)

        await asyncio.wrap_future(self._store.submit(keep))

    async def _answers(self, questions: Sequence[Question]) -> list[Answer | Failure]:
        server, since = self._settings.server, time.monotonic()
        try:
            said = await self._client.post(path_of_scores(server), body_of_scores(server, questions))
        except RefusedError as error:
            if error.status not in OF_THIS_QUESTION:
                raise
            if len(questions) == 1:
                return [Failure(f"refused: {error}")]
            # One text may be too long, or all of them together.
            half = len(questions) // 2
            return [*await self._answers(questions[:half]), *await self._answers(questions[half:])]
        except ServiceError as error:
            if self._answered_at <= since:
                raise
            # Others were answered meanwhile.
            return [Failure(f"unanswered: {error}")] * len(questions)
        self._answered_at = time.monotonic()
        seconds = (self._answered_at - since) / len(questions)
        try:
            scores = read_scores(self._settings, said, num=len(questions))
        except MalformedAnswerError as error:
            return [Failure(f"malformed: {error}")] * len(questions)
        return [one if isinstance(one, Failure) else Answer(repr(one), seconds=seconds) for one in scores]
