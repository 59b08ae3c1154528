"""`/v1/models`."""

import asyncio
import time

from fastapi import FastAPI

from serve.api.lookup import find_model
from serve.backends import Backend
from serve.errors import ApiError
from serve.schemas import ModelCard, ModelList
from serve.settings import CONTROL_CHOICES

LISTING_S = 2.0
"""How long the list waits for each model, which may be loading or on a server that is down."""


def add_models(app: FastAPI, backend: Backend) -> None:
    created = int(time.time())

    async def card(model_id: str) -> ModelCard:
        _, model, _ = find_model(backend, model_id)
        described = await model.describe()
        control = None
        if described.control is not None:
            control = {
                "policy": described.control["policy"],
                "default": "good",
                "suffixes": [f":{choice}" for choice in CONTROL_CHOICES],
            }
        return ModelCard(
            id=model_id,
            created=created,
            max_model_len=described.max_model_len,
            control=control,
            task=described.task,
            objective=described.objective,
            step=described.step,
            fingerprint=described.fingerprint,
            checkpoint=described.checkpoint,
            chat=described.chat,
        )

    async def listed(model_id: str) -> ModelCard:
        try:
            async with asyncio.timeout(LISTING_S):
                return await card(model_id)
        except (TimeoutError, ApiError):
            return ModelCard(id=model_id, created=created)

    @app.get("/v1/models")
    async def list_models() -> ModelList:
        """List all models. A model that does not answer within two seconds is listed by its id alone."""
        return ModelList(data=list(await asyncio.gather(*map(listed, backend.models))))

    @app.get("/v1/models/{model_id:path}")
    async def retrieve_model(model_id: str) -> ModelCard:
        return await card(model_id)
