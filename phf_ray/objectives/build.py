"""Builds objectives from the configuration.

    objective = build_objective({"name": "Unlikelihood", "score_threshold": 0.0})
    out = objective(hidden_BSD=..., head_VD=..., input_ids_BS=..., token_scores_BS=..., token_kinds_BS=...)
    out.loss.backward()               # divide gradients by out.num_targets, summed over ranks and micro-batches
    objective.summarize(out.metrics)  # {"loss": ..., "original_loss": ..., ...}

Filtering and conditional training are MLE on different blocks.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from phf_ray.config import (
    AWRConfig,
    BradleyTerryConfig,
    Compat,
    DPOConfig,
    FeedbackCompat,
    KTOConfig,
    MLEConfig,
    ObjectiveConfig,
    Quantile,
    RWRConfig,
    Threshold,
    UnlikelihoodConfig,
)
from phf_ray.config.rollout_objectives import PolicyGradientConfig, WeightedLikelihoodConfig
from phf_ray.errors import ConfigError
from phf_ray.objectives.awr import AWR
from phf_ray.objectives.base import Objective, Rules
from phf_ray.objectives.bradley_terry import PairwiseReward, RewardSettings
from phf_ray.objectives.dpo import DPO, PairSettings
from phf_ray.objectives.kto import KTO, UnpairedSettings
from phf_ray.objectives.mle import MLE
from phf_ray.objectives.policy_gradient import PolicyGradient, PolicyGradientSettings
from phf_ray.objectives.rwr import RWR
from phf_ray.objectives.streams import LossStreams
from phf_ray.objectives.unlikelihood import Unlikelihood
from phf_ray.objectives.weighted_likelihood import WeightedLikelihood
from phf_ray.objectives.weighting import RewardWeighting

_Section = (
    MLEConfig
    | UnlikelihoodConfig
    | AWRConfig
    | RWRConfig
    | DPOConfig
    | KTOConfig
    | BradleyTerryConfig
    | PolicyGradientConfig
    | WeightedLikelihoodConfig
)
_ADAPTER: TypeAdapter[_Section] = TypeAdapter(
    Annotated[ObjectiveConfig | PolicyGradientConfig | WeightedLikelihoodConfig, Field(discriminator="name")]
)
_ROLLOUTS = Rules(score_control=False, unscored="mle", examples=True)
"""Completions have rewards and no scores, and the control tokens of a prompt are given."""


def build_objective(  # noqa: PLR0913  what the caller alone knows
    config: Mapping[str, Any] | BaseModel,
    *,
    compat: Compat | FeedbackCompat = None,
    unscored: Literal["mask", "mle"] = "mask",
    reward_mean: float | None = None,
    reward_std: float | None = None,
    examples: bool = False,
    streams: LossStreams | None = None,
) -> Objective:
    """Build the objective of a config section.

    Thresholds must be numbers: the caller, who knows the corpus, resolves quantiles.
    reward_mean, reward_std: of the reward (minus the score) in the block manifest, needed by `reward_norm: zscore`.
    unscored: the value of `dataset.unscored`, which says how to treat tokens without a score.
    examples: the blocks hold whole examples, not a stream of text.
    streams: loss weights of the data sets, for MLE.
    """
    section = _parse(config)
    original: Compat = "korbak2023" if compat == "korbak2023" else None
    feedback_compat = None if compat == "korbak2023" else compat
    answers = Rules(unscored=unscored, feedback_compat=feedback_compat, examples=True)
    if isinstance(section, DPOConfig):
        return DPO(answers, _pair_settings(section))
    if isinstance(section, KTOConfig):
        return KTO(answers, UnpairedSettings(**section.model_dump(exclude={"name"})))
    if isinstance(section, BradleyTerryConfig):
        settings = RewardSettings(**section.model_dump(exclude={"name"}))
        return PairwiseReward(answers, settings)
    if isinstance(section, PolicyGradientConfig):
        return PolicyGradient(_ROLLOUTS, PolicyGradientSettings(**section.model_dump(exclude={"name"})))
    if isinstance(section, WeightedLikelihoodConfig):
        return WeightedLikelihood(_ROLLOUTS, kl_coef=section.kl_coef, entropy_coef=section.entropy_coef)
    rules = Rules(
        score_control=section.score_control,
        unscored=unscored,
        compat=original,
        feedback_compat=feedback_compat,
        examples=examples,
    )
    if isinstance(section, MLEConfig):
        return MLE(rules, mask_above=_number(section.mask_above, key="mask_above"), streams=streams)
    if isinstance(section, UnlikelihoodConfig):
        threshold = _number(section.score_threshold, key="score_threshold")
        return Unlikelihood(rules, score_threshold=threshold, alpha=section.alpha)
    weighting = _weighting(section, reward_mean=reward_mean, reward_std=reward_std)
    if isinstance(section, RWRConfig):
        return RWR(rules, weighting=weighting, normalise=section.normalise)
    _check_awr(section, compat=original)
    return AWR(
        rules,
        weighting=weighting,
        alpha=section.alpha,
        fixed_value=section.fixed_value,
        use_value_head=section.use_value_head,
        normalize_advantage=section.normalize_advantage,
    )


def _pair_settings(section: DPOConfig) -> PairSettings:
    types = [section.loss_type] if isinstance(section.loss_type, str) else section.loss_type
    weights = section.loss_weights or [1.0] * len(types)
    if len(weights) != len(types) or len(set(types)) != len(types):
        raise ConfigError(
            f"objective.loss_weights: {weights} for loss_type: {types}; each loss_type is named once, with one weight"
        )
    return PairSettings(
        dict(zip(types, weights, strict=True)),
        **section.model_dump(exclude={"name", "loss_type", "loss_weights"}),
    )


def _weighting(
    section: AWRConfig | RWRConfig, *, reward_mean: float | None, reward_std: float | None
) -> RewardWeighting:
    if section.reward_norm == "none":
        return RewardWeighting(section.beta, section.clip_weight_max)
    if reward_mean is None or reward_std is None:
        raise ConfigError("objective.reward_norm: zscore needs reward_mean and reward_std from the block manifest")
    if not reward_std > 0:
        raise ConfigError(
            f"objective.reward_norm: zscore, but the rewards' standard deviation is {reward_std}: all scores are "
            "equal; use reward_norm: none"
        )
    return RewardWeighting(section.beta, section.clip_weight_max, reward_mean, reward_std)


def _check_awr(section: AWRConfig, *, compat: Compat | None) -> None:
    if compat is not None:
        return
    if section.alpha == 1:
        raise ConfigError("objective AWR with alpha 1 trains no value head; use name: RWR")
    # Values lie in (-1, 0), so the original's clip_value has nothing to clip; compat accepts it.
    for key, default in (("use_value_head", True), ("normalize_advantage", False), ("clip_value", False)):
        if getattr(section, key) != default:
            raise ConfigError(f"objective.{key}: {str(not default).lower()} is for compat: korbak2023 only; remove it")


def _parse(config: Mapping[str, Any] | BaseModel) -> _Section:
    values = config.model_dump() if isinstance(config, BaseModel) else dict(config)
    try:
        return _ADAPTER.validate_python(values)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, part['loc']))}: {part['msg']}" for part in error.errors())
        raise ConfigError(f"objective {values!r}: {problems}") from None


def _number(threshold: Threshold | None, *, key: str) -> float | None:
    if isinstance(threshold, Quantile):
        raise ConfigError(
            f"objective.{key} is the quantile {threshold.quantile} of a corpus; resolve it from the corpus manifest, "
            "or write a number"
        )
    return threshold
