"""The client of OpenAI-compatible servers for many requests at once, from one event loop."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeVar

import tenacity

from phf_ray.errors import ServiceError
from phf_ray.http.client import CONNECT_S, UnansweredError, is_on_this_machine, not_answered, wait_s
from phf_ray.http.openai_client import as_ours, json_object, sdk_headers

Result = TypeVar("Result")

MAX_IN_FLIGHT = 1000
"""Connections that the SDK opens at once. A request beyond them would wait unseen, and its time would run."""


class AsyncOpenAIClient:
    """Like `OpenAIClient`, with coroutines. Each event loop has connections of its own: they can't be shared."""

    def __init__(self, url: str, *, key: str | None = None, patience_s: float = 600.0, timeout_s: float = 120.0):
        self.url = url.rstrip("/").removesuffix("/v1")
        self._key, self._patience_s, self._timeout_s = key, patience_s, timeout_s
        self._sdks: dict[asyncio.AbstractEventLoop, Any] = {}

    async def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer. Raises ServiceError if none came in time, RefusedError if the server refuses."""
        return await self.patiently(lambda: self.post_once(path, body), path)

    async def patiently(self, once: Callable[[], Awaitable[Result]], path: str) -> Result:
        """Call `once`, which posts to `path`, until it raises no UnansweredError or the patience is over."""
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(UnansweredError),
            wait=wait_s,
            stop=tenacity.stop_before_delay(self._patience_s),
            reraise=True,
        )

        async def tried() -> Result:  # a lambda would not be awaited
            return await once()

        try:
            return await retrying(tried)
        except UnansweredError as error:
            raise not_answered(f"{self.url}{path}", error, patience_s=self._patience_s) from None

    async def post_once(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Post one request. Raises UnansweredError if the same request may be answered later."""
        import openai

        sdk = self._connected()
        try:
            answer = await sdk.post(
                path, cast_to=object, body=dict(body), options={"headers": sdk_headers(self.url, self._key)}
            )
        except (openai.APIError, ValueError) as error:
            raise as_ours(error, self.url, path) from None
        return json_object(answer, f"{self.url}{path}")

    async def stream(self, path: str, body: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Yield the events of one answer as they come. Nothing is asked twice: part of an answer may have been shown.

        Raises ServiceError, with the server's words, if it refuses, is away, or breaks the answer off.
        """
        import openai

        sdk = self._connected()
        try:
            events = await sdk.post(
                path,
                cast_to=object,
                body={**body, "stream": True},
                options={"headers": sdk_headers(self.url, self._key)},
                stream=True,
                stream_cls=openai.AsyncStream[object],
            )
            async with events:
                async for event in events:
                    yield json_object(event, f"{self.url}{path}")
        except (openai.APIError, ValueError) as error:
            problem = as_ours(error, self.url, path)
            if isinstance(problem, UnansweredError):
                raise ServiceError(f"{self.url}{path} did not answer ({problem}); is the server running?") from None
            raise problem from None

    async def close(self) -> None:
        """Close the connections of this event loop."""
        sdk = self._sdks.pop(asyncio.get_running_loop(), None)
        if sdk is not None:
            await sdk.close()

    def _connected(self) -> Any:
        import openai

        loop = asyncio.get_running_loop()
        if loop not in self._sdks:
            self._sdks = {loop: sdk for loop, sdk in self._sdks.items() if not loop.is_closed()}
            self._sdks[loop] = openai.AsyncOpenAI(
                base_url=f"{self.url}/",
                api_key=self._key or "none",
                timeout=openai.Timeout(self._timeout_s, connect=CONNECT_S),
                # As in `Client`.
                http_client=openai.DefaultAsyncHttpxClient(trust_env=not is_on_this_machine(self.url)),
                max_retries=0,  # `patiently` retries, for as long as it is told
            )
        return self._sdks[loop]
