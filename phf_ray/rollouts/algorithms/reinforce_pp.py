"""REINFORCE++: what is still to come from each token on, whitened over the round (Hu 2025, arXiv 2501.03262)."""

import numpy as np

from phf_ray.config.algorithms import REINFORCEPlusPlusConfig
from phf_ray.rollouts.algorithms.base import RoundArrays, State, Weighed
from phf_ray.rollouts.algorithms.policy_gradient import PolicyGradientAlgorithm
from phf_ray.rollouts.generalized_advantage import gae
from phf_ray.rollouts.whitening import whitened


class REINFORCEPlusPlus(PolicyGradientAlgorithm):
    """Learns all rows. A token's advantage is its row's reward less the price of the KL from this token on.

    Biased: advantages are brought to mean 0 and standard deviation 1 over the round's n tokens. The mean holds each
    token itself, which takes about (n - 1) / n of the gradient, and the division by what the samples decide turns it:
    rounds in which the samples nearly agree weigh more. Both vanish as the round grows.
    """

    def __init__(self, config: REINFORCEPlusPlusConfig) -> None:
        super().__init__(config)
        self.gamma = config.gamma

    def weigh(self, arrays: RoundArrays, state: State) -> Weighed:
        mask_RT = arrays.of(arrays.usable_R)
        rewards_RT = self.token_rewards(arrays, state)
        to_come_RT, _ = gae(rewards_RT, np.zeros_like(rewards_RT), mask_RT, gamma=self.gamma, lambda_=1.0)
        return self.weighed(arrays, whitened(to_come_RT, mask_RT), state)
