"""The policy's weights as plain arrays, on their way to those who draw with them."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
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
    tensors = {key: each for key, each in module.stored_tensors().items() if key.startswith(_BACKBONE)}
    # Tied weights have two names, and are gathered and sent once.
    once = {id(each): each for each in tensors.values()}
    shared = {number: _shared(each, keep=keep) for number, each in once.items()}
    if not keep:
        return None
    found = {key: shared[id(tensor)] for key, tensor in tensors.items()}
    return SharedWeights(name, {key: each for key, each in found.items() if each is not None})


def _shared(tensor: Tensor, *, keep: bool) -> SharedTensor | None:
    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    if not keep:
        return None
    flat = whole.detach().cpu().contiguous().reshape(-1)
    return SharedTensor(flat.view(torch.uint8).numpy(), flat.dtype)


def take_weights(model: LanguageModel, weights: SharedWeights) -> None:
    """Copy the weights into a model of the same shape."""
    target = model.state_dict()
    with torch.no_grad():
        for key, shared in weights.tensors.items():
            # torch.tensor copies: what comes from the store can't be written to, and torch would warn.
            values = torch.tensor(shared.content).view(shared.dtype)
            target[key].copy_(values.reshape(target[key].shape))
