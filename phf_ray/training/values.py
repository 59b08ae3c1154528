"""Reads the value head's predictions for the tokens of a batch."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from phf_ray.models.language_model import LanguageModel
from phf_ray.objectives.base import Objective, ObjectiveOutput, Rules
from phf_ray.training.batches import MicroBatch
from phf_ray.training.state import unwrapped


class _ReadValues(Objective):
    """Stands in for an objective and returns the value head's predictions.

    It runs inside the forward pass, because only there FSDP has gathered the parameters.
    """

    def __init__(self) -> None:
        super().__init__(Rules())

    def forward(self, *, values_BS: Tensor | None = None, **_: Any) -> ObjectiveOutput:
        assert values_BS is not None
        return ObjectiveOutput(values_BS, torch.zeros((), dtype=torch.float64), {})


def value_predictions(
    model: nn.Module, batch: MicroBatch, *, precision: Literal["bf16", "fp32"] = "fp32"
) -> Tensor | None:
    """Return the value head's prediction for each token, (B, S) on the host; None for a model without a value head.

    Runs in eval mode. Collective: every rank calls this.
    """
    module = unwrapped(model)
    if not isinstance(module, LanguageModel) or module.value_head is None:
        return None
    device = next(module.parameters()).device
    local = batch.to(device)
    was_training = module.training
    module.eval()
    with torch.no_grad(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        out = module(local.input_ids_BS, local.token_scores_BS, local.token_kinds_BS, _ReadValues())
    module.train(was_training)
    values: Tensor = out.loss.float().cpu()
    return values
