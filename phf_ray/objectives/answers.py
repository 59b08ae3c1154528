"""Sums over the answers of a micro-batch, for objectives that see an answer as one number."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from phf_ray.objectives.base import Targets
from phf_ray.objectives.pairs import Floats

REFERENCE = "reference_logprob"


class Answers(NamedTuple):
    """The rows with learned tokens, in their order, R of them; padding adds none."""

    logprobs: Floats
    """Sum over the learned tokens of each row, shape (R,)."""
    lengths: Floats
    sums: Mapping[str, Floats]
    """Of each channel that was asked for."""
    places_N: Tensor
    """Index of each target's row in these arrays; 0 for a target that is not learned."""

    def spread(self, slopes_R: Floats, targets: Targets) -> Tensor:
        """Return the weight of each target's likelihood, (N,), if the loss has these slopes by the rows' sums."""
        logprobs_N = targets.logprobs_N
        assert logprobs_N is not None
        if not len(slopes_R):  # a micro-batch of padding
            return torch.zeros_like(logprobs_N)
        slopes = torch.from_numpy(slopes_R).to(logprobs_N.device, logprobs_N.dtype)
        return torch.where(targets.valid_N, -slopes[self.places_N], 0.0)


def answers_of(targets: Targets, channels: tuple[str, ...]) -> Answers:
    """Sum log-probabilities and channels over rows."""
    valid_N, rows_N, logprobs_N = targets.valid_N, targets.rows_N, targets.logprobs_N
    assert rows_N is not None  # the objective reads log-probabilities
    assert logprobs_N is not None
    numbers = [targets.channels[name].to(logprobs_N.device) for name in channels]
    sums_CN = torch.stack([logprobs_N, torch.ones_like(logprobs_N), *numbers]).double()
    sums_CR = torch.zeros(len(sums_CN), len(rows_N) + 1, dtype=torch.float64, device=rows_N.device)
    sums_CR.index_add_(1, rows_N, torch.where(valid_N, sums_CN, 0.0))
    is_row_R = sums_CR[1] > 0
    places_N = torch.where(valid_N, (is_row_R.cumsum(0) - 1)[rows_N], 0)
    logprobs, lengths, *others = sums_CR[:, is_row_R].cpu().numpy()
    return Answers(logprobs, lengths, dict(zip(channels, others, strict=True)), places_N)
