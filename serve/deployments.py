"""Ray Serve around the application: one deployment per model and per scorer, and the ingress that knows them all."""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from phf_ray.records import Span
from serve.api import build_app
from serve.backends import Backend, Completed, ModelDescription
from serve.errors import ApiError
from serve.keys import KeyRing, load_keys
from serve.schemas import CompletionRequest, DeploymentHealth, HealthResponse, ScorerIdentityBody, TextScore
from serve.settings import ServeArgs, ServedModel, ServedScorer

log = logging.getLogger("ray.serve.phf")

# A replica can be lost while it works on a request; a second one in a row is no accident.
ATTEMPTS = 2
DESCRIPTION_S = 30.0
HEALTH_S = 1.0

Answer = TypeVar("Answer")


@serve.deployment
class ModelReplica:
    def __init__(self, settings: dict[str, Any]):
        model = ServedModel.model_validate(settings)
        prepare_process(model.num_cpus)
        from serve.local import LocalModel

        self._model = LocalModel.load(model)

    async def complete(self, request: CompletionRequest) -> Completed:
        return await self._model.complete(request)

    async def stream(self, request: CompletionRequest) -> AsyncIterator[Completed]:
        async for piece in self._model.stream(request):
            yield piece

    async def describe(self) -> ModelDescription:
        return await self._model.describe()

    async def tokenize(self, text: str, add_special_tokens: bool) -> tuple[list[int], list[str]]:
        return await self._model.tokenize(text, add_special_tokens=add_special_tokens)

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        return await self._model.detokenize(token_ids)

    async def tokenizer_info(self) -> dict[str, Any]:
        return await self._model.tokenizer_info()

    def check_health(self) -> None:
        if not self._model.thread.is_alive:
            raise RuntimeError("the engine's thread has ended")


@serve.deployment
class ScorerReplica:
    def __init__(self, settings: dict[str, Any]):
        scorer = ServedScorer.model_validate(settings)
        prepare_process(scorer.num_cpus)
        from serve.local import LocalScorer

        self._scorer = LocalScorer(scorer)

    async def score(self, texts: Sequence[str], segments: bool) -> list[TextScore]:
        return await self._scorer.score(texts, segments=segments)

    async def spans(self, texts: Sequence[str]) -> list[list[Span]]:
        return await self._scorer.spans(texts)

    async def class_scores(self, texts: Sequence[str]) -> list[dict[str, float] | str]:
        return await self._scorer.class_scores(texts)

    async def segment_spans(self, text: str) -> list[tuple[int, int]]:
        return await self._scorer.segment_spans(text)

    async def identity(self) -> ScorerIdentityBody:
        return await self._scorer.identity()


@serve.deployment
@serve.ingress()
class Ingress:
    def __init__(
        self,
        settings: dict[str, Any],
        models: dict[str, DeploymentHandle[Any]],
        scorers: dict[str, DeploymentHandle[Any]],
    ):
        self._args = ServeArgs.model_validate(settings)
        self._backend = Backend(
            models={name: RemoteModel(handle) for name, handle in models.items()},
            scorers={name: RemoteScorer(handle) for name, handle in scorers.items()},
            health=_Cached(deployments_health, seconds=HEALTH_S),
            toxicity=self._args.name_of("DetoxifyToxicityScorer"),
            pii=self._args.name_of("PIIScorer"),
        )

        if self._args.access_log:
            # Serve's own lines are kept to warnings; these are asked for.
            log.setLevel(logging.INFO)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_app(
            self._backend,
            keys=KeyRing(load_keys(self._args.keys)),
            limits=self._args.limits,
            access_log=self._args.access_log,
        )


def prepare_process(num_cpus: float) -> None:
    """One thread per CPU that the replica was given, and no progress bars in its log. Before torch is imported."""
    num_threads = max(1, int(num_cpus))
    os.environ["OMP_NUM_THREADS"] = str(num_threads)
    import torch
    from transformers.utils import logging as transformers_logging

    torch.set_num_threads(num_threads)
    transformers_logging.disable_progress_bar()


