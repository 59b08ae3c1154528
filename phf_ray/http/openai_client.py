"""Asks OpenAI-compatible servers with OpenAI's own SDK, which knows their headers and errors."""

import os
from collections.abc import Mapping
from typing import Any

from phf_ray.errors import ConfigError
from phf_ray.http.client import CONNECT_S, Client, RefusedError, UnansweredError
from phf_ray.http.keys import is_openai

_ORGANIZATION, _PROJECT = (
    ("OPENAI_ORG_ID", "OPENAI_ORG", "OPENAI_ORGANIZATION"),
    ("OPENAI_PROJECT_ID", "OPENAI_PROJECT"),
)


class OpenAIClient(Client):
    """Like `Client`, for a server that somebody else may run. OpenAI alone learns of organisation and project."""

    def _connect(self, key: str | None, *, timeout_s: float, trust_env: bool) -> None:
        import openai

        own = is_openai(self.url)
        self._headers: dict[str, Any] = {} if key is not None else {"Authorization": openai.Omit()}
        for header, names in (("OpenAI-Organization", _ORGANIZATION), ("OpenAI-Project", _PROJECT)):
            # The SDK would take both from the environment, whatever the server.
            value = _first_of(names) if own else None
            self._headers[header] = openai.Omit() if value is None else value
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
        except openai.APIConnectionError as error:
            raise UnansweredError(f"{type(error).__name__}: {error.__cause__ or error}") from None
        except openai.APIStatusError as error:
            raise self._judged(error.status_code, error.message, error.response.headers, path=path) from None
        except ValueError as error:
            raise ConfigError(f"{self.url} is not a URL ({error}); write http://host:port") from None
        if not isinstance(answer, dict):
            raise RefusedError(
                f"{self.url}{path} answered with something other than a JSON object; is this the right server?"
            )
        return answer


def _first_of(names: tuple[str, ...]) -> str | None:
    return next((value for name in names if (value := os.environ.get(name, "").strip())), None)
