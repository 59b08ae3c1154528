"""Section `objective`: one class per objective, chosen by `name`."""

from typing import Annotated, Literal

from pydantic import Field

from phf_ray.config.base import Fraction, Quantile, Section, Threshold


class MLEConfig(Section):
    name: Literal["MLE"] = "MLE"
    score_control: bool = True
    """Loss on control tokens too."""
    mask_above: Threshold | None = None
    """Token masking: no loss on segments that score above this."""


class UnlikelihoodConfig(Section):
    name: Literal["Unlikelihood"]
    score_threshold: Threshold | None = Quantile(quantile=0.5)
    """Tokens of segments scoring above this get the unlikelihood term; null: soft mixture with weight 1 - score."""
    alpha: Annotated[float, Field(ge=0)] = 1.0
    score_control: bool = True


class _WeightedConfig(Section):
    beta: Annotated[float, Field(gt=0)] = 1.0
    """Temperature of the weights exp(reward / beta)."""
    clip_weight_max: Annotated[float, Field(gt=0)] = 1000.0
    reward_norm: Literal["none", "zscore"] = "none"
    """zscore: rewards standardised with mean and std of the block manifest."""
    score_control: bool = True


class AWRConfig(_WeightedConfig):
    name: Literal["AWR"]
    alpha: Fraction = 0.5
    """Weight of the likelihood term; 1 - alpha goes to the value loss."""
    fixed_value: float | None = None
    """A constant in place of the value head."""
    use_value_head: bool = True
    """This and the next two are options of the original that no experiment of the paper uses, for `compat: korbak2023`.
    false: the reward itself is the advantage; the value head is trained all the same."""
    normalize_advantage: bool = False
    """Advantages standardised over the micro-batch."""
    clip_value: bool = False
    """Values clipped to [-1, 0], which minus a sigmoid never leaves."""


class RWRConfig(_WeightedConfig):
    name: Literal["RWR"]
    normalise: Literal["targets", "weights"] = "targets"
    """What the loss is divided by: number of targets (paper), or sum of weights."""


ObjectiveConfig = Annotated[MLEConfig | UnlikelihoodConfig | AWRConfig | RWRConfig, Field(discriminator="name")]
