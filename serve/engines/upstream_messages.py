"""Parses and checks answers of another OpenAI-compatible server, and translates its errors."""

import json
import logging
from collections.abc import AsyncIterator
from typing import Literal, TypeVar, cast

import httpx
from pydantic import BaseModel, ConfigDict, ValidationError

from serve.errors import ApiError
from serve.schemas import Logprobs
from serve.settings import Upstream

log = logging.getLogger("ray.serve.phf")


MAX_MESSAGE = 500


class LenientAnswer(BaseModel):
    model_config = ConfigDict(extra="ignore")


Answer = TypeVar("Answer", bound=LenientAnswer)


class UpstreamLogprobs(LenientAnswer):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None = None
    text_offset: list[int]

    def since(self, begin: int) -> "UpstreamLogprobs":
        return UpstreamLogprobs(
            tokens=self.tokens[begin:],
            token_logprobs=self.token_logprobs[begin:],
            top_logprobs=None if self.top_logprobs is None else self.top_logprobs[begin:],
            text_offset=self.text_offset[begin:],
        )


class UpstreamChoice(LenientAnswer):
    index: int
    text: str
    finish_reason: str | None = None
    logprobs: UpstreamLogprobs | None = None
    token_ids: list[int] | None = None


class UpstreamUsage(LenientAnswer):
    completion_tokens: int


class UpstreamAnswer(LenientAnswer):
    choices: list[UpstreamChoice]
    usage: UpstreamUsage | None = None


def generated_logprobs(found: UpstreamLogprobs, *, first_offset: int, num_before: int) -> Logprobs:
    """Return the log-probabilities of generated tokens; offsets count from the start of the text that we return."""
    return Logprobs.model_construct(
        tokens=found.tokens,
        token_logprobs=found.token_logprobs,
        top_logprobs=found.top_logprobs or [None] * len(found.tokens),
        text_offset=[offset - first_offset + num_before for offset in found.text_offset],
    )


def known_finish_reason(reason: str | None) -> Literal["stop", "length"] | None:
    if reason not in ("stop", "length", None):
        raise unusable(f"the unknown finish_reason {reason!r}")
    return cast('Literal["stop", "length"] | None', reason)


def unusable(what: str) -> ApiError:
    return ApiError(502, f"the server behind this model answered with {what}")


def parsed_answer(content: bytes, form: type[Answer]) -> Answer:
    try:
        return form.model_validate_json(content)
    except ValidationError:
        raise unusable("something other than a completion") from None


def refuse_status(status: int, content: bytes) -> None:
    """Raise ApiError for any status but 200."""
    if status == 200:
        return
    message = _message_of(content)
    if status in (400, 413, 422):
        raise ApiError(413 if status == 413 else 400, f"the server behind this model refused the request: {message}")
    if status in (401, 403, 404):
        # The operator must fix this, not the client. The message is withheld, because it may quote a key.
        log.error("the upstream server answered %d: check the model's upstream.key_env and upstream.model", status)
        raise unusable(f"status {status}; this server's configuration may have the wrong key or model id for it")
    if status == 429:
        raise ApiError(429, "the queue of the server behind this model is full; try again later")
    log.warning("the upstream server answered %d: %s", status, message)
    raise ApiError(503, f"the server behind this model answered with status {status}; try again")


def _message_of(content: bytes) -> str:
    """Return the message of an error, in OpenAI's shape or in that of older vLLM."""
    try:
        body = json.loads(content)
    except ValueError:
        return "no reason given"
    if not isinstance(body, dict):
        return "no reason given"
    error = body.get("error", body)
    message = error.get("message") if isinstance(error, dict) else error
    return str(message or "no reason given")[:MAX_MESSAGE]


async def events_of(response: httpx.Response, form: type[Answer]) -> AsyncIterator[Answer]:
    """Yield server-sent events up to `[DONE]`."""
    async for line in _lines_of(response):
        if not line.startswith(b"data:"):
            continue
        data = line.removeprefix(b"data:").strip()
        if data == b"[DONE]":
            return
        if data.startswith(b'{"error"'):
            raise ApiError(503, f"the server behind this model gave up: {_message_of(data)}")
        yield parsed_answer(data, form)


async def _lines_of(response: httpx.Response) -> AsyncIterator[bytes]:
    # httpx's own line splitting also splits at U+2028 and form feeds, which are unescaped in a model's text.
    rest = b""
    async for chunk in response.aiter_bytes():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line
    yield rest


class TranslatedErrors:
    """Translates failures on the way to the upstream server to ApiError."""

    def __init__(self, upstream: Upstream):
        self._upstream = upstream

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            raise ApiError(503, "the server behind this model can't be reached; try again later") from None
        if isinstance(error, httpx.TimeoutException):
            raise ApiError(
                504, f"the server behind this model did not answer within {self._upstream.timeout_s:g} s"
            ) from None
        if isinstance(error, httpx.HTTPError):
            raise ApiError(503, "the connection to the server behind this model broke off; try again") from None
