"""What the policy gradients share: the price of the KL, and the channels that their objective reads."""

from typing import Any

import numpy as np

from phf_ray.config.algorithms import PolicyGradientSection
from phf_ray.errors import DataError
from phf_ray.measures.numbers import Floats
from phf_ray.objectives.kl import kl_estimate
from phf_ray.rollouts.algorithms.base import Algorithm, RoundArrays, State, Weighed, as_channel, round_figures

KL_COEF = "kl_coef"
"""Name in the state of the rounds."""


class PolicyGradientAlgorithm(Algorithm):
    def __init__(self, config: PolicyGradientSection) -> None:
        self.config = config
        self.needs_reference = config.kl_coef > 0 or config.kl_target is not None

    def objective(self) -> dict[str, Any]:
        config = self.config
        return {
            "name": "PolicyGradient",
            "clip": config.clip,
            "dual_clip": config.dual_clip,
            "aggregation": config.aggregation,
        }

    def kl(self, arrays: RoundArrays) -> Floats:
        """Return the k1 estimate of each token, whose price in the reward has the gradient of the KL; 0 at padding."""
        if arrays.reference_RT is None:
            if self.needs_reference:
                raise DataError("the reference's log-probabilities are missing, and the KL has a price: kl_coef")
            return np.zeros_like(arrays.policy_RT)
        # DIFFERS: phf-ray charges for the KL as it is estimated; AlpacaFarm's PPO takes 0 where a token's estimate is
        # negative, which is a bias.
        return kl_estimate(arrays.policy_RT - arrays.reference_RT, "k1")

    def kl_coef(self, state: State) -> float:
        return float(state.get(KL_COEF, self.config.kl_coef))

    def price(self, state: State) -> float:
        """Return the price of a nat in the reward."""
        return self.kl_coef(state)

    def token_rewards(self, arrays: RoundArrays, state: State) -> Floats:
        """Return each token's reward: minus the price of its KL, and at a row's last token its reward; 0 for rows that
        can't be used."""
        rewards_RT = -self.price(state) * self.kl(arrays)
        rows = np.flatnonzero(arrays.usable_R)
        if len(rows):
            last = arrays.mask_RT.shape[1] - 1 - np.argmax(arrays.mask_RT[rows, ::-1], axis=1)
            rewards_RT[rows, last] += arrays.rewards_R[rows]
        return np.where(arrays.of(arrays.usable_R), rewards_RT, 0.0)

    def weighed(self, arrays: RoundArrays, advantages_RT: Floats, state: State, **channels_RT: Floats) -> Weighed:
        """Return what is learned of rows that have advantages, with the figures and the next state."""
        mask_RT = arrays.of(arrays.usable_R)
        channels_RT = {"advantage": advantages_RT, "old_logprob": arrays.policy_RT, **channels_RT}
        if arrays.behaviour_RT is not None:
            channels_RT["behaviour_logprob"] = arrays.behaviour_RT
        return Weighed(
            keep_R=arrays.usable_R,
            channels={name: as_channel(values_RT, mask_RT) for name, values_RT in channels_RT.items()},
            figures=round_figures(arrays) | self._price_figures(arrays, state),
            state=self._next_state(arrays, state),
        )

    def _price_figures(self, arrays: RoundArrays, state: State) -> dict[str, float]:
        figures, usable_R = {"objective/kl_coef": self.kl_coef(state)}, arrays.usable_R
        if usable_R.any():
            price = self.price(state) * self.kl(arrays)[usable_R].sum(axis=1).mean()
            figures["objective/non_score_rewards"] = -float(price)
            figures["objective/shaped_rewards"] = float(self.token_rewards(arrays, state)[usable_R].sum(axis=1).mean())
        return figures

    def _next_state(self, arrays: RoundArrays, state: State) -> dict[str, float]:
        """Adapt kl_coef as AlpacaFarm does: by a tenth of how far the KL is from its target, at most 2%."""
        coefficient = self.kl_coef(state)
        target, usable_R = self.config.kl_target, arrays.usable_R
        if target is not None and arrays.reference_RT is not None and usable_R.any():
            kl = kl_estimate(arrays.sampling_logprobs - arrays.reference_RT, "k1")[usable_R].sum(axis=1).mean()
            coefficient *= 1 + 0.1 * float(np.clip(kl / target - 1, -0.2, 0.2))
        return {KL_COEF: coefficient}
