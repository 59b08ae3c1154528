"""PPO: advantages from values by generalised advantage estimation (Schulman et al. 2017, arXiv 1707.06347)."""

from typing import Any

import numpy as np

from phf_ray.config.algorithms import PPOConfig
from phf_ray.errors import DataError
from phf_ray.rollouts.algorithms.base import RoundArrays, State, Weighed
from phf_ray.rollouts.algorithms.policy_gradient import PolicyGradientAlgorithm
from phf_ray.rollouts.generalized_advantage import gae
from phf_ray.rollouts.whitening import whitened


class PPO(PolicyGradientAlgorithm):
    """Learns all rows, token by token, and the values beside them.

    With lam 1 and without whitening it is unbiased: at the round's first minibatch the expected gradient is that of
    E[reward] - kl_coef KL(policy || reference), whatever the values are. lam below 1 trusts the values, whose errors
    are a bias; whitening divides by what the samples decide, which is one, too.
    """

    needs_values = True

    def __init__(self, config: PPOConfig) -> None:
        super().__init__(config)
        self.settings = config

    def objective(self) -> dict[str, Any]:
        values = {"value_coef": self.settings.value_coef, "value_clip": self.settings.value_clip}
        return super().objective() | values

    def weigh(self, arrays: RoundArrays, state: State) -> Weighed:
        if arrays.value_RT is None:
            raise DataError(
                "algorithm ppo reads the values of a round's tokens, and there are none; the model needs a value head "
                "or a critic"
            )
        settings, mask_RT = self.settings, arrays.of(arrays.usable_R)
        rewards_RT = self.token_rewards(arrays, state)
        if settings.whiten_rewards:
            rewards_RT = whitened(rewards_RT, mask_RT, keeps_mean=True)
        advantages_RT, returns_RT = gae(
            rewards_RT, arrays.value_RT, mask_RT, gamma=settings.gamma, lambda_=settings.lam
        )
        if settings.whiten_advantages:
            advantages_RT = whitened(advantages_RT, mask_RT)
        channels = {"return": returns_RT, "old_value": arrays.value_RT}
        weighed = self.weighed(arrays, advantages_RT, state, **channels)
        if not mask_RT.any():
            return weighed
        returns, values = returns_RT[mask_RT], arrays.value_RT[mask_RT]
        figures = {
            "ppo/returns/mean": returns.mean(),
            "ppo/returns/var": returns.var(),
            "ppo/val/mean": values.mean(),
            "ppo/val/var": values.var(),
            "ppo/val/error": np.square(values - returns).mean(),
        }
        figures_of_all = {**weighed.figures, **{name: float(value) for name, value in figures.items()}}
        return Weighed(weighed.keep_R, weighed.channels, figures_of_all, weighed.state)
