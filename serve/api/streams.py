"""Streams of answers as server-sent events, and their number."""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, contextmanager
from typing import Any, Protocol

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from serve.backends import Asked, Completed, ModelBackend
from serve.errors import EVENT_STREAM, LAST_EVENT, ApiError, error_event
from serve.schemas import StreamOptions, Usage
from serve.settings import Limits

STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {EVENT_STREAM: {"schema": {"type": "string"}}},
        "description": "With `stream`, server-sent events",
    }
}


class WritesEvents(Protocol):
    """Writes pieces as the JSON of events."""

    path: str
    """Of the request, for errors."""

    def events(self, piece: Completed, usage: Usage | None) -> Sequence[str]:
        """`usage`: that of the piece, if the client asked for it in every piece."""
        ...

    def last_event(self, usage: Usage) -> str:
        """Write the usage of the whole answer."""
        ...


class OpenStreams:
    """Counts the streams that are open, completions and chats together."""

    def __init__(self, limits: Limits):
        self._limit = limits.concurrent_streams
        self._num_open = 0

    @contextmanager
    def _counted(self) -> Iterator[None]:
        if self._num_open >= self._limit:
            raise ApiError(429, f"{self._num_open} streams are open; try again later, or without stream")
        self._num_open += 1
        try:
            yield
        finally:
            self._num_open -= 1

    async def answer(self, model: ModelBackend, asked: Asked, *, writer: WritesEvents, state: Any) -> StreamingResponse:
        """Return the stream of an answer. Raises what the model raises before its first piece."""
        async with AsyncExitStack() as held:
            held.enter_context(self._counted())
            pieces = await held.enter_async_context(aclosing(model.stream(asked)))  # type: ignore[type-var]
            # Wait for the first piece: until it comes, an error can still have a status of its own.
            first = await anext(pieces)
            options = asked.stream_options or StreamOptions()
            lines = _lines(first, pieces, options=options, writer=writer, state=state)
            return _EventStream(lines, held=held.pop_all())


class _EventStream(StreamingResponse):
    """Server-sent events. `held` is closed after the last event, and also if the first is never requested."""

    def __init__(self, lines: AsyncIterator[str], *, held: AsyncExitStack):
        super().__init__(lines, media_type=EVENT_STREAM, headers={"Cache-Control": "no-cache"})
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._held:
            await super().__call__(scope, receive, send)


async def _lines(
    first: Completed,
    pieces: AsyncIterator[Completed],
    *,
    options: StreamOptions,
    writer: WritesEvents,
    state: Any,
) -> AsyncIterator[str]:
    in_every_piece = options.include_usage and options.continuous_usage_stats
    last = first
    try:
        for event in writer.events(first, first.usage if in_every_piece else None):
            yield _event(event)
        async for piece in pieces:
            last = piece
            for event in writer.events(piece, piece.usage if in_every_piece else None):
                yield _event(event)
        if options.include_usage:
            yield _event(writer.last_event(last.usage))
    except ApiError as error:
        # The gate reports any other failure, and a timeout, to the client in the same way.
        yield error_event(writer.path, error)
    finally:
        state.tokens = tokens_of(last)
    yield LAST_EVENT


def _event(content: str) -> str:
    return f"data: {content}\n\n"


def tokens_of(completed: Completed) -> dict[str, int]:
    return {"prompt": completed.usage.prompt_tokens, "completion": completed.usage.completion_tokens}
