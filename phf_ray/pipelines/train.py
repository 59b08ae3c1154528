"""Training under Ray Train: workers, data and reporting around `phf_ray.training`.

Ray Train starts the workers, connects them and starts them again when one dies. Checkpoints are ours (`runs`): whatever
starts, a fresh command or a restarted group of any size, goes on from the newest complete one.
"""

import dataclasses
import gc
import importlib.metadata
import itertools
import logging
import math
import os
import shutil
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from transformers.utils import logging as transformers_logging

from phf_ray import errors
from phf_ray.blocks import BlockOrder, BlockReader, Manifest, Mixture, read_held_out, read_manifest
from phf_ray.checkpoint import CheckpointInfo, Control, read_info
from phf_ray.config import AWRConfig, Config, ModelConfig, RWRConfig, TokenizerConfig, TrainingConfig, parse_config
from phf_ray.errors import ConfigError, IncompleteError, PhfError
from phf_ray.models import LanguageModel, build_model, load_checkpoint, save_checkpoint, shape_of
from phf_ray.objectives import build_objective
from phf_ray.objectives.losses import Objective
from phf_ray.packing import ConditionalTraining, PackingConfig, load_tokenizer, pack
from phf_ray.pipelines.checkpoint_evaluation import (
    CheckpointEvaluations,
    EvaluationJob,
    evaluation_steps,
    plan_evaluations,
)
from phf_ray.pipelines.inspection import MAX_SPANS, Inspector, Span, cosine_and_norms, cut_spans
from phf_ray.pipelines.model_card import write_card
from phf_ray.pipelines.runs import STEP, Follower, ProgressLines, RunDirectory, start_tracker
from phf_ray.records import ScoredDocument, TokenBlock, TokenKind
from phf_ray.training import (
    CheckpointDue,
    DataShare,
    EncodedDocument,
    InspectionDue,
    LoopSettings,
    MicroBatch,
    NonFinite,
    Row,
    Schedule,
    Snapshot,
    StepSettings,
    TrainState,
    WeightsDue,
    build_optimizer,
    fitting_micro_batch,
    held_out_bits_per_byte,
    objective_on,
    parallelize,
    peak_flops,
    prefetched,
    restore_training_state,
    speed_up,
    step_batches,
    steps_in,
    take_snapshot,
    train,
    unwrapped,
    value_predictions,
    write_training_state,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

# DIFFERS: ours holds out 0.1% of the documents and saves every 65 to 131 million tokens (configs/); original trains on
# all documents and saves about twice in a run.
HELD_OUT_BYTES = 1_000_000
"""Held-out documents are measured in the order of their ids, which are hashes, up to this many bytes of text."""
# The objective itself is measured on this many blocks of them.
HELD_OUT_BLOCKS = 64
# Control token before every segment -> name of the metric.
BITS_PER_BYTE = {
    "none": "eval/bits_per_byte",
    "good": "eval/bits_per_byte_good",
    "bad": "eval/bits_per_byte_bad",
}
_POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class Plan:
    """What follows from the configuration and the blocks; the same for every start of a run."""

    num_steps: int
    first_block: int
    """Blocks before this position are left out (`dataset.skip_tokens`)."""
    tokens_per_block: float
    """Counted as `training.count_tokens` says; a mean."""
    blocks_hash: str
    checkpoint_path: str | None
    """Weights to start from."""
    thresholds: dict[str, float]
    """Resolved numbers: `conditional`, `filter`, `objective`."""
    reward_mean: float | None
    reward_std: float | None


def make_plan(
    config: Config, *, manifest: Manifest, objective_threshold: float | None, checkpoint_path: str | None
) -> Plan:
    """Raises ConfigError if the budget does not pay for a step, or skipping leaves nothing."""
    training = config.training
    idle = idle_workers(training)
    if idle is not None:
        log.warning("%s", idle)
    mixture = Mixture.of(manifest, config.dataset.weights)
    tokens_per_block = mixture.tokens_per_block(training.count_tokens)
    order = BlockOrder(manifest, seed=training.seed, weights=config.dataset.weights)
    score_mean, score_std = mixture.score_mean_and_std()
    return Plan(
        num_steps=steps_in(
            training.num_tokens - training.tokens_already_seen,
            tokens_per_block=tokens_per_block,
            batch_size=training.effective_batch_size,
        ),
        first_block=order.position_after(config.dataset.skip_tokens) if config.dataset.skip_tokens else 0,
        tokens_per_block=tokens_per_block,
        blocks_hash=manifest.fingerprint,
        checkpoint_path=checkpoint_path,
        thresholds=dict(manifest.thresholds)
        | ({} if objective_threshold is None else {"objective": objective_threshold}),
        # The reward is minus the score.
        reward_mean=None if score_mean is None else -score_mean,
        reward_std=score_std,
    )


def idle_workers(training: TrainingConfig) -> str | None:
    """What to do about workers that compute padding; None if all have equally many micro-batches."""
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
        f"{num_micro_batches} micro-batch(es) of {size}, and who has none computes padding; {'; '.join(remedies)}"
    )


