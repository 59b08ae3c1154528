"""Section `algorithm`: what is learned from a round of samples, one class per algorithm, chosen by `name`."""

from collections.abc import Collection
from typing import Annotated, ClassVar, Literal, Self, get_args

from pydantic import Field, model_validator

from phf_ray.config.base import Fraction, Positive, Section
from phf_ray.config.model import ModelConfig

Coefficient = Annotated[float, Field(ge=0)]
Range = Annotated[float, Field(gt=0)]


class _AlgorithmSection(Section):
    learns_values: ClassVar[bool] = False
    """Whether values of tokens are learned, by a value head or a critic."""
    smallest_group: ClassVar[int] = 1
    """Samples of a prompt that the algorithm needs, because it compares them."""
    needs_temperature_1: ClassVar[bool] = False
    """Whether its loss reads log-probabilities of the model itself, and not of its logits / temperature."""
    is_on_policy: ClassVar[bool] = False
    """Whether samples must come from the policy that learns, or from one a little older."""

    @property
    def smallest_round(self) -> int:
        """Samples of all prompts that the algorithm needs."""
        return self.smallest_group

    @property
    def tokens(self) -> list[str]:
        """Control tokens that the tokenizer needs, in front of prompts; the first one goes before those to sample."""
        return []


class PolicyGradientSection(_AlgorithmSection):
    is_on_policy = True

    kl_coef: Coefficient = 0.05
    """Price of a nat of KL(policy || reference) in units of the reward; 0: no price."""
    kl_target: Range | None = None
    """A KL per sample, in nats: kl_coef rises by up to 2% per round above it and falls below it. null: kl_coef is
    fixed."""
    clip: Range = 0.2
    """A token's loss has no slope once its probability has changed by more than this share (TRL's epsilon)."""
    dual_clip: Annotated[float, Field(gt=1)] | None = None
    """Tokens with a negative advantage lose at most this many times their advantage; 3 is usual. null: no bound."""
    aggregation: Literal["tokens", "sequences"] = "tokens"
    """tokens: every token weighs alike, so that a gradient is that of the sequences' rewards. sequences: every
    completion weighs alike, so that a token of a short one weighs more."""

    @model_validator(mode="after")
    def _target_has_a_price(self) -> Self:
        if self.kl_target is not None and self.kl_coef == 0:
            raise ValueError("kl_target multiplies kl_coef, which is 0; give kl_coef a value to start from")
        return self


class CriticConfig(Section):
    model: str
    """Folder or hub id of its start: a reward model, whose head says values from now on, or a language
    model, whose new head says 0. It must have the policy's tokens. All of its weights train."""
    learning_rate: Range | None = None
    """Peak, on the schedule of training.learning_rate; null: the same."""


class PPOConfig(PolicyGradientSection):
    learns_values = True

    name: Literal["ppo"]
    gamma: Fraction = 1.0
    """Discount of a reward per token."""
    lam: Fraction = 1.0
    """lambda of generalised advantage estimation: 1 takes the rewards as they came, 0 the value of the next token."""
    value_coef: Coefficient = 0.1
    """Weight of the value loss."""
    value_clip: Range = 0.2
    """A value gains nothing by moving further than this from what it was at sampling time."""
    whiten_rewards: bool = False
    """true: divide the rewards of a round's tokens by their standard deviation, mean kept (AlpacaFarm does)."""
    whiten_advantages: bool = True
    """true: bring a round's advantages to mean 0 and standard deviation 1."""
    critic: CriticConfig | None = None
    """A model of its own that says the values; null: a head on the policy says them."""

    @model_validator(mode="after")
    def _critic_learns(self) -> Self:
        if self.critic is not None and self.value_coef == 0:
            raise ValueError("value_coef is 0, so the critic would learn nothing; raise it, or remove the critic")
        return self


class RLOOConfig(PolicyGradientSection):
    smallest_group = 2

    name: Literal["rloo"]


class REINFORCEConfig(PolicyGradientSection):
    name: Literal["reinforce"]
    baseline: Literal["none", "past_rounds"] = "past_rounds"
    """What is taken from every reward: nothing, or a moving average of the rewards of earlier rounds."""


class REINFORCEPlusPlusConfig(PolicyGradientSection):
    name: Literal["reinforce_pp"]
    gamma: Fraction = 1.0
    """Discount of a reward per token."""


class GRPOConfig(PolicyGradientSection):
    smallest_group = 2

    name: Literal["grpo"]
    scale_rewards: bool = True
    """true: divide by the standard deviation of the prompt's rewards. false: Dr. GRPO's advantages."""
    epsilon: Range = 1e-4
    """Added to the standard deviation."""
    kl: Literal["reward", "k1", "k2", "k3"] = "reward"
    """Where the KL has its price: in the reward, or as a loss of this estimator. k1 and k3 are refused, because their
    gradients as losses are not the KL's; `compat: trl` allows k3, which is TRL's."""

    @model_validator(mode="after")
    def _keeps_its_coefficient(self) -> Self:
        if self.kl != "reward" and self.kl_target is not None:
            raise ValueError(f"kl_target adapts the price of the KL in the reward, and kl is {self.kl}; use kl: reward")
        return self


