"""The training loop: state, step, schedule, and the loop over an iterator of batches. No Ray here.

Fixed by (seed, step) alone, and so equal for every number of workers and after every restart: the blocks of a step (k
takes [k B, (k + 1) B) of the training order), its learning rate, and its dropout masks (drawn per micro-batch, from
its place in that order). Losses are sums over targets; gradients are divided once a step by the number of targets of
all ranks and micro-batches.

Letters: B sequences of a micro-batch, S tokens of a sequence.
"""

import contextlib
import dataclasses
import json
import math
import queue
import re
import resource
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from phf_ray.errors import ConfigError, DataError
from phf_ray.models import LanguageModel, transformer_blocks
from phf_ray.objectives import build_objective
from phf_ray.objectives.losses import Objective, ObjectiveOutput, Rules
from phf_ray.objectives.statistics import Histogram, Statistics, all_reduce, combine, unpacked
from phf_ray.records import TokenKind

T = TypeVar("T")

# --- Batches ----------------------------------------------------------------------------------------------------------


class Blocks(Protocol):
    """n consecutive blocks of the training order, each array of shape (n, S)."""

    @property
    def input_ids(self) -> NDArray[np.int32]: ...
    @property
    def token_scores(self) -> NDArray[np.float32]: ...
    @property
    def token_kinds(self) -> NDArray[np.uint8]: ...


ReadBlocks = Callable[[int, int], Blocks]
"""Blocks of the positions [begin, end) of the training order, over all epochs."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    input_ids_BS: Tensor
    token_scores_BS: Tensor
    token_kinds_BS: Tensor
    first_block: int
    """Position of its first block in the training order; -1 for padding, which has no targets."""

    def to(self, device: torch.device) -> "MicroBatch":
        return MicroBatch(
            _moved(self.input_ids_BS, device),
            _moved(self.token_scores_BS, device),
            _moved(self.token_kinds_BS, device),
            self.first_block,
        )


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    # From other than pinned memory a copy to a GPU waits for all that was launched before it.
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def share_of_step(
    step: int, rank: int, *, world_size: int, batch_size: int, micro_batch_size: int
) -> list[tuple[int, int]]:
    """Ranges of block positions that `rank` computes in `step`, one per micro-batch; an empty range is padding.

    The ranks' shares are contiguous and differ by at most one micro-batch. All ranks get equally many ranges, because
    under FSDP a forward pass is a collective operation.
    """
    first = step * batch_size
    num_micro_batches = math.ceil(batch_size / micro_batch_size)
    begin, end = (r * num_micro_batches // world_size for r in (rank, rank + 1))
    ranges = [
        (first + index * micro_batch_size, first + min((index + 1) * micro_batch_size, batch_size))
        for index in range(begin, end)
    ]
    return ranges + [(first, first)] * (math.ceil(num_micro_batches / world_size) - len(ranges))


def speed_up(*, batch_size: int, micro_batch_size: int, num_workers: int) -> float:
    """How many workers' work is done at once: whole micro-batches are dealt, and who gets none computes padding."""
    num_micro_batches = math.ceil(batch_size / micro_batch_size)
    return num_micro_batches / math.ceil(num_micro_batches / num_workers)


def fitting_micro_batch(*, batch_size: int, micro_batch_size: int, num_workers: int) -> int:
    """The smallest micro-batch that takes no more rounds than this one: what was padding becomes work."""
    num_rounds = math.ceil(batch_size / (micro_batch_size * num_workers))
    return math.ceil(batch_size / (num_rounds * num_workers))


@dataclass(frozen=True, slots=True)
class DataShare:
    """Which part of the training order this rank reads."""

    batch_size: int
    """Sequences per optimizer step, over all ranks."""
    micro_batch_size: int
    rank: int = 0
    world_size: int = 1
    first_block: int = 0
    """Blocks at the head of the order that are left out."""


