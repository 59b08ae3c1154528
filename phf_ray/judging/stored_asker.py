"""Has questions answered from the store, or by the endpoint: each question by one call, in all processes together."""

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

from phf_ray.errors import PhfError, ServiceError
from phf_ray.http.client import RefusedError, UnansweredError
from phf_ray.judging.endpoint import JudgeEndpoint, MalformedAnswerError, path_of
from phf_ray.judging.ledger import Ledger
from phf_ray.judging.question import Answer, Failure, Question
from phf_ray.judging.store import Store, do_nothing

OF_THIS_QUESTION = (400, 413, 422)
"""Statuses that refuse one question. Any other refusal meets all questions: a wrong key, an unknown model."""
_FIRST_POLL_S, _LAST_POLL_S = 0.02, 1.0


@dataclass(slots=True)
class _InLoop:
    """What the questions of one event loop share."""

    may_send: asyncio.Semaphore
    flights: dict[str, asyncio.Task[Answer | Failure]] = field(default_factory=dict)
    """Key -> the task that has it answered."""
    sent: set[asyncio.Task[Any]] = field(default_factory=set)
    stopped: PhfError | None = None
    """Why no question is sent any more."""


class StoredAsker:
    """An `Asker` that asks a judge only what the store doesn't hold, at most `max_in_flight` questions at once."""

    def __init__(self, store: Store, endpoint: JudgeEndpoint, ledger: Ledger):
        self._store, self._endpoint, self._ledger = store, endpoint, ledger
        self._loops: dict[asyncio.AbstractEventLoop, _InLoop] = {}
        self._answered_at = 0.0

    async def ask(self, question: Question) -> Answer | Failure:
        """Return the stored answer, or ask. An `Asker`."""
        key = question.key
        answer = self._store.find(key)
        if answer is not None:
            return answer
        loop = self._loop()
        flight = loop.flights.get(key)
        if flight is None:
            flight = loop.flights[key] = asyncio.ensure_future(self._have(key, question, loop))
            flight.add_done_callback(lambda _: _land(loop, key))
        # If one who waits gives up, the call goes on: it may be paid for.
        return await asyncio.shield(flight)

    async def close(self) -> None:
        """Send no more, wait for the answers under way in this event loop and for the books, close the connections."""
        loop = self._loop()
        loop.stopped = ServiceError(f"the asker of {self._endpoint.settings.judge} was closed")
        if loop.sent:
            await asyncio.wait(set(loop.sent))
        while loop.flights:
            await asyncio.wait(set(loop.flights.values()))
        loop.stopped = None
        # How a call without an answer ended is noted without waiting for the disk.
        await asyncio.wrap_future(self._store.submit(do_nothing))
        await self._endpoint.client.close()

    def _loop(self) -> _InLoop:
        running = asyncio.get_running_loop()
        if running not in self._loops:
            self._loops = {loop: shared for loop, shared in self._loops.items() if not loop.is_closed()}
            self._loops[running] = _InLoop(asyncio.Semaphore(self._endpoint.settings.max_in_flight))
        return self._loops[running]

    async def _have(self, key: str, question: Question, loop: _InLoop) -> Answer | Failure:
        wait_s = _FIRST_POLL_S
        while True:
            async with loop.may_send:
                if loop.stopped is not None:
                    raise loop.stopped.with_traceback(None)
                call = await self._claim(key, question, loop)
                if call is not None:
                    return await self._ask_claimed(key, question, loop, call)
            answer = self._store.find(key)
            if answer is not None:
                return answer
            # Another process asks it.
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, _LAST_POLL_S)

    async def _claim(self, key: str, question: Question, loop: _InLoop) -> int | None:
        try:
            return await self._ledger.claim(key, question, self._endpoint.settings.price)
        except PhfError as error:
            await self._stop(error, loop)
            raise

    async def _ask_claimed(self, key: str, question: Question, loop: _InLoop, call: int) -> Answer | Failure:
        task = asyncio.current_task()
        assert task is not None
        loop.sent.add(task)
        since = time.monotonic()
        claimed = True
        reserved = [call]
        try:
            answer = await self._endpoint.client.patiently(
                lambda: self._call(key, question, reserved), path_of(question)
            )
            claimed = False  # freed with the same transaction that stored the answer
            return answer
        except MalformedAnswerError as error:
            return Failure(f"malformed: {error}")
        except RefusedError as error:
            if error.status in OF_THIS_QUESTION:
                return Failure(f"refused: {error}")
            await self._stop(error, loop)
            raise
        except ServiceError as error:
            if self._answered_at > since:  # others were answered meanwhile
                return Failure(f"unanswered: {error}")
            await self._stop(error, loop)
            raise
        except PhfError as error:
            await self._stop(error, loop)
            raise
        finally:
            loop.sent.discard(task)
            if claimed:
                self._store.submit(lambda db: self._store.owner.free(db, key))

    async def _call(self, key: str, question: Question, reserved: list[int]) -> Answer:
        """Send one request, and store its answer and cost. `reserved`: the first call, which the claim reserved."""
        price = self._endpoint.settings.price
        call = reserved.pop() if reserved else await self._ledger.reserve(key, question, price)
        state = "lost"
        try:
            answer = await self._endpoint.send(question)
            self._answered_at = time.monotonic()
            state = ""
        except UnansweredError as error:
            state = "lost" if error.may_be_done else "free"
            raise
        except RefusedError:
            state = "free"
            raise
        finally:
            if state:
                self._ledger.note_end(call, question, price, state=state)
        await self._ledger.settle(call, question, answer, price)
        # Another process may have been first, if it took this one for dead. All report the answer that is kept.
        return self._store.find(key) or answer

    async def _stop(self, error: PhfError, loop: _InLoop) -> None:
        """Send no more, and wait for the answers under way: they are paid for."""
        loop.stopped = error
        task = asyncio.current_task()
        assert task is not None
        loop.sent.discard(task)
        if loop.sent:
            await asyncio.wait(set(loop.sent))


def _land(loop: _InLoop, key: str) -> None:
    flight = loop.flights.pop(key)
    if not flight.cancelled():
        # Those who wait are told. If nobody waits any more, nobody misses it.
        flight.exception()
    if not loop.flights:
        loop.stopped = None
