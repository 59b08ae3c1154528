"""Maximum likelihood (Eq. 3), which conditional training and filtering use as well."""

import torch
from torch import Tensor

from phf_ray.objectives.base import Objective, Rules, Targets, Weights, total


class MLE(Objective):
    """L = sum_t m_t l_t / sum_t m_t (Eq. 3). m_t = 0 in segments that score above `mask_above`."""

    def __init__(
        self,
        rules: Rules,
        *,
        mask_above: float | None = None,
    ) -> None:
        super().__init__(rules)
        self.mask_above = mask_above
        if rules.feedback_compat == "trl":
            self.averages_micro_batches = False  # TRL counts the tokens of the whole step, too
        self.reads_scores = mask_above is not None

    def weigh(self, targets: Targets, _values_N: Tensor | None, /) -> Weights:
        kept_N = targets.valid_N
        if self.mask_above is not None:
            kept_N = kept_N & ~(targets.scored_N & (targets.scores_N > self.mask_above))
        likelihood_N = kept_N.to(targets.scores_N.dtype)
        return Weights(likelihood_N, torch.zeros_like(likelihood_N), num_targets=total(kept_N))
