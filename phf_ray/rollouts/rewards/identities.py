"""What decides the rewards of a spec, told from files without loading weights: with another one, a run is another."""

import json
import re
from pathlib import Path
from typing import Any

from phf_ray.adapter_folder import base_folder, is_adapter
from phf_ray.checkpoint import fingerprint
from phf_ray.config.rewards import RewardSpec
from phf_ray.scorers import scorer_class, scorer_settings
from phf_ray.storage.hashing import digest

_PLACES = ("device", "tokens_per_batch", "path", "name")
"""Settings of a scorer that change no score, or whose file has a hash of its own."""


def spec_identity(spec: RewardSpec) -> dict[str, Any]:
    """Return what decides the rewards of a spec that `check_spec` accepts, as JSON."""
    return {"weight": spec.weight, **_identity(spec)}


def _identity(spec: RewardSpec) -> dict[str, Any]:
    if spec.model is not None:
        return {"model": model_identity(spec.model)}
    if spec.scorer is not None:
        class_name = spec.scorer.get("class_name")
        settings = scorer_settings(spec.scorer)
        told = {key: value for key, value in settings.model_dump(mode="json").items() if key not in _PLACES}
        path = getattr(settings, "path", None)
        return {
            "scorer": class_name,
            "settings": told,
            "versions": scorer_class(class_name).described(settings).get("versions"),
            "model": None if path is None else model_identity(str(path)),
            "use_prompt_for_scoring": spec.use_prompt_for_scoring,
        }
    if spec.url is not None:
        return {"url": spec.url.url.rstrip("/"), "scorer": spec.url.scorer, "send_prompts": spec.url.send_prompts}
    if spec.annotators is not None:
        from phf_ray.judging.pool import load_pool
        from phf_ray.rollouts.rewards.judged import references_of

        return {
            "annotators": load_pool(spec.annotators.pool).identity,
            "reference": digest(sorted(references_of(spec.annotators).items())),
            "seed": spec.annotators.seed,
        }
    # Settings of a user's own class may hold a key, and what is returned here is stored.
    settings = digest(json.dumps(spec.settings, sort_keys=True, default=str)) if spec.settings else None
    return {"rule": spec.rule, "class_name": spec.class_name, "settings": settings}


def model_identity(source: str) -> str:
    """Return the hash of a model's folder, and of that of its base; of a name on the hub, the name."""
    folder = Path(source)
    if not folder.is_dir():
        return source
    # Of the hub's cache: the folder is named after its commit.
    if folder.parent.name == "snapshots" and re.fullmatch("[0-9a-f]{40}", folder.name):
        return f"{folder.parent.parent.name}@{folder.name}"
    own = fingerprint(folder)
    return digest([own, fingerprint(base_folder(folder))]) if is_adapter(folder) else own
