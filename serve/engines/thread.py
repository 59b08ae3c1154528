"""An engine in its own thread, so that no forward pass blocks the event loop that serves requests."""

import asyncio
import logging
import queue
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from phf_ray.errors import DataError
from phf_ray.generation.active import ActiveRequest
from phf_ray.generation.engine import Engine
from phf_ray.generation.requests import Completion, FinishReason, GenerationRequest, TokenLogprob
from serve.engines.tokenizing import off_the_loop
from serve.errors import ApiError

log = logging.getLogger("ray.serve.phf")


@dataclass(frozen=True, slots=True)
class StreamedPiece:
    """New output of one request in a stream."""

    index: int
    text: str
    logprobs: Sequence[TokenLogprob]
    finish_reason: FinishReason | None
    num_prompt_tokens: int
    num_completion_tokens: int


class _Ticket:
    """The requests of one call, and the event loop that waits for them. Only the engine's thread changes fields."""

    def __init__(self, actives: list[ActiveRequest], *, is_stream: bool):
        self.actives = actives
        self.is_stream = is_stream
        self.num_unfinished = len(actives)
        self.num_sent_logprobs = [0] * len(actives)
        self._loop = asyncio.get_running_loop()
        self.inbox: asyncio.Queue[list[StreamedPiece] | None] = asyncio.Queue()

    def post(self, pieces: list[StreamedPiece] | None) -> None:
        """Send pieces to the waiting event loop. None says that all requests are finished."""
        try:
            self._loop.call_soon_threadsafe(self.inbox.put_nowait, pieces)
        except RuntimeError:
            log.warning("the event loop closed before its requests were answered")


class EngineThread:
    def __init__(self, engine: Engine, *, max_waiting: int):
        self.engine = engine
        self._max_unfinished = engine.settings.max_batch + max_waiting
        self.num_unfinished = 0
        self._inbox: queue.SimpleQueue[_Ticket | list[ActiveRequest] | None] = queue.SimpleQueue()
        self._ticket_of: dict[ActiveRequest, tuple[_Ticket, int]] = {}
        self.num_steps = 0
        self.num_advanced = 0
        self.num_failed_in_a_row = 0
        """Failed steps since the last successful one."""
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def close(self) -> None:
        self._inbox.put(None)
        self._thread.join(timeout=10)

    async def complete(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        """Return one completion per request. Cancelling the call frees its slots.

        Raises RequestError, ApiError 429 if too many sequences wait, DataError if the model fails.
        """
        async with _Submission(self, requests, is_stream=False) as ticket:
            await ticket.inbox.get()
            return [active.completion() for active in ticket.actives]

    async def stream(self, requests: Sequence[GenerationRequest]) -> AsyncIterator[list[StreamedPiece]]:
        """Yield pieces as they come, several at a time. Raises the same errors as `complete`."""
        async with _Submission(self, requests, is_stream=True) as ticket:
            while (pieces := await ticket.inbox.get()) is not None:
                yield pieces
            for active in ticket.actives:
                if active.error is not None:
                    raise DataError(active.error)

    async def submit(self, requests: Sequence[GenerationRequest], *, is_stream: bool) -> _Ticket:
        if self.num_unfinished and self.num_unfinished + len(requests) > self._max_unfinished:
            raise ApiError(429, f"{self.num_unfinished} sequences are in the model's queue; try again later")
        # Count them before tokenizing their prompts: other requests arrive meanwhile.
        self.num_unfinished += len(requests)
        try:
            actives = await off_the_loop(
                lambda: [self.engine.prepare(request) for request in requests],
                num_characters=sum(len(request.prompt) for request in requests),
            )
        except BaseException:
            self.num_unfinished -= len(requests)
            raise
        ticket = _Ticket(actives, is_stream=is_stream)
        self._inbox.put(ticket)
        return ticket

    def release(self, ticket: _Ticket) -> None:
        """Take unfinished requests out of the batch; the caller is done or gone."""
        self.num_unfinished -= len(ticket.actives)
        unfinished = [active for active in ticket.actives if not active.is_finished]
        if unfinished:
            for active in unfinished:
                self.engine.cancel(active)
            self._inbox.put(unfinished)

    def _work(self) -> None:
        while self._collect():
            try:
                advanced = self.engine.step()
                # The engine fails a prompt that the model can't run by itself. If it fails all, the model is at fault.
                if self.engine.failed_all:
                    self.num_failed_in_a_row += 1
                elif advanced:
                    self.num_failed_in_a_row = 0
            except Exception:
                # The thread's outermost handler: if the model fails, callers get an error and others still run.
                log.exception("the engine failed")
                self.num_failed_in_a_row += 1
                advanced = self.engine.fail_all("the model failed on this batch; the server's log has the reason")
            self.num_steps += 1
            self.num_advanced += len(advanced)
            self._report(advanced)

    def _collect(self) -> bool:
        """Take in new tickets and cancellations; wait for some if the engine is idle. False tells the thread to end."""
        while True:
            try:
                item = self._inbox.get(block=not (self.engine.num_active or self.engine.num_waiting))
            except queue.Empty:
                return True
            if item is None:
                return False
            if isinstance(item, _Ticket):
                for index, active in enumerate(item.actives):
                    self._ticket_of[active] = (item, index)
                    self.engine.add(active)
            else:
                for active in item:
                    self._ticket_of.pop(active, None)

    def _report(self, advanced: Sequence[ActiveRequest]) -> None:
        pieces: dict[_Ticket, list[StreamedPiece]] = {}
        for active in advanced:
            if active not in self._ticket_of:
                continue
            ticket, index = self._ticket_of[active]
            if ticket.is_stream and active.error is None:
                active.attempt(self._add_piece, pieces, ticket, index, active)
            if active.is_finished:
                del self._ticket_of[active]
                ticket.num_unfinished -= 1
                if ticket.num_unfinished == 0:
                    pieces.setdefault(ticket, [])
        for ticket, new in pieces.items():
            if new:
                ticket.post(new)
            if ticket.num_unfinished == 0:
                ticket.post(None)

    def _add_piece(
        self, pieces: dict[_Ticket, list[StreamedPiece]], ticket: _Ticket, index: int, active: ActiveRequest
    ) -> None:
        piece = self._piece(ticket, index, active)
        if piece.text or piece.logprobs or piece.finish_reason:
            pieces.setdefault(ticket, []).append(piece)

    @staticmethod
    def _piece(ticket: _Ticket, index: int, active: ActiveRequest) -> StreamedPiece:
        logprobs: Sequence[TokenLogprob] = ()
        if active.request.logprobs is not None:
            everything = active.logprobs()
            logprobs = everything[ticket.num_sent_logprobs[index] :]
            ticket.num_sent_logprobs[index] = len(everything)
        return StreamedPiece(
            index=index,
            text=active.take_text(),
            logprobs=logprobs,
            finish_reason=active.finish_reason,
            num_prompt_tokens=len(active.prompt_ids),
            num_completion_tokens=len(active.visible_ids),
        )


class _Submission:
    """Keeps requests in the engine while the `async with` block runs, and releases them however it ends."""

    def __init__(self, thread: EngineThread, requests: Sequence[GenerationRequest], *, is_stream: bool):
        self._thread, self._requests, self._is_stream = thread, requests, is_stream

    async def __aenter__(self) -> _Ticket:
        self._ticket = await self._thread.submit(self._requests, is_stream=self._is_stream)
        return self._ticket

    async def __aexit__(self, *_: object) -> None:
        self._thread.release(self._ticket)
