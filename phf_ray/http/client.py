"""JSON over HTTP to served models and scorers, with retries."""

import ipaddress
import random
from collections.abc import Mapping
from typing import Any

import httpx
import tenacity

from phf_ray.errors import ConfigError, ServiceError

CONNECT_S = 5.0


class RefusedError(ServiceError):
    """The server refused this request, and would refuse it again."""

    def __init__(self, message: str, status: int | None = None):
        super().__init__(message)
        self.status = status


class UnansweredError(Exception):
    """No answer yet: the same request may be answered later."""

    def __init__(self, problem: str, *, retry_after_s: float | None = None, may_be_done: bool = False):
        super().__init__(problem)
        self.retry_after_s = retry_after_s
        self.may_be_done = may_be_done
        """Whether the server may have done the work, and charge for it, although its answer was lost."""


class Client:
    """JSON over HTTP. Retries temporary failures (408, 429, 5xx, no connection) for `patience_s` seconds."""

    def __init__(self, url: str, *, key: str | None = None, patience_s: float = 60.0, timeout_s: float = 600.0):
        self.url = url.rstrip("/").removesuffix("/v1")
        self._patience_s = patience_s
        self._retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(UnansweredError),
            wait=wait_s,
            stop=tenacity.stop_before_delay(patience_s),
            reraise=True,
        )
        # A proxy from the environment can't reach a server on this machine.
        self._connect(key, timeout_s=timeout_s, trust_env=not is_on_this_machine(self.url))

    def _connect(self, key: str | None, *, timeout_s: float, trust_env: bool) -> None:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        timeout = httpx.Timeout(timeout_s, connect=CONNECT_S)
        self._http = httpx.Client(headers=headers, timeout=timeout, trust_env=trust_env)

    def get(self, path: str) -> dict[str, Any]:
        return self._ask("GET", path, None)

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer. Raises ServiceError if none came in time, RefusedError if the server refuses."""
        return self._ask("POST", path, body)

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        try:
            return self._retrying(self._ask_once, method, path, body)
        except UnansweredError as error:
            raise not_answered(f"{self.url}{path}", error, patience_s=self._patience_s) from None

    def _ask_once(self, method: str, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        try:
            response = self._http.request(method, self.url + path, json=body)
        except httpx.InvalidURL as error:
            raise ConfigError(f"{self.url} is not a URL ({error}); write http://host:port") from None
        except httpx.TransportError as error:
            raise UnansweredError(f"{type(error).__name__}: {error}") from None
        if response.is_success:
            return self._json(response)
        raise judged(f"{self.url}{path}", response.status_code, _message(response), response.headers)

    def _json(self, response: httpx.Response) -> dict[str, Any]:
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise RefusedError(
                f"{response.url} answered with something other than a JSON object; is this the right server?"
            )
        return answer


def judged(url: str, status: int, message: str, headers: Mapping[str, str]) -> Exception:
    """Return the error of an answer with this status: whether the same request may be answered later."""
    problem = f"status {status}: {message}"
    if status in (408, 429) or status >= 500:
        return UnansweredError(
            problem, retry_after_s=_retry_after(headers), may_be_done=status not in (429, *_NOTHING_DONE)
        )
    return RefusedError(f"{url} answered with {problem}{_remedy(status)}", status)


def not_answered(url: str, error: UnansweredError, *, patience_s: float) -> ServiceError:
    return ServiceError(f"{url} did not answer within {patience_s:g} s ({error}); is the server running?")


def is_on_this_machine(url: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        host = httpx.URL(url).host
    except httpx.InvalidURL:  # named at the first request
        return False
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        # Not by its beginning: 127.0.0.1.example.com may be anywhere.
        return host == "localhost"


# The server itself failed or is too busy. Other statuses come from what stands before it, and it may work on.
_NOTHING_DONE = (500, 503)

# Up to 8 s, at random, so that clients that were rejected together don't all retry at once.
_SPREAD = tenacity.wait_random_exponential(multiplier=0.25, max=8, min=0.1)


def wait_s(state: tenacity.RetryCallState) -> float:
    """The wait that the server asked for and a little more, or else one that doubles with each try."""
    error = state.outcome.exception() if state.outcome is not None else None
    asked_for = error.retry_after_s if isinstance(error, UnansweredError) else None
    return _SPREAD(state) if asked_for is None else asked_for * random.uniform(1, 1.2)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    try:
        return max(0.1, float(headers["retry-after"]))
    except (KeyError, ValueError):
        return None


def _message(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return response.text[:200]


def _remedy(status: int) -> str:
    if status in (401, 403):
        return (
            "; set a key that the server accepts: OPENAI_API_KEY for OpenAI, PHF_API_KEY for other servers, or name "
            "another variable (URL,key_env=VARIABLE)"
        )
    return ""
