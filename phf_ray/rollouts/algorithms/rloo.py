"""RLOO: each sample against the mean of its prompt's others (Ahmadian et al. 2024, arXiv 2402.14740)."""

import numpy as np

from phf_ray.rollouts.algorithms.base import RoundArrays, State, Weighed
from phf_ray.rollouts.algorithms.policy_gradient import PolicyGradientAlgorithm
from phf_ray.rollouts.group_baselines import rloo_advantages


class RLOO(PolicyGradientAlgorithm):
    """Learns all rows. A row's reward, less the price of its KL, counts for each of its tokens.

    Unbiased: at the round's first minibatch the expected gradient is that of E[reward] - kl_coef KL(policy ||
    reference).
    """

    def weigh(self, arrays: RoundArrays, state: State) -> Weighed:
        returns_R = self.token_rewards(arrays, state).sum(axis=1)
        advantages_R = rloo_advantages(arrays.grouped(returns_R)).reshape(-1)
        advantages_RT = np.where(arrays.of(arrays.usable_R), advantages_R[:, None], 0.0)
        return self.weighed(arrays, advantages_RT, state)
