"""Sampling from a causal language model, many requests at once.

Requests join and leave the batch at every step (continuous batching). The policy, and its price:

- Keys and values live in slots, one row per request, each stored from position 0; rows in use are the first ones, so a
  step reads them without a copy. A row costs as many positions as the longest row in use has.
- The random number of a token depends on (seed, choice, position) alone, and tokens are drawn by inverting the
  cumulative distribution in vocabulary order. So a request has one text, whatever else is in the batch, except where
  float noise moves a boundary across the random number.
- Reported log-probabilities are the model's own: of the raw logits, before temperature, bans and biases.
- Control tokens that the engine inserts or replaces are part of what the model sees and of nothing else.

Shapes: B requests in the step, L positions, P positions of the longest new prompt, R distinct new prompts,
V vocabulary.
"""

from __future__ import annotations

import pickle
import secrets
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from phf_ray.checkpoint import CheckpointInfo, Control, read_info
from phf_ray.errors import ConfigError, DataError

ControlChoice = Literal["good", "bad", "none"]
Policy = Literal["ban", "retag"]
FinishReason = Literal["stop", "length"]

MAX_STOP_STRINGS = 4
MAX_LOGPROBS = 5
# The lowest log-probability that is reported: JSON has no minus infinity.
LOWEST_LOGPROB = -9999.0
# As in vLLM. Logits divided by a subnormal temperature overflow, and their softmax is not a number.
GREEDY_BELOW = 1e-5
# Padded positions of one prefill, and logits held at once when log-probabilities of prompts are asked for.
PREFILL_TOKENS = 4096
PREFILL_LOGITS = 2**26
# Prompts up to here share a pass, where padding costs little; a longer one is at most twice the shortest of its pass.
SHORT_PROMPT = 32


class RequestError(ConfigError):
    """A generation request that can't be served as it is; `param` is the field at fault."""

    def __init__(self, message: str, param: str | None = None):
        super().__init__(message, param)
        self.message, self.param = message, param

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One text to generate."""

    prompt: str | tuple[int, ...]
    """Text, or token ids, which are taken as they are."""
    max_tokens: int = 16
    """0 is allowed with `echo`."""
    min_tokens: int = 0
    """End of text and stop strings count only from here on."""
    temperature: float = 1.0
    """0, and anything below 1e-5: the most probable token."""
    top_p: float = 1.0
    top_k: int = 0
    """0: no limit."""
    seed: int = 0
    choice: int = 0
    """Index among the texts of one call; texts of one call differ although they share the seed."""
    stop: tuple[str, ...] = ()
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    ignore_eos: bool = False
    logprobs: int | None = None
    """Number of alternatives to report per token; None: no log-probabilities."""
    echo: bool = False
    """The prompt is part of the text, of the log-probabilities and of the offsets."""
    control: ControlChoice | None = None
    """None: good for a model with control tokens, none for any other and with `echo`."""
    policy: Policy | None = None
    """None: the checkpoint's own."""

    def __post_init__(self) -> None:
        for name, low, high in _LIMITS:
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise RequestError(f"{name} is {value}; it must be between {low:g} and {high:g}", name)
        if self.top_p == 0:
            raise RequestError("top_p is 0, which leaves no token; use temperature 0 for greedy decoding", "top_p")
        if len(self.stop) > MAX_STOP_STRINGS or "" in self.stop:
            raise RequestError(f"stop must be at most {MAX_STOP_STRINGS} strings, none of them empty", "stop")
        if self.max_tokens == 0 and not self.echo:
            raise RequestError(
                "max_tokens is 0, which returns nothing without echo; set echo or max_tokens", "max_tokens"
            )
        if self.min_tokens > self.max_tokens:
            raise RequestError(
                f"min_tokens={self.min_tokens} is above max_tokens={self.max_tokens}; lower it", "min_tokens"
            )
        if any(not -100 <= value <= 100 for value in self.logit_bias.values()):
            raise RequestError("logit_bias has a value outside of -100 .. 100", "logit_bias")
        if self.control not in (None, *get_args(ControlChoice)):
            raise RequestError(f"control is {self.control!r}; use good, bad or none", "control")
        if self.policy not in (None, *get_args(Policy)):
            raise RequestError(f"control_policy is {self.policy!r}; use ban or retag", "control_policy")


_LIMITS: tuple[tuple[str, float, float], ...] = (
    ("max_tokens", 0, 2**20),
    ("min_tokens", 0, 2**20),
    ("temperature", 0, 2),
    ("top_p", 0, 1),
    ("top_k", 0, 2**31 - 1),
    ("seed", -(2**63), 2**64 - 1),
    ("logprobs", 0, MAX_LOGPROBS),
)


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token of the text as the model saw it."""

    token: str
    logprob: float | None
    """None for the first token of a prompt, which nothing predicts."""
    top: dict[str, float] | None
    """The most probable tokens and, as OpenAI and vLLM have it, this token itself."""
    text_offset: int
    """Characters of the returned text before this token."""


@dataclass(frozen=True, slots=True)
class Completion:
    text: str
    finish_reason: FinishReason
    token_ids: tuple[int, ...]
    """Generated tokens, end of text included; no inserted or replaced control token is among them."""
    num_prompt_tokens: int
    logprobs: tuple[TokenLogprob, ...] | None

    @property
    def num_completion_tokens(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    max_batch: int = 64
    """Requests in one step; more wait."""
    cache_gb: float = 2.0
    """Memory for keys and values; requests that do not fit wait, except that one always runs."""
    max_context: int | None = None
    """Positions; None: what the model's configuration says."""


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
        self.special_ids = frozenset(tokenizer.all_special_ids)
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


