"""Builds scorers from their configurations. Importing this is cheap; building a scorer loads what it needs."""

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
    """As `build_scorer` takes them, the one that is trained on first. Raises as `scorer_class` does."""
    if not config.scoring.scorers:
        return (config.scorer,)  # which refuses a configuration without any
    dated = {"reference_date": config.scoring.reference_date}
    return tuple(
        {**dated, **one} if scorer_class(one["class_name"]).uses_reference_date else one
        for one in config.scoring.scorers
    )


SCORERS = {
    "PEP8Scorer": "phf_ray.scorers.pep8",
    "PIIScorer": "phf_ray.scorers.pii",
    "DetoxifyToxicityScorer": "phf_ray.scorers.toxicity",
    "WordListScorer": "phf_ray.scorers.word_list",
    "SequenceClassifierScorer": "phf_ray.scorers.huggingface",
}
"""Class name -> module, whose import must be cheap. Others are called `my_module:MyScorer`."""

SHORT_NAMES = {"pep8": "PEP8Scorer", "pii": "PIIScorer", "toxicity": "DetoxifyToxicityScorer"}
"""What command lines call them."""


def build_scorer(config: Mapping[str, Any]) -> Scorer:
    """The scorer of a config such as `{"class_name": "PEP8Scorer", "name": "style"}`.

    Raises ConfigError for an unknown class, an unknown key or a value of the wrong type, naming the known ones.
    """
    return scorer_class(config.get("class_name"))(scorer_settings(config))


def scorer_name(config: Mapping[str, Any]) -> str:
    """What corpora, the server and reports call the scorer of such a config: its `name`, or that of its class.

    Raises ConfigError if it has neither, and as `scorer_class` does.
    """
    if config.get("name") is not None:
        return str(config["name"])
    class_name = config.get("class_name")
    field = scorer_class(class_name).Settings.model_fields["name"]
    if field.is_required():
        raise ConfigError(f"{class_name}: the scorer has no name; add `name:` to its configuration")
    return str(field.default)


def on_cpu(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the same scorer for a process that asked Ray for no GPU: Ray does not hide those of others."""
    return {**config, "device": "cpu"} if scorer_class(config.get("class_name")).runs_on_device else dict(config)


def scorer_settings(config: Mapping[str, Any]) -> Any:
    """The settings in such a config, of the scorer's own type; raises as `build_scorer` does."""
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
    """The class that configurations call so. Raises ConfigError for one that is not there."""
    if isinstance(class_name, str) and ":" in class_name:
        return outside_scorer(class_name)
    if class_name not in SCORERS:
        raise ConfigError(
            f"unknown scorer class_name {class_name!r}; choose one of {', '.join(sorted(SCORERS))}, or write "
            "my_module:MyScorer for one of your own"
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
