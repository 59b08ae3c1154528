"""Finds the model that a request names, and what is asked of it."""

import secrets
from typing import TypeVar

from phf_ray.checkpoint import split_model_id
from serve.backends import Backend, ModelBackend
from serve.errors import ApiError
from serve.schemas import SamplingRequest

Body = TypeVar("Body", bound=SamplingRequest)


def find_model(backend: Backend, model_id: str) -> tuple[str, ModelBackend, str | None]:
    """Return the name, the backend, and the control that the id's suffix asks for (None without a suffix)."""
    name, control = split_model_id(model_id)
    if name not in backend.models:
        known = ", ".join(sorted(backend.models)) or "none"
        raise ApiError(404, f"there is no model {model_id!r}; served models: {known}", "model", "model_not_found")
    return name, backend.models[name], control


def asked_model(backend: Backend, body: Body) -> tuple[str, ModelBackend, Body]:
    """Return the name, the backend, and the request with its control and a seed."""
    name, model, suffix = find_model(backend, body.model)
    if suffix is not None and body.control not in (None, suffix):
        raise ApiError(400, f"model {body.model!r} and control {body.control!r} contradict each other", "control")
    # Fix the seed here: a retry on another replica must give the same text.
    seed = secrets.randbits(63) if body.seed is None else body.seed
    return name, model, body.model_copy(update={"control": body.control or suffix, "seed": seed})


def of_url(backend: Backend, model_id: str, body: Body) -> Body:
    """Return the request with the model that the URL names. Raises ApiError if its own is another."""
    name, _, suffix = find_model(backend, model_id)
    own_name, own_suffix = split_model_id(body.model)
    if own_name != name or (suffix and own_suffix and suffix != own_suffix):
        raise ApiError(400, f"model {body.model!r} and the URL's {model_id!r} contradict each other", "model")
    return body if suffix is None else body.model_copy(update={"model": model_id})


async def chosen_model(backend: Backend, model_id: str | None) -> ModelBackend:
    """Return the named model. Without a name (lm-eval sends none), return any if all have the same tokenizer."""
    if model_id is not None:
        return find_model(backend, model_id)[1]
    if not backend.models:
        raise ApiError(404, "no model is served", "model", "model_not_found")
    models = list(backend.models.values())
    hashes = {(await model.describe()).tokenizer_hash for model in models[1:] or ()}
    if models[1:] and hashes != {(await models[0].describe()).tokenizer_hash}:
        raise ApiError(
            400, f"the tokenizers of {', '.join(sorted(backend.models))} differ; choose a model with `model`", "model"
        )
    return models[0]
