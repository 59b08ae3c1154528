"""Runs training workers under Ray Train.

Ray Train starts the workers, connects them, and restarts them if one dies. phf-ray writes the checkpoints (`runs`): a
new command, or a restarted group of any size, continues from the newest complete checkpoint.
"""

import dataclasses
import gc
import logging
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch

from phf_ray.config import Config
from phf_ray.corpus.on_ray import as_they_finish
from phf_ray.errors import IncompleteError, PhfError
from phf_ray.runs.directory import RunDirectory
from phf_ray.training.in_process import work
from phf_ray.training.plan import TrainJob, WorkerJob
from phf_ray.training.reference import ReferenceJob, compute_here
from phf_ray.training.worker import TrainingWorker

log = logging.getLogger(__name__)

T = TypeVar("T")


def fit_on_ray(job: TrainJob, *, config: Config, run: RunDirectory) -> dict[str, Any]:
    """Train on blocks; this function is a `Fit`."""
    return run_workers(_train_worker, job, config=config, run=run)


def run_workers(
    body: Callable[[dict[str, Any]], dict[str, Any]], job: WorkerJob, *, config: Config, run: RunDirectory
) -> dict[str, Any]:
    """Call `body` with the job on every rank that Ray Train starts, and return rank 0's outcome.

    Ray Train runs in a thread: the main thread handles signals, and there Ray would take SIGINT for itself.
    """
    import ray
    from ray.exceptions import RayError
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.v2.api.exceptions import TrainingFailedError

    resources = dict(config.training.resources_per_worker)
    available = ray.cluster_resources()
    taken = resources_of_a_worker(config, available)
    use_gpu = taken.get("GPU", 0) > 0
    _warn_if_too_large(config.training.num_workers, taken, available=available)
    trainer = _trainer_class()(
        body,
        train_loop_config=dataclasses.asdict(job),
        scaling_config=ScalingConfig(
            num_workers=config.training.num_workers, use_gpu=use_gpu, resources_per_worker=resources or None
        ),
        run_config=RunConfig(  # type: ignore[call-arg]  # typed as the older class
            # A fresh name, because Ray's own files are of no use to a later start.
            name=uuid.uuid4().hex[:12],
            storage_path=str(run.path / "ray"),
            failure_config=FailureConfig(max_failures=config.training.max_failures),
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )
    result: list[Any] = []

    def fit() -> None:
        try:
            result.append(trainer.fit().return_value)
        except BaseException as error:  # noqa: BLE001  (border of a thread: the main thread raises it)
            result.append(error)

    claim = run.current_claim()
    thread = threading.Thread(target=fit, name="ray-train", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.5)
        if run.is_stop_requested() and run.current_claim() == claim:
            # Ray may wait for workers forever; it frees the resources they requested when this process ends.
            return {"status": "stopped", "step": run.latest_step()}
    shutil.rmtree(run.path / "ray", ignore_errors=True)
    outcome = result[0]
    if isinstance(outcome, BaseException):
        failure = run.read_failure()
        if failure:
            return failure
        known = _known_error(outcome)
        if known is not None:
            raise known
        log.error("%s", outcome)
        if isinstance(outcome, TrainingFailedError):
            raise IncompleteError(
                f"workers died more often than training.max_failures={config.training.max_failures} allows; the last "
                "error is above"
            )
        if isinstance(outcome, RayError):
            raise IncompleteError("Ray lost the process that supervises the workers; the error is above")
        raise outcome
    return dict(outcome)


def _known_error(outcome: BaseException) -> PhfError | None:
    """Return the first error of a worker that is meant for the user; it is not in the run's folder if that is full."""
    failures: dict[int, Any] = getattr(outcome, "worker_failures", {})
    errors = [getattr(failure, "_base_exc", failure) for _, failure in sorted(failures.items())]
    return next((error for error in errors if isinstance(error, PhfError)), None)


def resources_of_a_worker(config: Config, available: Mapping[str, float]) -> dict[str, float]:
    """Return what a worker takes of a cluster that has these resources in all."""
    resources = dict(config.training.resources_per_worker)
    return _of_a_worker(resources, use_gpu=resources.get("GPU", available.get("GPU", 0)) > 0)


def _of_a_worker(resources: dict[str, float], *, use_gpu: bool) -> dict[str, float]:
    """Return the resources that Ray Train requests: `use_gpu` adds a GPU if the resources name none."""
    return {"GPU": 1.0} | resources if use_gpu else resources or {"CPU": 1.0}


def _warn_if_too_large(num_workers: int, resources: dict[str, float], *, available: dict[str, float]) -> None:
    """Warn if the cluster is too small, because Ray waits in silence for resources that never come."""
    for name, amount in resources.items():
        if num_workers * amount > available.get(name, 0):
            log.warning(
                "%d worker(s) need %g %s, but the cluster has %g: waiting for it to grow; if it can't, lower "
                "training.num_workers or training.resources_per_worker",
                num_workers,
                num_workers * amount,
                name,
                available.get(name, 0),
            )


def _trainer_class() -> Any:
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
    from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision

    class RestartIfItMayHelp(DefaultFailurePolicy):
        """Restarts the workers unless one of them raised an error that would come again.

        The process that decides is to load nothing of ours but the errors: the rest takes it seconds.
        """

        def make_decision(self, training_failed_error: Any) -> Any:
            errors = getattr(training_failed_error, "worker_failures", {}).values()
            if any(isinstance(error, PhfError) for error in errors):
                return FailureDecision.RAISE
            return super().make_decision(training_failed_error)

    class Trainer(TorchTrainer):
        """TorchTrainer that restarts nothing in vain, without two actors that we have no use for.

        One frees the workers' resources if the controller dies. This process ends then, and Ray frees the resources
        with it. If no dashboard runs, that actor warns every second that it can't see the controller. The other hands
        out data sets of Ray Data; our workers read blocks.
        """

        def _initialize_and_run_controller(self, **options: Any) -> Any:
            options["failure_policy"] = RestartIfItMayHelp(self.run_config.failure_config)  # type: ignore[arg-type]  # as above
            return super()._initialize_and_run_controller(**options)  # type: ignore[misc]  # as below

        def _create_default_callbacks(self) -> list[Any]:
            callbacks = super()._create_default_callbacks()  # type: ignore[misc]  # typed as the older trainer
            without = (DatasetsCallback, PlacementGroupCleanerCallback)
            return [callback for callback in callbacks if not isinstance(callback, without)]

    return Trainer


def _train_worker(values: dict[str, Any]) -> dict[str, Any]:
    """Run one worker. Ray Train calls this on every rank and passes rank 0's result to the driver."""
    job = TrainJob(**values)
    try:
        return work(job, RunDirectory(job.run_path), RayRanks(), worker=TrainingWorker)
    finally:
        # DDP must not outlive Ray's hold on the process group: its destructor would keep the interpreter's lock while
        # waiting for a thread that waits for that lock.
        gc.collect()


def compute_reference(job: ReferenceJob, shards: Sequence[str]) -> Iterator[str]:
    """Compute the shards in Ray tasks that each load the model once. This function is a `ReferenceRunner`."""
    import ray

    available = ray.cluster_resources()
    num_gpus = int(available.get("GPU", 0))
    num_tasks = max(1, min(len(shards), num_gpus or int(available.get("CPU", 1))))
    task_body: Any = _compute_shards
    task = ray.remote(num_cpus=1, num_gpus=1 if num_gpus else 0)(task_body)
    for names in as_they_finish([task.remote(job, list(shards[number::num_tasks])) for number in range(num_tasks)]):
        yield from names


def _compute_shards(job: ReferenceJob, shards: Sequence[str]) -> list[str]:
    return list(compute_here(job, shards))


class RayRanks:
    """The ranks that Ray Train started."""

    def __init__(self) -> None:
        import ray
        from ray import train as ray_train
        from ray.train.torch import get_device

        context = ray_train.get_context()
        self.rank: int = context.get_world_rank()
        self.world_size: int = context.get_world_size()
        self.local_world_size: int = context.get_local_world_size()
        self.device: torch.device = get_device()
        self.node = str(ray.get_runtime_context().get_node_id())

    def broadcast(self, value: T) -> T:
        from ray.train.collective import broadcast_from_rank_zero

        return broadcast_from_rank_zero(value)
