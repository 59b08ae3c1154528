"""REINFORCE: each row's reward, less what earlier rounds led to expect (Williams 1992)."""

import dataclasses

import numpy as np

from phf_ray.config.algorithms import REINFORCEConfig
from phf_ray.rollouts.algorithms.base import RoundArrays, State, Weighed
from phf_ray.rollouts.algorithms.policy_gradient import PolicyGradientAlgorithm

_BASELINE = "baseline"
_DECAY = 0.9
"""Share of the average that stays after a round."""


class REINFORCE(PolicyGradientAlgorithm):
    """Learns all rows. A row's reward, less the price of its KL and the baseline, counts for each of its tokens.

    Unbiased: at the round's first minibatch the expected gradient is that of E[reward] - kl_coef KL(policy ||
    reference). The baseline knows nothing of this round's samples; their own mean would take (n - 1) / n of the
    gradient.
    """

    def __init__(self, config: REINFORCEConfig) -> None:
        super().__init__(config)
        self.has_baseline = config.baseline == "past_rounds"

    def weigh(self, arrays: RoundArrays, state: State) -> Weighed:
        usable_R = arrays.usable_R
        returns_R = self.token_rewards(arrays, state).sum(axis=1)
        baseline = float(state.get(_BASELINE, 0.0)) if self.has_baseline else 0.0
        advantages_RT = np.where(arrays.of(usable_R), (returns_R - baseline)[:, None], 0.0)
        weighed = self.weighed(arrays, advantages_RT, state)
        if not self.has_baseline:
            return weighed
        known = {_BASELINE: state[_BASELINE]} if _BASELINE in state else {}
        if usable_R.any():
            mean = float(returns_R[usable_R].mean())
            known[_BASELINE] = _DECAY * known[_BASELINE] + (1 - _DECAY) * mean if known else mean
        figures = {**weighed.figures, "objective/baseline": baseline}
        return dataclasses.replace(weighed, figures=figures, state={**weighed.state, **known})
