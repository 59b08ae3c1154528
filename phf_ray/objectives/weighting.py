"""Exponential weights of rewards (RWR) and advantages (AWR), and their statistics."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from phf_ray.objectives.base import Targets, Weights, ratio, total
from phf_ray.objectives.fused import FusedLoss
from phf_ray.objectives.statistics import BinCounts, Statistics, counts_by_bin, weight_edges, weight_places


@dataclass(frozen=True, slots=True)
class RewardWeighting:
    """w = min(exp(advantage / beta), clip_weight_max). No gradient reaches the weights."""

    beta: float = 1.0
    clip_weight_max: float = 1000.0
    reward_mean: float = 0.0
    reward_std: float = 1.0
    """Standardises rewards, with `reward_mean`, before the exponential; mean 0 and std 1 change nothing."""

    def weights(self, advantages_N: Tensor) -> Tensor:
        return (advantages_N.detach() / self.beta).exp().clamp(max=self.clip_weight_max)


def weight_statistics(targets: Targets, weights_N: Tensor, *, largest: float) -> Statistics:
    weights_N = weights_N.detach().double()
    return {
        "sum/weight_bins": counts_by_bin(weight_places(weights_N, largest=largest), counted_N=targets.valid_N),
        "sum/num_scored": total(targets.scored_N),
        "sum/score": total(targets.scores_N),
        "min/weight": torch.where(targets.valid_N, weights_N, torch.inf).amin(),
        "max/weight": torch.where(targets.valid_N, weights_N, -torch.inf).amax(),
    }


def weight_histogram(totals: Mapping[str, Tensor], *, largest: float) -> dict[str, BinCounts]:
    counts = totals["sum/weight_bins"].tolist()
    return {"weight_dist": BinCounts(edges=weight_edges(largest=largest), counts=counts)}


def weighted_loss(weights: Weights, fused: FusedLoss) -> Statistics:
    weighted_N = torch.where(weights.likelihood_N > 0, weights.likelihood_N * fused.likelihood_N, 0.0)
    return {"sum/weighted_lm_loss": total(weighted_N)}


def summarize_weights(total: Mapping[str, float], num_valid: float) -> dict[str, float]:
    return {
        "avg_token_score": ratio(total["sum/score"], total["sum/num_scored"]),
        "lm_loss": ratio(total["sum/original_loss"], num_valid),
        "weighted_lm_loss": ratio(total["sum/weighted_lm_loss"], num_valid),
        "weight_avg": ratio(total["sum/weight"], num_valid),
        "weights_min": total["min/weight"],
        "weights_max": total["max/weight"],
    }
