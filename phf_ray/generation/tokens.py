"""The tokenizer as generation needs it: ids of control tokens, and text from a growing list of tokens."""

from collections.abc import Sequence
from typing import Any

from phf_ray.checkpoint import Control
from phf_ray.errors import DataError
from phf_ray.generation.requests import RequestError


class TokenStrings:
    """The tokenizer, with the ids that generation needs to know.

    `starts_with_eos`: a text prompt is encoded as end-of-text + text, as the checkpoints of this project are trained;
    otherwise as the tokenizer does by itself.
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

    def encode(self, text: str) -> tuple[list[int], list[int]]:
        """Token ids, and for each the number of characters of `text` before it. At least one token."""
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
        """One token by itself, special ones by name."""
        if token_id not in self._texts:
            self._texts[token_id] = self.tokenizer.decode([token_id], clean_up_tokenization_spaces=False)
        return self._texts[token_id]


def context_of(config: Any, *, limit: int | None = None) -> int:
    """Positions that a request may use, by the model's (text) configuration."""
    known = [limit, getattr(config, "max_position_embeddings", None)]
    # With no more positions than the window, sliding attention is full attention.
    known.append(getattr(config, "sliding_window", None))
    return min((value for value in known if value is not None), default=2048)


class TextStream:
    """Text of a growing list of tokens: each `push` returns the characters that are now certain.

    A character may span tokens and a tokenizer may drop a leading space, so a token is decoded together with those
    before it; `context` is what precedes the text without being part of it.
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
        """Take a token; number of characters of the text before it."""
        before = self._num_chars
        new = self.push(token_id)
        self._num_chars += len(new)
        own = self._strings.text_of(token_id)
        # Otherwise it completes a character that began before, or shows nothing.
        return self._num_chars - len(own) if "\ufffd" not in own and new.endswith(own) else before

    def flush(self) -> str:
        """What is left when no token follows: bytes that are no whole character come as U+FFFD."""
        return self._strings.decode(self._ids[self._begin :])[len(self._before) :]
