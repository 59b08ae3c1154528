"""Log-probabilities and values of a round's answers, by the forward pass that training uses.

Rows are computed in micro-batches that do not depend on the number of workers, so neither do the numbers.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from phf_ray.models.language_model import LanguageModel
from phf_ray.rollouts.token_rows import TokenRows
from phf_ray.training.batches import MicroBatch, batch_of, share_of_step
from phf_ray.training.state import unwrapped

TokenNumbers = list[NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class ForwardShare:
    """The part of a round that this rank computes."""

    micro_batch_size: int
    rank: int = 0
    world_size: int = 1

    def parts(self, num_rows: int) -> Iterator[NDArray[np.int64]]:
        """Yield the rows of each micro-batch. All ranks get equally many; without rows left, an empty one."""
        for begin, end in share_of_step(
            0, self.rank, world_size=self.world_size, batch_size=num_rows, micro_batch_size=self.micro_batch_size
        ):
            yield np.arange(begin, end)


class Forward:
    """Reads a model, without gradients or dropout."""

    def __init__(self, model: nn.Module, *, precision: Literal["bf16", "fp32"], temperature: float):
        module = unwrapped(model)
        assert isinstance(module, LanguageModel)
        self._model, self._precision, self._temperature = module, precision, temperature

    def logprobs(self, rows: TokenRows, share: ForwardShare) -> TokenNumbers:
        """Return the log-probabilities of this rank's answers, in nats at the sampling temperature. Collective."""
        return self._read(rows, share, self._logprobs)

    def values(self, rows: TokenRows, share: ForwardShare) -> TokenNumbers:
        """Return what the value head expects before each token of this rank's answers. Collective."""
        return self._read(rows, share, self._values)

    def _read(self, rows: TokenRows, share: ForwardShare, read: Callable[[MicroBatch], Tensor]) -> TokenNumbers:
        device = next(self._model.parameters()).device
        was_training = self._model.training
        self._model.eval()
        found: TokenNumbers = []
        try:
            for chosen in share.parts(len(rows.lengths)):
                # A rank without rows left joins the pass: under FSDP it is collective.
                part = rows.part(chosen if len(chosen) else np.array([0]))
                batch = batch_of(part, slice(None)).to(device)
                with (
                    torch.no_grad(),
                    torch.autocast(device.type, dtype=torch.bfloat16, enabled=self._precision == "bf16"),
                ):
                    numbers_BS = read(batch).float().cpu().numpy()
                found += part.answers(numbers_BS) if len(chosen) else []
        finally:
            self._model.train(was_training)
        return found

    def _logprobs(self, batch: MicroBatch) -> Tensor:
        return self._model.predict_logprobs(batch.input_ids_BS, batch.token_kinds_BS, temperature=self._temperature)

    def _values(self, batch: MicroBatch) -> Tensor:
        values_BS = self._model.predict_values(batch.input_ids_BS, batch.token_kinds_BS)
        assert values_BS is not None
        # What is said at a token is of the next one.
        return nn.functional.pad(values_BS[:, :-1], (1, 0))