class ExpertIterationConfig(_AlgorithmSection):
    name: Literal["expert_iteration"]


class RAFTConfig(_AlgorithmSection):
    name: Literal["raft"]
    keep: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Share of the samples that is learned, rounded down, but at least one."""
    ranking: Literal["prompt", "round"] = "prompt"
    """prompt: the best samples of each prompt. round: the best of all, so that easy prompts give more."""


class QuarkConfig(_AlgorithmSection):
    name: Literal["quark"]
    num_quantiles: Annotated[int, Field(ge=2)] = 4
    """Equal shares of the samples by reward, the best first; what is left over goes to the last."""
    best_only: bool = True
    """true: learn the best quantile alone, without control tokens. false: learn all behind `<reward_0>` (the best),
    `<reward_1>`, ..., and sample behind `<reward_0>`."""
    kl_coef: Coefficient = 0.05
    """Weight of the exact KL(policy || reference) of each token; needs the reference's hidden states at each step."""
    entropy_coef: Coefficient = 0.0
    """Weight of each token's exact entropy, which is rewarded."""
    pool_rounds: Positive = 1
    """Rounds whose samples are ranked and learned together, the newest among them."""

    @property
    def tokens(self) -> list[str]:
        return [] if self.best_only else [f"<reward_{number}>" for number in range(self.num_quantiles)]

    @property
    def smallest_round(self) -> int:
        return self.num_quantiles


class RewardConditioningConfig(_AlgorithmSection):
    name: Literal["reward_conditioning"]
    good_share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of a round's samples, by reward, that counts as good."""
    good: str = "<|aligned|>"
    """Control token before the prompt of a good sample, and before all prompts when sampling."""
    bad: str = "<|misaligned|>"

    @model_validator(mode="after")
    def _tokens_differ(self) -> Self:
        if self.good == self.bad:
            raise ValueError(f"good and bad are both {self.good}; samples need two different tokens")
        return self

    @property
    def tokens(self) -> list[str]:
        return [self.good, self.bad]

    @property
    def smallest_round(self) -> int:
        return 2


class OnlineDPOConfig(_AlgorithmSection):
    smallest_group = 2
    needs_temperature_1 = True

    name: Literal["online_dpo"]
    pairing: Literal["best_worst", "higher", "drawn"] = "best_worst"
    """best_worst: the best and the worst sample of each prompt. higher, drawn: the samples of a prompt two by two; the
    higher reward is preferred, or the preference is drawn with probability sigmoid(difference of the rewards)."""
    seed: int = 0
    """Of the drawn preferences."""
    loss_type: str = "sigmoid"
    """A loss of a pair; see `phf_ray.objectives.preference_loss`."""
    beta: Range = 0.1
    """How firmly the reference holds the policy."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0


AlgorithmConfig = Annotated[
    PPOConfig
    | RLOOConfig
    | REINFORCEConfig
    | REINFORCEPlusPlusConfig
    | GRPOConfig
    | ExpertIterationConfig
    | RAFTConfig
    | QuarkConfig
    | RewardConditioningConfig
    | OnlineDPOConfig,
    Field(discriminator="name"),
]


def algorithm_names() -> list[str]:
    return [get_args(section.model_fields["name"].annotation)[0] for section in get_args(get_args(AlgorithmConfig)[0])]


def problems_of_algorithm(
    algorithm: AlgorithmConfig,
    *,
    model: ModelConfig,
    special_tokens: Collection[str],
    prompts_per_round: int,
    samples_per_prompt: int,
    temperature: float,
) -> list[str]:
    """Say what of the rest of the configuration the algorithm can't work with, and what to do."""
    problems = []
    name = f"algorithm {algorithm.name}"
    value_head = model.model_kwargs.value_head_config
    if isinstance(algorithm, PPOConfig) and algorithm.critic is not None:
        if value_head is not None:
            problems.append(
                f"{name} has values by algorithm.critic, and the policy's value head would learn nothing; set "
                "model.model_kwargs.value_head_config: null, or remove the critic"
            )
    elif algorithm.learns_values and (value_head is None or value_head.is_bounded):
        problems.append(
            f"{name} learns values of any size; set model.model_kwargs.value_head_config: {{is_bounded: false}}, or "
            "algorithm.critic.model to a reward model"
        )
    if samples_per_prompt < algorithm.smallest_group:
        problems.append(
            f"{name} compares samples of one prompt, and rollouts.samples_per_prompt is {samples_per_prompt}; set it "
            f"to {algorithm.smallest_group} or more"
        )
    if (size := prompts_per_round * samples_per_prompt) < algorithm.smallest_round:
        problems.append(f"{name} needs {algorithm.smallest_round} samples in a round, which has {size}; draw more")
    if missing := [token for token in algorithm.tokens if token not in special_tokens]:
        problems.append(
            f"{name} puts {', '.join(missing)} before prompts; add it to tokenizer.special_tokens, "
            "and model.num_additional_tokens to a model that lacks it"
        )
    if algorithm.needs_temperature_1 and temperature != 1:
        problems.append(f"{name} compares log-probabilities at temperature 1; rollouts.temperature is {temperature:g}")
    return problems
