"""Copies a training state, and stores the part of a checkpoint that only training needs."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from phf_ray.errors import DataError
from phf_ray.models.actor_critic import CRITIC_PREFIX
from phf_ray.models.language_model import LanguageModel
from phf_ray.objectives.statistics import Statistics
from phf_ray.training.state import TrainState, unwrapped

STATE_DIRECTORY = "training_state"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Copy of a state in host memory; training may continue while the copy is written."""

    model: dict[str, Tensor]
    """What a checkpoint holds of the `LanguageModel`'s state dict; tied entries are one tensor."""
    optimizer: dict[str, Tensor]
    """`<parameter name>/<state name>`."""
    step: int
    tokens_seen: int
    documents_seen: int
    row: Statistics


def take_snapshot(state: TrainState, *, keep: bool = True, with_optimizer: bool = True) -> Snapshot | None:
    """Copy the state. Collective under FSDP: every rank calls this, and only ranks with `keep` get the copy.

    `with_optimizer`: false for what answers and is served, without what only training needs: optimizer and critic.
    """
    module = unwrapped(state.model)
    copies: dict[int, Tensor | None] = {}

    def copied(tensor: Tensor) -> Tensor | None:
        if id(tensor) not in copies:
            whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            copies[id(tensor)] = whole.detach().to("cpu", copy=True) if keep else None
        return copies[id(tensor)]

    assert isinstance(module, LanguageModel)
    model = {
        name: copied(tensor)
        for name, tensor in module.stored_tensors().items()
        if with_optimizer or not name.startswith(CRITIC_PREFIX)
    }
    optimizer = {
        f"{name}/{key}": copied(value)
        for name, parameter in module.named_parameters()
        for key, value in (state.optimizer.state.get(parameter, {}) if with_optimizer else {}).items()
    }
    if not keep:
        return None
    return Snapshot(
        _kept(model), _kept(optimizer), state.step, state.tokens_seen, state.documents_seen, dict(state.row)
    )


def _kept(tensors: dict[str, Tensor | None]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def write_training_state(directory: Path, snapshot: Snapshot) -> None:
    """Write what `model.safetensors` lacks: optimizer, counters, and the totals of the unfinished row of metrics.

    Schedule, data order and dropout follow from the step. The files are safetensors and JSON, because torch's
    distributed checkpoint keeps its index as a pickle.
    """
    target = directory / STATE_DIRECTORY
    target.mkdir(parents=True, exist_ok=True)
    save_file(snapshot.optimizer, target / "optimizer.safetensors")
    counters = {
        "step": snapshot.step,
        "tokens_seen": snapshot.tokens_seen,
        "documents_seen": snapshot.documents_seen,
        "row": {name: value.tolist() for name, value in snapshot.row.items()},
    }
    (target / "state.json").write_text(json.dumps(counters) + "\n", encoding="utf-8")


def restore_training_state(directory: Path, state: TrainState) -> None:
    """Restore a checkpoint's optimizer and counters; the model must already have the checkpoint's weights.

    Works for any number of ranks, under DDP and FSDP alike: every rank reads the file and keeps its part.
    """
    source = directory / STATE_DIRECTORY
    try:
        counters = json.loads((source / "state.json").read_text(encoding="utf-8"))
        with safe_open(source / "optimizer.safetensors", framework="pt") as stored:
            names = set(stored.keys())
            for name, parameter in unwrapped(state.model).named_parameters():
                if not parameter.requires_grad:
                    continue
                keys = [key for key in names if key.rpartition("/")[0] == name]
                state.optimizer.state[parameter] = {
                    key.rpartition("/")[2]: _placed_like(parameter, stored.get_tensor(key)) for key in keys
                }
    except OSError as error:
        raise DataError(f"{source} is not a training state: {error}; start from another checkpoint") from None
    state.step = counters["step"]
    state.tokens_seen, state.documents_seen = counters["tokens_seen"], counters["documents_seen"]
    # Older checkpoints have no row.
    state.row = {name: torch.tensor(value, dtype=torch.float64) for name, value in counters.get("row", {}).items()}


def _placed_like(parameter: Tensor, value: Tensor) -> Tensor:
    # Copy, because a tensor in a mapped file is not aligned. The step count moves to the parameter's device as well,
    # where the fused kernel needs it.
    value = value.to(parameter.device, copy=True)
    if isinstance(parameter, DTensor) and value.ndim > 0:
        return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return value
