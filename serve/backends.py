"""The interface that models and scorers offer the HTTP application, in this process or behind Ray Serve."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from phf_ray.checkpoint import CheckpointInfo
from phf_ray.records import Span
from serve.chat_schemas import ChatCompletionRequest, TokenizeRequest
from serve.schemas import ChatCard, Choice, CompletionRequest, HealthResponse, Usage

Asked = CompletionRequest | ChatCompletionRequest
"""A text or a conversation to go on with. The choices of both have the same form: the API gives them that of a chat."""

TOO_LONG = "too_long"
"""The kind of reason of a text that a scorer refuses for its length."""


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """A served model's description of itself."""

    max_model_len: int
    control: dict[str, str] | None
    """`good`, `bad` and `policy`, or None for a model without control tokens."""
    tokenizer_hash: str
    task: str | None = None
    objective: str | None = None
    step: int | None = None
    fingerprint: str | None = None
    """Hash of the model's files; None if another server has its weights."""
    checkpoint: CheckpointInfo | None = None
    chat: ChatCard | None = None
    """None for a model without a chat template."""


@dataclass(frozen=True, slots=True)
class Completed:
    choices: list[Choice]
    usage: Usage


class ModelBackend(Protocol):
    """A served model. Its methods raise ApiError if they can't answer.

    The caller draws a seed for every request, so that a retry on another replica gives the same text.
    """

    async def complete(self, request: Asked) -> Completed: ...

    def stream(self, request: Asked) -> AsyncIterator[Completed]:
        """Yield pieces, each with the usage so far."""
        ...

    async def describe(self) -> ModelDescription: ...

    async def tokenize(self, text: str, *, add_special_tokens: bool) -> tuple[list[int], list[str]]:
        """Return the ids, and the text of each."""
        ...

    async def tokenize_messages(self, asked: TokenizeRequest) -> tuple[list[int], list[str]]:
        """Return the ids of a conversation, and the text of each."""
        ...

    async def detokenize(self, token_ids: Sequence[int]) -> str: ...

    async def tokenizer_info(self) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class ScoredJson:
    """Scores as JSON, written once by the replica that scored.

    Parsing and writing them again in every process on the way costs more than a fast scorer.
    """

    identity: bytes
    """JSON: the `ScorerIdentityBody` of the replica that scored. Other replicas may be newer or older."""
    data: bytes
    """JSON: a list of `TextScore`."""
    num_failed: int


class ScorerBackend(Protocol):
    async def score(self, texts: Sequence[str], *, segments: bool, prompts: Sequence[str] | None = None) -> ScoredJson:
        """Return one score per text, in order.

        `prompts`: what each text answers. Raises ApiError if the scorer reads no prompts.
        """
        ...

    async def spans(self, texts: Sequence[str]) -> list[list[Span]]:
        """Return the spans found in each text. Raises ApiError if the scorer can't find spans."""
        ...

    async def class_scores(self, texts: Sequence[str]) -> list[dict[str, float] | str]:
        """Return each text's score per class, or why it has none. Raises ApiError if the scorer has no classes."""
        ...

    async def segment_spans(self, text: str) -> list[tuple[int, int]]:
        """Return the characters [begin, end) of each segment of the text."""
        ...


@dataclass(frozen=True, slots=True)
class Backend:
    models: Mapping[str, ModelBackend]
    scorers: Mapping[str, ScorerBackend]
    health: Callable[[], Awaitable[HealthResponse]]
    toxicity: str | None = None
    """Name of the scorer behind moderations and Perspective, if one is served."""
    toxicity_languages: Sequence[str] = ("en",)
    """Languages that the toxicity model was trained on."""
    pii: str | None = None
    """Name of the scorer behind Presidio's endpoint, if one is served."""
    pii_types: Sequence[str] | None = None
    """Types of the spans that this scorer can find; None if it does not say."""
    reward: str | None = None
    """Name of the scorer behind /get_reward, if one is served."""
