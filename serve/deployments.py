"""Ray Serve around the application: one deployment per model and per scorer, and the ingress that knows them all."""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve import metrics
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from phf_ray.records import Span
from phf_ray.scorers.base import FindsSpans, HasClasses
from serve.api.application import build_app
from serve.backends import Backend, Completed, ModelDescription, ScoredJson
from serve.engines.local import LocalModel
from serve.engines.upstream import UpstreamModel
from serve.errors import ApiError
from serve.gate import Answered, latency_buckets
from serve.keys import KeyRing, load_keys
from serve.schemas import CompletionRequest, DeploymentHealth, HealthResponse, ScorerIdentityBody
from serve.settings import Limits, ServeArgs, ServedModel, ServedScorer

if TYPE_CHECKING:
    from serve.engines.local import LocalModel
    from serve.engines.upstream import UpstreamModel

log = logging.getLogger("ray.serve.phf")

# A replica can be lost while it works on a request; a second one in a row is no accident.
ATTEMPTS = 2
DESCRIPTION_S = 30.0
HEALTH_S = 1.0
# How often a request that waits longer looks whether its deployment is still there.
WATCH_S = 2.0

Answer = TypeVar("Answer")


@serve.deployment
class ModelReplica:
    def __init__(self, settings: dict[str, Any]):
        model = ServedModel.model_validate(settings)
        prepare_process(model.num_cpus)
        from serve.engines.local import LocalModel
        from serve.engines.upstream import UpstreamModel

        self._model = LocalModel.load(model) if model.upstream is None else UpstreamModel.load(model)
        self._metrics = ModelMetrics()

    async def complete(self, request: CompletionRequest) -> Completed:
        with self._metrics.counted(self._model):
            completed = await self._model.complete(request)
            self._metrics.add_tokens(completed)
            return completed

    async def stream(self, request: CompletionRequest) -> AsyncIterator[Completed]:
        last: Completed | None = None
        try:
            with self._metrics.counted(self._model):
                async for piece in self._model.stream(request):
                    last = piece
                    yield piece
        finally:
            if last is not None:
                self._metrics.add_tokens(last)

    async def describe(self) -> ModelDescription:
        return await self._model.describe()

    async def tokenize(self, text: str, add_special_tokens: bool) -> tuple[list[int], list[str]]:
        return await self._model.tokenize(text, add_special_tokens=add_special_tokens)

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        return await self._model.detokenize(token_ids)

    async def tokenizer_info(self) -> dict[str, Any]:
        return await self._model.tokenizer_info()

    async def check_health(self) -> None:
        # Serve asks every few seconds, also while long requests run. On the event loop, like all that counts here.
        self._metrics.note_engine(self._model)
        self._model.check_health()


@serve.deployment
class ScorerReplica:
    def __init__(self, settings: dict[str, Any], request_timeout_s: float):
        scorer = ServedScorer.model_validate(settings)
        # A scorer that needs torch imports it; the others do without its memory.
        limit_threads(scorer.num_cpus)
        from serve.engines.scorer import LocalScorer

        self._scorer = LocalScorer(scorer)
        self._request_timeout_s = request_timeout_s
        self._texts = metrics.Counter(
            "phf_scored_texts", description="Texts that /v1/scores was asked for", tag_keys=("outcome",)
        )

    async def score(self, texts: Sequence[str], segments: bool) -> ScoredJson:
        found = await self._scorer.score(texts, segments=segments)
        for outcome, count in (("scored", len(texts) - found.num_failed), ("failed", found.num_failed)):
            if count:
                self._texts.inc(count, tags={"outcome": outcome})
        return found

    async def spans(self, texts: Sequence[str]) -> list[list[Span]]:
        return await self._scorer.spans(texts)

    async def class_scores(self, texts: Sequence[str]) -> list[dict[str, float] | str]:
        return await self._scorer.class_scores(texts)

    async def segment_spans(self, text: str) -> list[tuple[int, int]]:
        return await self._scorer.segment_spans(text)

    async def identity(self) -> ScorerIdentityBody:
        return await self._scorer.identity()

    def check_health(self) -> None:
        """A thread can't be stopped: a scorer that is still at what nobody waits for is replaced."""
        if self._scorer.running_s > self._request_timeout_s:
            raise RuntimeError(f"the scorer has been at one request for {self._scorer.running_s:.0f} s")


