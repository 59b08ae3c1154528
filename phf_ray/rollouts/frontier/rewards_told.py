"""What stored results say of a reward, so that two of them can be compared.

A run stores what its rewarders say of themselves, best-of-n what its specs say. Both say the same only of a rule, and
of a scorer without weights and settings. What the specs in a run's configuration say is told anew, which takes the
models that they name.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from phf_ray.config.rewards import RewardSpec
from phf_ray.errors import PhfError
from phf_ray.rollouts.rewards.identities import spec_identity
from phf_ray.storage.hashing import digest

ToldBy = Literal["rewarder", "spec"]


def reward_claims(identity: Mapping[str, Any] | None, *, told_by: ToldBy) -> dict[str, str]:
    """Return what can be compared of the identity of a reward, the surest first. Empty for None."""
    if not identity:
        return {}
    bare = {name: value for name, value in identity.items() if name != "weight"}
    claims: dict[str, str] = {told_by: digest(bare)}
    scorer = bare.get("scorer")
    if bare.get("rule"):
        claims["rule"] = str(bare["rule"])
    elif isinstance(scorer, Mapping) and not scorer.get("weights_hash") and not scorer.get("settings"):
        claims["scorer"] = _of_scorer(scorer.get("class_name"), scorer.get("versions"), bare)
    elif isinstance(scorer, str) and "url" not in bare and not bare.get("model") and not bare.get("settings"):
        claims["scorer"] = _of_scorer(scorer, bare.get("versions"), bare)
    return claims


def rewards_claims(named: Mapping[str, Mapping[str, Any]] | None, *, told_by: ToldBy) -> dict[str, str]:
    """Return what can be compared of a weighted sum of rewards."""
    if not named:
        return {}
    parts = [(float(one.get("weight", 1.0)), reward_claims(one, told_by=told_by)) for one in named.values()]
    kinds = [kind for kind in parts[0][1] if all(kind in claims for _, claims in parts)]
    return {kind: digest(sorted((weight, claims[kind]) for weight, claims in parts)) for kind in kinds}


def spec_identities(specs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]] | None:
    """Return name -> identity of the specs of a configuration; None if one can't be told any more."""
    try:
        known = [RewardSpec.model_validate(spec) for spec in specs]
        # A folder that is gone would pass for the name of a model on the hub.
        if any(spec.model is not None and not Path(spec.model).is_dir() for spec in known):
            return None
        return {spec.called: spec_identity(spec) for spec in known}
    except (PhfError, OSError, ImportError, ValidationError):
        return None


def _of_scorer(class_name: Any, versions: Any, identity: Mapping[str, Any]) -> str:
    return digest([class_name, versions, bool(identity.get("use_prompt_for_scoring"))])
