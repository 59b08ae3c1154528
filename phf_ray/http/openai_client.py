"""Asks OpenAI-compatible servers with OpenAI's own SDK, which knows their headers and errors."""

import json
import os
from collections.abc import Mapping
from typing import Any

from phf_ray.errors import ConfigError
from phf_ray.http.client import CONNECT_S, Client, RefusedError, UnansweredError, judged
from phf_ray.http.keys import is_openai

_ORGANIZATION, _PROJECT = (
    ("OPENAI_ORG_ID", "OPENAI_ORG", "OPENAI_ORGANIZATION"),
    ("OPENAI_PROJECT_ID", "OPENAI_PROJECT"),
)

_NOT_SENT = ("ConnectError", "ConnectTimeout", "PoolTimeout", "UnsupportedProtocol")
"""By name, because versions of the SDK differ in the library whose errors these are."""


class OpenAIClient(Client):
    """Like `Client`, for a server that somebody else may run. OpenAI alone learns of organisation and project."""

    def _connect(self, key: str | None, *, timeout_s: float, trust_env: bool) -> None:
        import openai

        self._headers = sdk_headers(self.url, key)
        self._sdk = openai.OpenAI(
            base_url=f"{self.url}/",
            api_key=key or "none",
            timeout=openai.Timeout(timeout_s, connect=CONNECT_S),
            http_client=openai.DefaultHttpxClient(trust_env=trust_env),
            max_retries=0,  # `Client` retries, for as long as it is told
        )

    def _ask_once(self, method: str, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        import openai

        try:
            if method == "GET":
                answer = self._sdk.get(path, cast_to=object, options={"headers": self._headers})
            else:
                answer = self._sdk.post(path, cast_to=object, body=dict(body or {}), options={"headers": self._headers})
        except (openai.APIError, ValueError) as error:
            raise as_ours(error, self.url, path) from None
        return json_object(answer, f"{self.url}{path}")


def sdk_headers(url: str, key: str | None) -> dict[str, Any]:
    """Return the headers that tell this server no more than it may know."""
    import openai

    headers: dict[str, Any] = {} if key is not None else {"Authorization": openai.Omit()}
    for header, names in (("OpenAI-Organization", _ORGANIZATION), ("OpenAI-Project", _PROJECT)):
        # The SDK would take both from the environment, whatever the server.
        value = _first_of(names) if is_openai(url) else None
        headers[header] = openai.Omit() if value is None else value
    return headers


def as_ours(error: Exception, url: str, path: str) -> Exception:
    """Return our error for one of the SDK."""
    import openai

    if isinstance(error, openai.APIStatusError):
        return judged(f"{url}{path}", error.status_code, error.message, error.response.headers)
    if isinstance(error, openai.APIConnectionError):
        cause = error.__cause__ or error
        return UnansweredError(f"{type(error).__name__}: {cause}", may_be_done=type(cause).__name__ not in _NOT_SENT)
    if isinstance(error, openai.APIError):  # an event of a stream
        return RefusedError(f"{url}{path} broke its answer off: {error.message}")
    if isinstance(error, json.JSONDecodeError):
        return RefusedError(f"{url}{path} answered with something other than JSON ({error}); is this the right server?")
    if isinstance(error, UnicodeEncodeError) and error.object != url and error.encoding == "utf-8":
        problem = f"the request holds half of a surrogate pair, {error.object[error.start : error.end]!r}"
        return RefusedError(f"{url}{path} was not asked: {problem}, which can't be sent; mend the text", status=400)
    return ConfigError(f"{url} is not a URL ({error}); write http://host:port")


def json_object(answer: object, url: str) -> dict[str, Any]:
    if not isinstance(answer, dict):
        raise RefusedError(f"{url} answered with something other than a JSON object; is this the right server?")
    return answer


def _first_of(names: tuple[str, ...]) -> str | None:
    return next((value for name in names if (value := os.environ.get(name, "").strip())), None)