class KeyValueSlots(Cache):
    """Keys and values of the requests in the batch: row i is request i, stored from position 0 on.

    `aim` says what the next forward pass writes and how far it reads.
    """

    def __init__(self, prefilled: DynamicCache):
        self._layers = [_SlotLayer(layer) for layer in _layers(prefilled)]
        super().__init__(layers=list(self._layers))

    @property
    def bytes_per_position(self) -> int:
        return sum(part.shape[1] * part.shape[3] * part.element_size() for part in self._parts())

    def _parts(self) -> Iterable[Tensor]:
        for layer in self._layers:
            yield layer.keys
            yield layer.values

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and positions that there is memory for."""
        keys = self._layers[0].keys
        return keys.shape[0], keys.shape[2]

    def reserve(self, rows: int, length: int, *, limit: int, budget: float) -> None:
        """Hold the first `rows` rows with `length` positions each, of at most `limit`.

        Grows by doubling. Where that is more than `budget` positions in all, rows that are not needed are given up and
        rows are as long as the budget allows; only one row alone may be longer.
        """
        old_rows, old_length = self.shape
        fits = old_rows * old_length <= budget or rows == 1
        if rows <= old_rows and length <= old_length and fits:
            return
        new_rows = old_rows if rows <= old_rows else max(rows, 2 * old_rows)
        new_length = old_length if length <= old_length else min(max(length, 2 * old_length, 64), limit)
        if new_rows * new_length > budget:
            new_rows = rows
            new_length = new_length if rows == 1 else int(max(length, min(new_length, budget // rows)))
        for layer in self._layers:
            layer.resize(new_rows, new_length)

    def adopt(self, prefilled: DynamicCache, source_rows: Tensor, *, first_row: int) -> None:
        """Copy rows `source_rows` of a finished prefill to consecutive rows from `first_row` on."""
        for mine, theirs in zip(self._layers, _layers(prefilled), strict=True):
            last_row, length = first_row + len(source_rows), theirs.keys.shape[2]
            mine.keys[first_row:last_row, :, :length] = theirs.keys[source_rows]
            mine.values[first_row:last_row, :, :length] = theirs.values[source_rows]

    def move(self, source_row: int, target_row: int, *, length: int) -> None:
        for part in self._parts():
            part[target_row, :, :length] = part[source_row, :, :length]

    def aim(self, positions: list[int], *, device: str) -> None:
        """The next pass adds one position to each of the first rows: row i at positions[i]."""
        shared = positions[0] if len(set(positions)) == 1 else None
        index = (torch.arange(len(positions), device=device), torch.tensor(positions, device=device))
        for layer in self._layers:
            layer.rows, layer.length, layer.shared, layer.index = len(positions), max(positions) + 1, shared, index


def _layers(prefilled: DynamicCache) -> list[Any]:
    """Layers of keys and values (B, heads, L, size); a model with other state fails on use, which the engine checks."""
    return list(prefilled.layers)


class _SlotLayer(DynamicLayer):
    keys: Tensor
    values: Tensor
    rows: int
    length: int
    shared: int | None
    index: tuple[Tensor, Tensor]

    def __init__(self, like: Any):
        super().__init__()
        self.keys, self.values = (
            part.new_zeros(0, part.shape[1], 0, part.shape[3]) for part in (like.keys, like.values)
        )
        self.is_initialized = True

    def resize(self, rows: int, length: int) -> None:
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_zeros(rows, old.shape[1], length, old.shape[3])
            kept = old[:rows, :, :length]
            new[: kept.shape[0], :, : kept.shape[2]] = kept
            setattr(self, name, new)

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if self.shared is not None:
            self.keys[: self.rows, :, self.shared] = key_states[:, :, 0]
            self.values[: self.rows, :, self.shared] = value_states[:, :, 0]
        else:
            rows, positions = self.index
            self.keys[rows, :, positions] = key_states[:, :, 0]
            self.values[rows, :, positions] = value_states[:, :, 0]
        return self.keys[: self.rows, :, : self.length], self.values[: self.rows, :, : self.length]


def sample_tokens(
    logits_BV: Tensor, uniform_B: Tensor, *, temperature_B: Tensor, top_k_B: Tensor, top_p_B: Tensor
) -> Tensor:
    """One token per row: the k most probable, of these the fewest with mass >= p, drawn by `uniform_B` in [0, 1).

    The order is that of transformers: temperature, top-k, top-p. Tokens at minus infinity are never drawn. `uniform_B`
    is float64; a temperature below GREEDY_BELOW takes the most probable token, top_k 0 means no limit. Shape (B,).
    """
    greedy_B = logits_BV.argmax(dim=-1)
    is_drawn_B = temperature_B >= GREEDY_BELOW
    if not bool(is_drawn_B.any()):
        return greedy_B
    # A greedy row must not divide by 0; its draw is not used.
    scaled_BV = logits_BV / torch.where(is_drawn_B, temperature_B, 1.0)[:, None]
    max_k = int(top_k_B.max())
    if max_k > 0:
        width = logits_BV.shape[-1]
        k_B = torch.where(top_k_B > 0, top_k_B, width).clamp(max=width)
        best_BK = scaled_BV.topk(min(max_k, width), dim=-1).values
        lowest_B1 = best_BK.gather(1, k_B.clamp(max=best_BK.shape[1])[:, None] - 1)
        limited_B1 = (top_k_B > 0)[:, None]
        scaled_BV = scaled_BV.masked_fill(limited_B1 & (scaled_BV < lowest_B1), -torch.inf)
    probs_BV = scaled_BV.softmax(dim=-1)
    if bool((top_p_B < 1).any()):
        probs_BV = torch.where(probs_BV >= _nucleus_floor(probs_BV, top_p_B)[:, None], probs_BV, 0.0)
    # float64: the boundaries between tokens must not move with the number of rows summed beside them.
    mass_BV = probs_BV.to(torch.float64).cumsum(dim=-1)
    total_B = mass_BV[:, -1]
    target_B = torch.minimum(uniform_B * total_B, torch.nextafter(total_B, torch.zeros_like(total_B)))
    drawn_B = torch.searchsorted(mass_BV, target_B[:, None], right=True)[:, 0]
    return torch.where(is_drawn_B, drawn_B, greedy_B)


def _nucleus_floor(probs_BV: Tensor, top_p_B: Tensor) -> Tensor:
    """The smallest probability that belongs to the nucleus of each row; 0 where top_p is 1. Equal ones all belong."""
    # Sorting a whole vocabulary costs more than the rest of a step; nearly always the nucleus is among the first few.
    for width in (min(256, probs_BV.shape[-1]), probs_BV.shape[-1]):
        best_BW = probs_BV.topk(width, dim=-1).values
        mass_BW = best_BW.to(torch.float64).cumsum(dim=-1)
        inside_BW = mass_BW - best_BW < top_p_B[:, None]
        if bool((~inside_BW[:, -1] | (top_p_B >= 1)).all()):
            break
    last_B = inside_BW.sum(dim=-1).clamp(min=1) - 1
    return torch.where(top_p_B < 1, best_BW.gather(1, last_B[:, None])[:, 0], 0.0)


class ActiveRequest:
    """A request on its way: what the model has seen, and what the client will see."""

    def __init__(self, request: GenerationRequest, strings: TokenStrings, *, context: int):
        self.request = request
        self.strings = strings
        self.cancelled = False
        self.error: str | None = None
        self.finish_reason: FinishReason | None = None
        self.prompt_ids, self.prompt_offsets, self.prompt_text = self._read_prompt()
        self._refuse_unusable(context)
        has_control = bool(strings.control_ids)
        control = request.control or ("good" if has_control and not request.echo else "none")
        if control != "none" and not has_control:
            raise RequestError("the model has no control tokens; leave `control` out or use none", "control")
        # A sampled control token is replaced by the one that was asked for: always the good one would turn
        # `control: bad` into good after the first segment.
        self._retag_id = strings.control_ids.get(control, strings.control_ids.get("good"))
        policy = request.policy or (strings.control.policy if strings.control is not None else "ban")
        self.retags = policy == "retag"
        self.inserted_at: int | None = None
        self.model_ids = list(self.prompt_ids)
        if control != "none":
            self.inserted_at = 1 if self.model_ids[0] == strings.eos_id else 0
            self.model_ids.insert(self.inserted_at, strings.control_ids[control])
        self._room = context + 1 - len(self.model_ids)
        # Each visible token can be preceded by one control token.
        max_sampled = max(1, min(request.max_tokens * (2 if self.retags else 1), self._room))
        self.num_positions = len(self.model_ids) + max_sampled
        """Of keys and values, that the request may come to need."""
        key = np.array([request.seed % 2**64, request.choice], dtype=np.uint64)
        self._uniforms = np.random.Generator(np.random.Philox(key=key)).random(max_sampled)
        self.num_sampled = 0
        self.cached = 0
        self.visible_ids: list[int] = []
        self.records: list[tuple[int, float, list[tuple[int, float]]]] = []
        self.prompt_records: list[tuple[int, float, list[tuple[int, float]]]] = []
        self._stream = TextStream(strings, self.prompt_ids[-4:])
        self._text = self.prompt_text if request.echo else ""
        self._num_read = 0
        self._searched = 0
        self._num_held = max(map(len, request.stop), default=1) - 1
        self._sent = 0
        self._described: list[TokenLogprob] = []
        self._record_stream = TextStream(strings, self.prompt_ids[-4:])

    def _read_prompt(self) -> tuple[list[int], list[int], str]:
        prompt, strings = self.request.prompt, self.strings
        if isinstance(prompt, str):
            ids, offsets = strings.encode(prompt)
            return ids, offsets, prompt
        ids = list(prompt)
        wrong = [id_ for id_ in ids if id_ not in strings.valid_ids]
        if wrong:
            raise RequestError(f"the prompt holds the token id {wrong[0]}, which the model does not have", "prompt")
        if not self.request.echo:
            return ids, [0] * len(ids), ""
        stream = TextStream(strings)
        return ids, [stream.place(id_) for id_ in ids], strings.decode(ids)

    def _refuse_unusable(self, context: int) -> None:
        request, num_prompt = self.request, len(self.prompt_ids)
        if num_prompt == 0:
            raise RequestError("the prompt is an empty list; give at least one token id, or the text ''", "prompt")
        if num_prompt + request.max_tokens > context:
            raise RequestError(
                f"the model's context is {context} tokens, but the prompt has {num_prompt} and max_tokens is "
                f"{request.max_tokens}; shorten one of them",
                "prompt" if num_prompt >= context else "max_tokens",
            )
        wrong = [id_ for id_ in request.logit_bias if id_ not in self.strings.valid_ids]
        if wrong:
            raise RequestError(f"logit_bias names the token id {wrong[0]}, which the model does not have", "logit_bias")

    @property
    def is_finished(self) -> bool:
        return self.finish_reason is not None or self.error is not None

    @property
    def wants_prompt_logprobs(self) -> bool:
        return self.request.echo and self.request.logprobs is not None

    @property
    def uniform(self) -> float:
        return float(self._uniforms[self.num_sampled])

    def banned_ids(self) -> list[int]:
        """Tokens that must not be sampled next."""
        banned: list[int] = []
        # Two control tokens in a row would mean an empty segment, and a model could emit them for ever.
        if not self.retags or self.model_ids[-1] in self.strings.control_ids.values():
            banned.extend(self.strings.control_ids.values())
        if len(self.visible_ids) < self.request.min_tokens and self.strings.eos_id is not None:
            banned.append(self.strings.eos_id)
        return banned

    def accept(self, token_id: int, record: tuple[int, float, list[tuple[int, float]]] | None) -> None:
        """Take the sampled token; `record` is its (id, log-probability, alternatives) where they are wanted."""
        self.num_sampled += 1
        if token_id in self.strings.control_ids.values():
            assert self._retag_id is not None
            self.model_ids.append(self._retag_id)
        else:
            self.model_ids.append(token_id)
            self.visible_ids.append(token_id)
            if record is not None:
                self.records.append(record)
            self._finish_if_due(token_id)
        if not self.is_finished and self.num_sampled >= self._room:
            self.finish("length")

    def _finish_if_due(self, token_id: int) -> None:
        request = self.request
        if token_id == self.strings.eos_id and not request.ignore_eos:
            self.finish("stop")
            return
        # Decoding costs as much as a layer of a small model: token by token only where the text decides.
        if request.stop and self._read_tokens() and self._stops():
            return
        if len(self.visible_ids) >= request.max_tokens:
            self.finish("length")

    def _read_tokens(self) -> int:
        """Decode the tokens that were not decoded yet; number of characters that they added."""
        new = self._stream.push(*self.visible_ids[self._num_read :])
        self._num_read = len(self.visible_ids)
        self._text += new
        return len(new)

    def _stops(self) -> bool:
        """Cut the text at the first stop string, if one is there."""
        # The prompt is not searched, nor text that was searched before, except where a stop string spans the border.
        begin = max(len(self.prompt_text) if self.request.echo else 0, self._searched - self._num_held)
        self._searched = len(self._text)
        if len(self.visible_ids) < self.request.min_tokens:
            return False
        found = [at for stop in self.request.stop if (at := self._text.find(stop, begin)) >= 0]
        if not found:
            return False
        self._text = self._text[: min(found)]
        self.finish_reason = "stop"
        return True

    def finish(self, reason: FinishReason) -> None:
        if reason == "stop":
            # The end of text itself is no part of the text, whatever the tokenizer calls it.
            self._text += self._stream.push(*self.visible_ids[self._num_read : -1])
            self._num_read = len(self.visible_ids)
        self._read_tokens()
        self._text += self._stream.flush()
        self.finish_reason = reason
        if self.request.stop:
            self._stops()

    def take_text(self) -> str:
        """Characters that are certain and were not taken before; an unfinished stop string is held back."""
        if not self.is_finished:
            self._read_tokens()
        end = len(self._text) if self.is_finished else max(self._sent, len(self._text) - self._num_held)
        new, self._sent = self._text[self._sent : end], end
        return new

    def logprobs(self) -> list[TokenLogprob]:
        """Log-probabilities of all tokens so far, the prompt's first if it is echoed."""
        if self.request.echo and not self._described:
            first = self.strings.text_of(self.prompt_ids[0])
            self._described.append(TokenLogprob(first, None, None, self.prompt_offsets[0]))
            self._described.extend(map(self._describe, self.prompt_records, self.prompt_offsets[1:]))
        num_prompt, num_prompt_chars = (len(self.prompt_ids), len(self.prompt_text)) if self.request.echo else (0, 0)
        for record in self.records[len(self._described) - num_prompt :]:
            offset = num_prompt_chars + self._record_stream.place(record[0])
            self._described.append(self._describe(record, offset))
        return self._described

    def _describe(self, record: tuple[int, float, list[tuple[int, float]]], offset: int) -> TokenLogprob:
        token_id, logprob, best = record
        top: dict[str, float] = {}
        # Several ids may share a text (parts of a character): the most probable one keeps it.
        for id_, value in (*best, (token_id, logprob)):
            text = self.strings.text_of(id_)
            top[text] = max(value, top.get(text, value))
        return TokenLogprob(self.strings.text_of(token_id), logprob, top, offset)

    def completion(self) -> Completion:
        """Raises DataError if the request failed."""
        if self.error is not None:
            raise DataError(self.error)
        assert self.finish_reason is not None
        return Completion(
            text=self._text,
            finish_reason=self.finish_reason,
            token_ids=tuple(self.visible_ids),
            num_prompt_tokens=len(self.prompt_ids),
            logprobs=tuple(self.logprobs()) if self.request.logprobs is not None else None,
        )


