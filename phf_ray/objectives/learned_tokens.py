"""The learned tokens of a micro-batch as plain numbers, with the weight that each has in a mean.

M tokens are learned; they stand in R rows. Rows are whole within a micro-batch, so sums over micro-batches and ranks
are those of the step.
"""

import numpy as np
import torch
from torch import Tensor

from phf_ray.errors import DataError
from phf_ray.measures.numbers import Floats
from phf_ray.objectives.aggregation import Aggregation, aggregation_weights
from phf_ray.objectives.base import Targets


class LearnedTokens:
    def __init__(self, targets: Targets, *, over: Aggregation) -> None:
        if targets.rows_N is None:
            raise DataError("the tokens' rows are unknown; the objective must read log-probabilities")
        self._channels = targets.channels
        self._places = targets.valid_N.nonzero().squeeze(1)
        rows = targets.rows_N[self._places].cpu().numpy()
        _, starts, rows = np.unique(rows, return_index=True, return_inverse=True)
        columns = np.arange(len(rows)) - starts[rows]
        mask_RT = np.zeros((len(starts), int(columns.max(initial=-1)) + 1), dtype=bool)
        mask_RT[rows, columns] = True
        weights_RT, self.normalizer = aggregation_weights(mask_RT, over=over)
        self.weights: Floats = weights_RT[rows, columns]
        """sum(weights x numbers) / normalizer is the mean, shape (M,)."""

    def of(self, numbers_N: Tensor) -> Floats:
        """Return the numbers of the learned tokens, (M,), float64, without gradient."""
        found: Floats = numbers_N.detach()[self._places.to(numbers_N.device)].double().cpu().numpy()
        return found

    def channel(self, name: str) -> Floats:
        return self.of(self._channels[name])

    def optional_channel(self, name: str) -> Floats | None:
        return self.channel(name) if name in self._channels else None

    def spread(self, numbers_M: Floats, *, like: Tensor) -> Tensor:
        """Return numbers of the learned tokens at their places among all targets, 0 elsewhere."""
        spread_N = torch.zeros_like(like)
        spread_N[self._places] = torch.from_numpy(numbers_M).to(like.device, like.dtype)
        return spread_N
