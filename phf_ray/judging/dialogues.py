"""Reads a dialogue as the instruction that its last answer follows."""

from collections.abc import Mapping, Sequence
from typing import Any

from phf_ray.errors import DataError
from phf_ray.generation.chat.prompts import ChatPrompt, Message, prompt_text


def text_of_messages(messages: Sequence[Any], place: str) -> str:
    """Return messages as one text. Raises DataError, with `place`, for one without a role and a content."""
    for number, one in enumerate(messages, start=1):
        if not isinstance(one, Mapping) or not all(isinstance(one.get(name), str) for name in ("role", "content")):
            raise DataError(f"{place}: message {number} is {one!r:.80}; write a role and a content, both texts")
    return prompt_text(ChatPrompt(tuple(Message(one["role"], one["content"]) for one in messages)))
