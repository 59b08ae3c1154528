"""Drives a run from its start to its summary: workers, metrics, tracking, signals, evaluations during training."""

import dataclasses
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar

from phf_ray import errors
from phf_ray.blocks.held_out import has_held_out
from phf_ray.blocks.manifest import read_block_manifest
from phf_ray.checkpoint import read_info
from phf_ray.config import AWRConfig, Config, RWRConfig
from phf_ray.errors import IncompleteError, PhfError
from phf_ray.models.card import write_card
from phf_ray.runs.directory import RunDirectory
from phf_ray.runs.following import Follower, ProgressLines
from phf_ray.runs.starts import started
from phf_ray.runs.tracking import start_tracker
from phf_ray.training.licenses import license_facts
from phf_ray.training.plan import TrainingPlan, TrainJob, WorkerJob

J = TypeVar("J", bound=WorkerJob)
J_in = TypeVar("J_in", bound=WorkerJob, contravariant=True)
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Tracking:
    """How a tracker shows the run."""

    group: str | None = None
    tags: Sequence[str] = ()


class Fit(Protocol[J_in]):
    def __call__(self, job: J_in, *, config: Config, run: RunDirectory) -> dict[str, Any]:
        """Start the workers and wait for their outcome: `status`, `step` and the fields that the status adds."""
        ...


class EvaluationsBeside(Protocol):
    """Evaluates the weights that a run hands out while it trains; see `phf_ray.evaluation.beside_training`."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def finish(self) -> bool:
        """Wait until all handed-out weights are evaluated; return False if the run was told to stop meanwhile."""
        ...

    def summary(self) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Helpers(Generic[J]):
    """Functions that the job gives to the driver: one runs the workers, the other plans evaluations during training."""

    fit: Fit[J]
    """`fit_on_ray` of `on_ray`, or `fit_here` of `in_process`."""
    plan_evaluations: Callable[[RunDirectory], EvaluationsBeside | None] = lambda _: None
    """Called once the directory is known to belong to this run. Raises ConfigError if the evaluations can't run."""
    sinks: Sequence[Callable[[dict[str, Any]], None]] = ()
    """Are given the run's rows of metrics, too."""


def run_training(  # noqa: PLR0913  everything that defines a run
    config: Config,
    *,
    plan: TrainingPlan,
    run: RunDirectory,
    blocks_path: str,
    task: str,
    tracking: Tracking,
    helpers: Helpers[TrainJob],
) -> dict[str, Any]:
    """Train to the end, from the newest complete checkpoint if there is one, and return the run's summary.

    The first SIGTERM or SIGINT saves a checkpoint, ends the run and raises IncompleteError; a second one ends the
    process at once. A worker's PhfError is raised here.
    """
    if config.dataset.held_out_fraction > 0 and not has_held_out(blocks_path):
        log.warning("nothing is held out; raise dataset.held_out_fraction to measure on held-out data")
    manifest = read_block_manifest(blocks_path)

    def facts() -> dict[str, Any]:
        return {"thresholds": plan.thresholds} | license_facts(
            manifest, model=config.model, checkpoint_path=plan.checkpoint_path
        )

    job = TrainJob(**plain_job(config, plan=dataclasses.asdict(plan), run=run, task=task), blocks_path=blocks_path)
    sinks = [EffectiveSampleWarning()] if isinstance(config.objective, AWRConfig | RWRConfig) else []
    summary = drive(job, config=config, run=run, tracking=tracking, helpers=helpers, sinks=sinks, facts=facts)
    corpora = [corpus.name for corpus in manifest.corpora]
    renew_card(run, config=config, job=job, corpora=corpora, metrics=summary["metrics"])
    return summary


def plain_job(config: Config, *, plan: dict[str, Any], run: RunDirectory, task: str) -> dict[str, Any]:
    """Return what every kind of job has; see `WorkerJob`."""
    return {
        "config": config.model_dump(mode="json"),
        "plan": plan,
        "run_path": str(run.path),
        "task": task,
        "num_threads": _threads_asked_for(config),
        "working_directory": str(Path.cwd()),
    }


def drive(  # noqa: PLR0913  everything that a run needs around its workers
    job: J,
    *,
    config: Config,
    run: RunDirectory,
    tracking: Tracking,
    helpers: Helpers[J],
    sinks: Sequence[Callable[[dict[str, Any]], None]] = (),
    facts: Callable[[], dict[str, Any]],
) -> dict[str, Any]:
    """Run the workers of any kind of job to the end, and write and return the run's summary, with the `facts`."""
    run.prepare(config=job.config, plan=job.plan)
    before = run.read_summary()
    run.clear_stop()
    run.clear_failure()
    tracker = start_tracker(run, group=tracking.group, tags=tracking.tags, config=job.config)
    evaluations = helpers.plan_evaluations(run)
    all_sinks: list[Callable[[dict[str, Any]], None]] = [
        ProgressLines(job.plan["num_steps"]),
        *sinks,
        *helpers.sinks,
    ]
    if tracker is not None:
        all_sinks.append(tracker)
    known = facts()
    latest = run.latest_checkpoint()
    log.info("training %s", "starts at step 0" if latest is None else f"resumes from {latest.name}")
    begin = time.monotonic()
    code = 1
    try:
        with started(run.path), Follower(run, all_sinks), _stopping_on_signals(run):
            outcome = _fit_and_evaluate(helpers.fit, job, config=config, run=run, evaluations=evaluations)
        if outcome["status"] == "finished":
            summary = _summary(run, outcome, wall_s=time.monotonic() - begin, before=before) | known
            run.write_summary(summary)
            code = 0
            return summary
    finally:
        if tracker is not None:
            tracker.close(exit_code=code)
    raise _error_of(outcome)


