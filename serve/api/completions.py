"""`/v1/completions`, streamed or not."""

import secrets
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, aclosing, contextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from phf_ray.checkpoint import split_model_id
from serve.api.lookup import find_model
from serve.backends import Backend, Completed
from serve.errors import EVENT_STREAM, LAST_EVENT, ApiError, error_event
from serve.schemas import CompletionRequest, CompletionResponse, StreamOptions
from serve.settings import Limits

STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {EVENT_STREAM: {"schema": {"type": "string"}}},
        "description": "With `stream`, server-sent events",
    }
}


def add_completions(app: FastAPI, backend: Backend, *, limits: Limits) -> None:
    num_streams = 0

    @contextmanager
    def counted_stream() -> Iterator[None]:
        nonlocal num_streams
        if num_streams >= limits.concurrent_streams:
            raise ApiError(429, f"{num_streams} streams are open; try again later, or without stream")
        num_streams += 1
        try:
            yield
        finally:
            num_streams -= 1

    @app.post("/models/{model_id:path}/v1/completions", response_model=CompletionResponse, responses=STREAM)
    async def completions_of_model(model_id: str, body: CompletionRequest, request: Request) -> Response:
        """Like `/v1/completions`, for a client that knows one model per server: its base is `/models/{model_id}`."""
        name, _, suffix = find_model(backend, model_id)
        own_name, own_suffix = split_model_id(body.model)
        if own_name != name or (suffix and own_suffix and suffix != own_suffix):
            raise ApiError(400, f"model {body.model!r} and the URL's {model_id!r} contradict each other", "model")
        return await completions(body if suffix is None else body.model_copy(update={"model": model_id}), request)

    @app.post("/v1/completions", response_model=CompletionResponse, responses=STREAM)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """OpenAI's text completions, with vLLM's `min_tokens`, `top_k`, `stop_token_ids`, `repetition_penalty` and
        `ignore_eos`. `control`, or a suffix of the model id (`NAME:bad`), chooses the control token of a conditionally
        trained model."""
        name, model, suffix = find_model(backend, body.model)
        if suffix is not None and body.control not in (None, suffix):
            raise ApiError(400, f"model {body.model!r} and control {body.control!r} contradict each other", "control")
        asked = body.model_copy(
            update={
                "control": body.control or suffix,
                # Fix the seed here: a retry on another replica must give the same text.
                "seed": secrets.randbits(63) if body.seed is None else body.seed,
            }
        )
        request.state.model = name
        head: dict[str, Any] = {"id": f"cmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": body.model}
        if not body.stream:
            completed = await model.complete(asked)
            request.state.tokens = _tokens(completed)
            answer = CompletionResponse.model_construct(**head, choices=completed.choices, usage=completed.usage)
            return Response(answer.model_dump_json(), media_type="application/json")
        async with AsyncExitStack() as held:
            held.enter_context(counted_stream())
            pieces = await held.enter_async_context(aclosing(model.stream(asked)))  # type: ignore[type-var]
            # Wait for the first piece: until it comes, an error can still have a status of its own.
            first = await anext(pieces)
            lines = _events(first, pieces, head=head, body=body, state=request.state)
            return _EventStream(lines, held=held.pop_all())


class _EventStream(StreamingResponse):
    """Server-sent events. `held` is closed after the last event, and also if the first is never requested."""

    def __init__(self, lines: AsyncIterator[str], *, held: AsyncExitStack):
        super().__init__(lines, media_type=EVENT_STREAM, headers={"Cache-Control": "no-cache"})
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._held:
            await super().__call__(scope, receive, send)


async def _events(
    first: Completed,
    pieces: AsyncIterator[Completed],
    *,
    head: Mapping[str, Any],
    body: CompletionRequest,
    state: Any,
) -> AsyncIterator[str]:
    options = body.stream_options or StreamOptions()
    in_every_piece = options.include_usage and options.continuous_usage_stats

    def lines(piece: Completed) -> list[str]:
        usage = piece.usage if in_every_piece else None
        return [
            _event(CompletionResponse.model_construct(**head, choices=[choice], usage=usage))
            for choice in piece.choices
        ]

    last = first
    try:
        for line in lines(first):
            yield line
        async for piece in pieces:
            last = piece
            for line in lines(piece):
                yield line
        if options.include_usage:
            yield _event(CompletionResponse.model_construct(**head, choices=[], usage=last.usage))
    except ApiError as error:
        # The gate reports any other failure, and a timeout, to the client in the same way.
        yield error_event("/v1/completions", error)
    finally:
        state.tokens = _tokens(last)
    yield LAST_EVENT


def _event(response: CompletionResponse) -> str:
    return f"data: {response.model_dump_json()}\n\n"


def _tokens(completed: Completed) -> dict[str, int]:
    return {"prompt": completed.usage.prompt_tokens, "completion": completed.usage.completion_tokens}