def step_batches(read: ReadBlocks, share: DataShare, *, steps: range) -> Iterator[list[MicroBatch]]:
    """This rank's micro-batches of each step."""
    for step in steps:
        yield [
            _micro_batch(read, share.first_block + begin, share.first_block + end)
            for begin, end in share_of_step(
                step,
                share.rank,
                world_size=share.world_size,
                batch_size=share.batch_size,
                micro_batch_size=share.micro_batch_size,
            )
        ]


def _micro_batch(read: ReadBlocks, begin: int, end: int) -> MicroBatch:
    is_padding = begin == end
    blocks = read(begin, begin + 1 if is_padding else end)
    kinds = np.full_like(blocks.token_kinds, TokenKind.PAD) if is_padding else blocks.token_kinds
    return MicroBatch(
        torch.from_numpy(blocks.input_ids.astype(np.int64)),
        torch.from_numpy(np.ascontiguousarray(blocks.token_scores, dtype=np.float32)),
        torch.from_numpy(np.ascontiguousarray(kinds, dtype=np.uint8)),
        -1 if is_padding else begin,
    )


def prefetched(items: Iterable[T], *, depth: int = 4) -> Iterator[T]:
    """The same items, up to `depth` of them read ahead by a thread. An exception of the source is raised here."""
    buffer: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def put(entry: tuple[T | None, BaseException | None]) -> None:
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                buffer.put(entry, timeout=0.1)
                return

    def fill() -> None:
        try:
            for item in items:
                put((item, None))
                if stopped.is_set():
                    return
            put((None, StopIteration()))
        except BaseException as error:  # noqa: BLE001  (border of a thread: handed to the consumer)
            put((None, error))

    threading.Thread(target=fill, name="prefetch", daemon=True).start()
    try:
        while True:
            item, error = buffer.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
    finally:
        stopped.set()


# --- Schedule ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Schedule:
    """Learning rate of each step; the formulas of transformers' schedulers."""

    num_steps: int
    learning_rate: float
    kind: Literal["linear", "cosine", "constant"] = "linear"
    warmup_ratio: float = 0.0

    def at(self, step: int) -> float:
        """Learning rate of the step that follows `step` finished ones."""
        warmup = math.ceil(self.num_steps * self.warmup_ratio)
        if step < warmup:
            return self.learning_rate * step / warmup
        if self.kind == "constant":
            return self.learning_rate
        done = (step - warmup) / max(1, self.num_steps - warmup)
        if self.kind == "linear":
            return self.learning_rate * max(0.0, 1 - done)
        return self.learning_rate * max(0.0, 0.5 * (1 + math.cos(math.pi * done)))


def steps_in(num_tokens: int, *, tokens_per_block: float, batch_size: int) -> int:
    """Whole optimizer steps that `num_tokens` pay for.

    DIFFERS: ours takes the blocks' own token count and the batch size over all workers; original divided by 1024 for
    any sequence length, and by the world size twice (B-9).
    """
    num_steps = int(num_tokens / (tokens_per_block * batch_size))
    if num_steps < 1:
        raise ConfigError(
            f"training.num_tokens leaves {num_tokens} tokens, less than one step of {batch_size} sequences with "
            f"{tokens_per_block:.1f} tokens each; raise training.num_tokens to at least "
            f"{math.ceil(tokens_per_block * batch_size)} more or lower training.effective_batch_size"
        )
    return num_steps


def theoretical_loss(num_parameters: int, *, num_tokens: int) -> float:
    """Chinchilla's fit (Hoffmann et al. 2022, equation 10): nats per token with N parameters after D tokens."""
    return 1.69 + 406.4 / num_parameters**0.34 + 410.7 / max(num_tokens, 1) ** 0.28


# --- State ------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class TrainState:
    """What a step changes."""

    model: nn.Module
    """The `LanguageModel`, or DDP around it."""
    optimizer: torch.optim.Optimizer
    step: int = 0
    """Finished optimizer steps."""
    tokens_seen: int = 0
    """Tokens trained on, counted as training.count_tokens says, over all workers.

    DIFFERS: ours counts the tokens of all workers; original counted those of one (C-5).
    """
    documents_seen: int = 0
    """Documents begun, over all workers."""
    row: Statistics = field(default_factory=dict)
    """Totals of the steps since the last row of metrics, over all workers."""


