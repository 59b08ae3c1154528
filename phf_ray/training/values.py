"""Reads the value head's predictions for the tokens of a batch."""

from typing import Literal

import torch
from torch import Tensor, nn

from phf_ray.models.language_model import LanguageModel
from phf_ray.training.batches import MicroBatch
from phf_ray.training.state import unwrapped


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
        values_BS = module.predict_values(local.input_ids_BS, local.token_kinds_BS)
    module.train(was_training)
    return None if values_BS is None else values_BS.float().cpu()
