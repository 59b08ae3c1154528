"""The application on Ray Serve: one deployment per model, one per scorer, and an ingress that routes to them."""

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
from phf_ray.scorers.base import FindsSpans, HasClasses, ReadsPrompts
from serve.api.application import build_app
from serve.backends import Asked, Backend, Completed, ModelDescription, ScoredJson
from serve.chat_schemas import TokenizeRequest
from serve.errors import ApiError
from serve.gate import Answered, latency_buckets
from serve.keys import KeyRing, load_keys, warnings_without_keys
from serve.resources import num_threads
from serve.schemas import DeploymentHealth, HealthResponse, ScorerIdentityBody
from serve.settings import Limits, ServeArgs, ServedModel, ServedScorer

if TYPE_CHECKING:
    from serve.engines.local import LocalModel
    from serve.engines.upstream import UpstreamModel

log = logging.getLogger("ray.serve.phf")

# Losing one replica during a request can be an accident; losing a second one in a row is not.
ATTEMPTS = 2
DESCRIPTION_S = 30.0
HEALTH_S = 1.0
# A request that waits longer checks at this interval whether its deployment still exists.
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

    async def complete(self, request: Asked) -> Completed:
        with self._metrics.counted(self._model):
            completed = await self._model.complete(request)
            self._metrics.add_tokens(completed)
            return completed

    async def stream(self, request: Asked) -> AsyncIterator[Completed]:
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

    async def tokenize_messages(self, asked: TokenizeRequest) -> tuple[list[int], list[str]]:
        return await self._model.tokenize_messages(asked)

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        return await self._model.detokenize(token_ids)

    async def tokenizer_info(self) -> dict[str, Any]:
        return await self._model.tokenizer_info()

    async def check_health(self) -> None:
        # Serve calls this every few seconds, even during long requests. All counting happens on the event loop.
        self._metrics.note_engine(self._model)
        self._model.check_health()


@serve.deployment
class ScorerReplica:
    def __init__(self, settings: dict[str, Any], request_timeout_s: float):
        scorer = ServedScorer.model_validate(settings)
        # The scorer's process gets this environment.
        limit_threads(scorer.num_cpus)
        from serve.engines.scorer import LocalScorer

        self._scorer = LocalScorer(scorer)
        self._request_timeout_s = request_timeout_s
        self._texts = metrics.Counter("phf_scored_texts", description="Texts sent to be scored", tag_keys=("outcome",))

    async def score(self, texts: Sequence[str], segments: bool, prompts: Sequence[str] | None = None) -> ScoredJson:
        found = await self._scorer.score(texts, segments=segments, prompts=prompts)
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
        """Raise RuntimeError if the scorer still works on a request that has timed out. Serve replaces the replica.

        Each text has a limit of its own, so this only happens if a request has many texts that take long.
        """
        if self._scorer.running_s > self._request_timeout_s:
            raise RuntimeError(f"the scorer has worked on one request for {self._scorer.running_s:.0f} s")


class ModelMetrics:
    """Metrics of one replica, on the metrics port of Ray's nodes.

    Ray prepends `ray_`, appends `_total` to counters, and adds the deployment and the replica as tags. Sequence steps
    divided by steps is the engine's mean batch size.
    """

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
    """The same metrics as `serve.gate.Metrics`, on the metrics port of Ray's nodes.

    A collector of all nodes gets each replica once and needs no key. The service's own port reports only the replica
    that its proxy happens to ask.
    """

    def __init__(self, limits: Limits) -> None:
        # Ray's type hints allow one tag; its code allows any number.
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
            # Ray refuses to add 0.
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
        reward = self._args.first_of("reward", able=ReadsPrompts)
        self._backend = Backend(
            models={name: RemoteModel(handle) for name, handle in models.items()},
            scorers={name: RemoteScorer(handle) for name, handle in scorers.items()},
            health=_Cached(deployments_health, seconds=HEALTH_S),
            toxicity=None if toxicity is None else toxicity.name,
            toxicity_languages=() if toxicity is None else toxicity.languages,
            pii=None if pii is None else pii.name,
            pii_types=None if pii is None else pii.span_types,
            reward=None if reward is None else reward.name,
        )

        if self._args.access_log:
            # `jobs.serve` limits Serve's log to warnings, which would hide the access log.
            log.setLevel(logging.INFO)

    def __serve_build_asgi_app__(self) -> FastAPI:
        keys = KeyRing(load_keys(self._args.keys))
        for warning in warnings_without_keys(self._args) if keys.is_empty else []:
            log.warning(warning)
        return build_app(
            self._backend,
            keys=keys,
            limits=self._args.limits,
            access_log=self._args.access_log,
            counted_by=(RequestMetrics(self._args.limits),),
            allow_origins=self._args.allow_origins,
        )


