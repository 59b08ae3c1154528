"""A served application with a tiny model and the PEP8 scorer in this process, for tests that need no Ray."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
from fastapi import FastAPI
from tiny_models import tiny_gpt2, tiny_tokenizer

from phf_ray.generation.engine import Engine
from serve.api.application import build_app
from serve.backends import Backend
from serve.engines.local import LocalModel
from serve.engines.scorer import LocalScorer
from serve.keys import KeyRing
from serve.schemas import HealthResponse
from serve.settings import ServedScorer


def served_app(*, keys: tuple[str, ...] = (), **options: Any) -> FastAPI:
    """An application with the model `mle` and the scorer `pep8`; `options` go to `build_app`."""

    async def health() -> HealthResponse:
        return HealthResponse(status="ok", deployments={})

    tokenizer = tiny_tokenizer()
    models = {"mle": LocalModel(Engine(tiny_gpt2(tokenizer, seed=1), tokenizer))}
    scorers = {"pep8": LocalScorer(ServedScorer(scorer={"class_name": "PEP8Scorer"}))}
    backend = Backend(models, scorers, health)
    return build_app(backend, keys=KeyRing(frozenset(keys)), access_log=False, **options)


def sender(app: FastAPI, *, peer: str = "127.0.0.1") -> Callable[..., httpx.Response]:
    """`send("HEAD", "/health", headers={...})`, from the address `peer`."""

    def send(method: str, path: str, **options: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(app=app, client=(peer, 1234))
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, path, **options)

        return asyncio.run(ask())

    return send
