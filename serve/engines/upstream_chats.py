"""Chats that another server puts into words itself: passed on as they are, to its `/chat/completions`.

That is the way of a model whose folder has no chat template. The other server counts the tokens of the conversation.
"""

from collections.abc import Mapping
from typing import Any

from serve.backends import Completed
from serve.chat_schemas import ChatCompletionRequest
from serve.engines.local import usage_of
from serve.engines.upstream_messages import LenientAnswer, known_finish_reason, unusable
from serve.schemas import Choice, Logprobs, Usage
from serve.settings import SamplingDefaults

_NOT_SENT = {"model", "messages", "seed", "control", "control_policy", "stream", "stream_options", "tools", "functions"}
_NOT_SENT |= {"tool_choice", "function_call", "response_format", "user"}


class _Message(LenientAnswer):
    content: str | None = None


class _Alternative(LenientAnswer):
    token: str
    logprob: float


class _Token(_Alternative):
    top_logprobs: list[_Alternative] = []


class _ChatLogprobs(LenientAnswer):
    content: list[_Token] | None = None


class UpstreamChatChoice(LenientAnswer):
    index: int
    message: _Message | None = None
    delta: _Message | None = None
    finish_reason: str | None = None
    logprobs: _ChatLogprobs | None = None
    token_ids: list[int] | None = None


class _ChatUsage(LenientAnswer):
    prompt_tokens: int
    completion_tokens: int


class UpstreamChatAnswer(LenientAnswer):
    choices: list[UpstreamChatChoice]
    usage: _ChatUsage | None = None


def passed_on(chat: ChatCompletionRequest, *, model: str, seed: int, defaults: SamplingDefaults) -> dict[str, Any]:
    """Return the body for the other server. Only fields that the client set are sent: a plain server knows few."""
    given = chat.model_dump(include=chat.model_fields_set - _NOT_SENT)
    messages = [{"role": one.role, "content": one.text} for one in chat.messages]
    sampling: Mapping[str, Any] = {
        "temperature": defaults.temperature,
        "top_p": defaults.top_p,
        **({"top_k": defaults.top_k} if defaults.top_k else {}),
    }
    set_ = {name: value for name, value in given.items() if value is not None}
    return {"model": model, "messages": messages, "seed": seed, **sampling, **set_}


def choice_of(found: UpstreamChatChoice, *, with_ids: bool) -> Choice:
    message = found.message or found.delta or _Message()
    return Choice.model_construct(
        text=message.content or "",
        index=found.index,
        finish_reason=known_finish_reason(found.finish_reason),
        logprobs=None if found.logprobs is None else _logprobs(found.logprobs.content or []),
        token_ids=found.token_ids if with_ids else None,
    )


def completed_of(answer: UpstreamChatAnswer, chat: ChatCompletionRequest) -> Completed:
    """Return a whole answer. Raises ApiError if it is none."""
    choices = sorted(answer.choices, key=lambda choice: choice.index)
    if [choice.index for choice in choices] != list(range(chat.n)):
        raise unusable(f"{len(choices)} choices instead of {chat.n}")
    if any(choice.message is None or choice.message.content is None for choice in choices):
        raise unusable("a choice without a text")
    if any(choice.finish_reason is None for choice in choices):
        raise unusable("a choice without a finish_reason")
    return Completed([choice_of(one, with_ids=chat.return_token_ids) for one in choices], chat_usage(answer))


def chat_usage(answer: UpstreamChatAnswer) -> Usage:
    if answer.usage is None:
        raise unusable("no usage")
    return usage_of(answer.usage.prompt_tokens, answer.usage.completion_tokens)


def _logprobs(tokens: list[_Token]) -> Logprobs:
    return Logprobs.model_construct(
        tokens=[one.token for one in tokens],
        token_logprobs=[one.logprob for one in tokens],
        top_logprobs=[{other.token: other.logprob for other in one.top_logprobs} for one in tokens],
        text_offset=[0] * len(tokens),
    )
