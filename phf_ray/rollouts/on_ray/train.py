"""Runs rounds under Ray Train: answers are drawn in the workers, which learn them, or by actors beside them."""

import gc
import logging
from functools import partial
from typing import Any

from phf_ray.config import Config
from phf_ray.rollouts.on_ray.sampling import RaySamplingPool, room_for_actors
from phf_ray.rollouts.plan import RolloutJob
from phf_ray.rollouts.worker import RolloutWorker
from phf_ray.runs.directory import RunDirectory
from phf_ray.training.in_process import work
from phf_ray.training.on_ray import RayRanks, run_workers

log = logging.getLogger(__name__)


def fit_rollouts_on_ray(job: RolloutJob, *, config: Config, run: RunDirectory) -> dict[str, Any]:
    """Run to the end on the workers of Ray Train. This function is a `Fit`."""
    assert config.rollouts is not None
    if config.rollouts.place == "actors" and (room := room_for_actors(config)) < config.rollouts.actors.min:
        log.warning(
            "beside %d training worker(s) the cluster has room for %d of the %d actor(s) that rollouts.actors asks for "
            "at least; rounds wait until it has room for one: if it can't grow, lower training.num_workers, "
            "training.resources_per_worker or rollouts.actors.num_cpus, or set rollouts.place: workers",
            config.training.num_workers,
            room,
            config.rollouts.actors.min,
        )
    return run_workers(_rollout_worker, job, config=config, run=run)


def _rollout_worker(values: dict[str, Any]) -> dict[str, Any]:
    job = RolloutJob(**values)
    try:
        worker = partial(RolloutWorker, open_pool=RaySamplingPool)
        return work(job, RunDirectory(job.run_path), RayRanks(), worker=worker)
    finally:
        # As in `training/on_ray.py`: DDP must not outlive Ray's hold on the process group.
        gc.collect()
