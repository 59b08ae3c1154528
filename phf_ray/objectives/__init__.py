"""Objectives of pretraining with human preferences: MLE, Unlikelihood, RWR, AWR; filtering and conditional training are
MLE on other blocks.

    objective = build_objective({"name": "Unlikelihood", "score_threshold": 0.0})
    out = objective(hidden_BSD=..., head_VD=..., input_ids_BS=..., token_scores_BS=..., token_kinds_BS=...)
    out.loss.backward()               # divide gradients by out.num_targets, summed over ranks and micro-batches
    objective.summarize(out.metrics)  # {"loss": ..., "original_loss": ..., ...}
"""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, TypeAdapter, ValidationError

from phf_ray import config as configuration
from phf_ray.errors import ConfigError
from phf_ray.objectives.losses import MLE, Compat, Objective, ObjectiveOutput
from phf_ray.objectives.statistics import Statistics, all_reduce, combine

_ADAPTER: TypeAdapter[configuration.MLE | configuration.Unlikelihood | configuration.AWR | configuration.RWR] = (
    TypeAdapter(configuration.Objective)
)


def build_objective(
    config: Mapping[str, Any] | BaseModel,
    *,
    compat: Compat | None = None,
    unscored: Literal["mask", "mle"] = "mask",
    reward_mean: float | None = None,
    reward_std: float | None = None,
) -> Objective:
    """The objective of a config section. Thresholds must be numbers: quantiles are resolved by who knows the corpus.

    reward_mean, reward_std: of the reward (minus the score) over the block manifest, for `reward_norm: zscore`.
    unscored: `dataset.unscored`, what becomes of tokens without a score.
    """
    section = _parse(config)
    common: dict[str, Any] = {"score_control": section.score_control, "unscored": unscored, "compat": compat}
    if isinstance(section, configuration.MLE):
        return MLE(mask_above=_number(section.mask_above, key="mask_above"), **common)
    raise ConfigError(f"unknown objective {section.name!r}")


def _parse(
    config: Mapping[str, Any] | BaseModel,
) -> configuration.MLE | configuration.Unlikelihood | configuration.AWR | configuration.RWR:
    values = config.model_dump() if isinstance(config, BaseModel) else dict(config)
    try:
        return _ADAPTER.validate_python(values)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, part['loc']))}: {part['msg']}" for part in error.errors())
        raise ConfigError(f"objective {values!r}: {problems}") from None


def _number(threshold: configuration.Threshold | None, *, key: str) -> float | None:
    if isinstance(threshold, configuration.Quantile):
        raise ConfigError(
            f"objective.{key} is the quantile {threshold.quantile} of a corpus; resolve it from the corpus manifest, "
            "or write a number"
        )
    return threshold


__all__ = ["Objective", "ObjectiveOutput", "Statistics", "all_reduce", "build_objective", "combine"]
