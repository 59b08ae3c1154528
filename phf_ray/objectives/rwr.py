"""Reward-weighted regression (Eq. 7)."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from phf_ray.objectives.base import Objective, Rules, Targets, Weights, total
from phf_ray.objectives.fused import FusedLoss
from phf_ray.objectives.statistics import BinCounts, Statistics
from phf_ray.objectives.weighting import (
    RewardWeighting,
    summarize_weights,
    weight_histogram,
    weight_statistics,
    weighted_loss,
)


class RWR(Objective):
    """L = sum_t m_t w_t l_t / N, w_t = min(exp(R_t / beta), w_max), R = -score (Eq. 7).

    N is the number of targets, as in the paper, or the sum of their weights.
    """

    def __init__(
        self,
        rules: Rules,
        *,
        weighting: RewardWeighting,
        normalise: Literal["targets", "weights"] = "targets",
    ) -> None:
        super().__init__(rules)
        self.weighting = weighting
        self.normalise = normalise

    def weigh(self, targets: Targets, values_N: Tensor | None, /) -> Weights:
        rewards_N = (-targets.scores_N - self.weighting.reward_mean) / self.weighting.reward_std
        if self.compat is not None:
            # DIFFERS: phf-ray has no value head in RWR; the original runs AWR with alpha 1, which subtracts the
            # untrained head's -0.5 and so multiplies every weight by exp(0.5 / beta).
            rewards_N = rewards_N - (-0.5 if values_N is None else values_N.detach())
        weights_N = torch.where(targets.scored_N, self.weighting.weights(rewards_N), 1.0) * targets.valid_N
        return Weights(
            likelihood_N=weights_N,
            unlikelihood_N=torch.zeros_like(weights_N),
            num_targets=total(weights_N if self.normalise == "weights" else targets.valid_N),
            statistics=weight_statistics(targets, weights_N, largest=self.weighting.clip_weight_max),
        )

    def _statistics(self, targets: Targets, weights: Weights, fused: FusedLoss) -> Statistics:
        return super()._statistics(targets, weights, fused) | weighted_loss(weights, fused)

    def _summarize(self, total: Mapping[str, float], num_valid: float, /) -> dict[str, float]:
        return summarize_weights(total, num_valid)

    def histograms(self, totals: Mapping[str, Tensor], /) -> dict[str, BinCounts]:
        return weight_histogram(totals, largest=self.weighting.clip_weight_max)