def parallelize(model: LanguageModel, kind: Literal["ddp", "fsdp2"], *, device: torch.device) -> nn.Module:
    """The model on `device`, its gradients averaged over the ranks of the default process group, if there is one."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return model.to(device)
    if kind == "ddp":
        return DistributedDataParallel(
            model.to(device), device_ids=[device] if device.type == "cuda" else None, gradient_as_bucket_view=True
        )
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for layer in transformer_blocks(model):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def unwrapped(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, DistributedDataParallel) else model


def build_optimizer(
    model: nn.Module, *, weight_decay: float, betas: tuple[float, float], epsilon: float
) -> torch.optim.Optimizer:
    """AdamW; matrices and embeddings decay, biases and norms do not, as in the original."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    # The fused kernel is the fastest on CPU as well as on GPU. The learning rate is set before each step.
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=0.0, betas=betas, eps=epsilon, fused=True)


# --- Step -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StepSettings:
    seed: int = 0
    precision: Literal["bf16", "fp32"] = "fp32"
    max_grad_norm: float | None = 1.0


class StepTotals:
    """Statistics of one step over all ranks, on their way from the device.

    The copy to the host starts when the step has been launched and is waited for when it is read, a step later, so that
    reading does not stall the device.
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

    def read(self) -> Statistics:
        if self._event is not None:
            self._event.synchronize()
        return unpacked(self._host, like=self._totals)


def step(
    state: TrainState,
    micro_batches: Sequence[MicroBatch],
    *,
    objective: Objective,
    learning_rate: float,
    settings: StepSettings,
    stop: bool = False,
) -> StepTotals:
    """One optimizer step on this rank's micro-batches; every rank calls it with equally many.

    The gradient is that of (sum of losses) / (number of targets), both over all ranks and micro-batches. `stop` asks
    all ranks to stop after this step: the totals carry it.
    """
    device = next(state.model.parameters()).device
    # Filled by the device: a number copied there would wait for the step before.
    totals: Statistics = {"sum/stop": torch.full((), float(stop), device=device, dtype=torch.float64)}
    for index, host_batch in enumerate(micro_batches):
        batch = host_batch.to(device)
        # Not the generator's state but the position decides on the dropout masks: nothing to save, and any number of
        # workers draws the same ones.
        torch.manual_seed(_dropout_seed(settings.seed, batch.first_block))
        with _gradient_sync(state.model, enabled=index == len(micro_batches) - 1):
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=settings.precision == "bf16"):
                out = state.model(batch.input_ids_BS, batch.token_scores_BS, batch.token_kinds_BS, objective)
            out.loss.backward()
        totals = combine(totals, _statistics(out, batch))
    totals = all_reduce(totals)
    totals["sum/grad_norm"] = _scale_and_clip_gradients(
        state.model, totals["sum/step_targets"], max_norm=settings.max_grad_norm
    )
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    state.step += 1
    return StepTotals(totals)


def _dropout_seed(seed: int, first_block: int) -> int:
    # A seed sequence takes no negative number.
    return int(np.random.SeedSequence([seed % 2**64, first_block + 1]).generate_state(1, np.uint64)[0] >> 1)


def _gradient_sync(model: nn.Module, *, enabled: bool) -> contextlib.AbstractContextManager[None]:
    """Gradients are exchanged in the last micro-batch of a step only."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(enabled)
    elif isinstance(model, DistributedDataParallel) and not enabled:
        return model.no_sync()
    return contextlib.nullcontext()


