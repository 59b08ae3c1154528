"""The gate that every request passes: request id, size, key, requests in flight, timeout, metrics, access log."""

import asyncio
import json
import logging
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import parse_qs

from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.errors import EVENT_STREAM, LAST_EVENT, ApiError, error_body, error_event, error_headers, path_of
from serve.forwarding import sign_of_a_proxy
from serve.keys import OPEN_PATHS, KeyRing, is_loopback
from serve.settings import Limits

log = logging.getLogger("ray.serve.phf")


LATENCIES_S = (*Histogram.DEFAULT_BUCKETS[:-1], 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0)
"""Prometheus' own buckets, which end at 10 s, and longer ones for long texts."""


def latency_buckets(limits: Limits) -> tuple[float, ...]:
    """Return upper bounds in seconds; the last is the longest time that a request may take."""
    longest = limits.request_timeout_s
    return (*(seconds for seconds in LATENCIES_S if seconds < longest), longest)


@dataclass(frozen=True, slots=True)
class Answered:
    """An answered request, as metrics count it."""

    path: str
    status: str
    seconds: float
    model: str | None
    tokens: Mapping[str, int]
    """Number of tokens by kind, `prompt` and `completion`; empty if the request completed nothing."""


class CountsRequests(Protocol):
    def add(self, answered: Answered) -> None: ...


class Metrics:
    """Metrics of one ingress replica; Ray's own metrics cover the rest. Prometheus appends `_total` to counters."""

    def __init__(self, limits: Limits) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "phf_http_requests", "HTTP requests answered", ["path", "status"], registry=self.registry
        )
        self.latency = Histogram(
            "phf_http_request_seconds",
            "Time from request to last byte",
            ["path"],
            registry=self.registry,
            buckets=latency_buckets(limits),
        )
        self.tokens = Counter("phf_tokens", "Tokens of completions", ["model", "kind"], registry=self.registry)

    def add(self, answered: Answered) -> None:
        self.requests.labels(answered.path, answered.status).inc()
        self.latency.labels(answered.path).observe(answered.seconds)
        for kind, count in answered.tokens.items():
            self.tokens.labels(answered.model, kind).inc(count)


