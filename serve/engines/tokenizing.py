"""Answers that need no weights: a model's description, the tokenizer endpoints, and the tokens of conversations.

All engines share them.
"""

import asyncio
import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, TypeVar

from phf_ray.checkpoint import CheckpointInfo, Control
from phf_ray.generation.chat.prompts import USER, Message, PromptError
from phf_ray.generation.conversations import Conversations
from phf_ray.generation.requests import RequestError
from phf_ray.generation.tokens import TokenStrings
from phf_ray.storage.hashing import digest
from serve.backends import Asked, ModelDescription
from serve.chat_schemas import ChatCompletionRequest, TokenizeRequest
from serve.engines.chats import completion_of, conversation_ids
from serve.errors import ApiError
from serve.schemas import ChatCard, CompletionRequest

MAX_INLINE_CHARACTERS = 16_384
"""Longest text that is tokenized on the event loop: a few milliseconds in which no other request is served."""

MAX_CONVERSATION = 2**31
"""Tokens of a conversation that are only counted: any number that a body can hold."""

Result = TypeVar("Result")


async def off_the_loop(compute: Callable[[], Result], *, num_characters: int) -> Result:
    """Run `compute`, in a thread if its text is long. A short text runs inline, because a thread costs time too."""
    return compute() if num_characters <= MAX_INLINE_CHARACTERS else await asyncio.to_thread(compute)


class Tokenizing:
    def __init__(
        self,
        strings: TokenStrings,
        info: CheckpointInfo | None,
        *,
        context: int,
        fingerprint: str | None = None,
        conversations: Conversations | None = None,
    ):
        """`conversations`: None if the model has no chat template."""
        self.strings, self.info, self.context, self.fingerprint = strings, info, context, fingerprint
        self._conversations = conversations

    @property
    def control(self) -> Control | None:
        """Control tokens, and the policy for sampled ones."""
        return self.strings.control

    @cached_property
    def _tokenizer_hash(self) -> str:
        vocabulary = json.dumps(self.strings.tokenizer.get_vocab(), sort_keys=True)
        return hashlib.blake2b(vocabulary.encode(), digest_size=16).hexdigest()

    async def describe(self) -> ModelDescription:
        info = self.info
        return ModelDescription(
            max_model_len=self.context,
            control=self.control.model_dump() if self.control is not None else None,
            tokenizer_hash=self._tokenizer_hash,
            task=info.task if info is not None else None,
            objective=info.objective.get("name") if info is not None else None,
            step=info.step if info is not None else None,
            fingerprint=self.fingerprint,
            checkpoint=self._checkpoint(),
            chat=self._chat_card,
        )

    @cached_property
    def _chat_card(self) -> ChatCard | None:
        known = self._conversations
        if known is None:
            return None
        return ChatCard(template=known.name, reads_control=known.reads_control, fingerprint=self._sample_of(known))

    def _sample_of(self, known: Conversations) -> str:
        """Hash what the template makes of a question, with each control."""
        try:
            ids = [
                known.ids([Message(USER, "What is it?")], context=self.context, control=control)
                for control in ("good", "bad", "none")
            ]
        except (PromptError, RequestError) as error:
            return digest(str(error))
        return digest(ids)

    def _checkpoint(self) -> CheckpointInfo | None:
        """Return what the model was trained for, not what this engine does: an upstream server bans but can't retag."""
        control = self.strings.control
        if self.info is None and control is None:
            return None
        return (self.info or CheckpointInfo()).model_copy(update={"control": control})

    async def as_completion(self, request: Asked) -> CompletionRequest:
        """Return a chat as the completion of its tokens, and a completion as it is. Raises ApiError."""
        if isinstance(request, CompletionRequest):
            return request
        return await off_the_loop(
            lambda: completion_of(request, self._conversations, self.strings, context=self.context),
            num_characters=_num_characters(request),
        )

    async def tokenize_messages(self, asked: TokenizeRequest) -> tuple[list[int], list[str]]:
        """Return the ids of a conversation, and the text of each."""

        def tokens() -> tuple[list[int], list[str]]:
            ids = conversation_ids(asked, self._conversations, context=MAX_CONVERSATION)
            return ids, [self.strings.text_of(id_) for id_ in ids]

        return await off_the_loop(tokens, num_characters=_num_characters(asked))

    async def tokenize(self, text: str, *, add_special_tokens: bool) -> tuple[list[int], list[str]]:
        def tokens() -> tuple[list[int], list[str]]:
            if add_special_tokens:
                ids, _ = self.strings.encode(text)
            else:
                ids = self.strings.tokenizer(text, add_special_tokens=False)["input_ids"]
            return list(ids), [self.strings.text_of(id_) for id_ in ids]

        return await off_the_loop(tokens, num_characters=len(text))

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        unknown = [id_ for id_ in token_ids if id_ not in self.strings.valid_ids]
        if unknown:
            raise ApiError(400, f"the model has no token {unknown[0]}", "tokens")
        return self.strings.tokenizer.decode(token_ids, clean_up_tokenization_spaces=False)

    async def tokenizer_info(self) -> dict[str, Any]:
        tokenizer = self.strings.tokenizer
        return {
            "tokenizer_class": type(tokenizer).__name__,
            "eos_token": tokenizer.eos_token,
            "bos_token": tokenizer.bos_token,
            "pad_token": tokenizer.pad_token,
            "unk_token": tokenizer.unk_token,
            "additional_special_tokens": sorted(set(tokenizer.all_special_tokens)),
            "vocab_size": len(tokenizer),
            "model_max_length": self.context,
            **chat_templates(tokenizer),
        }


def _num_characters(asked: ChatCompletionRequest | TokenizeRequest) -> int:
    # Empty messages take time, too.
    return sum(len(message.text) + 32 for message in asked.messages or ())


def chat_templates(tokenizer: Any) -> dict[str, Any]:
    """Return `chat_template`, the tokenizer's template or the default of several; None if there is none.

    Clients compile it as it is, so it is one text. If a tokenizer has several, `chat_templates` holds all of them by
    name.
    """
    found = tokenizer.chat_template
    if isinstance(found, dict):
        return {"chat_template": found.get("default"), "chat_templates": found}
    return {"chat_template": found}
