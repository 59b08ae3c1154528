"""A judge behind a URL: any OpenAI-compatible server of chats or completions."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from phf_ray.characters import whole_characters
from phf_ray.errors import ConfigError
from phf_ray.http.keys import Endpoint
from phf_ray.http.openai_async import MAX_IN_FLIGHT, AsyncOpenAIClient
from phf_ray.judging.budget import UNIT, Price
from phf_ray.judging.question import Answer, Question

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
_SHOWN = 300
"""Characters of an answer that no one understands."""
_MOST_TOKENS = 1 << 31
"""More are no count of tokens; what they cost may be larger than the store's numbers."""


class MalformedAnswerError(Exception):
    """The server answered, and not as this kind of server does."""


@dataclass(frozen=True, slots=True)
class EndpointSettings:
    """How a judge behind a URL is asked."""

    endpoint: Endpoint
    model: str
    price: Price | None = None
    max_in_flight: int = 64
    """Requests sent and not answered, of each process."""
    patience_s: float = 600.0
    """How long a request is sent again while the server is busy, failing or away."""
    timeout_s: float = 120.0
    """How long an answer may take."""

    def __post_init__(self) -> None:
        if not 1 <= self.max_in_flight <= MAX_IN_FLIGHT:
            raise ConfigError(f"max_in_flight: {self.max_in_flight} is not between 1 and {MAX_IN_FLIGHT}; change it")
        for name, value in (("patience_s", self.patience_s), ("timeout_s", self.timeout_s)):
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{name}: {value} is no time; give a number of seconds")

    @property
    def judge(self) -> str:
        """The judge as its questions name it."""
        return f"{self.endpoint.url.rstrip('/').removesuffix('/v1')} {self.model}"


class JudgeEndpoint:
    """Sends questions to a server, and understands what it says."""

    def __init__(self, settings: EndpointSettings):
        self.settings = settings
        self.client = AsyncOpenAIClient(
            settings.endpoint.url,
            key=settings.endpoint.key,
            patience_s=settings.patience_s,
            timeout_s=settings.timeout_s,
        )

    async def send(self, question: Question) -> Answer:
        """Ask once.

        Raises UnansweredError if the server may answer later, RefusedError if it won't, and MalformedAnswerError if its
        answer is none.
        """
        since = time.perf_counter()
        said = await self.client.post_once(path_of(question), body_of(question, self.settings.model))
        return self._answer(said, seconds=time.perf_counter() - since)

    def _answer(self, said: Mapping[str, Any], *, seconds: float) -> Answer:
        try:
            choice = said["choices"][0]
            text, logprobs = (_chat_choice if "message" in choice else _completion_choice)(choice)
            assert isinstance(text, str)
        except (AttributeError, LookupError, TypeError, ValueError, AssertionError) as error:
            shown = str(dict(said))[:_SHOWN]
            raise MalformedAnswerError(f"the server answered with {shown}, which holds no answer") from error
        prompt_tokens, completion_tokens = (_num_tokens(said, name) for name in ("prompt_tokens", "completion_tokens"))
        price, money = self.settings.price, None
        if price is not None and prompt_tokens is not None and completion_tokens is not None:
            money = price.of(prompt_tokens, completion_tokens) * UNIT
        return Answer(whole_characters(text), logprobs, prompt_tokens, completion_tokens, money, seconds)


def _num_tokens(said: Mapping[str, Any], name: str) -> int | None:
    """Return what the server counted; None if it said nothing, or no number of tokens. The answer counts either way."""
    usage = said.get("usage")
    num = usage.get(name) if isinstance(usage, Mapping) else None
    return num if isinstance(num, int) and not isinstance(num, bool) and 0 <= num <= _MOST_TOKENS else None


def path_of(question: Question) -> str:
    return COMPLETIONS if question.messages is None else CHAT


def body_of(question: Question, model: str) -> dict[str, Any]:
    """Return the body of the request."""
    body: dict[str, Any] = {"model": model, **question.decoding}
    if question.messages is None:
        body["prompt"] = question.prompt
    else:
        body["messages"] = [{"role": message.role, "content": message.content} for message in question.messages]
    if question.seed is not None:
        body["seed"] = question.seed
    return body


_Logprobs = tuple[tuple[str, float], ...] | None


def _chat_choice(choice: Mapping[str, Any]) -> tuple[str, _Logprobs]:
    message = choice["message"]
    # A judge that refuses to judge says so in a place of its own.
    text = message.get("content")
    text = message.get("refusal") or "" if text is None else text
    tokens = (choice.get("logprobs") or {}).get("content") or []
    likely = {one["token"]: one["logprob"] for one in tokens[0]["top_logprobs"]} if tokens else None
    return text, _sorted(likely)


def _completion_choice(choice: Mapping[str, Any]) -> tuple[str, _Logprobs]:
    likely = (choice.get("logprobs") or {}).get("top_logprobs") or []
    return choice["text"], _sorted(likely[0]) if likely else None


def _sorted(likely: Mapping[str, float] | None) -> _Logprobs:
    if likely is None:
        return None
    return tuple(sorted(((token, float(logprob)) for token, logprob in likely.items()), key=lambda pair: -pair[1]))
