"""Warns if a corpus was not scored by the scorer of the configuration."""

import json
import logging
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from phf_ray.blocks.manifest import SourceCorpus
from phf_ray.config import Config
from phf_ray.errors import ConfigError
from phf_ray.scorers.build import scorer_class, scorer_configs, scorer_settings

log = logging.getLogger(__name__)


def warn_of_other_scorers(config: Config, corpora: Sequence[SourceCorpus]) -> None:
    """Warn if a corpus was not scored by the configured scorer or, without one, by the scorer of the first corpus.

    This loads no model: weights are compared only if a file next to them gives their hash.
    """
    told = [one for one in corpora if one.scorer]
    expected = _configured_scorer(config) if told else None
    for one in told:
        if expected is not None:
            _warn_of_difference(
                one,
                other=expected,
                where="the one configured and installed here",
                weights=_known_weights(config),
            )
        elif one.scorer != told[0].scorer:
            _warn_of_difference(one, other=told[0].scorer, where=told[0].name)


def _configured_scorer(config: Config) -> dict[str, Any] | None:
    """Return the identity of the configured scorer; for a model, the part that is known without loading it."""
    if not config.scoring.scorers:
        return None
    try:
        first = scorer_configs(config)[0]
        identity = scorer_class(first["class_name"]).described(scorer_settings(first))
    except ConfigError:  # a word list or a module may be on another machine; training does not need it
        return {key: config.scorer[key] for key in ("name", "class_name") if key in config.scorer}
    return dict(json.loads(json.dumps(identity)))


def _known_weights(config: Config) -> dict[str, str]:
    try:
        first = scorer_configs(config)[0]
        return scorer_class(first["class_name"]).known_weights(scorer_settings(first))
    except ConfigError:
        return {}


def _warn_of_difference(
    one: SourceCorpus, *, other: Mapping[str, Any], where: str, weights: Mapping[str, str] = MappingProxyType({})
) -> None:
    """`weights`: hash of weights -> name of the model."""

    def shown_value(value: Any) -> str:
        return f"{value!r} ({weights[value]})" if isinstance(value, str) and value in weights else repr(value)

    # What is known of a model without loading it has no versions. A setting that it does not give is not a difference.
    # A whole identity that lacks a setting is another scorer: the paper's mode of personal data says no mode.
    given = other.get("settings", {})
    told = {**other, "settings": given if "versions" in other else {**one.scorer.get("settings", {}), **given}}
    changed = [name for name in told if name in one.scorer and one.scorer[name] != told[name]]
    if changed:
        shown = "; ".join(
            f"{name}: {shown_value(one.scorer[name])} there, {shown_value(told[name])} here" for name in changed
        )
        log.warning(
            "%s WAS SCORED BY A DIFFERENT SCORER (%s) THAN %s (%s): %s. Score it again, or evaluate with its scorer",
            one.name, one.scorer.get("name"), where, other.get("name", other.get("class_name")), shown,
        )  # fmt: skip
