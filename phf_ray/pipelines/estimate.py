"""What a run will be, before it is one: steps, tokens, parameters, memory per device, disk and time.

Counted where it can be counted, estimated where not, and each line says which.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from phf_ray import blocks as stored
from phf_ray.blocks import Mixture
from phf_ray.config import Config
from phf_ray.corpus.reader import read_part
from phf_ray.errors import DataError
from phf_ray.models import LanguageModel, Shape
from phf_ray.objectives import build_objective
from phf_ray.packing import PackingStats, pack
from phf_ray.pipelines.blocks import BlockPlan, Group, corpus_tokens
from phf_ray.pipelines.checkpoint_evaluation import evaluation_steps
from phf_ray.pipelines.train import idle_workers, set_up_layers
from phf_ray.storage.files import open_filesystem
from phf_ray.training import MicroBatch, StepSettings, TrainState, build_optimizer, speed_up, step, steps_in

# Corpora up to this many bytes of Parquet, some 16 M tokens, are packed to count their tokens; of larger ones the head.
COUNTED_BYTES = 16 << 20
# A model of this many weights takes seconds a step on two cores; larger ones are not tried out without a GPU.
PROBED_PARAMETERS = 200_000_000
PROBE_S = 5.0
_GB = 1e9


@dataclass(frozen=True, slots=True)
class TokenCount:
    """Of what the training is fed."""

    mixture: Mixture
    is_exact: bool

    @property
    def num_blocks(self) -> int:
        """Of one pass over the data."""
        return sum(one.num_blocks for one in self.mixture.corpora)


def count_tokens(
    plan: BlockPlan, *, tokenizer: PreTrainedTokenizerFast, weights: Sequence[float] | None = None
) -> TokenCount:
    """From the blocks if they are built, else by packing the corpora as they would be packed, and writing nothing."""
    filesystem, success = open_filesystem(f"{plan.root}/{stored.SUCCESS}")
    if filesystem.exists(success):
        return TokenCount(Mixture.of(stored.read_manifest(plan.root), weights), is_exact=True)
    # With weights it matters which corpus has how many: each is counted, on a head of its own.
    parts = [list(plan.groups)]
    if weights is not None:
        parts = [[group for group in plan.groups if group.corpus == place] for place in range(len(plan.corpora))]
    counted = [
        _count_groups(plan, groups, num_bytes=COUNTED_BYTES // len(parts), tokenizer=tokenizer) for groups in parts
    ]
    mixture = Mixture.from_counts([one for one, _ in counted], weights)
    return TokenCount(mixture, is_exact=all(is_exact for _, is_exact in counted))


def _count_groups(
    plan: BlockPlan, groups: Sequence[Group], *, num_bytes: int, tokenizer: PreTrainedTokenizerFast
) -> tuple[stored.CorpusTokens, bool]:
    """The first ones, until `num_bytes` of Parquet, and the rest by its size; whether there is no rest."""
    stats = PackingStats()
    num_counted, counted_bytes, total_bytes = 0, 0, 0
    for group in groups:
        size = sum(_size(part) for part in group.parts)
        total_bytes += size
        if counted_bytes < num_bytes:
            num_counted, counted_bytes = num_counted + 1, counted_bytes + size
            _count_group(plan, group.parts, tokenizer=tokenizer, stats=stats)
    factor = total_bytes / counted_bytes if counted_bytes else 1.0
    found = corpus_tokens(stats)
    counts = {name: round(count * factor) for name, count in found.model_dump().items() if name.startswith("num_")}
    return found.model_copy(update=counts), num_counted == len(groups)


def _count_group(
    plan: BlockPlan, parts: tuple[str, ...], *, tokenizer: PreTrainedTokenizerFast, stats: PackingStats
) -> None:
    documents = (
        document
        for part in parts
        for document in read_part(part)
        if not stored.is_held_out(document.id, plan.held_out_fraction)
    )
    for _ in pack(documents, tokenizer, sequence_length=plan.sequence_length, config=plan.packing, stats=stats):
        pass


def _size(part: str) -> int:
    filesystem, inner = open_filesystem(part)
    return int(filesystem.size(inner))


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on each device."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    head: float
    """What the loss holds: the head's gradient in fp32, and one chunk of logits."""

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations + self.head


