"""The HTTP application as a function of its backend: `build_app(backend, ...) -> FastAPI`."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, contextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from serve.backends import Backend, Completed, ModelBackend
from serve.compat import add_compatible_endpoints
from serve.errors import EVENT_STREAM, LAST_EVENT, ApiError, error_body, error_event, error_headers, path_of
from serve.gate import CountsRequests, Gate, Metrics
from serve.keys import KeyRing
from serve.schemas import (
    CompletionRequest,
    CompletionResponse,
    DetokenizeRequest,
    DetokenizeResponse,
    ErrorResponse,
    HealthResponse,
    ModelCard,
    ModelList,
    ScoresRequest,
    ScoresResponse,
    TokenizeRequest,
    TokenizeResponse,
)
from serve.settings import CONTROL_CHOICES, Limits, split_model_id

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse} for status in (400, 401, 404, 408, 413, 429, 500, 502, 503, 504)
}
LISTING_S = 2.0
"""How long a list of models waits for one of them, which may be loading, or on a server that is down."""
STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {EVENT_STREAM: {"schema": {"type": "string"}}},
        "description": "With `stream`, server-sent events",
    }
}


def build_app(
    backend: Backend,
    *,
    keys: KeyRing | None = None,
    limits: Limits | None = None,
    access_log: bool = True,
    counted_by: Sequence[CountsRequests] = (),
) -> FastAPI:
    """`counted_by`: told of every request, as the application's own metrics are."""
    limits = limits or Limits()
    metrics = Metrics(limits)
    app = FastAPI(title="phf-ray", description="Scorers and language models over HTTP", responses=ERRORS)
    add_error_handlers(app)
    app.add_middleware(
        Gate,
        keys=keys or KeyRing(frozenset()),
        limits=limits,
        counted_by=(metrics, *counted_by),
        access_log=access_log,
    )
    add_completions(app, backend, limits=limits)
    add_models(app, backend)
    add_tokenization(app, backend)
    add_scores(app, backend)
    add_compatible_endpoints(app, backend)

    @app.get("/health", responses={503: {"model": HealthResponse}})
    async def health() -> HealthResponse:
        """Liveness with the state of each deployment; 503 until all are ready. Needs no key."""
        found = await backend.health()
        content = found.model_dump(mode="json")
        return JSONResponse(content, status_code=200 if found.status == "ok" else 503)  # type: ignore[return-value]

    @app.get("/metrics", response_class=Response)
    async def prometheus() -> Response:
        """Prometheus text: requests, latency and tokens of this ingress replica."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app


def add_error_handlers(app: FastAPI) -> None:
    def answer(request: Request, error: ApiError) -> JSONResponse:
        body = error_body(path_of(request.scope), error.status, error.message, param=error.param, code=error.code)
        return JSONResponse(body, error.status, dict(error_headers(error.status)))

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> JSONResponse:
        return answer(request, error)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        return answer(request, ApiError(error.status_code, str(error.detail)))

    @app.exception_handler(RequestValidationError)
    async def validation_error(request: Request, error: RequestValidationError) -> JSONResponse:
        return answer(request, refusal_of(error))


def refusal_of(error: RequestValidationError) -> ApiError:
    """Field and message of the first problem; too many texts are one in any form that the field can have."""
    details = error.errors()
    too_long = next((detail for detail in details if detail["type"] == "too_long"), None)
    if too_long is not None:
        num, limit = too_long["ctx"]["actual_length"], too_long["ctx"]["max_length"]
        field = str(too_long["loc"][1])
        return ApiError(413, f"{field}: {num} are above the limit of {limit}; send them in several requests", field)
    param, message = describe_validation(error)
    return ApiError(400, message, param)


def describe_validation(error: RequestValidationError) -> tuple[str | None, str]:
    """Field and message of the first problem."""
    details = error.errors()
    path = [str(part) for part in details[0]["loc"] if part != "body"]
    if details[0]["type"] == "json_invalid":
        return None, f"the body is not valid JSON: {details[0]['ctx']['error']}"
    if isinstance(error.body, bytes) and error.body:
        return None, "the body was not read as JSON; send it with Content-Type: application/json"
    if details[0]["type"] == "extra_forbidden":
        return path[0], f"unknown field {path[0]!r}; remove it"
    if path == ["prompt"] or path[:1] == ["prompt"]:
        return "prompt", "prompt must be a text, a list of texts, a list of token ids, or a list of those"
    if not path:
        return None, f"the body must be a JSON object: {details[0]['msg']}"
    return path[0], f"{'.'.join(path)}: {details[0]['msg']}"


def find_model(backend: Backend, model_id: str) -> tuple[str, ModelBackend, str | None]:
    """Name, backend and the control that the id's suffix asks for."""
    name, control = split_model_id(model_id)
    if name not in backend.models:
        known = ", ".join(sorted(backend.models)) or "none"
        raise ApiError(404, f"there is no model {model_id!r}; served models: {known}", "model", "model_not_found")
    return name, backend.models[name], control


