"""Section `algorithm`: what is learned from a round of samples, one class per algorithm, chosen by `name`."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from phf_ray.config.base import Fraction, Section

Coefficient = Annotated[float, Field(ge=0)]
Range = Annotated[float, Field(gt=0)]


class _AlgorithmSection(Section):
    learns_values: ClassVar[bool] = False
    """Whether the model needs a value head."""
    smallest_group: ClassVar[int] = 1
    """Samples of a prompt that the algorithm needs, because it compares them."""
    is_on_policy: ClassVar[bool] = True
    """Whether samples must come from the policy that learns, or from one a little older."""


class PolicyGradientSection(_AlgorithmSection):
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


class RLOOConfig(PolicyGradientSection):
    smallest_group = 2

    name: Literal["rloo"]


AlgorithmConfig = Annotated[PPOConfig | RLOOConfig, Field(discriminator="name")]
