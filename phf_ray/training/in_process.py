"""Trains with a single worker in this process, without Ray."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from transformers.utils import logging as transformers_logging

from phf_ray.config import Config
from phf_ray.errors import PhfError
from phf_ray.runs.directory import RunDirectory
from phf_ray.training.lasting import lasting_error
from phf_ray.training.learner import Learner
from phf_ray.training.plan import TrainJob, WorkerJob
from phf_ray.training.ranks import OneRank, Ranks
from phf_ray.training.worker import TrainingWorker

J = TypeVar("J", bound=WorkerJob)
log = logging.getLogger(__name__)


def fit_here(job: TrainJob, *, config: Config, run: RunDirectory) -> dict[str, Any]:
    """Train to the end in this process; ignore `training.num_workers`."""
    del config
    return work(job, run, OneRank(), worker=TrainingWorker)


def work(
    job: J, run: RunDirectory, ranks: Ranks, *, worker: Callable[[J, RunDirectory, Ranks], Learner]
) -> dict[str, Any]:
    """Run one worker and return its outcome for the driver. Save an error that would come again for the next start."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    # Ray Train starts each worker in a folder of its own. A submitted job's directory has the same path on every node.
    if Path(job.working_directory).is_dir():
        os.chdir(job.working_directory)
    failure = run.read_failure()
    if failure:
        # The workers were restarted after an error that would only occur again.
        return failure
    try:
        return worker(job, run, ranks).train()
    except Exception as error:
        lasting = lasting_error(error, run=run)
        if lasting is None:
            raise
        _tell_the_next_start(run, lasting)
        raise lasting from error


def _tell_the_next_start(run: RunDirectory, error: PhfError) -> None:
    try:
        run.write_failure({"status": "failed", "kind": type(error).__name__, "message": str(error)})
    except OSError as problem:
        # The error itself still reaches the driver.
        log.error("failure.json can't be written: %s", problem)  # noqa: TRY400 - the disk's state is known by then
