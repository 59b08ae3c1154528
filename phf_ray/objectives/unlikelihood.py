"""Unlikelihood (Eq. 6)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from phf_ray.objectives.base import Objective, Rules, Targets, Weights, ratio, total
from phf_ray.objectives.fused import FusedLoss
from phf_ray.objectives.statistics import Statistics


class Unlikelihood(Objective):
    """L = sum_t m_t (a_t l_t + alpha (1 - a_t) u_t) / sum_t m_t (Eq. 6).

    A target is aligned (a_t = 1) if its score is at most `score_threshold`; 0.0 is a valid threshold. If the threshold
    is None, the mixture is soft: a_t = 1 - score.
    """

    def __init__(
        self,
        rules: Rules,
        *,
        score_threshold: float | None,
        alpha: float = 1.0,
    ) -> None:
        super().__init__(rules)
        # DIFFERS: phf-ray accepts 0.0 as a threshold; the original tests `if score_threshold`, so 0.0 means the
        # mixture.
        self.score_threshold = score_threshold if self.compat is None else (score_threshold or None)
        self.alpha = alpha

    def weigh(self, targets: Targets, _values_N: Tensor | None, /) -> Weights:
        if self.score_threshold is not None:
            aligned_N = (targets.scores_N <= self.score_threshold).to(targets.scores_N.dtype)
        else:
            # DIFFERS: phf-ray keeps a_t in [0, 1]; the original gives a score above 1 a negative weight.
            aligned_N = 1 - (targets.scores_N if self.compat else targets.scores_N.clamp(0, 1))
        # Structural targets, and unscored targets that are trained on, count as aligned whatever the threshold.
        aligned_N = torch.where(targets.scored_N, aligned_N, 1.0)
        valid_N = targets.valid_N.to(aligned_N.dtype)
        return Weights(
            likelihood_N=valid_N * aligned_N,
            unlikelihood_N=valid_N * self.alpha * (1 - aligned_N),
            num_targets=total(targets.valid_N),
            statistics={
                "sum/num_scored": total(targets.scored_N),
                "sum/score": total(targets.scores_N),
                "sum/aligned": total(valid_N * aligned_N),
            },
        )

    def _statistics(self, targets: Targets, weights: Weights, fused: FusedLoss) -> Statistics:
        # The loss of a target with weight 0 may be infinite, and 0 x inf is NaN.
        likelihood_N = torch.where(weights.likelihood_N > 0, weights.likelihood_N * fused.likelihood_N, 0.0)
        unlikelihood_N = torch.where(weights.unlikelihood_N > 0, weights.unlikelihood_N * fused.unlikelihood_N, 0.0)
        return super()._statistics(targets, weights, fused) | {
            "sum/likelihood_loss": total(likelihood_N),
            "sum/unlikelihood_loss": total(unlikelihood_N),
        }

    def _summarize(self, total: Mapping[str, float], num_valid: float, /) -> dict[str, float]:
        return {
            "avg_token_score": ratio(total["sum/score"], total["sum/num_scored"]),
            "aligned_token_count": total["sum/aligned"],
            "likelihood_loss": ratio(total["sum/likelihood_loss"], num_valid),
            "unlikelihood_loss": ratio(total["sum/unlikelihood_loss"], num_valid),
        }
