"""Finds the model that a request names."""

from phf_ray.checkpoint import split_model_id
from serve.backends import Backend, ModelBackend
from serve.errors import ApiError


def find_model(backend: Backend, model_id: str) -> tuple[str, ModelBackend, str | None]:
    """Return the name, the backend, and the control that the id's suffix asks for (None without a suffix)."""
    name, control = split_model_id(model_id)
    if name not in backend.models:
        known = ", ".join(sorted(backend.models)) or "none"
        raise ApiError(404, f"there is no model {model_id!r}; served models: {known}", "model", "model_not_found")
    return name, backend.models[name], control


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
