"""Samples answers from a server: any OpenAI-compatible URL, of completions or chats. One request for each sample."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from phf_ray.characters import whole_characters
from phf_ray.errors import ServiceError
from phf_ray.generation.chat.prompts import as_messages
from phf_ray.http.client import RefusedError
from phf_ray.http.keys import Endpoint
from phf_ray.http.openai_async import AsyncOpenAIClient
from phf_ray.judging.question import Failure
from phf_ray.judging.waiting import wait_for
from phf_ray.rollouts.prompts import RolloutPrompt
from phf_ray.rollouts.sampling import PROMPT_TOO_LONG, SampledAnswer, SamplingSettings

Style = Literal["completion", "chat"]

_PATHS: Mapping[Style, str] = {"completion": "/v1/completions", "chat": "/v1/chat/completions"}
UNANSWERED = "unanswered"
"""Kind of the failure of a request that nobody answered in time."""
_REFUSES_ALL = (401, 403, 404)
"""The server would refuse every request: the key, or the model's name, is wrong."""


@dataclass(frozen=True, slots=True)
class SampledServer:
    endpoint: Endpoint
    model: str
    """Its name on the server."""
    style: Style = "completion"
    max_in_flight: int = 64
    """Requests sent and not answered, of each process."""
    patience_s: float = 600.0
    """How long a request is sent again while the server is busy, failing or away."""
    timeout_s: float = 600.0
    """How long an answer may take."""


class UrlSampler:
    """A `Sampler` that asks a server."""

    def __init__(self, server: SampledServer, settings: SamplingSettings):
        self._server, self._settings = server, settings

    def sample(
        self, prompts: Sequence[RolloutPrompt], *, seeds: Sequence[Sequence[int]]
    ) -> list[list[SampledAnswer | Failure]]:
        """Raises RefusedError if the server would refuse every request."""
        return wait_for(self._sample(prompts, seeds))

    async def _sample(
        self, prompts: Sequence[RolloutPrompt], seeds: Sequence[Sequence[int]]
    ) -> list[list[SampledAnswer | Failure]]:
        server = self._server
        client = AsyncOpenAIClient(
            server.endpoint.url, key=server.endpoint.key, patience_s=server.patience_s, timeout_s=server.timeout_s
        )
        room = asyncio.Semaphore(server.max_in_flight)

        away: list[Failure] = []

        async def one(prompt: RolloutPrompt, seed: int) -> SampledAnswer | Failure:
            async with room:
                # Whoever waited in vain until the patience was over did so for all that were not sent yet.
                if away:
                    return away[0]
                said = await self._ask(client, prompt, seed)
                away[:] = [said] if isinstance(said, Failure) and said.kind == UNANSWERED else []
                return said

        tasks = [[asyncio.ensure_future(one(p, seed)) for seed in own] for p, own in zip(prompts, seeds, strict=True)]
        every = [task for some in tasks for task in some]
        try:
            await asyncio.gather(*every)
        finally:
            for task in every:
                task.cancel()
            await asyncio.gather(*every, return_exceptions=True)
            await client.close()
        return [[task.result() for task in some] for some in tasks]

    async def _ask(self, client: AsyncOpenAIClient, prompt: RolloutPrompt, seed: int) -> SampledAnswer | Failure:
        path = _PATHS[self._server.style]
        try:
            return _answer(await client.post(path, self._body(prompt, seed)))
        except RefusedError as error:
            if error.status in _REFUSES_ALL:
                raise
            is_long = error.status == 400 and "context" in str(error).lower()
            return Failure(f"{PROMPT_TOO_LONG if is_long else 'refused'}: {error}")
        except ServiceError as error:
            return Failure(f"{UNANSWERED}: {error}")

    def _body(self, prompt: RolloutPrompt, seed: int) -> dict[str, Any]:
        settings = self._settings
        body: dict[str, Any] = {
            "model": self._server.model,
            "max_tokens": settings.max_tokens,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "seed": seed,
        }
        if self._server.style == "chat":
            body["messages"] = [{"role": one.role, "content": one.content} for one in as_messages(prompt.prompt)]
        else:
            body["prompt"] = prompt.text
        optional = {"top_k": settings.top_k or None, "stop": list(settings.stop) or None, "control": settings.control}
        return body | {name: value for name, value in optional.items() if value is not None}


def _answer(said: Mapping[str, Any]) -> SampledAnswer | Failure:
    try:
        choice = said["choices"][0]
        message = choice.get("message")
        text = choice["text"] if message is None else message.get("content") or message.get("refusal") or ""
        finish = choice.get("finish_reason") or "stop"
        assert isinstance(text, str)
    except (AttributeError, AssertionError, LookupError, TypeError):
        return Failure(f"malformed: the server answered with {str(dict(said))[:200]}, which holds no answer")
    return SampledAnswer(whole_characters(text), None, str(finish))