def memory_per_device(config: Config, shape: Shape, *, has_gpu: bool) -> Memory:
    """Weights, gradients and Adam's two moments in fp32, divided by the workers under fsdp2.

    Activations by Korthikanti et al. 2022 (equation 2, without the softmax that torch's attention does not keep): 34
    bytes a token, layer and unit of width in bf16, twice that in fp32; with gradient_checkpointing only the input of
    each layer, and one layer whole.
    """
    training = config.training
    parts = training.num_workers if training.parallelism == "fsdp2" else 1
    share = 4.0 * shape.num_parameters / parts
    element = 2 if training.precision == "bf16" else 4
    unit = float(training.per_device_train_batch_size * config.dataset.seq_length * shape.width)
    layer = 17 * element * unit
    kept = shape.num_layers * element * unit + layer if training.gradient_checkpointing else shape.num_layers * layer
    head = 4.0 * shape.num_rows * shape.width + (2**30 if has_gpu else 2**27)
    return Memory(weights=share, gradients=share, optimizer=2 * share, activations=kept, head=head)


Speed = tuple[float, str]
"""Tokens per second of all workers, and where the figure is from."""


def tried_speed(config: Config, *, shape: Shape, build: Callable[[], LanguageModel]) -> Speed | str:
    """By training the model that `build` gives for a few seconds on this machine; or why that can't be."""
    reason = _why_not_tried(config, shape)
    if reason is not None:
        return reason
    training = config.training
    # Of workers that compute padding nothing comes.
    num_busy = speed_up(
        batch_size=training.effective_batch_size,
        micro_batch_size=training.per_device_train_batch_size,
        num_workers=training.num_workers,
    )
    try:
        measured = measured_tokens_per_s(config, build())
    except torch.OutOfMemoryError:
        return "a trial on one GPU ran out of memory"
    return measured * num_busy, f"measured on this machine as one of {training.num_workers} worker(s)"


def _why_not_tried(config: Config, shape: Shape) -> str | None:
    if not has_gpu():
        is_small = shape.num_parameters <= PROBED_PARAMETERS
        return None if is_small else "the model is too large to try out without a GPU"
    # The trial holds the whole model, also where the workers will share it.
    whole = config.model_copy(update={"training": config.training.model_copy(update={"parallelism": "ddp"})})
    needed, (free, _) = memory_per_device(whole, shape, has_gpu=True).total, torch.cuda.mem_get_info()
    if needed <= free:
        return None
    return f"a trial on one GPU needs about {needed / _GB:.0f} GB, and {free / _GB:.0f} GB are free here"


