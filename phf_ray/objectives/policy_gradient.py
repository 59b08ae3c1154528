"""The policy gradient of weighed rollouts: PPO's clipped loss of each learned token, and that of its value.

Advantages and log-probabilities of the round come as channels, from `rollouts/algorithms/`. The slopes of `ppo_loss`
are the weights of the tokens' likelihood, so the fused kernel of all objectives computes the gradient.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from phf_ray.errors import ConfigError, DataError
from phf_ray.measures.numbers import Floats
from phf_ray.objectives.aggregation import Aggregation
from phf_ray.objectives.base import Objective, Rules, Targets, Weights, ratio
from phf_ray.objectives.clipped_loss import ppo_loss, value_loss
from phf_ray.objectives.kl import kl_estimate, kl_slope
from phf_ray.objectives.learned_tokens import LearnedTokens
from phf_ray.objectives.statistics import Statistics

ADVANTAGE, OLD, REFERENCE, BEHAVIOUR = "advantage", "old_logprob", "reference_logprob", "behaviour_logprob"
RETURN, OLD_VALUE = "return", "old_value"

_LARGEST_LOG_RATIO = 20.0
"""e^20 is 5e8. A policy that has moved this far is lost, and a ratio of 0 or infinity would hide where."""


@dataclass(frozen=True, slots=True)
class PolicyGradientSettings:
    clip: float = 0.2
    dual_clip: float | None = None
    aggregation: Aggregation = "tokens"
    value_coef: float = 0.0
    value_clip: float = 0.2
    kl_loss: Literal["k2", "k3"] | None = None
    kl_coef: float = 0.0
    temperature: float = 1.0
    importance_cap: float = 2.0


class PolicyGradient(Objective):
    """L = mean over tokens or sequences of m ppo_loss(p / p_old, A) + value_coef value_loss(V) + kl_coef KL estimate.

    m = min(p_old / p_behaviour, importance_cap) if the channel `behaviour_logprob` is there, else 1.
    """

    reads_scores = False
    reads_logprobs = True
    without_dropout = True

    def __init__(self, rules: Rules, settings: PolicyGradientSettings) -> None:
        super().__init__(rules)
        self.settings, self.temperature = settings, settings.temperature
        self.channels = (ADVANTAGE, OLD)
        if settings.value_coef > 0:
            self.channels += (RETURN, OLD_VALUE)
        if settings.kl_loss is not None:
            self.channels += (REFERENCE,)

    def weigh(self, targets: Targets, values_N: Tensor | None, /) -> Weights:
        settings = self.settings
        if targets.logprobs_N is None:
            raise DataError("objective PolicyGradient needs the log-probabilities of its targets")
        if settings.value_coef > 0 and values_N is None:
            raise ConfigError(
                "the objective learns values (value_coef), and the model has neither value head nor critic; set "
                "model.model_kwargs.value_head_config: {is_bounded: false}, or algorithm.critic.model"
            )
        tokens = LearnedTokens(targets, over=settings.aggregation)
        logprobs, old = tokens.of(targets.logprobs_N), tokens.channel(OLD)
        log_ratio = _bounded(logprobs - old)
        losses, slopes = ppo_loss(
            np.exp(log_ratio), tokens.channel(ADVANTAGE), clip=settings.clip, dual_clip=settings.dual_clip
        )
        importance = self._importance(tokens, old)
        losses, policy_slopes = importance * losses, importance * slopes
        figures = {
            "policy_loss": losses,
            "squared_log_ratio": np.square(log_ratio),
            "clipped": np.abs(np.expm1(log_ratio)) > settings.clip,
            "ratio": np.exp(log_ratio),
            "importance": importance,
        }
        if settings.kl_loss is not None:
            log_reference = _bounded(logprobs - tokens.channel(REFERENCE))
            figures["kl_loss"] = kl_estimate(log_reference, settings.kl_loss)
            losses = losses + settings.kl_coef * figures["kl_loss"]
            policy_slopes = policy_slopes + settings.kl_coef * kl_slope(log_reference, settings.kl_loss)
        loss_of_values = None
        if settings.value_coef > 0 and values_N is not None:
            loss_of_values, of_values = self._value_loss(tokens, values_N)
            figures |= of_values
        weights_N = tokens.spread(-tokens.weights * policy_slopes, like=targets.logprobs_N)
        return Weights(
            weights_N,
            torch.zeros_like(weights_N),
            num_targets=torch.tensor(tokens.normalizer, dtype=torch.float64, device=weights_N.device),
            loss=torch.tensor(float((tokens.weights * losses).sum()), dtype=weights_N.dtype, device=weights_N.device),
            value_loss=loss_of_values,
            statistics=_statistics(figures, tokens, device=weights_N.device),
        )

    def _importance(self, tokens: LearnedTokens, old: Floats) -> Floats:
        """Return how often each token counts: 1 if the weights that sampled it are those that the round began with."""
        behaviour = tokens.optional_channel(BEHAVIOUR)
        if behaviour is None:
            return np.ones_like(old)
        return np.minimum(np.exp(_bounded(old - behaviour)), self.settings.importance_cap)

    def _value_loss(self, tokens: LearnedTokens, values_N: Tensor) -> tuple[Tensor, dict[str, Floats]]:
        """Return the loss, whose gradient for the values is that of `value_loss`, and figures of the tokens."""
        clip, values, old_values = self.settings.value_clip, tokens.of(values_N), tokens.channel(OLD_VALUE)
        losses, slopes = value_loss(values, old_values, tokens.channel(RETURN), clip=clip)
        scale = self.settings.value_coef * tokens.weights
        sum_of_losses = torch.tensor(float((scale * losses).sum()), dtype=values_N.dtype, device=values_N.device)
        linear = (tokens.spread(scale * slopes, like=values_N) * values_N).sum()
        is_clipped = (np.abs(values - old_values) > clip).astype(np.float64)
        figures = {"value_loss": losses, "value": values, "value_clipped": is_clipped}
        return sum_of_losses + (linear - linear.detach()), figures

    def _summarize(self, total: Mapping[str, float], _num_valid: float, /) -> dict[str, float]:
        num_tokens = total["sum/num_tokens"]
        names = {
            "policy_loss": "ppo/loss/policy",
            "clipped": "ppo/policy/clipfrac",
            "ratio": "ppo/policy/ratio",
            "importance": "ppo/policy/importance",
            "kl_loss": "ppo/loss/kl",
            "value_loss": "ppo/loss/value",
            "value": "ppo/val/vpred",
            "value_clipped": "ppo/val/clipfrac",
        }
        figures = {
            shown: ratio(total[f"sum/{name}"], num_tokens) for name, shown in names.items() if f"sum/{name}" in total
        }
        figures["ppo/loss/total"] = ratio(total["sum/loss"], total["sum/num_targets"])
        figures["clip_ratio"] = figures["ppo/policy/clipfrac"]
        figures["ppo/policy/approxkl"] = ratio(total["sum/squared_log_ratio"], num_tokens) / 2
        return figures


def _bounded(log_ratio: Floats) -> Floats:
    return np.clip(log_ratio, -_LARGEST_LOG_RATIO, _LARGEST_LOG_RATIO)


def _statistics(figures: Mapping[str, Floats], tokens: LearnedTokens, *, device: torch.device) -> Statistics:
    sums = {name: float(np.sum(values)) for name, values in figures.items()} | {
        "num_tokens": float(len(tokens.weights))
    }
    return {f"sum/{name}": torch.tensor(value, dtype=torch.float64, device=device) for name, value in sums.items()}