def _statistics(out: ObjectiveOutput, batch: MicroBatch) -> Statistics:
    kinds_BS = batch.token_kinds_BS
    is_content_BS = (kinds_BS == TokenKind.CONTENT) | (kinds_BS == TokenKind.UNSCORED)
    return {
        "sum/step_loss": out.loss.detach().double(),
        # Under compat every micro-batch counts 1; one of padding is none.
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
    # DDP and FSDP average over ranks; the sum is wanted. A step of nothing but masked tokens leaves gradients of zero.
    scale = (_world_size() / torch.where(num_targets > 0, num_targets, 1.0)).to(norm.dtype)
    norm = norm * scale
    if max_norm is not None:
        scale = scale * (max_norm / (norm + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(local, scale)
    return norm


def _world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


# --- Loop -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LoopSettings:
    schedule: Schedule
    step: StepSettings = field(default_factory=StepSettings)
    count_tokens: Literal["content", "all"] = "content"
    logging_steps: int = 1
    save_steps: int | None = None
    """Steps between checkpoints; None: at the end only."""
    evaluation_steps: frozenset[int] = frozenset()
    """Steps whose weights are wanted, with or without a checkpoint."""
    inspect_steps: int | None = None
    """Steps between inspections, the first step being inspected; None: none."""
    flops_per_token: float | None = None
    """Of the model at the blocks' length, forward and backward."""
    peak_flops: float | None = None
    """Of a device, per second; None: not known, and no utilization is reported."""


@dataclass(frozen=True, slots=True)
class Row:
    """Metrics of the steps since the last row, over all ranks."""

    step: int
    metrics: dict[str, float | Histogram]


@dataclass(frozen=True, slots=True)
class CheckpointDue:
    """The state is that of `step` finished steps, all known to be finite, until the loop is asked to go on."""

    step: int
    is_last: bool
    """All steps are done, or a stop was asked for."""


@dataclass(frozen=True, slots=True)
class WeightsDue:
    """As `CheckpointDue`, at a step whose weights are wanted and no checkpoint is."""

    step: int


@dataclass(frozen=True, slots=True)
class NonFinite:
    """The loss or gradient of `step` was not a number; the loop has ended."""

    step: int
    loss: float
    """Sum over the step's targets."""
    grad_norm: float
    micro_batches: list[MicroBatch]
    """Of this rank."""


@dataclass(frozen=True, slots=True)
class InspectionDue:
    """Time to look at what the model is fed: this rank's micro-batches of `step`, the last finished one."""

    step: int
    micro_batches: list[MicroBatch]


Event = Row | CheckpointDue | WeightsDue | InspectionDue | NonFinite


def train(
    state: TrainState,
    batches: Iterable[list[MicroBatch]],
    *,
    objective: Objective,
    settings: LoopSettings,
    wants_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Event]:
    """Train from `state.step` to the end of the schedule; `batches` starts at that step.

    All ranks see the same events at the same steps. `wants_stop` is asked on every rank; if one says yes, all stop
    within two steps, with a checkpoint. Time that the caller spends on an event does not count in tokens per second,
    but for a `Row`: a GPU computes the next step meanwhile.
    """
    loop = _Loop(state, objective, settings=settings)
    state.model.train()
    iterator = iter(batches)
    is_settled = False
    while state.step < settings.schedule.num_steps and not loop.stop:
        waiting_since = time.perf_counter()
        micro_batches = next(iterator)
        loop.data_wait_s += time.perf_counter() - waiting_since
        if not is_settled:
            _settle_buckets(state.model, micro_batches[0], objective=objective, settings=settings.step)
            is_settled = True
        learning_rate = settings.schedule.at(state.step)
        totals = step(
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
        if inspects or is_due:
            yield from loop.read_pending()
        if loop.is_broken:
            return
        if inspects:
            yield from loop.outside(InspectionDue(state.step, micro_batches))
        # What was read may have asked for a stop: then this step is the last.
        is_last = is_last or loop.stop
        if saves or is_last:
            yield from loop.outside(CheckpointDue(state.step, is_last))
        elif is_due:
            yield from loop.outside(WeightsDue(state.step))


def _settle_buckets(model: nn.Module, host_batch: MicroBatch, *, objective: Objective, settings: StepSettings) -> None:
    """A pass whose gradients are thrown away, so that a resumed run sums gradients as the uninterrupted one does.

    DDP puts its buckets in the order in which gradients come, once in a process, after the first backward pass. A ring
    of three or more ranks starts each sum at another rank, by the place in the bucket, so the first step of a process
    would round differently. Two addends have one sum. Dropout is not disturbed: each micro-batch seeds it anew.
    """
    if not isinstance(model, DistributedDataParallel) or _world_size() < 3:
        return
    device = next(model.parameters()).device
    batch = host_batch.to(device)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=settings.precision == "bf16"):
        out = model(batch.input_ids_BS, batch.token_scores_BS, batch.token_kinds_BS, objective)
    out.loss.backward()
    model.zero_grad(set_to_none=True)


class _Pending(NamedTuple):
    """A step whose totals have not been read yet."""

    step: int
    learning_rate: float
    totals: StepTotals
    micro_batches: list[MicroBatch]


class _Loop:
    """Bookkeeping of `train`: the step that is not read yet, and the clock of the running row."""

    def __init__(self, state: TrainState, objective: Objective, *, settings: LoopSettings):
        self._state = state
        self._objective = objective
        self._settings = settings
        self._num_parameters = sum(parameter.numel() for parameter in unwrapped(state.model).parameters())
        # A row can have begun before a restart; its speed is that of the steps since then.
        self._timed_tokens = 0.0
        self._since = time.perf_counter()
        self.data_wait_s = 0.0
        self.pending: _Pending | None = None
        self.stop = False
        self.is_broken = False

    def outside(self, event: Event) -> Iterator[Event]:
        """Hand out an event; the clock stands still meanwhile, as the device does."""
        assert self.pending is None
        left = time.perf_counter()
        yield event
        self._since += time.perf_counter() - left
        self._state.model.train()

    def read_pending(self) -> Iterator[Event]:
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
            yield Row(pending.step, metrics)

    def _metrics(self, pending: _Pending) -> dict[str, float | Histogram]:
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
            "train/tokens_per_s_per_device": tokens_per_s / _world_size(),
            "train/data_wait_fraction": self.data_wait_s / elapsed_s,
            "train/peak_memory_gb": peak_memory_gb(),
            "objective/train/theoretical_loss": ideal,
            "objective/train/tokens_used": tokens_seen,
            "objective/train/docs_used": self._state.documents_seen,
            **{f"objective/train/{name}": value for name, value in figures.items()},
            **{f"objective/train/{name}": counts for name, counts in self._objective.histograms(row).items()},
            **self._utilization(tokens_per_s / _world_size()),
        }

    def _utilization(self, tokens_per_s_per_device: float) -> dict[str, float]:
        """Model FLOPs utilization (PaLM, appendix B), where it is known what the device could do."""
        settings = self._settings
        if settings.flops_per_token is None or settings.peak_flops is None:
            return {}
        return {"train/mfu": tokens_per_s_per_device * settings.flops_per_token / settings.peak_flops}


# Dense bf16 products per second, from NVIDIA's data sheets. The first name whose words the device's name has counts: an
# L40 is no L4, an RTX A1000 no A100.
_PEAK_FLOPS = (
    ("GB200", 2.25e15),
    ("B200", 2.25e15),
    ("GH200", 989e12),
    ("H200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("A100", 312e12),
    ("L40S", 362e12),
    ("L40", 181e12),
    ("A10G", 70e12),
    ("A10", 125e12),
    ("L4", 121e12),
    ("RTX 4090", 165e12),
    ("RTX 3090", 71e12),
)


def peak_flops(device_name: str) -> float | None:
    """bf16 operations per second that the device could do at best; None for one that is not in the table."""
    return next((flops for name, flops in _PEAK_FLOPS if re.search(rf"\b{name}\b", device_name)), None)


def peak_memory_gb() -> float:
    """Largest amount of memory this process has held: of the GPU where there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


# --- Held-out bits per byte -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EncodedDocument:
    """A whole document as the model reads it, end-of-text token first."""

    input_ids: NDArray[np.int32]
    is_content: NDArray[np.bool_]
    """Tokens of the text itself: those are predicted, the others only given."""
    num_bytes: int
    """Of the text, in UTF-8."""


def held_out_bits_per_byte(
    model: nn.Module,
    documents: Sequence[EncodedDocument],
    *,
    window: int,
    batch_size: int,
    precision: Literal["bf16", "fp32"] = "fp32",
) -> float:
    """Bits that the model needs for a byte of text: nats of all content tokens / ln 2 / bytes, over all documents.

    A document longer than `window` tokens is read in windows that overlap by half, so that every content token is
    predicted once, from at least window / 2 tokens where there are so many before it. Always in eval mode. Collective:
    every rank calls it with the same documents, computes a share of the windows, and gets the same answer.
    """
    num_bytes = sum(document.num_bytes for document in documents)
    if num_bytes == 0:
        raise DataError("no held-out text; raise dataset.held_out_fraction or set it to 0")
    parts = [part for document in documents for part in _windows(document, window=window)]
    rank = dist.get_rank() if dist.is_initialized() else 0
    module = unwrapped(model)
    was_training = module.training
    module.eval()
    device = next(module.parameters()).device
    likelihood = build_objective({"name": "MLE"})
    nats = torch.zeros((), dtype=torch.float64, device=device)
    # Equally many forward passes on every rank: the last rounds may be of padding.
    num_rounds = math.ceil(len(parts) / (batch_size * _world_size()))
    with torch.no_grad(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        for index in range(num_rounds):
            first = (index * _world_size() + rank) * batch_size
            batch = _window_batch(parts[first : first + batch_size], window=window).to(device)
            out = module(batch.input_ids_BS, batch.token_scores_BS, batch.token_kinds_BS, likelihood)
            nats += out.loss.double()
    module.train(was_training)
    if dist.is_initialized():
        dist.all_reduce(nats)
    return float(nats) / math.log(2) / num_bytes


def _windows(document: EncodedDocument, *, window: int) -> Iterator[tuple[NDArray[np.int32], NDArray[np.uint8]]]:
    """Ids and kinds, kind PAD for what is not predicted in this window."""
    ids = document.input_ids
    kinds = np.where(document.is_content, TokenKind.CONTENT, TokenKind.PAD).astype(np.uint8)
    begin, predicted = 0, 0
    while predicted < len(ids):
        part = kinds[begin : begin + window].copy()
        part[: predicted - begin] = TokenKind.PAD
        yield ids[begin : begin + window], part
        predicted = begin + len(part)
        begin = predicted - window // 2


def _window_batch(parts: Sequence[tuple[NDArray[np.int32], NDArray[np.uint8]]], *, window: int) -> MicroBatch:
    ids_BS = np.zeros((max(1, len(parts)), window), np.int64)
    kinds_BS = np.full(ids_BS.shape, TokenKind.PAD, np.uint8)
    for row, (ids, kinds) in enumerate(parts):
        ids_BS[row, : len(ids)] = ids
        kinds_BS[row, : len(kinds)] = kinds
    scores_BS = np.zeros(ids_BS.shape, np.float32)
    return MicroBatch(torch.from_numpy(ids_BS), torch.from_numpy(scores_BS), torch.from_numpy(kinds_BS), -1)


def objective_on(
    model: nn.Module,
    batches: Sequence[MicroBatch],
    *,
    objective: Objective,
    precision: Literal["bf16", "fp32"] = "fp32",
) -> dict[str, float | Histogram]:
    """The objective's figures over all batches, in eval mode, by the names that `Objective.summarize` gives them.

    Collective: every rank calls it with the same batches, computes a share, and gets the same answer.
    """
    rank = dist.get_rank() if dist.is_initialized() else 0
    module = unwrapped(model)
    was_training = module.training
    module.eval()
    device = next(module.parameters()).device
    totals: Statistics = {}
    with torch.no_grad(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        for first in range(0, len(batches), _world_size()):
            # Equally many forward passes on every rank: in the last round some have nothing but padding.
            batch = batches[first + rank] if first + rank < len(batches) else _padding_like(batches[0])
            local = batch.to(device)
            out = module(local.input_ids_BS, local.token_scores_BS, local.token_kinds_BS, objective)
            totals = combine(totals, out.metrics)
    module.train(was_training)
    totals = all_reduce(totals)
    return {**objective.summarize(totals), **objective.histograms(totals)}


def _padding_like(batch: MicroBatch) -> MicroBatch:
    return dataclasses.replace(
        batch, token_kinds_BS=torch.full_like(batch.token_kinds_BS, int(TokenKind.PAD)), first_block=-1
    )


# --- Inspection -------------------------------------------------------------------------------------------------------


class _ReadValues(Objective):
    """In the place of an objective, hands out what the value head says. Inside the forward pass, because there FSDP has
    gathered the parameters."""

    def __init__(self) -> None:
        super().__init__(Rules())

    def forward(self, *, values_BS: Tensor | None = None, **_: Any) -> ObjectiveOutput:
        assert values_BS is not None
        return ObjectiveOutput(values_BS, torch.zeros((), dtype=torch.float64), {})


def value_predictions(
    model: nn.Module, batch: MicroBatch, *, precision: Literal["bf16", "fp32"] = "fp32"
) -> Tensor | None:
    """What the value head says of each token of a micro-batch, (B, S) on the host; None for a model without one.

    In eval mode. Collective: every rank calls it.
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


# --- Saving and restoring ---------------------------------------------------------------------------------------------

STATE_DIRECTORY = "training_state"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Copy of a state in host memory, whole; the training may go on while it is written."""

    model: dict[str, Tensor]
    """State dict of the `LanguageModel`; tied entries are one tensor."""
    optimizer: dict[str, Tensor]
    """`<parameter name>/<state name>`."""
    step: int
    tokens_seen: int
    documents_seen: int
    row: Statistics


def take_snapshot(state: TrainState, *, keep: bool = True, with_optimizer: bool = True) -> Snapshot | None:
    """Collective under FSDP: every rank calls it, and only those with `keep` get the copy."""
    module = unwrapped(state.model)
    copies: dict[int, Tensor | None] = {}

    def copied(tensor: Tensor) -> Tensor | None:
        if id(tensor) not in copies:
            whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            copies[id(tensor)] = whole.detach().to("cpu", copy=True) if keep else None
        return copies[id(tensor)]

    model = {name: copied(tensor) for name, tensor in module.state_dict(keep_vars=True).items()}
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
    """What `model.safetensors` lacks: optimizer, counters, and the totals of a row of metrics that is not full.

    Schedule, data order and dropout follow from the step.

    Safetensors and JSON, not torch's distributed checkpoint, which keeps its index as a pickle.
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
    """Optimizer and counters of a checkpoint, for a model whose weights are already those of the checkpoint.

    Works for any number of ranks and for DDP and FSDP alike: every rank reads the file and keeps its part.
    """
    source = directory / STATE_DIRECTORY
    try:
        counters = json.loads((source / "state.json").read_text(encoding="utf-8"))
        with safe_open(source / "optimizer.safetensors", framework="pt") as stored:
            names = set(stored.keys())
            for name, parameter in unwrapped(state.model).named_parameters():
                keys = [key for key in names if key.rpartition("/")[0] == name]
                state.optimizer.state[parameter] = {
                    key.rpartition("/")[2]: _placed_like(parameter, stored.get_tensor(key)) for key in keys
                }
    except OSError as error:
        raise DataError(f"{source} is not a training state: {error}; start from another checkpoint") from None
    state.step = counters["step"]
    state.tokens_seen, state.documents_seen = counters["tokens_seen"], counters["documents_seen"]
    # Older checkpoints have none.
    state.row = {name: torch.tensor(value, dtype=torch.float64) for name, value in counters.get("row", {}).items()}


def _placed_like(parameter: Tensor, value: Tensor) -> Tensor:
    # A copy in memory of its own: one of a mapped file is not aligned. The step count too is put beside the parameter,
    # where the fused kernel wants it.
    value = value.to(parameter.device, copy=True)
    if isinstance(parameter, DTensor) and value.ndim > 0:
        return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return value
