"""What the HTTP application asks of models and scorers, in this process or behind Ray Serve."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from phf_ray.checkpoint import CheckpointInfo
from phf_ray.records import Span
from serve.schemas import Choice, CompletionRequest, HealthResponse, Usage


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """What a served model says of itself."""

    max_model_len: int
    control: dict[str, str] | None
    """`good`, `bad` and `policy`, or None for a model without control tokens."""
    tokenizer_hash: str
    task: str | None = None
    objective: str | None = None
    step: int | None = None
    fingerprint: str | None = None
    """Hash of the model's files; None where its weights are elsewhere."""
    checkpoint: CheckpointInfo | None = None


@dataclass(frozen=True, slots=True)
class Completed:
    choices: list[Choice]
    usage: Usage


class ModelBackend(Protocol):
    """Raises ApiError for what it can't answer. Every request has a seed, drawn by the caller: a call that is tried
    again on another replica gives the same text."""

    async def complete(self, request: CompletionRequest) -> Completed: ...

    def stream(self, request: CompletionRequest) -> AsyncIterator[Completed]:
        """Pieces; each has the usage up to then."""
        ...

    async def describe(self) -> ModelDescription: ...

    async def tokenize(self, text: str, *, add_special_tokens: bool) -> tuple[list[int], list[str]]:
        """Ids, and the text of each."""
        ...

    async def detokenize(self, token_ids: Sequence[int]) -> str: ...

    async def tokenizer_info(self) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class ScoredJson:
    """Scores as they travel: written once, where they are made, since reading and writing them anew at every process
    on the way costs more than a fast scorer."""

    identity: bytes
    """JSON: the `ScorerIdentityBody` of the replica that scored. Others of its deployment may be newer or older."""
    data: bytes
    """JSON: a list of `TextScore`."""
    num_failed: int


class ScorerBackend(Protocol):
    async def score(self, texts: Sequence[str], *, segments: bool) -> ScoredJson:
        """One per text, in order."""
        ...

    async def spans(self, texts: Sequence[str]) -> list[list[Span]]:
        """What was found in each text. Raises ApiError for a scorer that finds no spans."""
        ...

    async def class_scores(self, texts: Sequence[str]) -> list[dict[str, float] | str]:
        """The score of each class, or why there is none. Raises ApiError for a scorer without classes."""
        ...

    async def segment_spans(self, text: str) -> list[tuple[int, int]]:
        """Characters [begin, end) of the segments of a text."""
        ...


@dataclass(frozen=True, slots=True)
class Backend:
    models: Mapping[str, ModelBackend]
    scorers: Mapping[str, ScorerBackend]
    health: Callable[[], Awaitable[HealthResponse]]
    toxicity: str | None = None
    """Name of the scorer behind moderations and Perspective, if one is served."""
    toxicity_languages: Sequence[str] = ("en",)
    """Languages that its model was trained on."""
    pii: str | None = None
    """Name of the scorer behind Presidio's endpoint, if one is served."""
