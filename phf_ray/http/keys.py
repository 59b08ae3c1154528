"""Decides which API key goes to which server. A key never goes to a URL merely because somebody gave that URL."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import httpx

from phf_ray.errors import ConfigError
from phf_ray.http.client import is_on_this_machine

OPENAI_KEY, OWN_KEY = "OPENAI_API_KEY", "PHF_API_KEY"
_OPENAI_HOST = "api.openai.com"
"""Also with a region before it, such as eu.api.openai.com."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server that the user named, and the key for it."""

    url: str
    key: str | None = field(default=None, repr=False)


def parse_endpoint(text: str, *, option: str, allow_plain_http: bool = False, needs_key: bool = True) -> Endpoint:
    """Parse `URL` or `URL,key_env=VARIABLE`, and find the key.

    Without `key_env`, OPENAI_API_KEY goes to OpenAI alone, and PHF_API_KEY to any other server. `option`: the option
    that the user set; errors begin with it. `needs_key`: whether a key that is missing is an error, if the server is
    OpenAI's or `key_env` names one. Raises ConfigError if the URL is none, for such a key, or if the key would travel
    unencrypted to another machine.
    """
    url, separator, variable = text.partition(",key_env=")
    if not url.startswith(("http://", "https://")) or "," in url or (separator and not variable):
        raise ConfigError(f"{option} {text}: write http://host:port, with `,key_env=VARIABLE` after it for its key")
    variable = variable or (OPENAI_KEY if is_openai(url) else OWN_KEY)
    key = os.environ.get(variable, "").strip() or None
    if key is None:
        if needs_key and (separator or is_openai(url)):
            raise ConfigError(f"{option} {text}: the environment variable {variable} holds no key for {url}; set it")
        return Endpoint(url)
    if url.startswith("http://") and not is_on_this_machine(url) and not allow_plain_http:
        raise ConfigError(
            f"{option} {url}: the key in {variable} would travel unencrypted; use https://, or --allow-plain-http in a "
            "network that you trust"
        )
    return Endpoint(url, key)


def with_key_env(text: str, key_envs: Mapping[str, str]) -> str:
    """Return `[NAME=]URL` with the variable that `key_envs` names for this URL; unchanged if it names one itself.

    Only the very URL counts, with or without /v1: a key never goes to another port, path or host.
    """
    start = re.search("https?://", text)
    if start is None or ",key_env=" in text:
        return text
    wanted = _bare(text[start.start() :])
    variable = next((name for url, name in key_envs.items() if _bare(url) == wanted), None)
    return text if variable is None else f"{text},key_env={variable}"


def _bare(url: str) -> str:
    scheme, separator, rest = url.rstrip("/").removesuffix("/v1").rstrip("/").partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme.lower()}{separator}{host.lower()}{slash}{path}"


def is_openai(url: str) -> bool:
    """Whether the URL is one of OpenAI's own API."""
    try:
        host = httpx.URL(url).host
    except httpx.InvalidURL:  # named at the first request
        return False
    return host == _OPENAI_HOST or host.endswith(f".{_OPENAI_HOST}")
