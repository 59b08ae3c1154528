"""One optimizer step.

Losses are sums over targets. Once per step, gradients are divided by the number of targets of all ranks and
micro-batches. The place of a micro-batch in the training order seeds its dropout masks.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from phf_ray.objectives.base import Objective, ObjectiveOutput
from phf_ray.objectives.statistics import Statistics, all_reduce, combine, unpacked
from phf_ray.records import TEXT_KINDS, TokenKind
from phf_ray.training.batches import MicroBatch
from phf_ray.training.frozen import keep_old_rows, refuse_without_gradients
from phf_ray.training.state import LR_SCALE, TrainState, unwrapped, world_size
from phf_ray.training.streams import weighed
from phf_ray.training.survey import surveyed


@dataclass(frozen=True, slots=True)
class StepSettings:
    seed: int = 0
    precision: Literal["bf16", "fp32"] = "fp32"
    max_grad_norm: float | None = 1.0
    is_forgetful: bool = False
    """Whether the model hides tokens; see `models/forgetful_mask.py`."""


class StepTotals:
    """Statistics of one step over all ranks, on their way from the device.

    The copy to the host starts when the step has been launched. `read` waits for the copy one step later, so that it
    does not stall the device. On a CPU the step has been computed by then, and `is_there`.
    """

    def __init__(self, totals: Statistics):
        self._totals = totals
        packed = torch.cat([value.to(torch.float64).reshape(-1) for value in totals.values()])
        self._event: torch.cuda.Event | None = None
        if packed.is_cuda:
            self._host = torch.empty(packed.shape, dtype=packed.dtype, pin_memory=True)
            self._host.copy_(packed, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._host = packed

    @property
    def is_there(self) -> bool:
        """Whether no device computes meanwhile: nobody gains if `read` waits for the next step."""
        return self._event is None

    def read(self) -> Statistics:
        if self._event is not None:
            self._event.synchronize()
        return unpacked(self._host, like=self._totals)


def train_step(
    state: TrainState,
    micro_batches: Sequence[MicroBatch],
    *,
    objective: Objective,
    learning_rate: float,
    settings: StepSettings,
    stop: bool = False,
) -> StepTotals:
    """Make one optimizer step on this rank's micro-batches; every rank must pass the same number of micro-batches.

    The gradient is that of (sum of losses) / (number of targets), both over all ranks and micro-batches. `stop` asks
    all ranks, through the totals, to stop after this step.
    """
    device = next(state.model.parameters()).device
    # The device fills this tensor, because copying a number to the device would wait for the previous step.
    totals: Statistics = {"sum/stop": torch.full((), float(stop), device=device, dtype=torch.float64)}
    weighed_batches = weighed(micro_batches, objective=objective, device=device)
    learned = surveyed(state.model, weighed_batches, objective=objective, precision=settings.precision)
    for index, (host_batch, part) in enumerate(zip(weighed_batches, learned, strict=True)):
        batch = part.to(device)
        # The position alone decides the dropout masks, not the generator's state. So there is no state to save, and any
        # number of workers draws the same masks.
        torch.manual_seed(_dropout_seed(settings.seed, batch.first_block))
        with _gradient_sync(state.model, enabled=index == len(micro_batches) - 1):
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=settings.precision == "bf16"):
                out = batch.through(state.model, objective, is_forgetful=settings.is_forgetful)
            out.loss.backward()
        # All tokens of a block count as seen, those of the survey too.
        totals = combine(totals, _statistics(out, batch if part is host_batch else host_batch.to(device)))
    if state.step == 0:
        refuse_without_gradients(unwrapped(state.model))
    keep_old_rows(unwrapped(state.model))
    totals = all_reduce(totals)
    totals["sum/grad_norm"] = _scale_and_clip_gradients(
        state.model, totals["sum/step_targets"], max_norm=settings.max_grad_norm
    )
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate * group.get(LR_SCALE, 1.0)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    state.step += 1
    return StepTotals(totals)


def _dropout_seed(seed: int, first_block: int) -> int:
    # SeedSequence accepts no negative numbers.
    return int(np.random.SeedSequence([seed % 2**64, first_block + 1]).generate_state(1, np.uint64)[0] >> 1)


def _gradient_sync(model: nn.Module, *, enabled: bool) -> contextlib.AbstractContextManager[None]:
    """Exchange gradients only in the last micro-batch of a step."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(enabled)
    elif isinstance(model, DistributedDataParallel) and not enabled:
        return model.no_sync()
    return contextlib.nullcontext()


def _statistics(out: ObjectiveOutput, batch: MicroBatch) -> Statistics:
    kinds_BS = batch.token_kinds_BS
    is_content_BS = torch.stack([kinds_BS == kind for kind in TEXT_KINDS]).any(0)
    return {
        "sum/step_loss": out.loss.detach().double(),
        # Under compat every micro-batch counts 1, but one of padding counts 0.
        "sum/step_targets": out.num_targets if batch.first_block >= 0 else torch.zeros_like(out.num_targets),
        "sum/content_tokens": is_content_BS.sum().double(),
        "sum/all_tokens": (kinds_BS != TokenKind.PAD).sum().double(),
        "sum/documents": (kinds_BS == TokenKind.END_OF_TEXT).sum().double(),
        **out.metrics,
    }


def _scale_and_clip_gradients(model: nn.Module, num_targets: Tensor, *, max_norm: float | None) -> Tensor:
    """Divide the summed gradients by the number of targets, clip, and return their norm before clipping."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    local = [g.to_local() if isinstance(g, DTensor) else g for g in gradients]
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    # DDP and FSDP average over ranks; `world_size` makes it the sum. If all tokens are masked, gradients are zero.
    scale = (world_size() / torch.where(num_targets > 0, num_targets, 1.0)).to(norm.dtype)
    norm = norm * scale
    if max_norm is not None:
        scale = scale * (max_norm / (norm + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(local, scale)
    return norm
