"""Runs rounds under Ray Train: answers are drawn, rewarded and learned in the training workers."""

import gc
from typing import Any

from phf_ray.config import Config
from phf_ray.rollouts.plan import RolloutJob
from phf_ray.rollouts.worker import RolloutWorker
from phf_ray.runs.directory import RunDirectory
from phf_ray.training.in_process import work
from phf_ray.training.on_ray import RayRanks, run_workers


def fit_rollouts_on_ray(job: RolloutJob, *, config: Config, run: RunDirectory) -> dict[str, Any]:
    """Run to the end on the workers of Ray Train. This function is a `Fit`."""
    return run_workers(_rollout_worker, job, config=config, run=run)


def _rollout_worker(values: dict[str, Any]) -> dict[str, Any]:
    job = RolloutJob(**values)
    try:
        return work(job, RunDirectory(job.run_path), RayRanks(), worker=RolloutWorker)
    finally:
        # As in `training/on_ray.py`: DDP must not outlive Ray's hold on the process group.
        gc.collect()
