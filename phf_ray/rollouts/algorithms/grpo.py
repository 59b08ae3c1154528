"""GRPO: each sample against its prompt's samples, in units of their spread (Shao et al. 2024, arXiv 2402.03300)."""

from typing import Any

import numpy as np

from phf_ray.config.algorithms import GRPOConfig
from phf_ray.config.base import FeedbackCompat
from phf_ray.errors import ConfigError
from phf_ray.measures.numbers import Floats
from phf_ray.rollouts.algorithms.base import RoundArrays, State, Weighed
from phf_ray.rollouts.algorithms.policy_gradient import PolicyGradientAlgorithm
from phf_ray.rollouts.group_baselines import group_advantages

_REFUSED = {
    "k1": "the gradient of k1 as a loss is 0 in expectation, so nothing would hold the policy; use kl: reward",
    "k3": "the gradient of k3 as a loss is that of KL(reference || policy), not of KL(policy || reference); use kl: "
    "reward, or compat: trl for TRL's numbers",
}


class GRPO(PolicyGradientAlgorithm):
    """Learns all rows. The advantage (reward - the group's mean) / (sd + epsilon) counts for each token of a row.

    Biased. Without `scale_rewards` the expected gradient is (n - 1) / n of the exact one, n samples per prompt: the
    mean holds the sample itself. With it, it is not even parallel: prompts, and draws of samples, on which the samples
    nearly agree weigh more. The KL has its price in the reward, which has the KL's gradient; `kl: k2` as a loss has it,
    too. `kl: k3` (`compat: trl`) pulls with the gradient of KL(reference || policy).
    """

    def __init__(self, config: GRPOConfig, *, compat: FeedbackCompat = None) -> None:
        super().__init__(config)
        if config.kl == "k1" or (config.kl == "k3" and compat != "trl"):
            raise ConfigError(f"algorithm.kl: {config.kl}: {_REFUSED[config.kl]}")
        self.settings = config

    def objective(self) -> dict[str, Any]:
        if self.settings.kl == "reward" or not self.needs_reference:
            return super().objective()
        # DIFFERS: phf-ray charges for the KL in the reward; TRL takes the k3 estimate as a loss.
        return super().objective() | {"kl_loss": self.settings.kl, "kl_coef": self.settings.kl_coef}

    def price(self, state: State) -> float:
        return super().price(state) if self.settings.kl == "reward" else 0.0

    def weigh(self, arrays: RoundArrays, state: State) -> Weighed:
        settings = self.settings
        returns_R = self.token_rewards(arrays, state).sum(axis=1)
        advantages_GN = group_advantages(
            arrays.grouped(returns_R), epsilon=settings.epsilon, scale=settings.scale_rewards
        )
        advantages_RT = np.where(arrays.of(arrays.usable_R), advantages_GN.reshape(-1)[:, None], 0.0)
        reference: dict[str, Floats] = {}
        if settings.kl != "reward" and arrays.reference_RT is not None and self.needs_reference:
            reference["reference_logprob"] = arrays.reference_RT
        return self.weighed(arrays, advantages_RT, state, **reference)
