"""The HTTP application as a function of its backend: `build_app(backend, ...) -> FastAPI`."""

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from serve.api.completions import add_completions
from serve.api.methods import add_heads, allowed_methods
from serve.api.models import add_models
from serve.api.scores import add_scores
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
    status: {"model": ErrorResponse} for status in (400, 401, 404, 408, 413, 429, 500, 502, 503, 504)
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
    add_completions(app, backend, limits=limits)
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
            return answer(request, ApiError(error.status_code, str(error.detail)))
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


def describe_validation(error: RequestValidationError) -> tuple[str | None, str]:
    """Return the field and the message of the first problem."""
    details = error.errors()
    path = [str(part) for part in details[0]["loc"] if part != "body"]
    if details[0]["type"] == "json_invalid":
        return None, f"the body is not valid JSON: {details[0]['ctx']['error']}"
    if isinstance(error.body, bytes) and error.body:
        return None, "the body was not read as JSON; send it with Content-Type: application/json"
    if details[0]["type"] == "extra_forbidden":
        return path[0], f"unknown field {path[0]!r}; remove it"
    if path == ["prompt"] or path[:1] == ["prompt"]:
        return "prompt", "prompt must be a text, a list of texts, a list of token ids, or a list of such lists"
    if not path:
        return None, f"the body must be a JSON object: {details[0]['msg']}"
    return path[0], f"{'.'.join(path)}: {details[0]['msg']}"
