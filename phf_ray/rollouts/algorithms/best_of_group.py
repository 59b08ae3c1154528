"""Expert iteration and RAFT: the best samples are learned like examples, the others not at all."""

from typing import Any

import numpy as np

from phf_ray.config.algorithms import ExpertIterationConfig, RAFTConfig
from phf_ray.measures.numbers import Floats
from phf_ray.rollouts.algorithms.base import Algorithm, RoundArrays, State, Weighed, rows_alone


class ExpertIteration(Algorithm):
    """Learns the best sample of each prompt, the first of equals (Anthony et al. 2017, arXiv 1705.08439).

    No policy gradient: the policy moves towards the distribution of the best of n.
    """

    def __init__(self, _config: ExpertIterationConfig) -> None:
        pass

    def weigh(self, arrays: RoundArrays, _state: State) -> Weighed:
        rewards_GN = arrays.grouped(arrays.rewards_R)
        places_GN = _places(rewards_GN)
        return rows_alone(arrays, (places_GN == 0).reshape(-1) & arrays.usable_R)

    def objective(self) -> dict[str, Any]:
        return {"name": "WeightedLikelihood"}


class RAFT(Algorithm):
    """Learns the best share of each prompt's samples, or of all of a round's (Dong et al. 2023, arXiv 2304.06767).

    No policy gradient: the policy moves towards the distribution of the best share. Of equal samples the first ones
    are taken.
    """

    def __init__(self, config: RAFTConfig) -> None:
        self.config = config

    def weigh(self, arrays: RoundArrays, _state: State) -> Weighed:
        rewards_GN = arrays.grouped(arrays.rewards_R)
        if self.config.ranking == "round":
            rewards_GN = rewards_GN.reshape(1, -1)
        num_G = (~np.isnan(rewards_GN)).sum(axis=1)
        # .07 x 100 is 7.000000000000001, and .29 x 100 is 28.999999999999996.
        wanted_G = np.maximum(np.floor(np.round(self.config.keep * num_G, 9)), 1)
        keep_GN = _places(rewards_GN) < wanted_G[:, None]
        return rows_alone(arrays, keep_GN.reshape(-1) & arrays.usable_R)

    def objective(self) -> dict[str, Any]:
        return {"name": "WeightedLikelihood"}


def _places(rewards_GN: Floats) -> Floats:
    """Return each sample's place by reward, 0 for the best; samples without a reward (NaN) come last."""
    order_GN = np.argsort(-rewards_GN, axis=1, kind="stable")
    places_GN = np.empty_like(rewards_GN)
    np.put_along_axis(places_GN, order_GN, np.arange(rewards_GN.shape[1], dtype=np.float64)[None], axis=1)
    return places_GN