class Gate:
    """ASGI middleware. Handlers may put `model` and `tokens` into `request.state` for the access log."""

    def __init__(
        self, app: ASGIApp, *, keys: KeyRing, limits: Limits, counted_by: Sequence[CountsRequests], access_log: bool
    ):
        self._app, self._keys, self._limits, self._counted_by = app, keys, limits, counted_by
        self._access_log = access_log
        self._num_in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        # Serve's proxy gives every request an id and adds it to the answer. Without the proxy, the gate does both.
        request_id = headers.get("x-request-id")
        exchange = _Exchange(send, request_id=request_id or uuid.uuid4().hex, adds_id=request_id is None)
        state = scope.setdefault("state", {})
        state["request_id"] = exchange.request_id
        started = time.perf_counter()
        limit = asyncio.timeout(self._limits.request_timeout_s)
        self._num_in_flight += 1
        try:
            self._admit(scope, headers)
            async with limit:
                await self._app(scope, await _replayed(receive, limit=self._limits.body_bytes), exchange.send)
        except ApiError as error:
            await exchange.answer(scope, receive, error)
        except Exception:
            if limit.expired():
                failed = ApiError(408, f"the request took more than {self._limits.request_timeout_s:g} s")
            else:
                # The outermost handler: the traceback goes to the log, under the request's id, and not to the client.
                log.exception("request %s failed", exchange.request_id)
                failed = ApiError(500, "internal error; the server's log has the cause under the request id")
            await exchange.answer(scope, receive, failed)
        finally:
            self._num_in_flight -= 1
            self._note(scope, exchange, time.perf_counter() - started)

    def _admit(self, scope: Scope, headers: dict[str, str]) -> None:
        if path_of(scope) in OPEN_PATHS:
            # A busy server must still pass its health probe.
            return
        self._check_key(scope, headers)
        if self._num_in_flight > self._limits.concurrent_requests:
            raise ApiError(429, f"{self._limits.concurrent_requests} requests are already in progress; try again later")
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > self._limits.body_bytes:
            raise _too_large(self._limits.body_bytes)
        encoding = headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            raise ApiError(
                415,
                f"the body has the Content-Encoding {encoding!r}, which this server does not read; send it as it is",
            )

    def _check_key(self, scope: Scope, headers: dict[str, str]) -> None:
        if self._keys.is_empty:
            peer = scope.get("client")
            if not is_loopback(peer[0] if peer else None):
                raise ApiError(
                    401, "no API keys are configured, so the server answers only its own machine", None, "no_keys"
                )
            sign = sign_of_a_proxy(headers, http_version=scope.get("http_version"))
            if sign is not None:
                raise ApiError(
                    401,
                    "no API keys are configured, so the server answers only its own machine, and this request came "
                    f"through a proxy ({sign}); start the server with API keys",
                    None,
                    "no_keys",
                )
            return
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            # Perspective's clients send the key in the query.
            key = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("key", [""])[0]
        if not key or not self._keys.accepts(key.strip()):
            raise ApiError(401, "no valid API key; send `Authorization: Bearer <key>`", None, "invalid_api_key")

    def _note(self, scope: Scope, exchange: "_Exchange", seconds: float) -> None:
        state: dict[str, Any] = scope["state"]
        # Count by the route's pattern: a client can make up any number of paths.
        path = getattr(scope.get("route"), "path_format", "other")
        status, tokens = str(exchange.status or "closed"), state.get("tokens", {})
        for counter in self._counted_by:
            counter.add(Answered(path, status, seconds, state.get("model"), tokens))
        if self._access_log:
            entry = {
                "request_id": exchange.request_id,
                "method": scope["method"],
                "path": scope["path"],
                "status": exchange.status,
                "model": state.get("model"),
                "tokens": state.get("tokens"),
                "latency_ms": round(seconds * 1000, 1),
            }
            log.info("access %s", json.dumps(entry))


class _Exchange:
    """Sends one answer and adds the request id to its headers."""

    def __init__(self, send: Send, *, request_id: str, adds_id: bool):
        self._send = send
        self.request_id = request_id
        self._adds_id = adds_id
        self.status: int | None = None
        self._is_stream = False
        self._takes_event = False

    async def send(self, message: Message) -> None:
        is_last = False
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self._is_stream = dict(message["headers"]).get(b"content-type", b"").startswith(EVENT_STREAM.encode())
            if self._adds_id:
                message["headers"] = [*message["headers"], (b"x-request-id", self.request_id.encode("latin-1"))]
        else:
            is_last = not message.get("more_body", False)
        # If a message does not get through, no event can follow: the client is gone or has stopped reading.
        self._takes_event = False
        await self._send(message)
        self._takes_event = self._is_stream and not is_last

    async def answer(self, scope: Scope, receive: Receive, error: ApiError) -> None:
        """Send the error, or end a stream of events with it. Any other answer that has begun can only be cut off."""
        if self.status is None:
            body = error_body(path_of(scope), error.status, str(error), param=error.param, code=error.code)
            await JSONResponse(body, error.status, dict(error_headers(error.status)))(scope, receive, self.send)
        elif self._takes_event:
            events = error_event(path_of(scope), error) + LAST_EVENT
            await self.send({"type": "http.response.body", "body": events.encode()})


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"the body is larger than {limit} bytes; send fewer or shorter texts per request")


async def _replayed(receive: Receive, *, limit: int) -> Receive:
    """Read the body up to the limit, and return a `receive` that replays it.

    All handlers need the whole body, and the framework would hide our 413 behind an error of its own.
    """
    messages: list[Message] = []
    num_bytes = 0
    while not messages or messages[-1].get("more_body", False):
        messages.append(await receive())
        num_bytes += len(messages[-1].get("body", b""))
        if num_bytes > limit:
            raise _too_large(limit)
    messages.reverse()

    async def receive_again() -> Message:
        return messages.pop() if messages else await receive()

    return receive_again
