"""Quark: samples in quantiles by reward, each learned behind its own control token (Lu et al. 2022, arXiv 2205.13636).

Reward conditioning is the same with two tokens and without a reference.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from phf_ray.config.algorithms import QuarkConfig, RewardConditioningConfig
from phf_ray.rollouts.algorithms.base import Algorithm, RoundArrays, State, Weighed, rows_alone

_NONE = -1


class Quark(Algorithm):
    """Learns all rows behind the tokens of their quantiles, or the best quantile alone, without tokens.

    No policy gradient: the policy moves towards the distribution of the best quantile of its own samples (or of the
    samples that the best token brought forth), held by the exact KL to the reference. Quantiles are those of all rows
    that `weigh` is given, whatever their prompts.
    """

    def __init__(self, config: QuarkConfig) -> None:
        self.config = config
        self.num_pool_rounds = config.pool_rounds
        self.control_tokens = tuple(config.tokens)
        self.sampling_prefix = self.control_tokens[0] if self.control_tokens else None
        self.needs_reference_states = config.kl_coef > 0

    def weigh(self, arrays: RoundArrays, _state: State) -> Weighed:
        num_usable, num_quantiles = int(arrays.usable_R.sum()), self.config.num_quantiles
        size = num_usable // num_quantiles
        if not size:  # so many failed that the best can't be told from the others
            return rows_alone(arrays, np.zeros_like(arrays.usable_R))
        sizes = [size] * (num_quantiles - 1)
        quantile_R = _quantiles(arrays, [*sizes, num_usable - sum(sizes)])
        if self.config.best_only:
            return rows_alone(arrays, quantile_R == 0)
        return rows_alone(arrays, quantile_R != _NONE, prefix_R=_prefixes(quantile_R, self.control_tokens))

    def objective(self) -> dict[str, Any]:
        return {
            "name": "WeightedLikelihood",
            "kl_coef": self.config.kl_coef,
            "entropy_coef": self.config.entropy_coef,
        }


class RewardConditioning(Algorithm):
    """Learns all rows, the better ones behind the good token, the others behind the bad one; samples behind the good
    one. No policy gradient."""

    def __init__(self, config: RewardConditioningConfig) -> None:
        self.config = config
        self.control_tokens = tuple(config.tokens)
        self.sampling_prefix = config.good

    def weigh(self, arrays: RoundArrays, _state: State) -> Weighed:
        num_usable = int(arrays.usable_R.sum())
        num_good = round(self.config.good_share * num_usable)
        quantile_R = _quantiles(arrays, [num_good, num_usable - num_good])
        return rows_alone(arrays, quantile_R != _NONE, prefix_R=_prefixes(quantile_R, self.control_tokens))

    def objective(self) -> dict[str, Any]:
        return {"name": "WeightedLikelihood"}


def _quantiles(arrays: RoundArrays, sizes: list[int]) -> NDArray[np.int64]:
    """Return the number of each row's quantile, 0 for the best; _NONE for rows that can't be used. Of equal rows the
    first ones are the better."""
    # DIFFERS: phf-ray ranks the samples of a round; AlpacaFarm's Quark those of each process by themselves.
    rows = np.flatnonzero(arrays.usable_R)
    order = rows[np.argsort(-arrays.rewards_R[rows], kind="stable")]
    quantile_R = np.full(len(arrays.usable_R), _NONE)
    quantile_R[order] = np.repeat(np.arange(len(sizes)), sizes)
    return quantile_R


def _prefixes(quantile_R: NDArray[np.int64], tokens: tuple[str, ...]) -> list[str]:
    return ["" if number == _NONE else tokens[number] for number in quantile_R]
