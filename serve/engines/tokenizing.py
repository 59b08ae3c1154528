"""Answers that need no weights: a model's description and the tokenizer endpoints. All engines share them."""

import asyncio
import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, TypeVar

from phf_ray.checkpoint import CheckpointInfo, Control
from phf_ray.generation.tokens import TokenStrings
from serve.backends import ModelDescription
from serve.errors import ApiError

MAX_INLINE_CHARACTERS = 16_384
"""Longest text that is tokenized on the event loop: a few milliseconds in which no other request is served."""

Result = TypeVar("Result")


async def off_the_loop(compute: Callable[[], Result], *, num_characters: int) -> Result:
    """Run `compute`, in a thread if its text is long. A short text runs inline, because a thread costs time too."""
    return compute() if num_characters <= MAX_INLINE_CHARACTERS else await asyncio.to_thread(compute)


class Tokenizing:
    def __init__(
        self, strings: TokenStrings, info: CheckpointInfo | None, *, context: int, fingerprint: str | None = None
    ):
        self.strings, self.info, self.context, self.fingerprint = strings, info, context, fingerprint

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
        )

    def _checkpoint(self) -> CheckpointInfo | None:
        """Return what the model was trained for, not what this engine does: an upstream server bans but can't retag."""
        control = self.strings.control
        if self.info is None and control is None:
            return None
        return (self.info or CheckpointInfo()).model_copy(update={"control": control})

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


def chat_templates(tokenizer: Any) -> dict[str, Any]:
    """Return `chat_template`, the tokenizer's template or the default of several; None if there is none.

    Clients compile it as it is, so it is one text. If a tokenizer has several, `chat_templates` holds all of them by
    name.
    """
    found = tokenizer.chat_template
    if isinstance(found, dict):
        return {"chat_template": found.get("default"), "chat_templates": found}
    return {"chat_template": found}