class ModelMetrics:
    """Of one replica, on the metrics port of Ray's nodes; Ray adds `ray_` in front, `_total` to counters, and the
    deployment and the replica as tags. Sequence steps / steps is the mean batch of the engine."""

    def __init__(self) -> None:
        self._requests = metrics.Counter(
            "phf_model_requests", description="Requests that the replica finished", tag_keys=("outcome",)
        )
        self._tokens = metrics.Counter("phf_model_tokens", description="Tokens of completions", tag_keys=("kind",))
        self._steps = metrics.Counter("phf_engine_steps", description="Forward passes of the engine")
        self._sequence_steps = metrics.Counter(
            "phf_engine_sequence_steps", description="Sequences advanced, summed over forward passes"
        )
        self._unfinished = metrics.Gauge("phf_model_unfinished", description="Sequences in the batch or waiting for it")
        self._noted = (0, 0)

    @contextmanager
    def counted(self, model: "LocalModel | UpstreamModel") -> Iterator[None]:
        outcome = "failed"
        try:
            yield
            outcome = "answered"
        except (GeneratorExit, asyncio.CancelledError):
            outcome = "left"
            raise
        finally:
            self._requests.inc(tags={"outcome": outcome})
            self.note_engine(model)

    def note_engine(self, model: "LocalModel | UpstreamModel") -> None:
        self._unfinished.set(model.num_unfinished)
        now = model.num_steps
        for counter, new, old in zip((self._steps, self._sequence_steps), now, self._noted, strict=True):
            if new > old:
                counter.inc(new - old)
        self._noted = now

    def add_tokens(self, completed: Completed) -> None:
        usage = completed.usage
        for kind, count in (("prompt", usage.prompt_tokens), ("completion", usage.completion_tokens)):
            if count:
                self._tokens.inc(count, tags={"kind": kind})


class RequestMetrics:
    """As `serve.gate.Metrics`, where Ray's nodes have theirs: one collector of all nodes gets each replica once, and
    needs no key. The service's port gives those of whichever replica its proxy asks."""

    def __init__(self, limits: Limits) -> None:
        # Ray's types allow for one tag, its code for any number.
        self._requests = metrics.Counter(
            "phf_http_requests",
            description="HTTP requests answered",
            tag_keys=("path", "status"),  # type: ignore[arg-type]
        )
        self._latency = metrics.Histogram(
            "phf_http_request_seconds",
            description="Time from request to last byte",
            boundaries=list(latency_buckets(limits)),
            tag_keys=("path",),
        )
        self._tokens = metrics.Counter(
            "phf_tokens",
            description="Tokens of completions",
            tag_keys=("model", "kind"),  # type: ignore[arg-type]
        )

    def add(self, answered: Answered) -> None:
        self._requests.inc(tags={"path": answered.path, "status": answered.status})
        self._latency.observe(answered.seconds, tags={"path": answered.path})
        for kind, count in answered.tokens.items():
            # Ray refuses to add nothing.
            if count:
                self._tokens.inc(count, tags={"model": str(answered.model), "kind": kind})


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
        toxicity = self._args.first_of("toxicity", able=HasClasses)
        pii = self._args.first_of("personal_data", able=FindsSpans)
        self._backend = Backend(
            models={name: RemoteModel(handle) for name, handle in models.items()},
            scorers={name: RemoteScorer(handle) for name, handle in scorers.items()},
            health=_Cached(deployments_health, seconds=HEALTH_S),
            toxicity=None if toxicity is None else toxicity.name,
            toxicity_languages=() if toxicity is None else toxicity.languages,
            pii=None if pii is None else pii.name,
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
            counted_by=(RequestMetrics(self._args.limits),),
        )


def limit_threads(num_cpus: float) -> None:
    """One thread of torch per CPU that the replica was given. Before torch is imported."""
    os.environ["OMP_NUM_THREADS"] = str(max(1, int(num_cpus)))


