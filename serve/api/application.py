"""The HTTP application as a function of its backend: `build_app(backend, ...) -> FastAPI`."""

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from serve.api.chat import add_chat
from serve.api.completions import add_completions
from serve.api.methods import add_heads, allowed_methods
from serve.api.models import add_models
from serve.api.scores import add_scores
from serve.api.streams import OpenStreams
from serve.api.tokenization import add_tokenization
from serve.backends import Backend
from serve.compat.endpoints import add_compatible_endpoints
from serve.cors import CrossOrigin
from serve.errors import ApiError, error_body, error_headers, path_of
from serve.gate import CountsRequests, Gate, Metrics
from serve.keys import KeyRing
from serve.schemas import ErrorResponse, HealthResponse
from serve.settings import Limits

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse} for status in (400, 401, 404, 408, 413, 415, 429, 500, 502, 503, 504)
}


def build_app(
    backend: Backend,
    *,
    keys: KeyRing | None = None,
    limits: Limits | None = None,
    access_log: bool = True,
    counted_by: Sequence[CountsRequests] = (),
    allow_origins: Sequence[str] = (),
) -> FastAPI:
    """Build the application. Each counter in `counted_by` gets every request, like the application's own metrics.

    `allow_origins`: origins whose pages may ask from a browser.
    """
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
    if allow_origins:
        # Added last, it is the outermost.
        app.add_middleware(CrossOrigin, origins=allow_origins)
    streams = OpenStreams(limits)
    add_completions(app, backend, streams=streams)
    add_chat(app, backend, streams=streams)
    add_models(app, backend)
    add_tokenization(app, backend)
    add_scores(app, backend)
    add_compatible_endpoints(app, backend)

    @app.get("/health", responses={503: {"model": HealthResponse}})
    async def health() -> HealthResponse:
        """Report liveness and the state of each deployment; 503 until all are ready. Needs no key."""
        found = await backend.health()
        content = found.model_dump(mode="json")
        return JSONResponse(content, status_code=200 if found.status == "ok" else 503)  # type: ignore[return-value]

    @app.get("/metrics", response_class=Response)
    async def prometheus() -> Response:
        """Prometheus text: requests, latency and tokens of this ingress replica."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    add_heads(app)
    return app


def add_error_handlers(app: FastAPI) -> None:
    def answer(request: Request, error: ApiError, headers: Mapping[str, str] | None = None) -> JSONResponse:
        body = error_body(path_of(request.scope), error.status, error.message, param=error.param, code=error.code)
        return JSONResponse(body, error.status, {**error_headers(error.status), **(headers or {})})

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> JSONResponse:
        return answer(request, error)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code != 405:
            reason = None if error.__cause__ is None else why_unreadable(error.__cause__)
            return answer(request, ApiError(error.status_code, reason or str(error.detail)))
        # Starlette's own `Allow` lists only the first of several routes with the same path.
        allowed = allowed_methods(request)
        refusal = ApiError(405, f"{request.method} can't be used on {path_of(request.scope)}; use {allowed}")
        return answer(request, refusal, {"Allow": allowed})

    @app.exception_handler(RequestValidationError)
    async def validation_error(request: Request, error: RequestValidationError) -> JSONResponse:
        return answer(request, refusal_of(error))


def refusal_of(error: RequestValidationError) -> ApiError:
    """Return the error for the first problem. Too many texts are a 413, whatever form the field has."""
    details = error.errors()
    too_long = next((detail for detail in details if detail["type"] == "too_long"), None)
    if too_long is not None:
        num, limit = too_long["ctx"]["actual_length"], too_long["ctx"]["max_length"]
        field = str(too_long["loc"][1])
        return ApiError(
            413, f"{field}: {num} items exceed the limit of {limit}; split them into several requests", field
        )
    param, message = describe_validation(error)
    return ApiError(400, message, param)


OWN_CHECK = "value_error"
"""pydantic's name for a ValueError of one of our validators."""


def describe_validation(error: RequestValidationError) -> tuple[str | None, str]:
    """Return the field and the message of the problem that says most; of several, the first."""
    details = error.errors()
    # Our own checks say what is wrong. pydantic's name a type that the field has besides, but not in this request.
    chosen = next((detail for detail in details if detail["type"] == OWN_CHECK), details[0])
    # JSON can spell half of a surrogate pair in a field's name, and no answer can hold it.
    path = [str(part).encode(errors="backslashreplace").decode() for part in chosen["loc"] if part != "body"]
    if chosen["type"] == OWN_CHECK and path:
        items = "".join(f"[{part}]" for part in chosen["loc"] if isinstance(part, int))
        return path[0], f"{path[0]}{items}: {chosen['ctx']['error']}"
    if chosen["type"] == "string_unicode":
        # pydantic's words for a lone surrogate in a field's name, or in a text that it can't hold.
        field = path[0] if path else None
        return field, f"{field or 'the name of a field'} holds a lone surrogate; remove it"
    if chosen["type"] == "json_invalid":
        return None, f"the body is not valid JSON: {chosen['ctx']['error']}"
    if isinstance(error.body, bytes) and error.body:
        return None, "the body was not read as JSON; send it with Content-Type: application/json"
    if chosen["type"] == "extra_forbidden":
        name = ".".join(path)
        return name, f"unknown field {name!r}; remove it"
    if path[:1] == ["prompt"]:
        return "prompt", "prompt must be a text, a list of texts, a list of token ids, or a list of such lists"
    if not path:
        return None, f"the body must be a JSON object: {chosen['msg']}"
    # pydantic also puts the types of a union into the path, such as `list[str]`.
    shown = ".".join(part for part in path if "[" not in part)
    return path[0], f"{shown or path[0]}: {chosen['msg']}"


GZIP = b"\x1f\x8b"


def why_unreadable(cause: BaseException) -> str | None:
    """Return why the framework could not parse a body as JSON, from the exception that it hides."""
    if isinstance(cause, UnicodeDecodeError):
        if cause.object.startswith(GZIP):
            return "the body is compressed with gzip; send it as it is"
        wrong = cause.object[cause.start]
        return f"the body is not valid UTF-8: the byte 0x{wrong:02x} at position {cause.start}; encode it as UTF-8"
    if isinstance(cause, RecursionError):
        return "the body's JSON is nested too deeply"
    if isinstance(cause, ValueError):
        return f"the body can't be read as JSON: {cause}"
    return None
