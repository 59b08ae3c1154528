"""`/v1/completions`, streamed or not."""

import secrets
import time
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response

from serve.api.lookup import asked_model, of_url
from serve.api.streams import STREAM, OpenStreams, tokens_of
from serve.backends import Backend, Completed
from serve.schemas import Choice, CompletionRequest, CompletionResponse, Usage

PATH = "/v1/completions"


def add_completions(app: FastAPI, backend: Backend, *, streams: OpenStreams) -> None:
    @app.post("/models/{model_id:path}/v1/completions", response_model=CompletionResponse, responses=STREAM)
    async def completions_of_model(model_id: str, body: CompletionRequest, request: Request) -> Response:
        """Like `/v1/completions`, for a client that knows one model per server: its base is `/models/{model_id}`."""
        return await completions(of_url(backend, model_id, body), request)

    @app.post(PATH, response_model=CompletionResponse, responses=STREAM)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """OpenAI's text completions, with vLLM's `min_tokens`, `top_k`, `stop_token_ids`, `repetition_penalty` and
        `ignore_eos`. `control`, or a suffix of the model id (`NAME:bad`), chooses the control token of a conditionally
        trained model."""
        name, model, asked = asked_model(backend, body)
        request.state.model = name
        head: dict[str, Any] = {"id": f"cmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": body.model}
        if not body.stream:
            completed = await model.complete(asked)
            request.state.tokens = tokens_of(completed)
            answer = CompletionResponse.model_construct(**head, choices=completed.choices, usage=completed.usage)
            return Response(answer.model_dump_json(), media_type="application/json")

        return await streams.answer(model, asked, writer=_Pieces(head), state=request.state)


class _Pieces:
    path = PATH

    def __init__(self, head: Mapping[str, Any]):
        self._head = head

    def events(self, piece: Completed, usage: Usage | None) -> list[str]:
        return [self._event([choice], usage) for choice in piece.choices]

    def last_event(self, usage: Usage) -> str:
        return self._event([], usage)

    def _event(self, choices: list[Choice], usage: Usage | None) -> str:
        return CompletionResponse.model_construct(**self._head, choices=choices, usage=usage).model_dump_json()
