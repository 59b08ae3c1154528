"""What is asked of a judge behind a URL, and what comes back: an answer, or a failure with its reason.

A question has a key. Two questions with one key are the same question, in every process and for all time: the store
keeps answers by it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from phf_ray.generation.chat.prompts import Message
from phf_ray.storage.hashing import digest


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt for a judge, with all that decides what it may answer. It has either messages or a prompt."""

    judge: str
    """Who is asked: URL and model, without the key."""
    messages: tuple[Message, ...] | None = None
    """Of a chat."""
    prompt: str | None = None
    """Of a completion."""
    decoding: Mapping[str, Any] = field(default_factory=dict)
    """temperature, max_tokens, logit_bias, logprobs and the like, as the endpoint names them."""
    seed: int | None = None

    def __post_init__(self) -> None:
        assert (self.messages is None) != (self.prompt is None), "a question has either messages or a prompt"

    @property
    def key(self) -> str:
        """Hash of everything that decides the answer, equal in every process."""
        asked = self.prompt if self.messages is None else [(message.role, message.content) for message in self.messages]
        return digest([self.judge, asked, dict(self.decoding), self.seed], size=16)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a judge said, as it said it, and what that cost."""

    text: str
    top_logprobs: tuple[tuple[str, float], ...] | None = None
    """(token, log-probability) of the likeliest first tokens, the likeliest first; None: not asked for."""
    prompt_tokens: int | None = None
    """As the server counted; None: it didn't say."""
    completion_tokens: int | None = None
    price: float | None = None
    """None: nobody said what a token costs."""
    seconds: float = 0.0
    """From sending the request to the answer."""


@dataclass(frozen=True, slots=True)
class Failure:
    """There is no answer, or none that can be used. Counts nowhere as a judgement."""

    reason: str
    """`kind: details`; the kind alone is what failures are counted by."""

    @property
    def kind(self) -> str:
        return self.reason.partition(":")[0]


class Asker(Protocol):
    """Has questions answered, from a store or by asking."""

    async def ask(self, question: Question) -> Answer | Failure:
        """Return the answer, or why this question has none.

        Raises ServiceError if no question will be answered (the key is refused, the server is away), and
        BudgetSpentError if the answer might cost more than is left.
        """
        ...
