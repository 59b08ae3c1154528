"""Advantage-weighted regression (Eq. 8)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from phf_ray.errors import ConfigError
from phf_ray.objectives.base import Objective, Rules, Targets, Weights, ratio, total
from phf_ray.objectives.fused import FusedLoss
from phf_ray.objectives.statistics import NUM_BINS, BinCounts, Statistics, counts_by_bin
from phf_ray.objectives.weighting import (
    RewardWeighting,
    summarize_weights,
    weight_histogram,
    weight_statistics,
    weighted_loss,
)


class AWR(Objective):
    """L = alpha sum_t m_t w_t l_t / N + (1 - alpha) sum_t m_t (R_t - V_t)^2 / N (Eq. 8),

    with w_t = min(exp((R_t - V_t) / beta), w_max) and R = -score; the value head predicts V. Structural targets have
    advantage 0 and no value loss. If rewards are standardised, so is V: the advantage is (R - V) / std, and the head
    still learns R itself.
    """

    def __init__(
        self,
        rules: Rules,
        *,
        weighting: RewardWeighting,
        alpha: float = 0.5,
        fixed_value: float | None = None,
        use_value_head: bool = True,
        normalize_advantage: bool = False,
    ) -> None:
        super().__init__(rules)
        self.weighting = weighting
        self.alpha = alpha
        # DIFFERS: phf-ray accepts 0.0 as a fixed value; the original tests `if fixed_value`, so 0.0 is the value
        # head.
        self.fixed_value = fixed_value if self.compat is None else (fixed_value or None)
        self.use_value_head = use_value_head
        self.normalize_advantage = normalize_advantage

    def weigh(self, targets: Targets, values_N: Tensor | None, /) -> Weights:
        rewards_N = -targets.scores_N
        advantages_N = (rewards_N - self._baseline(rewards_N, values_N)) / self.weighting.reward_std
        if self.normalize_advantage:
            advantages_N = (advantages_N - advantages_N.mean()) / advantages_N.std()
        advantages_N = torch.where(targets.scored_N, advantages_N, 0.0)
        weights_N = self.weighting.weights(advantages_N) * targets.valid_N
        statistics = weight_statistics(targets, weights_N, largest=self.weighting.clip_weight_max)
        statistics |= {"sum/advantage": total(advantages_N)}
        value_loss = None
        if values_N is not None:
            squares_N = torch.where(targets.scored_N, (rewards_N - values_N).square(), 0.0)
            value_loss = (1 - self.alpha) * squares_N.sum()
            statistics |= {"sum/value_loss": total(squares_N)} | _value_statistics(
                targets, rewards_N, values_N.detach()
            )
        return Weights(
            likelihood_N=weights_N,
            unlikelihood_N=torch.zeros_like(weights_N),
            num_targets=total(targets.valid_N),
            coefficient=self.alpha,
            value_loss=value_loss,
            statistics=statistics,
        )

    def _baseline(self, rewards_N: Tensor, values_N: Tensor | None) -> Tensor:
        if self.fixed_value is not None:
            return torch.full_like(rewards_N, self.fixed_value)
        if not self.use_value_head:
            return torch.zeros_like(rewards_N)
        if values_N is None:
            raise ConfigError(
                "objective AWR needs a value head; set model.model_kwargs.value_head_config or fixed_value"
            )
        return values_N.detach().to(rewards_N.dtype)

    def _statistics(self, targets: Targets, weights: Weights, fused: FusedLoss) -> Statistics:
        return super()._statistics(targets, weights, fused) | weighted_loss(weights, fused)

    def _summarize(self, total: Mapping[str, float], num_valid: float, /) -> dict[str, float]:
        num_scored = total["sum/num_scored"]
        figures = summarize_weights(total, num_valid) | {
            "advantage_avg": ratio(total["sum/advantage"], num_scored),
        }
        if "sum/value_loss" in total:
            figures |= _summarize_values(total, num_valid, num_scored)
        return figures

    def histograms(self, totals: Mapping[str, Tensor], /) -> dict[str, BinCounts]:
        found = weight_histogram(totals, largest=self.weighting.clip_weight_max)
        if "sum/value_bins" in totals:
            edges = [edge / NUM_BINS - 1 for edge in range(NUM_BINS + 1)]
            found["value_dis"] = BinCounts(edges=edges, counts=totals["sum/value_bins"].tolist())
        return found


def _value_statistics(targets: Targets, rewards_N: Tensor, values_N: Tensor) -> Statistics:
    scored_N = targets.scored_N
    rewards_N, values_N = (torch.where(scored_N, tensor.double(), 0.0) for tensor in (rewards_N, values_N))
    return {
        "sum/value_bins": counts_by_bin(values_N + 1, counted_N=scored_N),
        "sum/value": values_N.sum(),
        "sum/value_squared": values_N.square().sum(),
        "sum/reward": rewards_N.sum(),
        "sum/reward_squared": rewards_N.square().sum(),
        "sum/value_reward": (values_N * rewards_N).sum(),
        "min/value": torch.where(scored_N, values_N, torch.inf).amin(),
        "max/value": torch.where(scored_N, values_N, -torch.inf).amax(),
    }


def _summarize_values(total: Mapping[str, float], num_valid: float, num_scored: float) -> dict[str, float]:
    mean = {name: ratio(total[f"sum/{name}"], num_scored) for name in ("value", "reward", "value_squared")}
    value_variance = max(mean["value_squared"] - mean["value"] ** 2, 0.0)
    reward_variance = max(ratio(total["sum/reward_squared"], num_scored) - mean["reward"] ** 2, 0.0)
    covariance = ratio(total["sum/value_reward"], num_scored) - mean["value"] * mean["reward"]
    return {
        "value_loss": ratio(total["sum/value_loss"], num_valid),
        "value_avg": mean["value"],
        "value_std": value_variance**0.5,
        "value_min": total["min/value"],
        "value_max": total["max/value"],
        "value_reward_corr": ratio(covariance, (value_variance * reward_variance) ** 0.5),
    }