def limit_threads(num_cpus: float) -> None:
    """Give torch one thread per CPU of the replica. Call this before torch is imported."""
    os.environ["OMP_NUM_THREADS"] = str(num_threads(num_cpus))


def prepare_process(num_cpus: float) -> None:
    """Limit torch's threads and keep progress bars out of the log, for a replica with a model."""
    limit_threads(num_cpus)
    import torch
    from transformers.utils import logging as transformers_logging

    torch.set_num_threads(num_threads(num_cpus))
    transformers_logging.disable_progress_bar()


class _Remote:
    """Calls a deployment's replicas; `probed` names a method that answers at once."""

    def __init__(self, handle: DeploymentHandle[Any], *, probed: str):
        self._handle = handle
        self._probed = probed
        self._is_gone = _Cached(self._probe, seconds=WATCH_S)

    async def _ask(self, method: str, *arguments: Any) -> Any:
        """Return the replica's answer. Every call here can be repeated, so a lost replica leads to a retry."""
        for attempt in range(1, ATTEMPTS + 1):
            with _Translated():
                try:
                    answer = getattr(self._handle, method).remote(*arguments)
                    return await self._watched(answer, cancel=answer.cancel)
                except RayActorError:
                    if attempt == ATTEMPTS:
                        raise
                    log.warning("a replica was lost during a request; another replica gets the request")
        raise AssertionError("the last attempt returns or raises")

    async def _watched(self, answer: Awaitable[Answer], *, cancel: Callable[[], None]) -> Answer:
        """Return the answer, or raise ApiError 503 if the deployment is removed first. `cancel` stops the call.

        Serve applies a new configuration to the deployments and the ingress at once. Without this check, a request that
        reaches the old ingress a moment later would wait for a replica of a removed deployment, and Serve would not
        tell it that none will come.
        """
        task = asyncio.ensure_future(_result_of(answer))
        try:
            while not (await asyncio.wait({task}, timeout=WATCH_S))[0]:
                if await self._is_gone():
                    raise ApiError(
                        503, "the requested model or scorer has just been removed from this server; try again"
                    )
            return task.result()
        finally:
            if not task.done():
                task.cancel()
                # Serve does not cancel the call if only the wait for its answer ends.
                cancel()

    async def _probe(self) -> bool:
        try:
            async with asyncio.timeout(WATCH_S):
                await getattr(self._handle, self._probed).remote()
        except DeploymentUnavailableError:
            return True
        except (TimeoutError, BackPressureError, RayActorError):
            # The replica is busy or being replaced.
            return False
        return False


async def _result_of(answer: Awaitable[Answer]) -> Answer:
    return await answer


class RemoteModel(_Remote):
    def __init__(self, handle: DeploymentHandle[Any]):
        super().__init__(handle, probed="describe")
        self._describe = _Cached(lambda: self._ask("describe"), seconds=DESCRIPTION_S)

    async def complete(self, request: Asked) -> Completed:
        return await self._ask("complete", request)

    async def stream(self, request: Asked) -> AsyncIterator[Completed]:
        # Not retried: the client may already have part of the text.
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

    async def tokenize_messages(self, asked: TokenizeRequest) -> tuple[list[int], list[str]]:
        return await self._ask("tokenize_messages", asked)

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        return await self._ask("detokenize", token_ids)

    async def tokenizer_info(self) -> dict[str, Any]:
        return await self._ask("tokenizer_info")


class RemoteScorer(_Remote):
    def __init__(self, handle: DeploymentHandle[Any]):
        super().__init__(handle, probed="identity")

    async def score(self, texts: Sequence[str], *, segments: bool, prompts: Sequence[str] | None = None) -> ScoredJson:
        return await self._ask("score", texts, segments, prompts)

    async def spans(self, texts: Sequence[str]) -> list[list[Span]]:
        return await self._ask("spans", texts)

    async def class_scores(self, texts: Sequence[str]) -> list[dict[str, float] | str]:
        return await self._ask("class_scores", texts)

    async def segment_spans(self, text: str) -> list[tuple[int, int]]:
        return await self._ask("segment_spans", text)


class _Translated:
    """Translates exceptions of Ray and of replicas to ApiError."""

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
    """Caches the answer of an asynchronous function for `seconds`; failures are not cached."""

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
    """Return the state of all deployments of this application, from Serve's controller."""
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
    # A deployment that is scaled to zero is HEALTHY; one that is being updated is ready if old replicas still answer.
    is_ready = all(one.status == "HEALTHY" or one.replicas.get("RUNNING", 0) > 0 for one in found.values())
    return HealthResponse(status="ok" if is_ready else "not_ready", deployments=found)