@dataclass(frozen=True, slots=True)
class TrainJob:
    """All that a worker is told; plain values."""

    config: dict[str, Any]
    plan: dict[str, Any]
    run_path: str
    blocks_path: str
    task: str
    num_threads: int | None
    """Of torch on each worker; None: the node's cores, divided by its workers."""
    working_directory: str
    """Where relative paths of the config begin."""


# --- Driver -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tracking:
    """How the run is shown on a tracker."""

    group: str | None = None
    tags: Sequence[str] = ()


def run_training(
    config: Config, *, plan: Plan, run: RunDirectory, blocks_path: str, task: str, tracking: Tracking
) -> dict[str, Any]:
    """Train to the end, from the newest complete checkpoint if there is one; returns the run's summary.

    Ray must be running. SIGTERM and SIGINT save and end the run, as IncompleteError; a second one ends at once. An
    error of ours in a worker is raised here.
    """
    resolved = config.model_dump(mode="json")
    run.prepare(config=resolved, plan=dataclasses.asdict(plan))
    run.clear_stop()
    run.clear_failure()
    job = TrainJob(
        config=resolved,
        plan=dataclasses.asdict(plan),
        run_path=str(run.path),
        blocks_path=blocks_path,
        task=task,
        num_threads=_threads_asked_for(config),
        working_directory=str(Path.cwd()),
    )
    tracker = start_tracker(run, group=tracking.group, tags=tracking.tags, config=resolved)
    if config.dataset.held_out_fraction > 0 and next(read_held_out(blocks_path), None) is None:
        log.warning("no document is held out; raise dataset.held_out_fraction to measure bits per byte")
    evaluation_job = plan_evaluations(config, run, num_steps=plan.num_steps)
    sinks: list[Callable[[dict[str, Any]], None]] = [ProgressLines(plan.num_steps)]
    if isinstance(config.objective, AWRConfig | RWRConfig):
        sinks.append(EffectiveSampleWarning())
    if tracker is not None:
        sinks.append(tracker)
    latest = run.latest_checkpoint()
    log.info("training %s", "from the start" if latest is None else f"goes on from {latest.name}")
    started = time.monotonic()
    code = 1
    try:
        with Follower(run, sinks), _stopping_on_signals(run):
            outcome = _fit_and_evaluate(job, config=config, run=run, evaluation_job=evaluation_job)
        if outcome["status"] == "finished":
            summary = _summary(run, outcome, plan=plan, wall_s=time.monotonic() - started)
            run.write_summary(summary)
            _renew_card(run, config=config, plan=plan, blocks_path=blocks_path, metrics=summary["metrics"])
            code = 0
            return summary
    finally:
        if tracker is not None:
            tracker.close(exit_code=code)
    raise _error_of(outcome)


class EffectiveSampleWarning:
    """Says once if the weights of AWR or RWR hardly differ (A-7)."""

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
    # Ray sets this variable to 1 in its workers whatever the user said; what the driver was told counts.
    asked = os.environ.get("OMP_NUM_THREADS")
    return int(asked) if asked and asked.isdigit() else None


def _fit_and_evaluate(
    job: TrainJob, *, config: Config, run: RunDirectory, evaluation_job: EvaluationJob | None
) -> dict[str, Any]:
    """The outcome of the training, with the summary of the evaluations beside it where there are any."""
    if evaluation_job is None:
        return _fit(job, config=config, run=run)
    with CheckpointEvaluations(run, evaluation_job) as evaluations:
        outcome = _fit(job, config=config, run=run)
        if outcome["status"] != "finished":
            return outcome
        if not evaluations.finish():
            return {"status": "stopped", "step": outcome["step"]}
        run.merge_evaluations()
        return outcome | {"evaluations": evaluations.summary()}


