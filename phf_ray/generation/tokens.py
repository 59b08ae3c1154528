"""The tokenizer for generation: ids of control tokens, and text from a growing list of tokens."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from phf_ray.checkpoint import Control
from phf_ray.errors import DataError
from phf_ray.generation.requests import RequestError


class TokenStrings:
    """A tokenizer and the ids that generation needs.

    `starts_with_eos`: encode a text prompt as end-of-text + text, like the training data of this project's checkpoints;
    otherwise add only what the tokenizer adds itself.
    """

    def __init__(self, tokenizer: Any, *, num_logits: int, control: Control | None, starts_with_eos: bool):
        self.tokenizer = tokenizer
        self.eos_id: int | None = tokenizer.eos_token_id
        self.starts_with_eos = starts_with_eos and self.eos_id is not None
        # The embedding matrix may have more rows than the tokenizer has tokens (padding of the vocabulary).
        self.valid_ids = frozenset(id_ for id_ in tokenizer.get_vocab().values() if 0 <= id_ < num_logits)
        self.control = control
        self.control_ids: dict[str, int] = {}
        if control is not None:
            vocabulary = tokenizer.get_vocab()
            for name, token in (("good", control.good), ("bad", control.bad)):
                if vocabulary.get(token) not in self.valid_ids:
                    raise DataError(f"the control token {token!r} is not in the tokenizer; check phf.json or --control")
                self.control_ids[name] = vocabulary[token]
        self._texts: dict[int, str] = {}

    @cached_property
    def longest_token(self) -> int:
        """Number of characters in the longest token of the vocabulary; no text of `n` tokens is more than `n` times as
        long.

        Byte-level vocabularies have one character per byte, so this is never too small for them. Tokenizers that
        shorten a text before they cut it, such as those that collapse blanks, are no exception in practice.
        """
        return max(map(len, self.tokenizer.get_vocab()))

    def encode(self, text: str) -> tuple[list[int], list[int]]:
        """Return at least one token id, and for each the number of characters of `text` before it."""
        encoded = self.tokenizer(text, return_offsets_mapping=True, add_special_tokens=not self.starts_with_eos)
        ids, offsets = list(encoded["input_ids"]), [begin for begin, _ in encoded["offset_mapping"]]
        if self.starts_with_eos or not ids:
            first = self.eos_id if self.eos_id is not None else self.tokenizer.bos_token_id
            if first is None:
                raise RequestError("the prompt is empty and the model has no end-of-text token to start from", "prompt")
            ids, offsets = [first, *ids], [0, *offsets]
        return ids, offsets

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def text_of(self, token_id: int) -> str:
        """Return the text of one token alone; special tokens appear by name."""
        if token_id not in self._texts:
            self._texts[token_id] = self.tokenizer.decode([token_id], clean_up_tokenization_spaces=False)
        return self._texts[token_id]


def context_of(config: Any, *, limit: int | None = None) -> int:
    """Return the number of positions that a request may use, from the model's (text) configuration."""
    known = [limit, getattr(config, "max_position_embeddings", None)]
    # Within the window, sliding attention is full attention.
    known.append(getattr(config, "sliding_window", None))
    return min((value for value in known if value is not None), default=2048)


class TextStream:
    """Text of a growing list of tokens: each `push` returns the characters that have become final.

    A character can span tokens, and a tokenizer can drop a leading space, so each token is decoded together with the
    tokens before it. `context`: tokens that precede the text but are not part of it.
    """

    def __init__(self, strings: TokenStrings, context: Sequence[int] = ()):
        self._strings = strings
        self._ids = list(context)
        self._begin, self._read = 0, len(self._ids)
        self._before = strings.decode(self._ids)
        self._num_chars = 0

    def push(self, *token_ids: int) -> str:
        self._ids.extend(token_ids)
        window = self._strings.decode(self._ids[self._begin :])
        if window.endswith("\ufffd") or len(window) <= len(self._before):
            return ""
        new = window[len(self._before) :]
        self._begin, self._read = self._read, len(self._ids)
        self._before = self._strings.decode(self._ids[self._begin :])
        return new

    def place(self, token_id: int) -> int:
        """Add a token; return the number of characters of the text before it."""
        before = self._num_chars
        new = self.push(token_id)
        self._num_chars += len(new)
        own = self._strings.text_of(token_id)
        # Any other token completes a character that began earlier, or adds no text.
        return self._num_chars - len(own) if "\ufffd" not in own and new.endswith(own) else before

    def flush(self) -> str:
        """Return the rest of the text if no token follows; bytes of an incomplete character become U+FFFD."""
        return self._strings.decode(self._ids[self._begin :])[len(self._before) :]
