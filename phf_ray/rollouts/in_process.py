"""Runs rounds with a single worker in this process, without Ray."""

from typing import Any

from phf_ray.config import Config
from phf_ray.errors import ConfigError
from phf_ray.rollouts.plan import RolloutJob
from phf_ray.rollouts.worker import RolloutWorker
from phf_ray.runs.directory import RunDirectory
from phf_ray.training.in_process import work
from phf_ray.training.ranks import OneRank


def fit_rollouts_here(job: RolloutJob, *, config: Config, run: RunDirectory) -> dict[str, Any]:
    """Run to the end in this process; ignore `training.num_workers`. This function is a `Fit`."""
    if config.rollouts is not None and config.rollouts.place == "actors":
        raise ConfigError(
            "rollouts.place: actors needs Ray, and this run has a single process without it; set place: workers, or "
            "start it with `phf train-rl`"
        )
    return work(job, run, OneRank(), worker=RolloutWorker)
