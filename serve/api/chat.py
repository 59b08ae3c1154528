"""`/v1/chat/completions`, streamed or not."""

import json
import secrets
import time
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response

from serve.api.lookup import asked_model, of_url
from serve.api.streams import STREAM, OpenStreams, tokens_of
from serve.backends import Backend, Completed
from serve.chat_schemas import ChatCompletionRequest, ChatCompletionResponse
from serve.errors import ApiError
from serve.schemas import Choice, Logprobs, Usage

PATH = "/v1/chat/completions"


def add_chat(app: FastAPI, backend: Backend, *, streams: OpenStreams) -> None:
    @app.post("/models/{model_id:path}/v1/chat/completions", response_model=ChatCompletionResponse, responses=STREAM)
    async def chat_of_model(model_id: str, body: ChatCompletionRequest, request: Request) -> Response:
        """Like `/v1/chat/completions`, for a client that knows one model per server."""
        return await chat(of_url(backend, model_id, body), request)

    @app.post(PATH, response_model=ChatCompletionResponse, responses=STREAM)
    async def chat(body: ChatCompletionRequest, request: Request) -> Response:
        """OpenAI's chats, with vLLM's fields as `/v1/completions` has them, `continue_final_message` and
        `add_generation_prompt`. `control`, or a suffix of the model id (`NAME:bad`), chooses the control token of a
        conditionally trained model, and the marker of a template that has some."""
        refuse_unsupported(body)
        name, model, asked = asked_model(backend, body)
        request.state.model = name
        head: dict[str, Any] = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time())}
        try:
            if not body.stream:
                completed = await model.complete(asked)
                request.state.tokens = tokens_of(completed)
                return Response(_answer(head, completed, body), media_type="application/json")
            writer = _Chunks({**head, "object": "chat.completion.chunk", "model": body.model}, body)
            return await streams.answer(model, asked, writer=writer, state=request.state)
        except ApiError as error:
            raise _in_words_of_chats(error, body) from None


def refuse_unsupported(body: ChatCompletionRequest) -> None:
    """Raise ApiError for what this server can't do, and for fields that contradict each other."""
    for field, harmless in (
        ("tools", ([],)),
        ("functions", ([],)),
        ("tool_choice", ("none", "auto")),
        ("function_call", ("none", "auto")),
        ("response_format", ({"type": "text"},)),
    ):
        value = getattr(body, field)
        if value is not None and value not in harmless:
            raise ApiError(400, f"{field} is not supported; leave it out", field)
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs; set logprobs to true, or leave top_logprobs out", "logprobs")
    limits = {body.max_tokens, body.max_completion_tokens} - {None}
    if len(limits) > 1:
        raise ApiError(
            400,
            f"max_tokens={body.max_tokens} and max_completion_tokens={body.max_completion_tokens} mean the same and "
            "contradict each other; give one of them",
            "max_completion_tokens",
        )


def _in_words_of_chats(error: ApiError, body: ChatCompletionRequest) -> ApiError:
    """Return the error of the completion that a chat becomes, with the names that its fields have in chats."""
    limit = "max_completion_tokens" if body.max_completion_tokens is not None else "max_tokens"
    names = {"prompt": "messages", "logprobs": "top_logprobs" if body.logprobs else "logprobs", "max_tokens": limit}
    if error.param == "max_tokens" and body.max_tokens is None and body.max_completion_tokens is None:
        # The limit was ours: what the context has room for.
        names["max_tokens"] = "messages"
    return ApiError(error.status, error.message, names.get(error.param or "", error.param), error.code)


def _answer(head: Mapping[str, Any], completed: Completed, body: ChatCompletionRequest) -> str:
    choices = [
        {
            "index": choice.index,
            "message": {"role": "assistant", "content": choice.text},
            "logprobs": _logprobs(choice, body),
            "finish_reason": choice.finish_reason,
            "token_ids": choice.token_ids,
        }
        for choice in completed.choices
    ]
    usage = completed.usage.model_dump()
    return _json({**head, "object": "chat.completion", "model": body.model, "choices": choices, "usage": usage})


class _Chunks:
    """Writes the pieces of a stream. The first of each choice says who speaks."""

    path = PATH

    def __init__(self, head: Mapping[str, Any], body: ChatCompletionRequest):
        self._head, self._body = head, body
        self._begun: set[int] = set()

    def events(self, piece: Completed, usage: Usage | None) -> list[str]:
        return [event for choice in piece.choices for event in self._of_choice(choice, usage)]

    def _of_choice(self, choice: Choice, usage: Usage | None) -> list[str]:
        opening: list[str] = []
        if choice.index not in self._begun:
            self._begun.add(choice.index)
            first = {"index": choice.index, "delta": {"role": "assistant", "content": ""}}
            opening = [self._event([{**first, "logprobs": None, "finish_reason": None}], usage)]
        one = {
            "index": choice.index,
            "delta": {"content": choice.text} if choice.text else {},
            "logprobs": _logprobs(choice, self._body),
            "finish_reason": choice.finish_reason,
        }
        return [*opening, self._event([one], usage)]

    def last_event(self, usage: Usage) -> str:
        return self._event([], usage)

    def _event(self, choices: list[dict[str, Any]], usage: Usage | None) -> str:
        return _json({**self._head, "choices": choices, "usage": None if usage is None else usage.model_dump()})


def _logprobs(choice: Choice, body: ChatCompletionRequest) -> dict[str, Any] | None:
    return None if choice.logprobs is None else {"content": _described(choice.logprobs, body.top_logprobs or 0)}


def _described(found: Logprobs, num_alternatives: int) -> list[dict[str, Any]]:
    return [
        {
            **_alternative(token, logprob),
            # The list of a completion also has the token itself, even if it is none of the most probable.
            "top_logprobs": [_alternative(*one) for one in _best(top or {})[:num_alternatives]],
        }
        for token, logprob, top in zip(found.tokens, found.token_logprobs, found.top_logprobs, strict=True)
    ]


def _best(found: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(found.items(), key=lambda one: -one[1])


def _alternative(token: str, logprob: float | None) -> dict[str, Any]:
    is_part = "\ufffd" in token or token.startswith("token_id:")
    return {"token": token, "logprob": logprob, "bytes": None if is_part else list(token.encode())}


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
