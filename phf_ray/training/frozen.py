"""Training beside frozen weights: rows of old tokens stay as they are, and whatever should learn does.

Parameters are replaced when they are sharded, so they are looked up in the model each time.
"""

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from phf_ray.errors import PhfError
from phf_ray.models.language_model import LanguageModel


def keep_old_rows(model: nn.Module) -> None:
    """Zero the gradients of the rows that do not belong to new tokens.

    A hook on the parameter would not do: FSDP computes gradients for other tensors than its shards.
    """
    if not isinstance(model, LanguageModel) or model.adapter is None or model.adapter.first_new_row is None:
        return
    first = model.adapter.first_new_row
    for parameter in model.partly_trained():
        gradient = parameter.grad
        if isinstance(gradient, DTensor):
            # Each rank's part of the numbers of all rows.
            rows = torch.arange(gradient.shape[0], device=gradient.to_local().device)
            mesh, placements = gradient.device_mesh, gradient.placements
            rows = distribute_tensor(rows, mesh, placements, src_data_rank=None).to_local()
            gradient.to_local()[rows < first] = 0
        elif gradient is not None:
            gradient[:first] = 0


def refuse_without_gradients(model: nn.Module) -> None:
    """Raise PhfError if a part of an adapter would never learn, which some layers bring about without an error."""
    if not isinstance(model, LanguageModel) or model.adapter is None:
        return
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    idle = [name for name, parameter in trained.items() if parameter.grad is None]
    if idle:
        raise PhfError(
            f"{len(idle)} of {len(trained)} trained parameters got no gradient in the first step, such as {idle[0]}; "
            "choose other model.lora.target_modules"
        )
