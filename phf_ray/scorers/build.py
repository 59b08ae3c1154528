"""Builds scorers from their configurations. Importing this module is cheap; building a scorer loads its libraries."""

import difflib
import importlib
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from phf_ray.config import Config
from phf_ray.errors import ConfigError
from phf_ray.scorers.base import Scorer
from phf_ray.scorers.outside import outside_scorer


def scorer_configs(config: Config) -> tuple[dict[str, Any], ...]:
    """Return the configs for `build_scorer`, first the scorer that is trained on. Raises what `scorer_class` raises."""
    if not config.scoring.scorers:
        return (config.scorer,)  # raises if there is none
    dated = {"reference_date": config.scoring.reference_date}
    return tuple(
        {**dated, **one} if scorer_class(one["class_name"]).uses_reference_date else one
        for one in config.scoring.scorers
    )


SCORERS = {
    "PEP8Scorer": "phf_ray.scorers.pep8",
    "RuffScorer": "phf_ray.scorers.ruff",
    "PIIScorer": "phf_ray.scorers.pii",
    "DetoxifyToxicityScorer": "phf_ray.scorers.toxicity",
    "WordListScorer": "phf_ray.scorers.word_list",
    "SequenceClassifierScorer": "phf_ray.scorers.huggingface",
    "RewardModelScorer": "phf_ray.scorers.reward_model",
}
"""Class name -> module, whose import must be cheap. Scorers outside this package are named `my_module:MyScorer`."""

SHORT_NAMES = {
    "pep8": "PEP8Scorer",
    "pii": "PIIScorer",
    "toxicity": "DetoxifyToxicityScorer",
    "reward": "RewardModelScorer",
}
"""Names on the command line -> class names."""


def build_scorer(config: Mapping[str, Any]) -> Scorer:
    """Build the scorer of a config such as `{"class_name": "PEP8Scorer", "name": "style"}`.

    Raises ConfigError for an unknown class, an unknown key or a value of the wrong type; it names the known ones.
    """
    return scorer_class(config.get("class_name"))(scorer_settings(config))


def scorer_name(config: Mapping[str, Any]) -> str:
    """Return the scorer's name in corpora, the server and reports: the config's `name`, or the class's default.

    Raises ConfigError if there is neither, and what `scorer_class` raises.
    """
    if config.get("name") is not None:
        return str(config["name"])
    class_name = config.get("class_name")
    field = scorer_class(class_name).Settings.model_fields["name"]
    if field.is_required():
        raise ConfigError(f"{class_name}: the scorer has no name; add `name:` to its configuration")
    return str(field.default)


def on_cpu(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config for a process that asked Ray for no GPU: such a process still sees the GPUs of others."""
    return {**config, "device": "cpu"} if scorer_class(config.get("class_name")).runs_on_device else dict(config)


def scorer_settings(config: Mapping[str, Any]) -> Any:
    """Return the settings in a scorer's config, as the scorer's own type. Raises what `build_scorer` raises."""
    class_name = config.get("class_name")
    scorer = scorer_class(class_name)
    values = {key: value for key, value in config.items() if key != "class_name"}
    try:
        return scorer.Settings.model_validate(values)
    except ValidationError as error:
        known = list(scorer.Settings.model_fields)
        problems = "; ".join(sorted({_described(detail, known) for detail in error.errors()}))
        raise ConfigError(f"{class_name}: {problems}") from None


def scorer_class(class_name: Any) -> type[Scorer]:
    """Return the class with this name in configurations. Raises ConfigError if there is none."""
    if isinstance(class_name, str) and ":" in class_name:
        return outside_scorer(class_name)
    if class_name not in SCORERS:
        raise ConfigError(
            f"unknown scorer class_name {class_name!r}; choose one of {', '.join(sorted(SCORERS))}, or write "
            "my_module:MyScorer for your own"
        )
    found: type[Scorer] = getattr(importlib.import_module(SCORERS[class_name]), class_name)
    return found


def _described(detail: Any, known: list[str]) -> str:
    key = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, known, n=1)
        return f"{key}: unknown key; " + (
            f"did you mean {near[0]!r}?" if near else f"known keys are {', '.join(known)}"
        )
    return f"{key}: {detail['msg'][0].lower()}{detail['msg'][1:]}, got {detail['input']!r}"
