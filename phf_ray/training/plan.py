"""Plans a run from its configuration and blocks; every start of the run gets the same plan."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from phf_ray.blocks.manifest import BlockManifest
from phf_ray.blocks.mixture import Mixture
from phf_ray.blocks.order import BlockOrder
from phf_ray.config import Config, TrainingConfig
from phf_ray.corpus.data_sets import refuse_unscored
from phf_ray.training.schedule import fitting_micro_batch, speed_up, steps_in

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """Figures that follow from the configuration and the blocks, the same at every start of a run."""

    num_steps: int
    first_block: int
    """Blocks before this position are skipped (`dataset.skip_tokens`)."""
    tokens_per_block: float
    """Mean number of tokens per block, counted as `training.count_tokens` says."""
    blocks_hash: str
    checkpoint_path: str | None
    """Checkpoint whose weights the run starts from; None: the configuration's model."""
    thresholds: dict[str, float]
    """Thresholds as numbers, by name: `conditional`, `filter`, `objective`."""
    reward_mean: float | None
    reward_std: float | None
    reference: str | None = None
    """Folder below the blocks with the reference's log-probabilities; None: the objective reads none."""
    eval_sets: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Name -> file of the evaluation set, and how many of its documents are in the training data."""


def plan_training(
    config: Config,
    *,
    manifest: BlockManifest,
    objective_threshold: float | None,
    checkpoint_path: str | None,
    eval_sets: Mapping[str, dict[str, Any]] | None = None,
    reference: str | None = None,
) -> TrainingPlan:
    """Plan a run.

    Raises ConfigError if the budget is too small for one step, skipping leaves no blocks, or the configuration reads
    scores that the blocks lack.
    """
    refuse_unscored(config, manifest.unscored)
    training = config.training
    idle = idle_workers(training)
    if idle is not None:
        log.warning("%s", idle)
    mixture = Mixture.of(manifest, config.dataset.weights)
    tokens_per_block = mixture.tokens_per_block(training.count_tokens)
    order = BlockOrder(manifest, seed=training.seed, weights=config.dataset.weights)
    score_mean, score_std = mixture.score_mean_and_std()
    return TrainingPlan(
        num_steps=planned_steps(training, num_blocks=manifest.num_blocks, tokens_per_block=tokens_per_block),
        first_block=order.position_after(config.dataset.skip_tokens) if config.dataset.skip_tokens else 0,
        tokens_per_block=tokens_per_block,
        blocks_hash=manifest.fingerprint,
        checkpoint_path=checkpoint_path,
        thresholds=dict(manifest.thresholds)
        | ({} if objective_threshold is None else {"objective": objective_threshold}),
        # The reward is minus the score.
        reward_mean=None if score_mean is None else -score_mean,
        reward_std=score_std,
        reference=reference,
        eval_sets=dict(eval_sets or {}),
    )


def planned_steps(training: TrainingConfig, *, num_blocks: int, tokens_per_block: float) -> int:
    """Return the steps of `training.num_epochs` passes if it is set, else those of `training.num_tokens`."""
    if training.num_epochs is not None:
        return max(1, round(training.num_epochs * num_blocks / training.effective_batch_size))
    return steps_in(
        training.num_tokens - training.tokens_already_seen,
        tokens_per_block=tokens_per_block,
        batch_size=training.effective_batch_size,
    )


def idle_workers(training: TrainingConfig) -> str | None:
    """Say how to avoid workers that compute padding; None if all have the same number of micro-batches."""
    size, num_workers = training.per_device_train_batch_size, training.num_workers
    batch_size = training.effective_batch_size
    busy = speed_up(batch_size=batch_size, micro_batch_size=size, num_workers=num_workers)
    if busy == num_workers:
        return None
    num_micro_batches = math.ceil(batch_size / size)
    num_rounds = math.ceil(num_micro_batches / num_workers)
    fewer = math.ceil(num_micro_batches / num_rounds)
    fitting = fitting_micro_batch(batch_size=batch_size, micro_batch_size=size, num_workers=num_workers)
    gained = speed_up(batch_size=batch_size, micro_batch_size=fitting, num_workers=num_workers)
    remedies = []
    if gained > busy:
        remedies.append(f"training.per_device_train_batch_size: {fitting} keeps {gained:.3g} busy, in a new run")
    if fewer < num_workers:
        remedies.append(f"training.num_workers: {fewer} is as fast")
    if not remedies:
        remedies.append(f"training.effective_batch_size: {size * num_rounds * num_workers} costs no more time")
    return (
        f"{num_workers} workers do the work of {busy:.3g}, because a step of {batch_size} sequences is "
        f"{num_micro_batches} micro-batch(es) of {size}, and workers without one compute padding; {'; '.join(remedies)}"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerJob:
    """What every worker is told, as plain values."""

    config: dict[str, Any]
    plan: dict[str, Any]
    """Of any kind of run; `num_steps` and `checkpoint_path` are in each."""
    run_path: str
    task: str
    num_threads: int | None
    """Torch threads per worker; None: the node's cores divided by its workers."""
    working_directory: str
    """Directory that the config's relative paths start from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainJob(WorkerJob):
    """What a worker that learns from stored blocks is told."""

    blocks_path: str