class EffectiveSampleWarning:
    """Warns once if the weights of AWR or RWR hardly differ (A-7)."""

    def __init__(self) -> None:
        self._is_said = False

    def __call__(self, row: dict[str, Any]) -> None:
        fraction = row.get("objective/train/effective_sample_fraction")
        if fraction is not None and fraction > 0.99 and not self._is_said:
            self._is_said = True
            log.warning(
                "the effective sample size of the weights is %.4f of the tokens: this objective is numerically "
                "MLE; lower objective.beta or set objective.reward_norm: zscore",
                fraction,
            )


def _threads_asked_for(config: Config) -> int | None:
    cpus = config.training.resources_per_worker.get("CPU")
    if cpus is not None:
        return max(1, int(cpus))
    # Ray sets this variable to 1 in its workers, whatever the user chose; the driver still sees the user's value.
    asked = os.environ.get("OMP_NUM_THREADS")
    return int(asked) if asked and asked.isdigit() else None


def _fit_and_evaluate(
    fit: Fit[J], job: J, *, config: Config, run: RunDirectory, evaluations: EvaluationsBeside | None
) -> dict[str, Any]:
    """Train, and return the outcome with a summary of the evaluations if there are any."""
    if evaluations is None:
        return fit(job, config=config, run=run)
    with evaluations:
        outcome = fit(job, config=config, run=run)
        if outcome["status"] != "finished":
            return outcome
        if not evaluations.finish():
            return {"status": "stopped", "step": outcome["step"]}
        run.merge_evaluations()
        return outcome | {"evaluations": evaluations.summary()}


@contextmanager
def _stopping_on_signals(run: RunDirectory) -> Iterator[None]:
    """Let the first SIGTERM or SIGINT ask the workers to save and end, and the second end this process as usual."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def stop(number: int, _frame: object) -> None:
        log.warning("%s: saving a checkpoint and ending; send it again to end at once", signal.Signals(number).name)
        run.request_stop()
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _error_of(outcome: dict[str, Any]) -> PhfError:
    if outcome["status"] == "failed":
        kind = getattr(errors, outcome["kind"], PhfError)
        return kind(outcome["message"])
    reason = "another start of the run took over" if outcome["status"] == "superseded" else "it was told to stop"
    return IncompleteError(f"the run ended at step {outcome['step']}, because {reason}")


def describe_wall_cost(cost: Mapping[str, float]) -> str:
    loop_s = cost["loop_s"]
    parts = {
        "samples and KL": cost["evaluation_s"],
        "held-out text": cost["held_out_s"],
        "checkpoints": cost["checkpoint_s"],
    }
    shown = ", ".join(f"{seconds:.2f} s ({seconds / loop_s:.2%}) for {name}" for name, seconds in parts.items())
    return f"wall cost: in {loop_s:.1f} s the loop paused {shown}"


def _summary(
    run: RunDirectory, outcome: Mapping[str, Any], *, wall_s: float, before: Mapping[str, Any]
) -> dict[str, Any]:
    """`before`: the summary of an earlier start; what the training took stays, if this start only evaluated."""
    times = {"wall_s_of_last_start": round(wall_s, 1), "wall_cost": outcome["wall_cost"]}
    if before.get("status") == "finished" and before.get("step") == outcome["step"]:
        times |= {name: before[name] for name in times if name in before}
    last: dict[str, Any] = {}
    for row in run.read_metrics():
        # Histograms and tables stay in the metrics file.
        last |= {name: value for name, value in row.items() if not isinstance(value, dict)}
    checkpoint = run.latest_checkpoint()
    log.info("%s", describe_wall_cost(outcome["wall_cost"]))
    return {
        "status": "finished",
        "step": outcome["step"],
        "checkpoint": None if checkpoint is None else str(checkpoint.relative_to(run.path)),
        "metrics": last,
        **times,
        **{key: outcome[key] for key in ("evaluations", "stopped_by") if key in outcome},
    }


def renew_card(
    run: RunDirectory, *, config: Config, job: WorkerJob, corpora: Sequence[str], metrics: dict[str, Any]
) -> None:
    """Rewrite the card with all results; when the worker wrote it, some were still missing."""
    checkpoint = run.latest_checkpoint()
    info = None if checkpoint is None else read_info(checkpoint)
    if checkpoint is not None and info is not None:
        write_card(
            checkpoint,
            info,
            config=config,
            corpora=corpora,
            metrics=metrics,
            checkpoint_path=job.plan["checkpoint_path"],
        )
