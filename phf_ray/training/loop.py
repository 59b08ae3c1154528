"""The training loop over an iterator of batches, without Ray.

(seed, step) alone fixes a step's blocks, learning rate and dropout masks. So they are the same for any number of
workers and after any restart.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from phf_ray.models.actor_critic import CRITIC_PREFIX
from phf_ray.objectives.base import Objective
from phf_ray.objectives.statistics import BinCounts, combine
from phf_ray.training.batches import MicroBatch
from phf_ray.training.events import (
    CheckpointDue,
    EvaluationSetsDue,
    InspectionDue,
    MetricsRow,
    NonFinite,
    TrainingEvent,
    WeightsDue,
)
from phf_ray.training.hardware import peak_memory_gb
from phf_ray.training.schedule import Schedule, theoretical_loss
from phf_ray.training.state import TrainState, unwrapped, world_size
from phf_ray.training.step import StepSettings, StepTotals, train_step
from phf_ray.training.survey import surveyed


@dataclass(frozen=True, slots=True)
class LoopSettings:
    schedule: Schedule
    step: StepSettings = field(default_factory=StepSettings)
    count_tokens: Literal["content", "all"] = "content"
    logging_steps: int = 1
    save_steps: int | None = None
    """Steps between checkpoints; None: only at the end."""
    evaluation_steps: frozenset[int] = frozenset()
    """Steps whose weights are to be evaluated, with or without a checkpoint."""
    eval_steps: int | None = None
    """Steps between measurements of the evaluation sets, which also follow the last step; None: no measurements."""
    inspect_steps: int | None = None
    """Steps between inspections, beginning with the first step; None: no inspections."""
    flops_per_token: float | None = None
    """FLOPs of the model's forward and backward pass at the blocks' length."""
    peak_flops: float | None = None
    """Peak FLOPs per second of one device; None: unknown, so no utilization is reported."""


def train(
    state: TrainState,
    batches: Iterable[list[MicroBatch]],
    *,
    objective: Objective,
    settings: LoopSettings,
    wants_stop: Callable[[], bool] = lambda: False,
) -> Iterator[TrainingEvent]:
    """Train from `state.step` to the end of the schedule; `batches` starts at that step.

    If the batches end before that, on all ranks alike, the last step's state is saved and the training is over.
    All ranks see the same events at the same steps. Every rank calls `wants_stop`; if it is true on one rank, all stop
    within two steps, with a checkpoint. Tokens per second exclude the time that the caller spends on an event, except
    on a `MetricsRow`: a GPU computes the next step meanwhile.
    """
    loop = _Loop(state, objective, settings=settings)
    state.model.train()
    iterator = iter(batches)
    is_settled = False
    while state.step < settings.schedule.num_steps and not loop.stop:
        waiting_since = time.perf_counter()
        micro_batches = next(iterator, None)
        loop.data_wait_s += time.perf_counter() - waiting_since
        if micro_batches is None:
            yield from loop.end_early()
            return
        if not is_settled:
            _settle_buckets(state.model, micro_batches[0], objective=objective, settings=settings.step)
            is_settled = True
        learning_rate = settings.schedule.at(state.step)
        totals = train_step(
            state,
            micro_batches,
            objective=objective,
            learning_rate=learning_rate,
            settings=settings.step,
            stop=wants_stop(),
        )
        yield from loop.read_pending()
        loop.pending = _Pending(state.step, learning_rate, totals, micro_batches)
        inspects = settings.inspect_steps is not None and (state.step - 1) % settings.inspect_steps == 0
        is_last = state.step == settings.schedule.num_steps or loop.stop
        saves = is_last or (settings.save_steps is not None and state.step % settings.save_steps == 0)
        is_due = saves or state.step in settings.evaluation_steps
        measures = _measures(state.step, settings)
        # A row whose totals are read after the next step has that one's time as well.
        if inspects or is_due or measures or totals.is_there:
            yield from loop.read_pending()
        if loop.is_broken:
            return
        if inspects:
            yield from loop.outside(InspectionDue(state.step, micro_batches))
        if measures:
            # Before the checkpoint, so that a run that resumes there has this row.
            yield from loop.outside(EvaluationSetsDue(state.step))
        # The totals just read may ask for a stop; then this step is the last.
        is_last = is_last or loop.stop
        if saves or is_last:
            yield from loop.outside(CheckpointDue(state.step, is_last))
        elif is_due:
            yield from loop.outside(WeightsDue(state.step))


def _measures(step: int, settings: LoopSettings) -> bool:
    return settings.eval_steps is not None and (step % settings.eval_steps == 0 or step == settings.schedule.num_steps)


def _settle_buckets(model: nn.Module, host_batch: MicroBatch, *, objective: Objective, settings: StepSettings) -> None:
    """Run a pass and discard its gradients, so that a resumed run sums gradients in the order of an uninterrupted one.

    Once per process, after the first backward pass, DDP reorders its buckets by the arrival of the gradients. In a ring
    of three or more ranks, the place in the bucket decides which rank starts a sum, so the first step of a process
    would round differently. Two addends have the same sum in any order. The pass does not disturb dropout, because each
    micro-batch seeds it anew.
    """
    if not isinstance(model, DistributedDataParallel) or world_size() < 3:
        return
    device = next(model.parameters()).device
    (part,) = surveyed(model, [host_batch], objective=objective, precision=settings.precision)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=settings.precision == "bf16"):
        out = part.to(device).through(model, objective)
    out.loss.backward()
    model.zero_grad(set_to_none=True)


class _Pending(NamedTuple):
    """A step whose totals have not been read yet."""

    step: int
    learning_rate: float
    totals: StepTotals
    micro_batches: list[MicroBatch]


class _Loop:
    """Bookkeeping of `train`: the step whose totals are still unread, and the clock of the current row."""

    def __init__(self, state: TrainState, objective: Objective, *, settings: LoopSettings):
        self._state = state
        self._objective = objective
        self._settings = settings
        # Of what writes text: a critic only judges it.
        named = unwrapped(state.model).named_parameters()
        self._num_parameters = sum(each.numel() for name, each in named if not name.startswith(CRITIC_PREFIX))
        # A row may have begun before a restart; its speed covers only the steps since the restart.
        self._timed_tokens = 0.0
        self._since = time.perf_counter()
        self.data_wait_s = 0.0
        self._saved_step = state.step
        self.pending: _Pending | None = None
        self.stop = False
        self.is_broken = False

    def outside(self, event: TrainingEvent) -> Iterator[TrainingEvent]:
        """Yield an event; stop the clock meanwhile, because the device is idle."""
        assert self.pending is None
        if isinstance(event, CheckpointDue):
            self._saved_step = event.step
        left = time.perf_counter()
        yield event
        self._since += time.perf_counter() - left
        self._state.model.train()

    def end_early(self) -> Iterator[TrainingEvent]:
        """End before the schedule does; save what was trained since the last checkpoint."""
        yield from self.read_pending()
        if not self.is_broken and self._state.step > self._saved_step:
            yield from self.outside(CheckpointDue(self._state.step, is_last=True))

    def read_pending(self) -> Iterator[TrainingEvent]:
        if self.pending is None or self.is_broken:
            return
        pending, self.pending = self.pending, None
        totals = pending.totals.read()
        grad_norm = float(totals.pop("sum/grad_norm"))
        if not (math.isfinite(totals["sum/step_loss"]) and math.isfinite(grad_norm)):
            self.is_broken = True
            yield NonFinite(pending.step, float(totals["sum/step_loss"]), grad_norm, pending.micro_batches)
            return
        self.stop = self.stop or bool(totals["sum/stop"] > 0)
        self._state.tokens_seen += int(totals[f"sum/{self._settings.count_tokens}_tokens"])
        self._state.documents_seen += int(totals["sum/documents"])
        self._state.row = combine(self._state.row, totals)
        self._timed_tokens += float(totals["sum/all_tokens"])
        is_at_an_end = pending.step in (1, self._settings.schedule.num_steps)
        if is_at_an_end or pending.step % self._settings.logging_steps == 0:
            metrics = self._metrics(pending) | {"train/grad_norm": grad_norm}
            self._state.row, self._timed_tokens, self.data_wait_s = {}, 0.0, 0.0
            self._since = time.perf_counter()
            yield MetricsRow(pending.step, metrics)

    def _metrics(self, pending: _Pending) -> dict[str, float | BinCounts]:
        row = self._state.row
        elapsed_s = time.perf_counter() - self._since
        tokens_seen = self._state.tokens_seen
        tokens_per_s = self._timed_tokens / elapsed_s
        ideal = theoretical_loss(self._num_parameters, num_tokens=tokens_seen)
        figures = self._objective.summarize(row)
        return {
            "train/loss": figures.pop("loss"),
            "train/learning_rate": pending.learning_rate,
            "train/global_step": pending.step,
            "train/tokens_seen": tokens_seen,
            "train/theoretical_loss": ideal,
            "train/tokens_per_s": tokens_per_s,
            "train/tokens_per_s_per_device": tokens_per_s / world_size(),
            "train/data_wait_fraction": self.data_wait_s / elapsed_s,
            "train/peak_memory_gb": peak_memory_gb(),
            "objective/train/theoretical_loss": ideal,
            "objective/train/tokens_used": tokens_seen,
            "objective/train/docs_used": self._state.documents_seen,
            **{f"objective/train/{name}": value for name, value in figures.items()},
            **{f"objective/train/{name}": counts for name, counts in self._objective.histograms(row).items()},
            **self._utilization(tokens_per_s / world_size()),
        }

    def _utilization(self, tokens_per_s_per_device: float) -> dict[str, float]:
        """Return model FLOPs utilization (PaLM, appendix B), or nothing if the device's peak is unknown."""
        settings = self._settings
        if settings.flops_per_token is None or settings.peak_flops is None:
            return {}
        return {"train/mfu": tokens_per_s_per_device * settings.flops_per_token / settings.peak_flops}
