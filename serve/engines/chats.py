"""Turns a chat into the completion of its tokens, in the process that has the tokenizer: one way for every engine."""

from collections.abc import Mapping
from typing import Any

from phf_ray.generation.chat.prompts import ASSISTANT, Message, PromptError
from phf_ray.generation.chat.templates import Ending
from phf_ray.generation.conversations import Conversations
from phf_ray.generation.requests import RequestError
from phf_ray.generation.tokens import TokenStrings
from serve.chat_schemas import ChatCompletionRequest, TokenizeRequest
from serve.errors import ApiError
from serve.schemas import CompletionRequest

_SAME_NAME = frozenset(CompletionRequest.model_fields) & frozenset(ChatCompletionRequest.model_fields) - {"logprobs"}
_HOW_TO_CHOOSE = (
    "start the server with --chat-template, or set chat_template in the Serve file, to alpaca, chatml, coh, hh, plain "
    "or a file"
)


def completion_of(
    chat: ChatCompletionRequest, conversations: Conversations | None, strings: TokenStrings, *, context: int
) -> CompletionRequest:
    """Return the completion of the conversation's tokens. Raises ApiError if the conversation can't be answered."""
    known = _with_template(conversations, chat.model)
    ids = conversation_ids(chat, known, context=context)
    control = chat.control
    if known.reads_control and not strings.control_ids:
        # The template had it; the model has no token for it.
        control = None
    inserted = bool(strings.control_ids) and control != "none"
    asked = chat.max_completion_tokens or chat.max_tokens
    values: Mapping[str, Any] = {name: getattr(chat, name) for name in _SAME_NAME}
    return CompletionRequest.model_construct(
        **{
            **values,
            "prompt": ids,
            "control": control,
            # Without room, the engine says how long the conversation is.
            "max_tokens": asked or max(1, chat.min_tokens, context - len(ids) - inserted),
            "logprobs": (chat.top_logprobs or 0) if chat.logprobs else None,
        }
    )


def conversation_ids(
    asked: ChatCompletionRequest | TokenizeRequest, conversations: Conversations | None, *, context: int
) -> list[int]:
    """Return the tokens of a conversation. Raises ApiError if the template can't hold it."""
    known = _with_template(conversations, asked.model)
    messages = [Message("system" if one.role == "developer" else one.role, one.text) for one in asked.messages or ()]
    begins = isinstance(asked, TokenizeRequest) and bool(asked.add_special_tokens)
    try:
        return known.ids(messages, context=context, ending=_ending(asked), control=asked.control, begins=begins)
    except PromptError as error:
        raise ApiError(400, f"the messages can't be put into words: {error}", "messages") from None
    except RequestError as error:
        raise ApiError(400, str(error), "messages") from None


def _with_template(conversations: Conversations | None, model: str | None) -> Conversations:
    if conversations is None:
        of = "the model" if model is None else f"model {model!r}"
        raise ApiError(400, f"{of} has no chat template; {_HOW_TO_CHOOSE}, or ask /v1/completions", "model")
    return conversations


def _ending(asked: ChatCompletionRequest | TokenizeRequest) -> Ending:
    ends_with_answer = asked.messages is not None and asked.messages[-1].role == ASSISTANT
    if asked.continue_final_message:
        if asked.add_generation_prompt:
            raise ApiError(
                400,
                "continue_final_message and add_generation_prompt exclude each other; leave one out",
                "continue_final_message",
            )
        if not ends_with_answer:
            raise ApiError(
                400,
                "continue_final_message goes on with the assistant's last message, but the last message is the "
                f"{asked.messages[-1].role if asked.messages else 'user'}'s; leave it out",
                "continue_final_message",
            )
        return "continued"
    if asked.add_generation_prompt is False:
        return "closed"
    if ends_with_answer:
        raise ApiError(
            400,
            "the conversation ends with the assistant; set continue_final_message to have that message continued, or "
            "end with a message of the user",
            "messages",
        )
    return "opened"
