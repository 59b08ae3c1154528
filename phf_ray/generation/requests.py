"""Generation requests and their completions."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from phf_ray.checkpoint import ControlChoice, ControlPolicy
from phf_ray.errors import ConfigError

FinishReason = Literal["stop", "length"]

MAX_STOP_STRINGS = 64
MAX_LOGPROBS = 20


class RequestError(ConfigError):
    """A generation request that can't be served; `param` is the field at fault."""

    def __init__(self, message: str, param: str | None = None):
        super().__init__(message, param)
        self.message, self.param = message, param

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One text to generate."""

    prompt: str | tuple[int, ...]
    """Text, or token ids, which are used as given."""
    max_tokens: int = 16
    """May be 0 with `echo`."""
    min_tokens: int = 0
    """Before this many tokens, end-of-text and `stop_token_ids` are banned and stop strings are ignored."""
    temperature: float = 1.0
    """Below 1e-5, pick the most probable token."""
    top_p: float = 1.0
    top_k: int = 0
    """0: no limit."""
    seed: int = 0
    choice: int = 0
    """Index among the texts of one call. It makes them differ although they share the seed."""
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end the text like end-of-text, also with `ignore_eos`."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    repetition_penalty: float = 1.0
    """Divides the positive logits of tokens in the prompt and the output, and multiplies their negative logits; above
    0."""
    presence_penalty: float = 0.0
    """Subtracted from the logits of tokens in the output."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit once for each time that it is in the output."""
    ignore_eos: bool = False
    logprobs: int | None = None
    """Number of alternatives to report per token; None: no log-probabilities."""
    echo: bool = False
    """Include the prompt in the text, the log-probabilities and the offsets."""
    control: ControlChoice | None = None
    """None: good if the model has control tokens and `echo` is off, else none."""
    policy: ControlPolicy | None = None
    """None: the checkpoint's policy."""

    @property
    def is_penalized(self) -> bool:
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0

    def __post_init__(self) -> None:
        for name, low, high in _LIMITS:
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise RequestError(f"{name} is {value}; it must be between {low:g} and {high:g}", name)
        self._check_above_zero()
        if len(self.stop) > MAX_STOP_STRINGS or "" in self.stop:
            raise RequestError(f"stop must be at most {MAX_STOP_STRINGS} strings, none of them empty", "stop")
        if self.max_tokens == 0 and not self.echo:
            raise RequestError(
                "max_tokens is 0, which returns nothing without echo; set echo or raise max_tokens", "max_tokens"
            )
        if self.min_tokens > self.max_tokens:
            raise RequestError(
                f"min_tokens={self.min_tokens} is above max_tokens={self.max_tokens}; lower it", "min_tokens"
            )
        if any(not -100 <= value <= 100 for value in self.logit_bias.values()):
            raise RequestError("logit_bias has a value outside -100 .. 100", "logit_bias")
        if self.control not in (None, *get_args(ControlChoice)):
            raise RequestError(f"control is {self.control!r}; use good, bad or none", "control")
        if self.policy not in (None, *get_args(ControlPolicy)):
            raise RequestError(f"control_policy is {self.policy!r}; use ban or retag", "control_policy")

    def _check_above_zero(self) -> None:
        if self.top_p == 0:
            raise RequestError("top_p is 0, which leaves no token; use temperature 0 for greedy decoding", "top_p")
        if not 0 < self.repetition_penalty < math.inf:
            raise RequestError(
                f"repetition_penalty is {self.repetition_penalty}; it must be a number above 0, and 1 for no penalty",
                "repetition_penalty",
            )


_LIMITS: tuple[tuple[str, float, float], ...] = (
    ("max_tokens", 0, 2**20),
    ("min_tokens", 0, 2**20),
    ("temperature", 0, 2),
    ("top_p", 0, 1),
    ("top_k", 0, 2**31 - 1),
    ("seed", -(2**63), 2**64 - 1),
    ("logprobs", 0, MAX_LOGPROBS),
    ("presence_penalty", -2, 2),
    ("frequency_penalty", -2, 2),
)


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token of the text as the model saw it."""

    token: str
    logprob: float | None
    """None for the first token of a prompt, which nothing predicts."""
    top: dict[str, float] | None
    """The most probable tokens and, as in OpenAI's API and vLLM, this token itself."""
    text_offset: int
    """Number of characters before this token in the returned text."""


@dataclass(frozen=True, slots=True)
class Completion:
    text: str
    finish_reason: FinishReason
    token_ids: tuple[int, ...]
    """Generated tokens including end-of-text, without inserted or replaced control tokens."""
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
    """Maximum number of requests in one step; others wait."""
    cache_gb: float = 2.0
    """GiB for keys and values. Requests that do not fit wait, but one request always runs."""
    max_context: int | None = None
    """Positions; None: the limit in the model's configuration."""
