"""The state that a training step changes: model, optimizer and counters."""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

from phf_ray.models.actor_critic import ActorCritic
from phf_ray.models.language_model import LanguageModel, transformer_blocks
from phf_ray.objectives.statistics import Statistics

LR_SCALE = "lr_scale"
"""Key of the optimizer's groups: what the learning rate of a step is multiplied with."""


@dataclass(slots=True)
class TrainState:
    """The model, its optimizer, and the counters of a run."""

    model: nn.Module
    """The `LanguageModel`, or DDP around it."""
    optimizer: torch.optim.Optimizer
    step: int = 0
    """Finished optimizer steps."""
    # DIFFERS: phf-ray counts the tokens of all workers; the original those of one (C-5).
    tokens_seen: int = 0
    """Tokens trained on, counted as training.count_tokens says, over all workers."""
    documents_seen: int = 0
    """Documents begun, over all workers."""
    row: Statistics = field(default_factory=dict)
    """Totals of the steps since the last row of metrics, over all workers."""


def parallelize(model: LanguageModel, kind: Literal["ddp", "fsdp2"], *, device: torch.device) -> nn.Module:
    """Move the model to `device`; if there is a default process group, average gradients over its ranks."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return model.to(device)
    if kind == "ddp":
        return DistributedDataParallel(
            model.to(device), device_ids=[device] if device.type == "cuda" else None, gradient_as_bucket_view=True
        )
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for part in model.parts():
        for layer in transformer_blocks(part):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    # FSDP gathers parameters for `forward` alone, unless it is told of other methods.
    register_fsdp_forward_method(model, "predict_values")
    register_fsdp_forward_method(model, "predict_logprobs")
    return model


def unwrapped(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, DistributedDataParallel) else model


def build_optimizer(
    model: nn.Module, *, weight_decay: float, betas: tuple[float, float], epsilon: float, critic_scale: float = 1.0
) -> torch.optim.Optimizer:
    """Build AdamW for what trains. As in the original, matrices and embeddings decay; biases and norms do not.

    Neither do embeddings of which some rows are frozen: decay would move those as well. `critic_scale`: the critic's
    learning rate over that of the step.
    """
    module = unwrapped(model)
    partly = {id(each) for each in module.partly_trained()} if isinstance(module, LanguageModel) else set()
    critic = {id(each) for each in module.critic.parameters()} if isinstance(module, ActorCritic) else set()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = []
    for is_critic in (False, True):
        own = [p for p in parameters if (id(p) in critic) == is_critic]
        scale = {LR_SCALE: critic_scale if is_critic else 1.0}
        decayed = [p for p in own if p.ndim >= 2 and id(p) not in partly]
        others = [p for p in own if p.ndim < 2 or id(p) in partly]
        groups.append({"params": decayed, "weight_decay": weight_decay, **scale})
        groups.append({"params": others, "weight_decay": 0.0, **scale})
    # The fused kernel is the fastest on CPU as well as on GPU. The learning rate is set before each step.
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=0.0, betas=betas, eps=epsilon, fused=True)


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1