def measured_tokens_per_s(config: Config, model: LanguageModel) -> float:
    """Tokens per second of one worker like this machine, by a few steps of one micro-batch each.

    On a processor, where a step of a large micro-batch takes minutes, of one sequence, and not compiled. Changes the
    model.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    training, length = config.training, config.dataset.seq_length
    set_up_layers(model, training, device=device, compiles=training.torch_compile and device.type == "cuda")
    optimizer = build_optimizer(model.to(device).train(), weight_decay=0.0, betas=(0.9, 0.999), epsilon=1e-8)
    state = TrainState(model, optimizer)
    num_rows = training.per_device_train_batch_size if device.type == "cuda" else 1
    batches = _random_batches(num_rows, length, vocabulary=model.head()[0].shape[0])
    objective = build_objective({"name": "MLE"})
    settings = StepSettings(precision=training.precision)
    num_steps, since = 0, 0.0
    for batch in batches:
        # The first one warms up: memory, kernels, lazily made state of the optimizer.
        if state.step == 1:
            since = time.perf_counter()
        step(state, [batch], objective=objective, learning_rate=0.0, settings=settings).read()
        num_steps = state.step - 1
        if num_steps and time.perf_counter() - since > PROBE_S:
            break
    return num_steps * num_rows * length / (time.perf_counter() - since)


def has_gpu() -> bool:
    return torch.cuda.is_available()


def _random_batches(batch_size: int, length: int, *, vocabulary: int) -> Iterator[MicroBatch]:
    draw = np.random.default_rng(0)
    for number in range(21):
        ids_BS = torch.from_numpy(draw.integers(vocabulary, size=(batch_size, length)))
        yield MicroBatch(ids_BS, torch.zeros(ids_BS.shape), torch.zeros(ids_BS.shape, dtype=torch.uint8), number)


def describe(config: Config, *, plan: BlockPlan, tokens: TokenCount, shape: Shape, speed: Speed | str) -> list[str]:
    """Lines for a reader. `speed`: or why it is not known.

    Raises ConfigError if the budget does not pay for a step, DataError if there is nothing to train on.
    """
    if tokens.num_blocks == 0:
        raise DataError("no document is left to pack; change dataset.filter_threshold or dataset.held_out_fraction")
    training, dataset = config.training, config.dataset
    budget = training.num_tokens - training.tokens_already_seen
    per_block = tokens.mixture.tokens_per_block(training.count_tokens)
    num_content_tokens, num_tokens = (
        sum(getattr(one, name) for one in tokens.mixture.corpora) for name in ("num_content_tokens", "num_tokens")
    )
    num_steps = steps_in(budget, tokens_per_block=per_block, batch_size=training.effective_batch_size)
    about = "" if tokens.is_exact else "about "
    num_positions = num_steps * training.effective_batch_size * dataset.seq_length
    epochs = tokens.mixture.epochs_in(num_steps * training.effective_batch_size)
    memory = memory_per_device(config, shape, has_gpu=has_gpu())
    checkpoint = 12 * shape.num_parameters
    lines = [
        f"blocks       {plan.root}",
        f"thresholds   {dict(plan.thresholds) or 'none'}",
        f"parameters   {shape.num_parameters:,}: {shape.num_layers} layers, width {shape.width}, "
        f"{shape.num_rows:,} rows",
        f"steps        {about}{num_steps:,} of {training.effective_batch_size} x {dataset.seq_length} tokens",
        f"tokens       {budget:,} {training.count_tokens} tokens to train on; the data has {about}"
        f"{tokens.num_blocks:,} blocks with {num_content_tokens:,} content tokens, {num_tokens:,} in "
        f"all: {epochs:.2f} epochs",
        f"workers      {training.num_workers}, {training.parallelism}, {training.precision}, micro-batches of "
        f"{training.per_device_train_batch_size}",
        f"memory       about {memory.total / _GB:.2f} GB a device: weights {memory.weights / _GB:.2f}, gradients "
        f"{memory.gradients / _GB:.2f}, Adam {memory.optimizer / _GB:.2f}, activations {memory.activations / _GB:.2f} "
        f"(estimated), loss {memory.head / _GB:.2f}",
        f"disk         blocks {stored.BYTES_PER_TOKEN * tokens.num_blocks * dataset.seq_length / _GB:.2f} GB before "
        f"compression ({stored.BYTES_PER_TOKEN} bytes a token); {checkpoint / _GB:.2f} GB a checkpoint, "
        f"{_num_checkpoints(config, num_steps)} kept",
        f"evaluation   {evaluations(config, num_steps)}",
    ]
    idle = idle_workers(training)
    if idle is not None:
        lines.append(f"idle         {idle}")
    if not tokens.is_exact:
        lines.append("             'about': counted on the head of the corpus, the rest by its size on disk")
    return [*lines, f"time         {_time(num_positions, speed)}"]


def _num_checkpoints(config: Config, num_steps: int) -> int:
    training = config.training
    written = 1 if training.save_steps is None else -(-num_steps // training.save_steps)
    return written if training.save_total_limit is None else min(written, training.save_total_limit)


def evaluations(config: Config, num_steps: int) -> str:
    samples, kl = evaluation_steps(config, num_steps=num_steps)
    if not samples and not kl:
        return "none beside the loop"
    num_texts = sum(scenario.num_samples for scenario in config.generation.scenario_configs)
    return f"beside the loop: {num_texts:,} samples at each of {len(samples):,} steps, KL at {len(kl):,} steps"


def _time(num_positions: int, speed: Speed | str) -> str:
    if isinstance(speed, str):
        return f"unknown: {speed}; give --tokens-per-s"
    tokens_per_s, origin = speed
    return f"about {_duration(num_positions / tokens_per_s)} at {tokens_per_s:,.0f} tokens/s, {origin}"


def _duration(seconds: float) -> str:
    for size, unit in ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"