def add_completions(app: FastAPI, backend: Backend, *, limits: Limits) -> None:
    num_streams = 0

    @contextmanager
    def counted_stream() -> Iterator[None]:
        nonlocal num_streams
        if num_streams >= limits.concurrent_streams:
            raise ApiError(429, f"{num_streams} streams are open; try again later, or without stream")
        num_streams += 1
        try:
            yield
        finally:
            num_streams -= 1

    @app.post("/models/{model_id}/v1/completions", response_model=CompletionResponse, responses=STREAM)
    async def completions_of_model(model_id: str, body: CompletionRequest, request: Request) -> Response:
        """As `/v1/completions`, where `/models/{model_id}` is the base of a client that knows one model per server."""
        name, _, suffix = find_model(backend, model_id)
        own_name, own_suffix = split_model_id(body.model)
        if own_name != name or (suffix and own_suffix and suffix != own_suffix):
            raise ApiError(400, f"model {body.model!r} and the URL's {model_id!r} contradict each other", "model")
        return await completions(body if suffix is None else body.model_copy(update={"model": model_id}), request)

    @app.post("/v1/completions", response_model=CompletionResponse, responses=STREAM)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Text completions: OpenAI's, with vLLM's `min_tokens`, `top_k`, `ignore_eos`; `control` chooses the control
        token of a conditionally trained model, as does a suffix of the model id (`NAME:bad`)."""
        name, model, suffix = find_model(backend, body.model)
        if suffix is not None and body.control not in (None, suffix):
            raise ApiError(400, f"model {body.model!r} and control {body.control!r} contradict each other", "control")
        asked = body.model_copy(
            update={
                "control": body.control or suffix,
                # A seed from here on: a retry on another replica must give the same text.
                "seed": secrets.randbits(63) if body.seed is None else body.seed,
            }
        )
        request.state.model = name
        head: dict[str, Any] = {"id": f"cmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": body.model}
        if not body.stream:
            completed = await model.complete(asked)
            request.state.tokens = _tokens(completed)
            answer = CompletionResponse.model_construct(**head, choices=completed.choices, usage=completed.usage)
            return Response(answer.model_dump_json(), media_type="application/json")
        async with AsyncExitStack() as held:
            held.enter_context(counted_stream())
            pieces = await held.enter_async_context(aclosing(model.stream(asked)))  # type: ignore[type-var]
            # The first piece decides between an error with a status and a stream.
            first = await anext(pieces)
            lines = _events(first, pieces, head=head, body=body, state=request.state)
            return _EventStream(lines, held=held.pop_all())


class _EventStream(StreamingResponse):
    """Server-sent events; `held` is closed after the last one, and also where the first is never asked for."""

    def __init__(self, lines: AsyncIterator[str], *, held: AsyncExitStack):
        super().__init__(lines, media_type=EVENT_STREAM, headers={"Cache-Control": "no-cache"})
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._held:
            await super().__call__(scope, receive, send)


async def _events(
    first: Completed,
    pieces: AsyncIterator[Completed],
    *,
    head: Mapping[str, Any],
    body: CompletionRequest,
    state: Any,
) -> AsyncIterator[str]:
    include_usage = body.stream_options is not None and body.stream_options.include_usage
    last = first
    try:
        for choice in first.choices:
            yield _event(CompletionResponse.model_construct(**head, choices=[choice], usage=None))
        async for piece in pieces:
            last = piece
            for choice in piece.choices:
                yield _event(CompletionResponse.model_construct(**head, choices=[choice], usage=None))
        if include_usage:
            yield _event(CompletionResponse.model_construct(**head, choices=[], usage=last.usage))
    except ApiError as error:
        # Any other failure, and the end of the time, the gate tells the client in the same way.
        yield error_event("/v1/completions", error)
    finally:
        state.tokens = _tokens(last)
    yield LAST_EVENT


def _event(response: CompletionResponse) -> str:
    return f"data: {response.model_dump_json()}\n\n"


def _tokens(completed: Completed) -> dict[str, int]:
    return {"prompt": completed.usage.prompt_tokens, "completion": completed.usage.completion_tokens}


def add_models(app: FastAPI, backend: Backend) -> None:
    created = int(time.time())

    async def card(model_id: str) -> ModelCard:
        _, model, _ = find_model(backend, model_id)
        described = await model.describe()
        control = None
        if described.control is not None:
            control = {
                "policy": described.control["policy"],
                "default": "good",
                "suffixes": [f":{choice}" for choice in CONTROL_CHOICES],
            }
        return ModelCard(
            id=model_id,
            created=created,
            max_model_len=described.max_model_len,
            control=control,
            task=described.task,
            objective=described.objective,
            step=described.step,
            fingerprint=described.fingerprint,
            checkpoint=described.checkpoint,
        )

    async def listed(model_id: str) -> ModelCard:
        try:
            async with asyncio.timeout(LISTING_S):
                return await card(model_id)
        except (TimeoutError, ApiError):
            return ModelCard(id=model_id, created=created)

    @app.get("/v1/models")
    async def list_models() -> ModelList:
        """All models; one that does not answer within two seconds by its id alone."""
        return ModelList(data=list(await asyncio.gather(*map(listed, backend.models))))

    @app.get("/v1/models/{model_id}")
    async def retrieve_model(model_id: str) -> ModelCard:
        return await card(model_id)


async def chosen_model(backend: Backend, model_id: str | None) -> ModelBackend:
    """The model asked for; without one, any, if all have the same tokenizer (lm-eval names none)."""
    if model_id is not None:
        return find_model(backend, model_id)[1]
    if not backend.models:
        raise ApiError(404, "no model is served", "model", "model_not_found")
    models = list(backend.models.values())
    hashes = {(await model.describe()).tokenizer_hash for model in models[1:] or ()}
    if models[1:] and hashes != {(await models[0].describe()).tokenizer_hash}:
        raise ApiError(
            400, f"the tokenizers of {', '.join(sorted(backend.models))} differ; name one by `model`", "model"
        )
    return models[0]


def add_tokenization(app: FastAPI, backend: Backend) -> None:
    @app.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> TokenizeResponse:
        model = await chosen_model(backend, body.model)
        ids, strings = await model.tokenize(body.prompt, add_special_tokens=body.add_special_tokens)
        limit = (await model.describe()).max_model_len
        return TokenizeResponse(
            count=len(ids),
            max_model_len=limit,
            tokens=ids,
            token_strs=strings if body.return_token_strs else None,
        )

    @app.post("/models/{model_id}/tokenize")
    async def tokenize_of_model(model_id: str, body: TokenizeRequest) -> TokenizeResponse:
        return await tokenize(body.model_copy(update={"model": model_id}))

    @app.post("/detokenize")
    async def detokenize(body: DetokenizeRequest) -> DetokenizeResponse:
        return DetokenizeResponse(prompt=await (await chosen_model(backend, body.model)).detokenize(body.tokens))

    @app.post("/models/{model_id}/detokenize")
    async def detokenize_of_model(model_id: str, body: DetokenizeRequest) -> DetokenizeResponse:
        return await detokenize(body.model_copy(update={"model": model_id}))

    @app.get("/tokenizer_info")
    async def tokenizer_info(model: str | None = None) -> dict[str, Any]:
        return await (await chosen_model(backend, model)).tokenizer_info()

    @app.get("/models/{model_id}/tokenizer_info")
    async def tokenizer_info_of_model(model_id: str) -> dict[str, Any]:
        return await tokenizer_info(model_id)


def add_scores(app: FastAPI, backend: Backend) -> None:
    @app.post("/v1/scores", response_model=ScoresResponse)
    async def scores(body: ScoresRequest, request: Request) -> Response:
        """Score texts; higher is worse. A text that can't be scored has score null and an error."""
        if body.scorer not in backend.scorers:
            known = ", ".join(sorted(backend.scorers)) or "none"
            raise ApiError(
                404, f"there is no scorer {body.scorer!r}; served scorers: {known}", "scorer", "scorer_not_found"
            )
        request.state.model = body.scorer
        scored = await backend.scorers[body.scorer].score(body.texts, segments=body.segments)
        return Response(b'{"scorer":%b,"data":%b}' % (scored.identity, scored.data), media_type="application/json")
