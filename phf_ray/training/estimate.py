"""Describes a run before it starts: steps, tokens, parameters, memory, disk and time.

It counts what it can and estimates the rest; each line says which.
"""

from phf_ray.blocks.plan import BlockPlan
from phf_ray.blocks.shards import BYTES_PER_TOKEN
from phf_ray.config import Config, evaluation_steps
from phf_ray.errors import DataError
from phf_ray.models.shape import ModelShape
from phf_ray.training.memory import GB, memory_per_device
from phf_ray.training.plan import idle_workers, planned_steps
from phf_ray.training.speed import Speed, has_gpu
from phf_ray.training.token_count import TokenCount


def describe_run(
    config: Config, *, plan: BlockPlan, tokens: TokenCount, shape: ModelShape, speed: Speed | str
) -> list[str]:
    """Return lines for a reader. `speed`: the speed, or the reason why it is unknown.

    Raises ConfigError if the budget is too small for one step, DataError if there is nothing to train on.
    """
    if tokens.num_blocks == 0:
        raise DataError("no document is left to pack; change dataset.filter_threshold or dataset.held_out_fraction")
    training, dataset = config.training, config.dataset
    budget = training.num_tokens - training.tokens_already_seen
    per_block = tokens.mixture.tokens_per_block(training.count_tokens)
    num_content_tokens, num_tokens = (
        sum(getattr(one, name) for one in tokens.mixture.corpora) for name in ("num_content_tokens", "num_tokens")
    )
    num_steps = planned_steps(training, num_blocks=tokens.num_blocks, tokens_per_block=per_block)
    if training.num_epochs is not None:
        budget = round(num_steps * training.effective_batch_size * per_block)
    about = "" if tokens.is_exact else "about "
    num_positions = num_steps * training.effective_batch_size * dataset.seq_length
    epochs = tokens.mixture.epochs_in(num_steps * training.effective_batch_size)
    memory = memory_per_device(config, shape, has_gpu=has_gpu())
    checkpoint = 12 * shape.num_trained
    bytes_per_token = BYTES_PER_TOKEN + 4 * _num_channels(config)
    lines = [
        f"blocks       {plan.root}",
        f"thresholds   {dict(plan.thresholds) or 'none'}",
        *_unscored(plan),
        f"parameters   {shape.num_parameters:,}{_trained(shape)}: {shape.num_layers} layers, width {shape.width}, "
        + ("one reward" if config.trains_reward_model else f"{shape.num_rows:,} rows"),
        f"steps        {about}{num_steps:,} of {training.effective_batch_size} x {dataset.seq_length} tokens",
        f"tokens       {budget:,} {training.count_tokens} tokens to train on; the data has {about}"
        f"{tokens.num_blocks:,} blocks with {num_content_tokens:,} content tokens, {num_tokens:,} in "
        f"all: {epochs:.2f} epochs",
        f"workers      {training.num_workers}, {training.parallelism}, {training.precision}, micro-batches of "
        f"{training.per_device_train_batch_size}",
        f"memory       about {memory.total / GB:.2f} GB a device: weights {memory.weights / GB:.2f}, gradients "
        f"{memory.gradients / GB:.2f}, Adam {memory.optimizer / GB:.2f}, activations {memory.activations / GB:.2f} "
        f"(estimated), loss {memory.head / GB:.2f}",
        f"disk         blocks {bytes_per_token * tokens.num_blocks * dataset.seq_length / GB:.2f} GB before "
        f"compression ({bytes_per_token} bytes a token); {checkpoint / GB:.2f} GB a checkpoint, "
        f"{_num_checkpoints(config, num_steps)} kept",
        f"evaluation   {describe_evaluations(config, num_steps)}",
    ]
    idle = idle_workers(training)
    if idle is not None:
        lines.append(f"idle         {idle}")
    if not tokens.is_exact:
        lines.append("             'about': counted on the head of the corpus, extrapolated by size on disk")
    return [*lines, f"time         {_time(num_positions, speed)}"]


def _num_channels(config: Config) -> int:
    """Numbers of each token beside its score: the reference's log-probability, a label, a margin."""
    objective = config.objective
    has_margin = isinstance(getattr(objective, "margin", None), str)
    return objective.reads_reference + objective.reads_labels + has_margin


def _unscored(plan: BlockPlan) -> list[str]:
    return [
        f"unscored     {corpus.name}: {corpus.unscored.num_files:,} files, {corpus.unscored.num_bytes / 1e6:,.1f} MB; "
        f"a text file is {'a document' if corpus.unscored.unit == 'document' else 'a document per line'}"
        for corpus in plan.corpora
        if corpus.unscored is not None
    ]


def _trained(shape: ModelShape) -> str:
    is_whole = shape.num_trained == shape.num_parameters
    return "" if is_whole else f" ({shape.num_trained:,} of them trained)"


def _num_checkpoints(config: Config, num_steps: int) -> int:
    training = config.training
    written = 1 if training.save_steps is None else -(-num_steps // training.save_steps)
    return written if training.save_total_limit is None else min(written, training.save_total_limit)


def describe_evaluations(config: Config, num_steps: int) -> str:
    samples, kl = evaluation_steps(config, num_steps=num_steps)
    if not samples and not kl:
        return "none during training"
    num_texts = sum(scenario.num_samples for scenario in config.generation.scenario_configs)
    return f"during training: {num_texts:,} samples at each of {len(samples):,} steps, KL at {len(kl):,} steps"


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
