"""Maximum likelihood (Eq. 3), which conditional training and filtering use as well."""

from collections.abc import Mapping

import torch
from torch import Tensor

from phf_ray.objectives.base import Objective, Rules, Targets, Weights, ratio, total
from phf_ray.objectives.fused import FusedLoss
from phf_ray.objectives.statistics import Statistics
from phf_ray.objectives.streams import CORPUS, LOSS_WEIGHT, STREAMS, LossStreams


class MLE(Objective):
    """L = sum_t m_t l_t / sum_t m_t (Eq. 3). m_t = 0 in segments that score above `mask_above`."""

    def __init__(
        self,
        rules: Rules,
        *,
        mask_above: float | None = None,
        streams: LossStreams | None = None,
    ) -> None:
        super().__init__(rules)
        self.streams = streams
        self.mask_above = mask_above
        if rules.feedback_compat == "trl":
            self.averages_micro_batches = False  # TRL counts the tokens of the whole step, too
        self.reads_scores = mask_above is not None

    def weigh(self, targets: Targets, _values_N: Tensor | None, /) -> Weights:
        kept_N = targets.valid_N
        if self.mask_above is not None:
            kept_N = kept_N & ~(targets.scored_N & (targets.scores_N > self.mask_above))
        likelihood_N = kept_N.to(targets.scores_N.dtype)
        if LOSS_WEIGHT in targets.channels:
            likelihood_N = likelihood_N * targets.channels[LOSS_WEIGHT]
        return Weights(likelihood_N, torch.zeros_like(likelihood_N), num_targets=total(kept_N))

    def _statistics(self, targets: Targets, weights: Weights, fused: FusedLoss) -> Statistics:
        found = super()._statistics(targets, weights, fused)
        if self.streams is None or CORPUS not in targets.channels:
            return found
        stream_N = torch.tensor(self.streams.of_corpus, device=targets.ids_N.device)[targets.channels[CORPUS].long()]
        for number, name in enumerate(STREAMS):
            is_own_N = targets.valid_N & (stream_N == number)
            found[f"sum/{name}_loss"] = total(torch.where(is_own_N, fused.likelihood_N, 0.0))
            found[f"sum/{name}_targets"] = total(is_own_N)
        return found

    def _summarize(self, total: Mapping[str, float], _num_valid: float, /) -> dict[str, float]:
        """Return the mean likelihood of each stream, and how many of its tokens were learned."""
        figures: dict[str, float] = {}
        for name in STREAMS:
            if f"sum/{name}_targets" in total:
                targets = total[f"sum/{name}_targets"]
                figures |= {f"{name}_loss": ratio(total[f"sum/{name}_loss"], targets), f"{name}_targets": targets}
        return figures