class Engine:
    """A model and the batch of requests that it works on. Not thread-safe: `add` and `step` belong to one thread.

    `prepare` and `cancel` may be called from any thread.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        info: CheckpointInfo | None = None,
        control: Control | None = None,
        settings: EngineSettings | None = None,
    ):
        """`control` stands in for that of `info`, for checkpoints that have control tokens but no phf.json.

        Raises ConfigError for an architecture that gives other results in a batch of ragged rows than by itself.
        """
        self.settings = settings or EngineSettings()
        self.model = model.eval()
        self.info = info
        self._config = model.config.get_text_config()
        control = control or (info.control if info is not None else None)
        self.strings = TokenStrings(
            tokenizer,
            num_logits=self._config.vocab_size,
            control=control,
            starts_with_eos=info is not None or control is not None,
        )
        self._waiting: deque[ActiveRequest] = deque()
        self._joining: list[ActiveRequest] = []
        self._active: list[ActiveRequest] = []
        self._slots: KeyValueSlots | None = None
        self._bytes_per_position: int | None = None
        self._parameters: tuple[Tensor, Tensor, Tensor] | None = None
        self._check_architecture()

    @cached_property
    def context(self) -> int:
        """Positions that a request may use."""
        return context_of(self._config, limit=self.settings.max_context)

    @property
    def num_active(self) -> int:
        return len(self._active)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @cached_property
    def _invalid(self) -> Tensor:
        invalid_V = torch.ones(self._config.vocab_size, dtype=torch.bool, device=self.model.device)
        invalid_V[torch.tensor(sorted(self.strings.valid_ids), device=self.model.device)] = False
        return invalid_V

    def prepare(self, request: GenerationRequest) -> ActiveRequest:
        """Raises RequestError for what this model can't serve."""
        return ActiveRequest(request, self.strings, context=self.context)

    def add(self, active: ActiveRequest) -> None:
        self._waiting.append(active)

    def cancel(self, active: ActiveRequest) -> None:
        """The request leaves the batch at the next step."""
        active.cancelled = True

    @torch.inference_mode()
    def step(self) -> list[ActiveRequest]:
        """Of new prompts, in passes by length, if there is room for any, else of the next token of all in the batch.

        Returns the requests that it advanced; those that finished have left the batch.
        """
        self._retire()
        self._joining = joining = self._next_joining()
        if joining:
            groups = _by_length(joining)
            advanced = [active for group in groups for active in group]
            logits_BV = torch.cat([self._prefill(group) for group in groups])
        elif self._active:
            advanced, logits_BV = list(self._active), self._decode()
        else:
            return []
        self._advance(advanced, logits_BV)
        self._retire()
        return advanced

    def fail_all(self, reason: str) -> list[ActiveRequest]:
        """Give up on every request; after an error of the model the slots can't be trusted."""
        # Those that were to join may be neither waiting nor active.
        failed = list(dict.fromkeys([*self._active, *self._joining, *self._waiting]))
        for active in failed:
            active.error = reason
        self._active, self._joining, self._slots, self._parameters = [], [], None, None
        self._waiting.clear()
        return failed

    def _next_joining(self) -> list[ActiveRequest]:
        joining: list[ActiveRequest] = []
        prompts: set[tuple[int, ...]] = set()
        longest = max((active.num_positions for active in self._active), default=0)
        longest_prompt, wants_all = 0, False
        while self._waiting and len(self._active) + len(joining) < self.settings.max_batch:
            candidate = self._waiting[0]
            if candidate.cancelled:
                self._waiting.popleft()
                continue
            longest = max(longest, candidate.num_positions)
            longest_prompt = max(longest_prompt, len(candidate.model_ids))
            prompts.add(tuple(candidate.model_ids))
            num_tokens = len(prompts) * longest_prompt
            # Once one of them wants the logits of its whole prompt, there are those of all the others too.
            wants_all = wants_all or candidate.wants_prompt_logprobs
            num_logits = num_tokens * self._config.vocab_size if wants_all else 0
            too_many = num_tokens > PREFILL_TOKENS or num_logits > PREFILL_LOGITS
            num_rows = len(self._active) + len(joining) + 1
            if (joining and too_many) or (num_rows > 1 and num_rows * longest > self._max_positions):
                break
            joining.append(self._waiting.popleft())
        return joining

    @property
    def _max_positions(self) -> float:
        """What `cache_gb` holds, known from the first prefill on."""
        if self._bytes_per_position is None:
            return float("inf")
        return self.settings.cache_gb * 2**30 / self._bytes_per_position

    def _prefill(self, joining: list[ActiveRequest]) -> Tensor:
        """Run the prompts, each distinct one once, and give the requests slots. Logits of the next tokens, (B, V)."""
        device = self.model.device
        distinct: dict[tuple[int, ...], int] = {}
        row_of = [distinct.setdefault(tuple(active.model_ids), len(distinct)) for active in joining]
        lengths = [len(ids) for ids in distinct]
        # Padding is on the right, where causal attention hides it from the prompt, and is never read from a slot.
        ids_RP = torch.tensor([[*ids, *[ids[-1]] * (max(lengths) - len(ids))] for ids in distinct], device=device)
        positions_RP = torch.arange(max(lengths), device=device).expand(len(lengths), -1)
        wants_all = any(active.wants_prompt_logprobs for active in joining)
        kept = list(range(max(lengths))) if wants_all else sorted({length - 1 for length in lengths})
        prefilled = DynamicCache()
        logits_RKV = self.model(
            input_ids=ids_RP,
            # Nothing is masked; without a mask transformers warns of prompts that start with end of text.
            attention_mask=torch.ones_like(ids_RP),
            position_ids=positions_RP,
            past_key_values=prefilled,
            use_cache=True,
            logits_to_keep=torch.tensor(kept, device=device),
        ).logits
        rows = torch.tensor(row_of, device=device)
        self._occupy(joining, prefilled, rows)
        for active, row in zip(joining, row_of, strict=True):
            if active.wants_prompt_logprobs:
                self._record_prompt(active, logits_RKV[row])
        column_of = {position: column for column, position in enumerate(kept)}
        columns = torch.tensor([column_of[lengths[row] - 1] for row in row_of], device=device)
        return logits_RKV[rows, columns]

    def _occupy(self, joining: list[ActiveRequest], prefilled: DynamicCache, rows: Tensor) -> None:
        if self._slots is None:
            self._slots = KeyValueSlots(prefilled)
            self._bytes_per_position = self._slots.bytes_per_position
        first_row = len(self._active)
        length = max(prefilled.get_seq_length(), *(active.cached for active in self._active), 0)
        self._reserve(first_row + len(joining), min(length + 1, self.context + 1))
        self._slots.adopt(prefilled, rows, first_row=first_row)
        for active in joining:
            active.cached = len(active.model_ids)
        self._active.extend(joining)
        self._parameters = None

    def _reserve(self, rows: int, length: int) -> None:
        assert self._slots is not None
        self._slots.reserve(rows, length, limit=self.context + 1, budget=self._max_positions)

    def _record_prompt(self, active: ActiveRequest, logits_PV: Tensor) -> None:
        ids = active.model_ids
        # What predicts token i stands at i - 1; the first token and an inserted one have no record.
        wanted = [i for i in range(1, len(ids)) if i != active.inserted_at]
        if active.inserted_at == 0:
            wanted = wanted[1:]
        count = active.request.logprobs or 0
        for begin in range(0, len(wanted), 256):
            part = wanted[begin : begin + 256]
            logits_TV = logits_PV[torch.tensor([i - 1 for i in part], device=logits_PV.device)]
            active.prompt_records.extend(_records(logits_TV, [ids[i] for i in part], [count] * len(part)))

    def _decode(self) -> Tensor:
        assert self._slots is not None
        device = self.model.device
        positions = [active.cached for active in self._active]
        length = max(positions) + 1
        self._reserve(len(positions), length)
        self._slots.aim(positions, device=str(device))
        positions_B = torch.tensor(positions, device=device)
        hidden_BL = torch.arange(length, device=device) > positions_B[:, None]
        # Additive, because eager attention adds it and the fused kernels take either kind.
        lowest = torch.finfo(self.model.dtype).min
        mask_BL = torch.zeros(hidden_BL.shape, dtype=self.model.dtype, device=device).masked_fill_(hidden_BL, lowest)
        logits_B1V = self.model(
            input_ids=torch.tensor([[active.model_ids[-1]] for active in self._active], device=device),
            position_ids=positions_B[:, None],
            attention_mask=mask_BL[:, None, None],
            past_key_values=self._slots,
            use_cache=True,
        ).logits
        for active in self._active:
            active.cached += 1
        return logits_B1V[:, 0]

    def _advance(self, advanced: list[ActiveRequest], logits_BV: Tensor) -> None:
        """Sample a token for each request and hand it over."""
        raw_BV = logits_BV.float()
        sampling = [active for active in advanced if active.request.max_tokens > 0]
        if len(sampling) < len(advanced):
            raw_BV = raw_BV[torch.tensor([active.request.max_tokens > 0 for active in advanced], device=raw_BV.device)]
            for active in advanced:
                if active.request.max_tokens == 0:
                    active.finish("length")
        if not sampling:
            return
        tokens, finite = self._sample(sampling, raw_BV)
        counts = [active.request.logprobs for active in sampling]
        rows = [row for row, count in enumerate(counts) if count is not None]
        records = dict.fromkeys(range(len(sampling)))
        if rows:
            wanted = [count for count in counts if count is not None]
            records |= dict(zip(rows, _records(raw_BV[rows], [tokens[row] for row in rows], wanted), strict=True))
        for row, active in enumerate(sampling):
            if finite[row]:
                active.accept(tokens[row], records[row])
            else:
                active.error = "the model's logits are not finite; its weights are damaged or training diverged"

    def _sample(self, sampling: list[ActiveRequest], raw_BV: Tensor) -> tuple[list[int], list[bool]]:
        device = raw_BV.device
        allowed_BV = raw_BV.masked_fill(self._invalid, -torch.inf)
        biases = [(row, id_, value) for row, a in enumerate(sampling) for id_, value in a.request.logit_bias.items()]
        biases += [(row, id_, -torch.inf) for row, a in enumerate(sampling) for id_ in a.banned_ids()]
        if biases:
            rows, ids, values = zip(*biases, strict=True)
            where = (torch.tensor(rows, device=device), torch.tensor(ids, device=device))
            allowed_BV.index_put_(where, torch.tensor(values, device=device), accumulate=True)
        temperature_B, top_k_B, top_p_B = self._sampling_parameters(sampling, device)
        tokens_B = sample_tokens(
            allowed_BV,
            torch.tensor([active.uniform for active in sampling], dtype=torch.float64, device=device),
            temperature_B=temperature_B,
            top_k_B=top_k_B,
            top_p_B=top_p_B,
        )
        return tokens_B.tolist(), allowed_BV.amax(dim=-1).isfinite().tolist()

    def _sampling_parameters(
        self, sampling: list[ActiveRequest], device: torch.device
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Temperature, top-k and top-p of the rows; kept while the batch stays the same."""
        if self._parameters is not None and len(sampling) == len(self._active):
            return self._parameters
        requests = [active.request for active in sampling]
        parameters = (
            torch.tensor([request.temperature for request in requests], dtype=torch.float32, device=device),
            torch.tensor([request.top_k for request in requests], device=device),
            torch.tensor([request.top_p for request in requests], dtype=torch.float64, device=device),
        )
        if len(sampling) == len(self._active):
            self._parameters = parameters
        return parameters

    def _retire(self) -> None:
        """Take finished and cancelled requests out; the last rows move into the holes."""
        for row in reversed(range(len(self._active))):
            active = self._active[row]
            if not (active.is_finished or active.cancelled):
                continue
            last = len(self._active) - 1
            if row != last:
                assert self._slots is not None
                self._slots.move(last, row, length=self._active[last].cached)
                self._active[row] = self._active[last]
            self._active.pop()
            self._parameters = None

    def _check_architecture(self) -> None:
        """Two rows of different length, generated together, must have the log-probabilities of one plain pass each.

        Models whose state is not only keys and values (recurrent layers), or that ignore positions or masks, differ.
        """
        ids = sorted(self.strings.valid_ids - set(self.strings.control_ids.values()))
        prompts = [tuple(ids[k % len(ids)] for k in range(7, 7 + n)) for n in (2, 5)]
        requests = [
            # A control token that the model wants would be replaced and hidden: the plain pass would not see it.
            GenerationRequest(
                prompt=prompt,
                max_tokens=3,
                temperature=0,
                ignore_eos=True,
                logprobs=0,
                control="none",
                policy="ban",
            )
            for prompt in prompts
        ]
        try:
            differences = [self._difference_from_plain_pass(active) for active in self._run(requests)]
        except (RuntimeError, TypeError, AttributeError, IndexError, ValueError) as error:
            differences = [float("inf")]
            reason = f"{type(error).__name__}: {error}"
        else:
            reason = f"log-probabilities differ by {max(differences):.3g} from a plain forward pass"
        tolerance = 1e-3 if self.model.dtype == torch.float32 else 0.2
        if not max(differences) <= tolerance:
            raise ConfigError(
                f"{type(self.model).__name__} can't be served in batches of ragged rows ({reason}); "
                "serve a model with plain attention, or put an OpenAI-compatible server in front of this one"
            )

    @torch.inference_mode()
    def _difference_from_plain_pass(self, active: ActiveRequest) -> float:
        ids = [*active.prompt_ids, *active.visible_ids]
        ids_1S = torch.tensor([ids], device=self.model.device)
        logits_SV = self.model(input_ids=ids_1S, attention_mask=torch.ones_like(ids_1S)).logits[0].float()
        expected_SV = logits_SV.log_softmax(dim=-1)
        begin = len(active.prompt_ids) - 1
        return max(
            abs(logprob - float(expected_SV[begin + i, id_])) for i, (id_, logprob, _) in enumerate(active.records)
        )

    def _run(self, requests: Iterable[GenerationRequest]) -> list[ActiveRequest]:
        running = [self.prepare(request) for request in requests]
        for active in running:
            self.add(active)
        while not all(active.is_finished for active in running):
            self.step()
        return running


def _by_length(joining: Sequence[ActiveRequest]) -> list[list[ActiveRequest]]:
    """In groups of alike lengths, so that few positions of a pass are padding."""
    groups: list[list[ActiveRequest]] = []
    longest = -1
    for active in sorted(joining, key=lambda active: len(active.model_ids)):
        length = len(active.model_ids)
        if length > longest:
            groups.append([])
            longest = max(SHORT_PROMPT, 2 * length)
        groups[-1].append(active)
    return groups


def _records(
    logits_BV: Tensor, tokens: Sequence[int], counts: Sequence[int]
) -> list[tuple[int, float, list[tuple[int, float]]]]:
    """(token, its log-probability, the `count` most probable with theirs) per row.

    Both come from one tensor: a client may test by equality whether the token was the most probable one.
    """
    logprobs_BV = logits_BV.float().log_softmax(dim=-1)
    own_B = logprobs_BV[torch.arange(len(tokens)), torch.tensor(tokens, device=logits_BV.device)].tolist()
    best = logprobs_BV.topk(min(max(counts), logits_BV.shape[-1]), dim=-1)
    values, ids = best.values.tolist(), best.indices.tolist()
    return [
        (
            token,
            max(own_B[row], LOWEST_LOGPROB),
            [(id_, max(value, LOWEST_LOGPROB)) for id_, value in zip(ids[row], values[row], strict=True)][
                : counts[row]
            ],
        )
        for row, token in enumerate(tokens)
    ]


def generate(engine: Engine, requests: Iterable[GenerationRequest]) -> list[Completion]:
    """One completion per request, in order; the texts are those that the server gives for the same requests.

    Raises RequestError for a request that the model can't serve, DataError if the model's output is not finite.
    """
    return [active.completion() for active in engine._run(requests)]


def random_seed() -> int:
    """A seed for a request that came without one."""
    return secrets.randbits(63)


def load_strings(
    directory: str | Path, *, control: Control | None = None
) -> tuple[TokenStrings, CheckpointInfo | None, int]:
    """Tokenizer, description and context of a model whose weights are elsewhere; errors as of `load_engine`."""
    path = _model_directory(directory)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        config = AutoConfig.from_pretrained(path, trust_remote_code=False).get_text_config()
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise DataError(f"{path} can't be loaded as the tokenizer of a language model: {error}") from None
    info = read_info(path)
    control = control or (info.control if info is not None else None)
    strings = TokenStrings(
        tokenizer,
        num_logits=config.vocab_size,
        control=control,
        starts_with_eos=info is not None or control is not None,
    )
    return strings, info, context_of(config)


def _model_directory(directory: str | Path) -> Path:
    path = Path(directory)
    if not (path / "config.json").is_file():
        raise ConfigError(
            f"{path} is no model directory: it has no config.json; give a checkpoint such as .../step-00000500"
        )
    return path


def load_engine(
    directory: str | Path, *, control: Control | None = None, settings: EngineSettings | None = None
) -> Engine:
    """Engine over a Hugging Face causal LM directory. No code and no pickle from the directory is run.

    Raises ConfigError if there is no model or the device is missing, DataError if the model can't be read.
    """
    path, settings = _model_directory(directory), settings or EngineSettings()
    if settings.device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device {settings.device} asked for, but no GPU is visible here; use device cpu")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        model: Any = AutoModelForCausalLM.from_pretrained(
            path, dtype=getattr(torch, settings.dtype), trust_remote_code=False, weights_only=True
        )
    except pickle.UnpicklingError:
        # torch's message tells how to run the code all the same.
        raise DataError(
            f"{path} can't be loaded: its weights are a pickle with more in it than tensors, which may be code and was "
            "not run; save the model as safetensors"
        ) from None
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise DataError(f"{path} can't be loaded as a causal language model: {error}") from None
    return Engine(model.to(settings.device), tokenizer, info=read_info(path), control=control, settings=settings)
