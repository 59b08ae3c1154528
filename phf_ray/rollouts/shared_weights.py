"""The policy's weights as plain arrays, on their way to those who draw with them."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.distributed.tensor import DTensor

from phf_ray.models.language_model import LanguageModel
from phf_ray.training.state import TrainState, unwrapped

_BACKBONE = "backbone."


@dataclass(frozen=True, slots=True)
class SharedTensor:
    content: NDArray[np.uint8]
    """Its bytes, because numpy has no bfloat16, and arrays are read from Ray's store in place."""
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class SharedWeights:
    name: str
    """Of the step that made them."""
    tensors: dict[str, SharedTensor]
    """What the run changes of the language model: of one with an adapter, the adapter alone."""


def share_weights(state: TrainState, *, name: str, keep: bool = True) -> SharedWeights | None:
    """Return the weights of now. Collective where they are sharded; only ranks with `keep` get them.

    On the CPU the arrays are the parameters themselves: they must be copied before the next step.
    """
    module = unwrapped(state.model)
    assert isinstance(module, LanguageModel)
    found: dict[str, SharedTensor] = {}
    # Tied weights have two names and are sent once.
    seen: dict[int, SharedTensor] = {}
    for key, tensor in module.stored_tensors().items():
        if not key.startswith(_BACKBONE):
            continue
        if id(tensor) not in seen:
            whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            if not keep:
                continue
            flat = whole.detach().cpu().contiguous().reshape(-1)
            seen[id(tensor)] = SharedTensor(flat.view(torch.uint8).numpy(), flat.dtype)
        found[key] = seen[id(tensor)]
    return SharedWeights(name, found) if keep else None


def take_weights(model: LanguageModel, weights: SharedWeights) -> None:
    """Copy the weights into a model of the same shape."""
    target = model.state_dict()
    with torch.no_grad():
        for key, shared in weights.tensors.items():
            # torch.tensor copies: what comes from the store can't be written to, and torch would warn.
            values = torch.tensor(shared.content).view(shared.dtype)
            target[key].copy_(values.reshape(target[key].shape))