def prepare_process(num_cpus: float) -> None:
    """For a replica with a model; no progress bars in its log."""
    limit_threads(num_cpus)
    import torch
    from transformers.utils import logging as transformers_logging

    torch.set_num_threads(max(1, int(num_cpus)))
    transformers_logging.disable_progress_bar()


class _Remote:
    """Calls to the replicas of a deployment; `probed` is a method that answers at once."""

    def __init__(self, handle: DeploymentHandle[Any], *, probed: str):
        self._handle = handle
        self._probed = probed
        self._is_gone = _Cached(self._probe, seconds=WATCH_S)

    async def _ask(self, method: str, *arguments: Any) -> Any:
        """The replica's answer; tried again where a replica was lost, since every call here can be repeated."""
        for attempt in range(1, ATTEMPTS + 1):
            with _Translated():
                try:
                    answer = getattr(self._handle, method).remote(*arguments)
                    return await self._watched(answer, cancel=answer.cancel)
                except RayActorError:
                    if attempt == ATTEMPTS:
                        raise
                    log.warning("a replica was lost during a request, which is sent to another")
        raise AssertionError("the last attempt returns or raises")

    async def _watched(self, answer: Awaitable[Answer], *, cancel: Callable[[], None]) -> Answer:
        """The answer, unless the deployment goes away before it comes. `cancel` has the replica give up on it.

        A configuration without it is applied to the deployments and to the ingress at once: a request that reaches the
        old ingress a moment later would wait for a replica, and Serve would not tell it that none will come.
        """
        task = asyncio.ensure_future(_result_of(answer))
        try:
            while not (await asyncio.wait({task}, timeout=WATCH_S))[0]:
                if await self._is_gone():
                    raise ApiError(503, "what the request asks for has just been removed from this server; try again")
            return task.result()
        finally:
            if not task.done():
                task.cancel()
                # Serve does not do that where only the wait for the answer ends.
                cancel()

    async def _probe(self) -> bool:
        try:
            async with asyncio.timeout(WATCH_S):
                await getattr(self._handle, self._probed).remote()
        except DeploymentUnavailableError:
            return True
        except (TimeoutError, BackPressureError, RayActorError):
            # Busy, or a replica that is being replaced.
            return False
        return False


async def _result_of(answer: Awaitable[Answer]) -> Answer:
    return await answer


class RemoteModel(_Remote):
    def __init__(self, handle: DeploymentHandle[Any]):
        super().__init__(handle, probed="describe")
        self._describe = _Cached(lambda: self._ask("describe"), seconds=DESCRIPTION_S)

    async def complete(self, request: CompletionRequest) -> Completed:
        return await self._ask("complete", request)

    async def stream(self, request: CompletionRequest) -> AsyncIterator[Completed]:
        # Not tried again: a part of the text may be with the client.
        with _Translated():
            pieces: Any = self._handle.options(stream=True).stream.remote(request)
            try:
                yield await self._watched(anext(pieces), cancel=pieces.cancel)
                async for piece in pieces:
                    yield piece
            finally:
                pieces.cancel()

    async def describe(self) -> ModelDescription:
        return await self._describe()

    async def tokenize(self, text: str, *, add_special_tokens: bool) -> tuple[list[int], list[str]]:
        return await self._ask("tokenize", text, add_special_tokens)

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        return await self._ask("detokenize", token_ids)

    async def tokenizer_info(self) -> dict[str, Any]:
        return await self._ask("tokenizer_info")


class RemoteScorer(_Remote):
    def __init__(self, handle: DeploymentHandle[Any]):
        super().__init__(handle, probed="identity")

    async def score(self, texts: Sequence[str], *, segments: bool) -> ScoredJson:
        return await self._ask("score", texts, segments)

    async def spans(self, texts: Sequence[str]) -> list[list[Span]]:
        return await self._ask("spans", texts)

    async def class_scores(self, texts: Sequence[str]) -> list[dict[str, float] | str]:
        return await self._ask("class_scores", texts)

    async def segment_spans(self, text: str) -> list[tuple[int, int]]:
        return await self._ask("segment_spans", text)


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
