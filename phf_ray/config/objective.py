"""Section `objective`: one class per objective, chosen by `name`."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from phf_ray.config.base import Fraction, Quantile, Section, Threshold


class _ObjectiveSection(Section):
    compares_answers: ClassVar[bool] = False
    """Whether the objective learns from comparisons of answers, and not from texts or examples."""
    reads_labels: ClassVar[bool] = False
    """Whether it learns from answers that are judged one by one."""

    @property
    def reads_reference(self) -> bool:
        """Whether answers are compared with the model that the run starts from."""
        return False

    @property
    def reads_kl(self) -> bool:
        """Whether blocks hold each prompt with another prompt's answer, too."""
        return False

    @property
    def margin_of_pairs(self) -> Literal["column", "preference"] | None:
        """Where each pair's own margin comes from; None: pairs have none of their own."""
        return None


class MLEConfig(_ObjectiveSection):
    name: Literal["MLE"] = "MLE"
    score_control: bool = True
    """true: the loss includes control tokens."""
    mask_above: Threshold | None = None
    """Token masking: segments with a score above this have no loss."""


class UnlikelihoodConfig(_ObjectiveSection):
    name: Literal["Unlikelihood"]
    score_threshold: Threshold | None = Quantile(quantile=0.5)
    """Tokens of segments that score above this get the unlikelihood term; null: soft mixture with weight 1 - score."""
    alpha: Annotated[float, Field(ge=0)] = 1.0
    score_control: bool = True


class _WeightedConfig(_ObjectiveSection):
    beta: Annotated[float, Field(gt=0)] = 1.0
    """Temperature of the weights exp(reward / beta)."""
    clip_weight_max: Annotated[float, Field(gt=0)] = 1000.0
    reward_norm: Literal["none", "zscore"] = "none"
    """zscore: standardise rewards with the mean and std in the block manifest."""
    score_control: bool = True


class AWRConfig(_WeightedConfig):
    name: Literal["AWR"]
    alpha: Fraction = 0.5
    """Weight of the likelihood term. The value loss has weight 1 - alpha."""
    fixed_value: float | None = None
    """A constant value that replaces the value head."""
    use_value_head: bool = True
    """false: the reward itself is the advantage, but the value head is still trained. This and the next two keys are
    options of the original that no experiment in the paper uses, for `compat: korbak2023`."""
    normalize_advantage: bool = False
    """true: standardise advantages over the micro-batch."""
    clip_value: bool = False
    """true: clip values to [-1, 0]. No effect, because a value is minus a sigmoid."""


class RWRConfig(_WeightedConfig):
    name: Literal["RWR"]
    normalise: Literal["targets", "weights"] = "targets"
    """Divisor of the loss: the number of targets (paper), or the sum of weights."""


class DPOConfig(_ObjectiveSection):
    """Learning from pairs of answers; the names are TRL's."""

    compares_answers = True

    name: Literal["DPO"]
    loss_type: str | list[str] = "sigmoid"
    """A loss of a pair, or several; see `phf_ray.objectives.preference_loss`."""
    loss_weights: list[float] | None = None
    """One per loss_type; by default each has weight 1."""
    beta: Annotated[float, Field(gt=0)] = 0.1
    """How firmly the reference holds the policy: rewards are beta x log(policy / reference)."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of the labels that are taken to be wrong."""
    reference_free: bool = False
    """true: no reference (SimPO, ORPO, CPO)."""
    length_normalised: bool = False
    """true: means per token in place of sums over an answer (SimPO, ORPO)."""
    odds: bool = False
    """true: log-odds of the mean probability per token in place of log-probabilities (ORPO)."""
    margin: Annotated[float, Field(ge=0)] = 0.0
    """The chosen answer's reward has to be larger by this (SimPO's gamma)."""
    sft_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the chosen answers' negative log-likelihood per token (RPO's alpha, 1 in ORPO)."""

    @property
    def reads_reference(self) -> bool:
        return not self.reference_free


class KTOConfig(_ObjectiveSection):
    """Learning from answers that are judged one by one; the names are TRL's."""

    reads_labels = True

    name: Literal["KTO"]
    loss_type: Literal["kto", "apo_zero_unpaired"] = "kto"
    """kto: a reward counts as a gain from the KL of policy and reference on; apo_zero_unpaired: from 0 on."""
    beta: Annotated[float, Field(gt=0)] = 0.1
    """How firmly the reference holds the policy: rewards are beta x log(policy / reference)."""
    desirable_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of good answers. Eq. 8 of KTO: weight x number of good answers is 1 to 4/3 of that of bad ones."""
    undesirable_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of bad answers."""

    @model_validator(mode="after")
    def _learns_something(self) -> Self:
        if self.desirable_weight == self.undesirable_weight == 0:
            raise ValueError("desirable_weight and undesirable_weight are 0, so nothing is learned; raise one of them")
        return self

    @property
    def reads_reference(self) -> bool:
        return True

    @property
    def reads_kl(self) -> bool:
        return self.loss_type == "kto"


class BradleyTerryConfig(_ObjectiveSection):
    """A reward model, learned from pairs of answers: p(chosen is better) = sigmoid(r_chosen - r_rejected)."""

    compares_answers = True

    name: Literal["BradleyTerry"]
    margin: Annotated[float, Field(ge=0)] | Literal["column", "preference"] = 0.0
    """The better answer's reward has to be larger by this. column: by the column `margin` of each pair (TRL's);
    preference: by the degree of its preference, 1 for 1 and 2, 0.5 for 1.25 and 1.75."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of the labels that are taken to be wrong."""
    centring: Annotated[float, Field(ge=0)] = 0.0
    """Weight of (r_chosen + r_rejected)^2, which keeps rewards around 0 (TRL's center_rewards_coefficient)."""

    @property
    def margin_of_pairs(self) -> Literal["column", "preference"] | None:
        return self.margin if isinstance(self.margin, str) else None


ObjectiveConfig = Annotated[
    MLEConfig | UnlikelihoodConfig | AWRConfig | RWRConfig | DPOConfig | KTOConfig | BradleyTerryConfig,
    Field(discriminator="name"),
]