class RemoteModel:
    def __init__(self, handle: DeploymentHandle[Any]):
        self._handle = handle
        self._describe = _Cached(lambda: _answer(lambda: handle.describe.remote()), seconds=DESCRIPTION_S)

    async def complete(self, request: CompletionRequest) -> Completed:
        return await _answer(lambda: self._handle.complete.remote(request))

    async def stream(self, request: CompletionRequest) -> AsyncIterator[Completed]:
        # Not tried again: a part of the text may be with the client.
        with _Translated():
            pieces: Any = self._handle.options(stream=True).stream.remote(request)
            async for piece in pieces:
                yield piece

    async def describe(self) -> ModelDescription:
        return await self._describe()

    async def tokenize(self, text: str, *, add_special_tokens: bool) -> tuple[list[int], list[str]]:
        return await _answer(lambda: self._handle.tokenize.remote(text, add_special_tokens))

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        return await _answer(lambda: self._handle.detokenize.remote(token_ids))

    async def tokenizer_info(self) -> dict[str, Any]:
        return await _answer(lambda: self._handle.tokenizer_info.remote())


class RemoteScorer:
    def __init__(self, handle: DeploymentHandle[Any]):
        self._handle = handle
        self._identity = _Cached(lambda: _answer(lambda: handle.identity.remote()), seconds=DESCRIPTION_S)

    async def score(self, texts: Sequence[str], *, segments: bool) -> list[TextScore]:
        return await _answer(lambda: self._handle.score.remote(texts, segments))

    async def spans(self, texts: Sequence[str]) -> list[list[Span]]:
        return await _answer(lambda: self._handle.spans.remote(texts))

    async def class_scores(self, texts: Sequence[str]) -> list[dict[str, float] | str]:
        return await _answer(lambda: self._handle.class_scores.remote(texts))

    async def segment_spans(self, text: str) -> list[tuple[int, int]]:
        return await _answer(lambda: self._handle.segment_spans.remote(text))

    async def identity(self) -> ScorerIdentityBody:
        return await self._identity()


async def _answer(call: Callable[[], Awaitable[Answer]]) -> Answer:
    """The replica's answer; tried again where a replica was lost, since every call here can be repeated."""
    for attempt in range(1, ATTEMPTS + 1):
        with _Translated():
            try:
                return await call()
            except RayActorError:
                if attempt == ATTEMPTS:
                    raise
                log.warning("a replica was lost during a request, which is sent to another")
    raise AssertionError("the last attempt returns or raises")


class _Translated:
    """Exceptions of Ray and of replicas as ApiError."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, RayTaskError) and isinstance(error.cause, ApiError):
            raise error.cause from None
        if isinstance(error, BackPressureError):
            raise ApiError(429, "the queue is full; try again later") from None
        if isinstance(error, RayActorError | DeploymentUnavailableError):
            raise ApiError(503, "the replica that worked on the request was lost; try again") from None


class _Cached(Generic[Answer]):
    """The answer of an asynchronous function, asked again when it is older than `seconds`; failures are not kept."""

    def __init__(self, ask: Callable[[], Awaitable[Answer]], *, seconds: float):
        self._ask, self._seconds = ask, seconds
        self._lock = asyncio.Lock()
        self._kept: tuple[float, Answer] | None = None

    async def __call__(self) -> Answer:
        async with self._lock:
            if self._kept is None or time.monotonic() - self._kept[0] > self._seconds:
                self._kept = (time.monotonic(), await self._ask())
            return self._kept[1]


async def deployments_health() -> HealthResponse:
    """State of all deployments of this application, from Serve's controller."""
    name = serve.get_replica_context().app_name
    status = await asyncio.to_thread(serve.status)
    found = {
        deployment: DeploymentHealth(
            status=str(overview.status.value),
            message=overview.message.splitlines()[0][:200] if overview.message else "",
            replicas={str(getattr(state, "value", state)): count for state, count in overview.replica_states.items()},
        )
        for deployment, overview in status.applications[name].deployments.items()
    }
    # Scaled to zero is healthy too; so is one that is being updated while old replicas answer.
    is_ready = all(one.status == "HEALTHY" or one.replicas.get("RUNNING", 0) > 0 for one in found.values())
    return HealthResponse(status="ok" if is_ready else "not_ready", deployments=found)
