"""What stored results say of a reward, so that two of them can be compared.

A run stores what its rewarders say of themselves, best-of-n what its specs say. Both say the same only of a rule, and
of a scorer without weights and settings; of others, nothing tells whether a run and a best-of-n have the same one.
"""

from collections.abc import Mapping
from typing import Any, Literal

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


def _of_scorer(class_name: Any, versions: Any, identity: Mapping[str, Any]) -> str:
    return digest([class_name, versions, bool(identity.get("use_prompt_for_scoring"))])