def _fit(job: TrainJob, *, config: Config, run: RunDirectory) -> dict[str, Any]:
    """Ray Train, in a thread: signals are for the main one, and Ray would take SIGINT for itself."""
    import ray
    from ray.exceptions import RayError
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.v2.api.exceptions import TrainingFailedError

    resources = dict(config.training.resources_per_worker)
    available = ray.cluster_resources()
    use_gpu = resources.get("GPU", available.get("GPU", 0)) > 0
    _warn_if_too_large(config.training.num_workers, _of_a_worker(resources, use_gpu=use_gpu), available=available)
    trainer = _trainer_class()(
        _train_worker,
        train_loop_config=dataclasses.asdict(job),
        scaling_config=ScalingConfig(
            num_workers=config.training.num_workers, use_gpu=use_gpu, resources_per_worker=resources or None
        ),
        run_config=RunConfig(  # type: ignore[call-arg]  # typed as the older one
            # Ray's own files are of no use to a later start: a name that is never met again.
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
        except BaseException as error:  # noqa: BLE001  (border of a thread: raised by the main one)
            result.append(error)

    claim = run.current_claim()
    thread = threading.Thread(target=fit, name="ray-train", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.5)
        if run.is_stop_requested() and run.current_claim() == claim:
            # Ray waits for workers that may never come; it frees what they asked for when this process ends.
            return {"status": "stopped", "step": run.latest_step()}
    shutil.rmtree(run.path / "ray", ignore_errors=True)
    outcome = result[0]
    if isinstance(outcome, BaseException):
        failure = run.read_failure()
        if failure:
            return failure
        log.error("%s", outcome)
        if isinstance(outcome, TrainingFailedError):
            raise IncompleteError(
                f"workers died more often than training.max_failures={config.training.max_failures} allows; the last "
                "error is above"
            )
        if isinstance(outcome, RayError):
            raise IncompleteError("Ray lost the process that looks after the workers; the error is above")
        raise outcome
    return dict(outcome)


def _of_a_worker(resources: dict[str, float], *, use_gpu: bool) -> dict[str, float]:
    """What Ray Train asks for: with `use_gpu` a GPU also where the resources do not name one."""
    return {"GPU": 1.0} | resources if use_gpu else resources or {"CPU": 1.0}


def _warn_if_too_large(num_workers: int, resources: dict[str, float], *, available: dict[str, float]) -> None:
    """Ray waits without a word for resources that never come."""
    for name, amount in resources.items():
        if num_workers * amount > available.get(name, 0):
            log.warning(
                "%d worker(s) need %g %s, the cluster has %g: waiting for it to grow; otherwise lower "
                "training.num_workers or training.resources_per_worker",
                num_workers,
                num_workers * amount,
                name,
                available.get(name, 0),
            )


def _trainer_class() -> Any:
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

    class Trainer(TorchTrainer):
        """Without the actor that frees the workers' resources if the controller dies: this process ends then, and Ray
        frees them with it. Where no dashboard runs, that actor warns every second that it can't see the controller.
        """

        def _create_default_callbacks(self) -> list[Any]:
            callbacks = super()._create_default_callbacks()  # type: ignore[misc]  # typed as the older trainer
            return [callback for callback in callbacks if not isinstance(callback, PlacementGroupCleanerCallback)]

    return Trainer


@contextmanager
def _stopping_on_signals(run: RunDirectory) -> Iterator[None]:
    """The first SIGTERM or SIGINT asks the workers to save and end; the second ends this process as usual."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def stop(number: int, _frame: object) -> None:
        log.warning("%s: saving a checkpoint and ending; once more to end at once", signal.Signals(number).name)
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
    reason = "another start of it took over" if outcome["status"] == "superseded" else "it was told to stop"
    return IncompleteError(f"the run ended at step {outcome['step']}, because {reason}")


def describe_wall_cost(cost: Mapping[str, float]) -> str:
    loop_s = cost["loop_s"]
    parts = {
        "samples and KL beside it": cost["evaluation_s"],
        "held-out text": cost["held_out_s"],
        "checkpoints": cost["checkpoint_s"],
    }
    shown = ", ".join(f"{seconds:.2f} s ({seconds / loop_s:.2%}) for {name}" for name, seconds in parts.items())
    return f"wall cost: of {loop_s:.1f} s the loop stood still for {shown}"


def _summary(run: RunDirectory, outcome: Mapping[str, Any], *, plan: Plan, wall_s: float) -> dict[str, Any]:
    last: dict[str, Any] = {}
    for row in run.read_metrics():
        # Histograms and tables stay where they are.
        last |= {name: value for name, value in row.items() if not isinstance(value, dict)}
    checkpoint = run.latest_checkpoint()
    log.info("%s", describe_wall_cost(outcome["wall_cost"]))
    return {
        "status": "finished",
        "step": plan.num_steps,
        "checkpoint": None if checkpoint is None else str(checkpoint.relative_to(run.path)),
        "metrics": last,
        "thresholds": plan.thresholds,
        "wall_s_of_last_start": round(wall_s, 1),
        "wall_cost": outcome["wall_cost"],
        **({"evaluations": outcome["evaluations"]} if "evaluations" in outcome else {}),
    }


def _renew_card(run: RunDirectory, *, config: Config, plan: Plan, blocks_path: str, metrics: dict[str, Any]) -> None:
    """With all that was measured; the worker wrote it with what was known then."""
    checkpoint = run.latest_checkpoint()
    info = None if checkpoint is None else read_info(checkpoint)
    if checkpoint is not None and info is not None:
        corpora = [corpus.name for corpus in read_manifest(blocks_path).corpora]
        write_card(
            checkpoint, info, config=config, corpora=corpora, metrics=metrics, checkpoint_path=plan.checkpoint_path
        )


# --- Worker -----------------------------------------------------------------------------------------------------------


def _train_worker(values: dict[str, Any]) -> dict[str, Any]:
    """What Ray Train calls on every worker; the driver gets what rank 0 returns."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    job = TrainJob(**values)
    # Ray Train has gone to a folder of its own. A submitted job's directory has the same path on every node.
    if Path(job.working_directory).is_dir():
        os.chdir(job.working_directory)
    run = RunDirectory(job.run_path)
    failure = run.read_failure()
    if failure:
        # The group was started again after an error that would only come again.
        return failure
    try:
        return _Worker(job, run).train()
    except PhfError as error:
        run.write_failure({"status": "failed", "kind": type(error).__name__, "message": str(error)})
        raise
    finally:
        # DDP must not outlive Ray's hold on the process group: its destructor would wait, with the interpreter's lock,
        # for a thread that waits for that lock.
        gc.collect()


class _Worker:
    def __init__(self, job: TrainJob, run: RunDirectory):
        from ray import train as ray_train
        from ray.train.torch import get_device

        context = ray_train.get_context()
        self._rank, self._world_size = context.get_world_rank(), context.get_world_size()
        num_cores = len(os.sched_getaffinity(0))
        torch.set_num_threads(job.num_threads or max(1, num_cores // context.get_local_world_size()))
        self._job, self._run = job, run
        self._config = parse_config(job.config)
        self._plan = Plan(**job.plan)
        self._device = get_device()
        self._tokenizer = load_tokenizer(self._config.tokenizer)
        self._manifest = read_manifest(job.blocks_path)
        self._mixture = Mixture.of(self._manifest, self._config.dataset.weights)
        self._objective = self._build_objective()
        self._saver, self._weights_saver = _Saver(), _Saver()
        self._evaluation_steps = frozenset().union(*evaluation_steps(self._config, num_steps=self._plan.num_steps))
        self._cost = _WallCost()
        self._inspector = Inspector(self._config, self._tokenizer)
        self._claim, resume_from = self._agree_on_start()
        self._state = self._build_state(resume_from)
        self._held_out = self._encode_held_out()
        self._held_out_batches = self._pack_held_out()

    def _agree_on_start(self) -> tuple[str | None, Path | None]:
        """Rank 0 claims the run and says which checkpoint all start from: others may see an older directory."""
        from ray.train.collective import broadcast_from_rank_zero

        claim, name = None, None
        workers = _everyones({"node": _node_id(), "host": socket.gethostname(), "pid": os.getpid()})
        if self._rank == 0:
            claim = self._run.claim(workers)
            latest = self._run.latest_checkpoint()
            name = None if latest is None else latest.name
        name = broadcast_from_rank_zero(name)
        return claim, None if name is None else self._run.checkpoints / name

    def _build_objective(self) -> Objective:
        values = self._config.objective.model_dump()
        key = "mask_above" if values["name"] == "MLE" else "score_threshold"
        if "objective" in self._plan.thresholds:
            values[key] = self._plan.thresholds["objective"]
        return build_objective(
            values,
            compat=self._config.compat,
            unscored=self._config.dataset.unscored,
            reward_mean=self._plan.reward_mean,
            reward_std=self._plan.reward_std,
        )

    def _build_state(self, resume_from: Path | None) -> TrainState:
        training = self._config.training
        model = self._build_model(resume_from)
        self._flops_per_token = shape_of(model).flops_per_token(self._manifest.sequence_length)
        set_up_layers(model, training, device=self._device, compiles=training.torch_compile)
        parallel = parallelize(model, training.parallelism, device=self._device)
        optimizer = build_optimizer(
            parallel,
            weight_decay=training.weight_decay,
            betas=(training.adam_beta1, training.adam_beta2),
            epsilon=training.adam_epsilon,
        )
        state = TrainState(parallel, optimizer, tokens_seen=training.tokens_already_seen)
        if resume_from is not None:
            restore_training_state(resume_from, state)
        if self._rank == 0:
            self._run.drop_metrics_after(state.step)
        return state

    def _build_model(self, resume_from: Path | None) -> LanguageModel:
        if resume_from is None:
            return initial_model(self._config, checkpoint_path=self._plan.checkpoint_path, tokenizer=self._tokenizer)
        model = load_checkpoint(resume_from).model
        for parameter in model.parameters():
            # Tensors of a mapped file begin where the file has them; sums of matrix products can depend on that.
            parameter.data = parameter.data.clone()
        value_head = self._config.model.model_kwargs.value_head_config
        model.detach_values = value_head is not None and value_head.is_detached
        return model

    def _pack_held_out(self) -> list[MicroBatch]:
        """Blocks of the held-out documents with scores and control tokens as in training, but none filtered out."""
        if not self._held_out:
            return []
        documents = choose_held_out(read_held_out(self._job.blocks_path))
        packed = pack(
            documents,
            self._tokenizer,
            sequence_length=self._manifest.sequence_length,
            config=dataclasses.replace(packing_config(self._manifest.packing), filter_threshold=None),
        )
        blocks = list(itertools.islice(packed, HELD_OUT_BLOCKS))
        size = self._config.training.per_device_train_batch_size
        return [as_micro_batch(blocks[begin : begin + size]) for begin in range(0, len(blocks), size)]

    def _encode_held_out(self) -> dict[str, list[EncodedDocument]]:
        """Held-out documents as the model reads them: without control tokens, with the good one, with the bad one."""
        if self._config.dataset.held_out_fraction == 0:
            return {}
        documents = choose_held_out(read_held_out(self._job.blocks_path))
        if not documents:
            return {}
        tokens: dict[str, str | None] = {"none": None}
        conditional = self._config.dataset.conditional_training_config
        if conditional is not None:
            tokens |= {"good": conditional.aligned_prefix, "bad": conditional.misaligned_prefix}
        per_document = not self._config.dataset.is_split_by_sentences
        return {
            name: encode_held_out(documents, self._tokenizer, control=token, per_document=per_document)
            for name, token in tokens.items()
        }

    def train(self) -> dict[str, Any]:
        with closing(self._saver), closing(self._weights_saver):
            return self._train()

    def _train(self) -> dict[str, Any]:
        from ray.train.collective import broadcast_from_rank_zero

        training, plan = self._config.training, self._plan
        settings = LoopSettings(
            schedule=Schedule(
                plan.num_steps,
                training.learning_rate,
                kind=training.lr_scheduler_type,
                warmup_ratio=training.warmup_ratio,
            ),
            step=StepSettings(seed=training.seed, precision=training.precision, max_grad_norm=training.max_grad_norm),
            count_tokens=training.count_tokens,
            logging_steps=training.logging_steps,
            save_steps=training.save_steps,
            evaluation_steps=self._evaluation_steps,
            inspect_steps=self._steps_between_inspections(),
            flops_per_token=self._flops_per_token,
            peak_flops=peak_flops(torch.cuda.get_device_name(self._device)) if self._device.type == "cuda" else None,
        )
        share = DataShare(
            batch_size=training.effective_batch_size,
            micro_batch_size=training.per_device_train_batch_size,
            rank=self._rank,
            world_size=self._world_size,
            first_block=plan.first_block,
        )
        order = BlockOrder(self._manifest, seed=training.seed, weights=self._config.dataset.weights)
        reader = BlockReader(self._job.blocks_path, order=order)
        batches = prefetched(step_batches(reader.read, share, steps=range(self._state.step, plan.num_steps)))
        watch = _Watch(self._run, self._claim)
        self._cost = _WallCost()
        # Step 0; or the step of a checkpoint whose writer was killed before it had handed out the weights, too.
        self._hand_out_weights()
        for event in train(
            self._state, batches, objective=self._objective, settings=settings, wants_stop=watch.wants_stop
        ):
            if isinstance(event, Row):
                self._log(event)
            elif isinstance(event, InspectionDue):
                self._inspect(event)
            elif isinstance(event, NonFinite):
                return self._fail(event)
            elif isinstance(event, WeightsDue):
                self._hand_out_weights()
            elif broadcast_from_rank_zero(watch.is_superseded()):
                return {"status": "superseded", "step": event.step}
            else:
                with self._cost.of("checkpoint"):
                    self._checkpoint(event)
        is_finished = self._state.step == plan.num_steps
        self._append_inspections(wait=is_finished)
        status = "finished" if is_finished else "stopped"
        return {"status": status, "step": self._state.step, "wall_cost": self._cost.figures()}

    def _steps_between_inspections(self) -> int | None:
        training = self._config.training
        if training.inspect_every_n_micro_batches is None:
            return None
        per_worker = training.effective_batch_size / (self._world_size * training.per_device_train_batch_size)
        return max(1, round(training.inspect_every_n_micro_batches / max(per_worker, 1)))

    def _inspect(self, due: InspectionDue) -> None:
        """Of rank 0's share of the step; every rank takes part in the forward passes, as under FSDP it must."""
        spans: list[Span] = []
        for batch in due.micro_batches:
            values_BS = value_predictions(self._state.model, batch, precision=self._config.training.precision)
            spans += cut_spans(
                batch.input_ids_BS.numpy(),
                batch.token_kinds_BS.numpy(),
                batch.token_scores_BS.numpy(),
                None if values_BS is None else values_BS.numpy(),
            )
        if self._rank != 0:
            return
        spans = spans[:MAX_SPANS]
        counters = {STEP: due.step, "train/tokens_seen": self._state.tokens_seen}
        self._inspector.submit(spans, counters=counters)

    def _append_inspections(self, *, wait: bool = False) -> None:
        for row in self._inspector.finished(wait=wait):
            self._run.append_metrics(row)

    def _log(self, row: Row) -> None:
        if self._rank != 0:
            return
        self._append_inspections()
        batch_size = self._config.training.effective_batch_size
        blocks_used = row.step * batch_size
        self._run.append_metrics(
            row.metrics
            | {
                **(self._cost.row() if self._evaluation_steps else {}),
                "train/epoch": self._mixture.epochs_in(self._plan.first_block + blocks_used),
                "objective/train/instantaneous_batch_size": batch_size,
                "objective/train/instantaneous_microbatch_size": self._config.training.per_device_train_batch_size,
            }
        )

    def _checkpoint(self, due: CheckpointDue) -> None:
        measured: dict[str, Any] = {}
        if due.step == self._plan.num_steps or not due.is_last:  # told to stop: no time to lose
            with self._cost.of("held_out"):
                measured = self._measure()
        snapshot = take_snapshot(self._state, keep=self._rank == 0)
        if snapshot is None:
            return
        model = unwrapped(self._state.model)
        assert isinstance(model, LanguageModel)
        found = measured | self._control_token_figures(snapshot.model[model.head_name()])
        if found:
            counters = {STEP: due.step, "train/tokens_seen": snapshot.tokens_seen}
            self._run.append_metrics(counters | found)
        info = self._info(snapshot, measured)
        corpora = [corpus.name for corpus in self._manifest.corpora]

        def write(directory: Path) -> None:
            save_checkpoint(directory, model, tokenizer=self._tokenizer, info=info, state_dict=snapshot.model)
            write_training_state(directory, snapshot)
            write_card(
                directory,
                info,
                config=self._config,
                corpora=corpora,
                metrics=measured,
                checkpoint_path=self._plan.checkpoint_path,
            )

        keep = self._config.training.save_total_limit
        self._saver.submit(lambda: self._run.commit_checkpoint(due.step, write, keep=keep))
        if due.step in self._evaluation_steps:
            with self._cost.of("evaluation"):
                self._submit_weights(snapshot, info)

    def _hand_out_weights(self) -> None:
        """To be evaluated beside the loop, if this step's are: a copy in memory that a thread writes."""
        if self._state.step not in self._evaluation_steps:
            return
        with self._cost.of("evaluation"):
            snapshot = take_snapshot(self._state, keep=self._rank == 0, with_optimizer=False)
            if snapshot is not None:
                self._submit_weights(snapshot, self._info(snapshot, {}))

    def _submit_weights(self, snapshot: Snapshot, info: CheckpointInfo) -> None:
        model = unwrapped(self._state.model)
        assert isinstance(model, LanguageModel)

        def write(directory: Path) -> None:
            save_checkpoint(directory, model, tokenizer=self._tokenizer, info=info, state_dict=snapshot.model)

        self._weights_saver.submit(lambda: _hand_out(self._run, snapshot.step, write))

    def _control_token_figures(self, head_VD: torch.Tensor) -> dict[str, float]:
        conditional = self._config.dataset.conditional_training_config
        if conditional is None:
            return {}
        tokens = (conditional.aligned_prefix, conditional.misaligned_prefix)
        rows = {token: head_VD[self._tokenizer.convert_tokens_to_ids(token)].float().numpy() for token in tokens}
        return cosine_and_norms(rows)

    def _measure(self) -> dict[str, Any]:
        since = time.perf_counter()
        measured = {
            BITS_PER_BYTE[name]: held_out_bits_per_byte(
                self._state.model,
                documents,
                window=self._manifest.sequence_length,
                batch_size=self._config.training.per_device_train_batch_size,
                precision=self._config.training.precision,
            )
            for name, documents in self._held_out.items()
        }
        if not measured:
            return {}
        return measured | self._objective_on_held_out() | {"eval/wall_s": time.perf_counter() - since}

    def _objective_on_held_out(self) -> dict[str, Any]:
        """The objective as it is trained, on text that is not."""
        if not self._held_out_batches:
            return {}
        figures = objective_on(
            self._state.model,
            self._held_out_batches,
            objective=self._objective,
            precision=self._config.training.precision,
        )
        named = {f"objective/eval/{name}": value for name, value in figures.items()}
        return named | {"objective/eval/tokens_seen_during_eval": self._state.tokens_seen}

    def _info(self, snapshot: Snapshot, measured: dict[str, float]) -> CheckpointInfo:
        config, corpora = self._config, self._manifest.corpora
        control = trained_control(config)
        return CheckpointInfo(
            task=self._job.task,
            objective=config.objective.model_dump(mode="json"),
            control=control,
            is_control_per_segment=None if control is None else config.dataset.is_split_by_sentences,
            thresholds=self._plan.thresholds,
            scorer=corpora[0].scorer or None,
            corpus_hash="+".join(corpus.fingerprint for corpus in corpora),
            blocks_hash=self._plan.blocks_hash,
            step=snapshot.step,
            tokens_seen=snapshot.tokens_seen,
            seq_length=self._manifest.sequence_length,
            bits_per_byte={name: measured[key] for name, key in BITS_PER_BYTE.items() if key in measured},
            compat=config.compat,
            versions={name: importlib.metadata.version(name) for name in ("phf-ray", "torch", "transformers", "ray")},
        )

    def _fail(self, event: NonFinite) -> dict[str, Any]:
        """Keep the step's blocks: each rank its share."""
        folder = self._run.path / f"non-finite-step-{event.step:08d}"
        folder.mkdir(exist_ok=True)
        for number, batch in enumerate(event.micro_batches):
            tensors = {
                "input_ids": batch.input_ids_BS,
                "token_scores": batch.token_scores_BS,
                "token_kinds": batch.token_kinds_BS,
            }
            save_file(
                tensors, folder / f"rank-{self._rank}-{number}.safetensors", {"first_block": str(batch.first_block)}
            )
        first = self._plan.first_block + (event.step - 1) * self._config.training.effective_batch_size
        last = first + self._config.training.effective_batch_size - 1
        latest = self._run.latest_checkpoint()
        return {
            "status": "failed",
            "kind": "DataError",
            "message": f"step {event.step}: the loss is {event.loss}, the norm of the gradient {event.grad_norm}; its "
            f"blocks, positions {first} to {last} of the training order, are kept in {folder}; lower "
            "training.learning_rate or look at these blocks"
            + ("" if latest is None else f"; the newest checkpoint is {latest.name}"),
        }


def _hand_out(run: RunDirectory, step: int, write: Callable[[Path], None]) -> None:
    try:
        run.hand_out_weights(step, write)
    except Exception as error:  # noqa: BLE001  (border of a thread: no evaluation is worth the training)
        # A full disk comes as an error of safetensors or, from tokenizers, as none but Exception. The summary names
        # the step.
        log.error("the weights of step %d can't be evaluated: %s: %s", step, type(error).__name__, error)  # noqa: TRY400


def _node_id() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id())


def _everyones(value: T) -> list[T]:
    """The value of each rank, in their order."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


class _WallCost:
    """Seconds that the loop stood still, by what for, and its seconds in all."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._seconds = dict.fromkeys(("evaluation", "held_out", "checkpoint"), 0.0)

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """What is counted inside is not counted again."""
        since, before = time.perf_counter(), sum(self._seconds.values())
        try:
            yield
        finally:
            inside = sum(self._seconds.values()) - before
            self._seconds[name] += time.perf_counter() - since - inside

    def figures(self) -> dict[str, float]:
        return {
            "loop_s": time.perf_counter() - self._began,
            **{f"{name}_s": seconds for name, seconds in self._seconds.items()},
        }

    def row(self) -> dict[str, float]:
        figures = self.figures()
        seconds = figures["evaluation_s"]
        return {"evaluation/blocked_s": seconds, "evaluation/blocked_fraction": seconds / figures["loop_s"]}


class _Watch:
    """Whether rank 0 was told to stop, or another start took the run. Asked at every step, looks 5 times a second."""

    def __init__(self, run: RunDirectory, claim: str | None):
        self._run, self._claim = run, claim
        self._stop = False
        self._looked_s = 0.0

    def wants_stop(self) -> bool:
        now = time.monotonic()
        if self._claim is not None and not self._stop and now - self._looked_s > _POLL_S:
            self._looked_s = now
            self._stop = self._run.is_stop_requested() or not self._run.is_claimed_by(self._claim)
        return self._stop

    def is_superseded(self) -> bool:
        return self._claim is not None and not self._run.is_claimed_by(self._claim)


class _Saver:
    """Writes checkpoints in a thread, one at a time; an error comes up at the next one, or at the end."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def submit(self, write: Callable[[], object]) -> None:
        self.close()

        def work() -> None:
            try:
                write()
            except BaseException as error:  # noqa: BLE001  (border of a thread: raised by close)
                self._error = error

        self._thread = threading.Thread(target=work, name="save-checkpoint")
        self._thread.start()

    def close(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error


def starting_model(config: Config, *, checkpoint_path: str | None, tokenizer: Any) -> ModelConfig:
    """What the run starts from; with `checkpoint_path` that checkpoint, whatever `model` says of weights.

    Rows are added for those tokens only that the checkpoint's tokenizer does not have.
    """
    if checkpoint_path is None:
        return config.model
    num_known = len(load_tokenizer(TokenizerConfig(path_or_name=checkpoint_path)))
    return config.model.model_copy(
        update={
            "path_or_name": checkpoint_path,
            "revision": None,
            "from_scratch": False,
            "model_type": None,
            "config_kwargs": {},
            "num_additional_tokens": max(0, len(tokenizer) - num_known),
        }
    )


def initial_model(config: Config, *, checkpoint_path: str | None, tokenizer: Any) -> LanguageModel:
    """The model before the first step; see `starting_model`."""
    starting = starting_model(config, checkpoint_path=checkpoint_path, tokenizer=tokenizer)
    built = build_model(starting, tokenizer=tokenizer, seed=config.training.seed)
    limit = getattr(built.backbone.config, "max_position_embeddings", None)
    if limit is not None and config.dataset.seq_length > limit:
        raise ConfigError(
            f"dataset.seq_length={config.dataset.seq_length} is longer than the model's {limit} positions; lower it or "
            "raise the model's limit in model.config_kwargs"
        )
    return built


def set_up_layers(model: LanguageModel, training: TrainingConfig, *, device: torch.device, compiles: bool) -> None:
    if training.document_mask:
        model.mask_documents()
    if training.gradient_checkpointing:
        model.checkpoint_activations()
    if compiles:
        model.compile_blocks(device)


def trained_control(config: Config) -> Control | None:
    """Control tokens of the model that is trained. Only what the loss was taken on may be sampled: one per segment."""
    conditional = config.dataset.conditional_training_config
    if conditional is None:
        return None
    may_sample = config.dataset.is_split_by_sentences and config.objective.score_control
    return Control(
        good=conditional.aligned_prefix, bad=conditional.misaligned_prefix, policy="retag" if may_sample else "ban"
    )


def as_micro_batch(blocks: Sequence[TokenBlock]) -> MicroBatch:
    return MicroBatch(
        torch.from_numpy(np.stack([block.input_ids for block in blocks]).astype(np.int64)),
        torch.from_numpy(np.stack([block.token_scores for block in blocks])),
        torch.from_numpy(np.stack([block.token_kinds for block in blocks])),
        first_block=0,
    )


def packing_config(stored: Mapping[str, Any]) -> PackingConfig:
    """Of the manifest of some blocks."""
    conditional = stored["conditional"]
    restored = None if conditional is None else ConditionalTraining(**conditional)
    return PackingConfig(**{**stored, "conditional": restored})


# --- Held-out documents -----------------------------------------------------------------------------------------------


def choose_held_out(documents: Iterator[ScoredDocument]) -> list[ScoredDocument]:
    """Whole documents in the order of their ids, up to HELD_OUT_BYTES; at least one if there is one."""
    chosen: list[ScoredDocument] = []
    num_bytes = 0
    for document in sorted(documents, key=lambda document: document.id):
        num_bytes += len(document.text.encode())
        if chosen and num_bytes > HELD_OUT_BYTES:
            break
        chosen.append(document)
    return chosen


def encode_held_out(
    documents: Sequence[ScoredDocument], tokenizer: Any, *, control: str | None, per_document: bool
) -> list[EncodedDocument]:
    """End-of-text token and text; with `control`, that control token before each segment, as in training.

    Control tokens are given, whatever the scores, and cost nothing; bytes are those of the text. So both figures, and
    those of a model without control tokens, are about the same text. The good one knows where segments begin.
    """
    conditional = None
    if control is not None:
        conditional = ConditionalTraining(threshold=0.0, aligned_token=control, misaligned_token=control)
    packing = PackingConfig(conditional=conditional, per_document=per_document)
    encoded = []
    for document in documents:
        aligned = ScoredDocument(
            document.id, document.texts, (0.0,) * len(document.texts), (None,) * len(document.texts)
        )
        num_bytes = len(document.text.encode())
        # A token has at least one byte, but for one at a document's head in some tokenizers: all fit into one block.
        length = num_bytes + len(document.texts) + 3
        for block in pack([aligned], tokenizer, sequence_length=length, config=packing):
            is_token = block.token_kinds != TokenKind.PAD
            kinds = block.token_kinds[is_token]
            encoded.append(EncodedDocument(block.input_ids[is_token], kinds == TokenKind.CONTENT, num_bytes))
    return encoded
