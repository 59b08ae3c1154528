"""The tokenizer for generation: ids of control tokens, and text from a growing list of tokens."""

from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Any

from phf_ray.checkpoint import Control
from phf_ray.errors import DataError
from phf_ray.generation.requests import RequestError


class TokenStrings:
    """A tokenizer and the ids that generation needs.

    `starts_with_eos`: encode a text prompt as end-of-text + text, like the training data of this project's checkpoints;
    otherwise add only what the tokenizer adds itself. `end_ids`: tokens that end a text besides the tokenizer's
    end-of-text; see `end_ids_of`.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        num_logits: int,
        control: Control | None,
        starts_with_eos: bool,
        end_ids: Collection[int] = (),
    ):
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
        ends = {*end_ids} if self.eos_id is None else {*end_ids, self.eos_id}
        self.end_ids = frozenset(ends & self.valid_ids) - frozenset(self.control_ids.values())
        """Tokens that end a text: all that the model's files name."""
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
        ids, offsets = list(encoded["input_ids"]), _begins(encoded["offset_mapping"])
        if self.starts_with_eos or not ids:
            first = self.eos_id if self.eos_id is not None else self.tokenizer.bos_token_id
            if first is None:
                raise RequestError("the prompt is empty and the model has no end-of-text token to start from", "prompt")
            ids, offsets = [first, *ids], [0, *offsets]
        return ids, offsets

    def places(self, ids: Sequence[int]) -> list[int]:
        """Return the number of characters of `decode(ids)` before each token, counted as in a generated text."""
        stream = TextStream(self)
        return [stream.place(id_) for id_ in ids]

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def text_of(self, token_id: int) -> str:
        """Return the text that a token adds to other text, with its blank; special tokens appear by name."""
        if token_id not in self._texts:
            self._texts[token_id] = self._text_after_another(token_id)
        return self._texts[token_id]

    def _text_after_another(self, token_id: int) -> str:
        alone = self._with_specials([token_id])
        before, text = self._other
        if token_id in self._special_ids or not text:
            return alone
        both = self._with_specials([*before, token_id])
        return both.removeprefix(text) if both.startswith(text) else alone

    @cached_property
    def _other(self) -> tuple[list[int], str]:
        """A token and its text. SentencePiece drops the blank of a token that nothing precedes."""
        ids = self.tokenizer("a", add_special_tokens=False)["input_ids"][-1:]
        return ids, self._with_specials(ids)

    @cached_property
    def byte_ids(self) -> frozenset[int]:
        """Tokens that stand for one byte each. They are text only if their whole run is UTF-8."""
        vocabulary = self.tokenizer.get_vocab()
        names = {f"<0x{byte:02X}>" for byte in range(256)} & vocabulary.keys()
        return frozenset(vocabulary[name] for name in names if self.text_of(vocabulary[name]) != name)

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        return frozenset(self.tokenizer.all_special_ids)

    def _with_specials(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def _begins(spans: Sequence[tuple[int, int]]) -> list[int]:
    """Return where tokens begin: each directly after the one before, or inside it if they share a character.

    Some tokenizers leave the blank before a word out of its span, though it belongs to the token.
    """
    begins: list[int] = []
    end = 0
    for begin, own_end in spans:
        begins.append(min(begin, end) if own_end > begin else end)
        end = max(end, own_end)
    return begins


def end_ids_of(*configs: Any) -> set[int]:
    """Return the end-of-text ids that a model's configurations name; each may name none, one or a list.

    Chat models end a turn with a token that is not their tokenizer's end-of-text, and name it only there.
    """
    ids: set[int] = set()
    for config in configs:
        named = getattr(config, "eos_token_id", None)
        ids.update([] if named is None else [named] if isinstance(named, int) else named)
    return ids


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
        self._last_place = 0
        self.held = ""
        """Characters after the final ones, as they are if no token follows."""

    def push(self, *token_ids: int) -> str:
        """Add tokens; return the new final characters. They do not depend on how the tokens are grouped into calls."""
        if not token_ids:
            return ""
        self._ids.extend(token_ids)
        window = self._strings.decode(self._ids[self._begin :])
        new = window[len(self._before) :]
        # One byte that is wrong makes all bytes of its run wrong, those before it too.
        may_change = new.endswith("\ufffd") or self._ids[-1] in self._strings.byte_ids
        if may_change or not new:
            self.held = new
            return ""
        self._begin, self._read = self._read, len(self._ids)
        self._before = self._strings.decode(self._ids[self._begin :])
        self.held = ""
        return new

    def place(self, token_id: int) -> int:
        """Add a token; return the number of characters of the text before it."""
        # Without the beginning of a character that this token may complete.
        begin = self._num_chars + len(self.held.rstrip("\ufffd"))
        new = self.push(token_id)
        self._num_chars += len(new)
        own = self._strings.text_of(token_id)
        if "\ufffd" not in own and new.endswith(own):
            begin = self._num_chars - len(own)
        self._last_place = max(self._last_place, begin)
        return self._last_place

    def flush(self) -> str:
        """Return the rest of the text if no token follows; bytes of an incomplete character become U+FFFD."""
        rest, self.held = self.held, ""
        return rest
