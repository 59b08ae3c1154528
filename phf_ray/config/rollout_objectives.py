"""The objectives that learn weighed rollouts. An algorithm writes these sections; no user does."""

from typing import Annotated, Literal

from pydantic import Field

from phf_ray.config.base import Section


class PolicyGradientConfig(Section):
    """PPO's clipped loss of each token, with a value loss and a loss of the KL if they have weights."""

    name: Literal["PolicyGradient"]
    clip: Annotated[float, Field(gt=0)] = 0.2
    dual_clip: Annotated[float, Field(gt=1)] | None = None
    aggregation: Literal["tokens", "sequences"] = "tokens"
    value_coef: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the value loss; above 0, the model needs a value head."""
    value_clip: Annotated[float, Field(gt=0)] = 0.2
    kl_loss: Literal["k2", "k3"] | None = None
    kl_coef: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the loss of the KL."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Log-probabilities are those of logits / temperature, as in sampling."""
    importance_cap: Annotated[float, Field(gt=0)] = 2.0
    """Tokens of older weights count min(p / p when sampled, this) times."""


class WeightedLikelihoodConfig(Section):
    """Likelihood of the learned tokens, each with its weight, with the exact KL and entropy if they have weights."""

    name: Literal["WeightedLikelihood"]
    kl_coef: Annotated[float, Field(ge=0)] = 0.0
    entropy_coef: Annotated[float, Field(ge=0)] = 0.0
