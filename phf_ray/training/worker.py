"""One training worker: builds the state, runs the loop, and hands out checkpoints, metrics and weights."""

import importlib.metadata
import logging
import os
import socket
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from phf_ray.blocks.manifest import read_block_manifest
from phf_ray.blocks.mixture import Mixture
from phf_ray.blocks.order import BlockOrder
from phf_ray.blocks.reader import BlockReader
from phf_ray.blocks.tokenizer import load_tokenizer
from phf_ray.checkpoint import CheckpointInfo
from phf_ray.config import evaluation_steps, parse_config
from phf_ray.models.card import write_card
from phf_ray.models.language_model import LanguageModel
from phf_ray.models.saving import rehearse_save, save_checkpoint
from phf_ray.models.shape import shape_of
from phf_ray.objectives.answers import REFERENCE
from phf_ray.objectives.base import Objective
from phf_ray.objectives.build import build_objective
from phf_ray.runs.directory import RunDirectory
from phf_ray.runs.rows import STEP
from phf_ray.training.batches import DataShare, prefetched, step_batches
from phf_ray.training.eval_sets import EvalSets, steps_per_epoch
from phf_ray.training.events import (
    CheckpointDue,
    EvaluationSetsDue,
    InspectionDue,
    MetricsRow,
    NonFinite,
    WeightsDue,
)
from phf_ray.training.hardware import peak_flops
from phf_ray.training.held_out_examples import HeldOutExamples
from phf_ray.training.held_out_text import BITS_PER_BYTE, HeldOutText
from phf_ray.training.inspection import MAX_SPANS, InspectedSpan, Inspector, cosine_and_norms, cut_spans
from phf_ray.training.lasting import refuse_without_room
from phf_ray.training.licenses import run_licenses
from phf_ray.training.loop import LoopSettings, train
from phf_ray.training.plan import TrainingPlan, TrainJob
from phf_ray.training.ranks import Ranks
from phf_ray.training.saving import Saver, WallCost
from phf_ray.training.schedule import Schedule
from phf_ray.training.snapshot import Snapshot, restore_training_state, take_snapshot, write_training_state
from phf_ray.training.start import base_info, initial_learner, resumed_model, row_info, set_up_layers, trained_control
from phf_ray.training.state import TrainState, build_optimizer, parallelize, unwrapped
from phf_ray.training.step import StepSettings
from phf_ray.training.values import value_predictions
from phf_ray.training.watch import StopWatch

T = TypeVar("T")
log = logging.getLogger(__name__)


class TrainingWorker:
    """One rank of a training run."""

    def __init__(self, job: TrainJob, run: RunDirectory, ranks: Ranks):
        num_cores = len(os.sched_getaffinity(0))
        torch.set_num_threads(job.num_threads or max(1, num_cores // ranks.local_world_size))
        self._job, self._run, self._ranks = job, run, ranks
        self._rank, self._world_size = ranks.rank, ranks.world_size
        self._config = parse_config(job.config)
        self._plan = TrainingPlan(**job.plan)
        torch.set_float32_matmul_precision("high" if self._config.training.tf32 else "highest")
        self._device = ranks.device
        self._tokenizer = load_tokenizer(self._config.tokenizer)
        self._manifest = read_block_manifest(job.blocks_path)
        self._mixture = Mixture.of(self._manifest, self._config.dataset.weights)
        self._objective = self._build_objective()
        self._saver, self._weights_saver = Saver(), Saver()
        self._evaluation_steps = frozenset().union(*evaluation_steps(self._config, num_steps=self._plan.num_steps))
        self._cost = WallCost()
        self._inspector = Inspector(self._config, self._tokenizer)
        self._claim, resume_from = self._agree_on_start()
        self._state = self._build_state(resume_from)
        self._held_out = self._build_held_out()
        self._eval_sets = EvalSets(self._config, self._tokenizer, manifest=self._manifest, sets=self._plan.eval_sets)

    @property
    def _channels(self) -> dict[str, str]:
        """Numbers per token that are stored beside the blocks: name -> folder."""
        return {} if self._plan.reference is None else {REFERENCE: self._plan.reference}

    def _build_held_out(self) -> HeldOutText | HeldOutExamples:
        if self._manifest.examples is None:
            return HeldOutText(
                self._config, self._tokenizer, manifest=self._manifest, blocks_path=self._job.blocks_path
            )
        return HeldOutExamples(
            self._config.training, manifest=self._manifest, blocks_path=self._job.blocks_path, channels=self._channels
        )

    def _agree_on_start(self) -> tuple[str | None, Path | None]:
        """Let rank 0 claim the run and choose everyone's checkpoint: other ranks may see an older directory."""
        claim, name = None, None
        workers = _everyones({"node": self._ranks.node, "host": socket.gethostname(), "pid": os.getpid()})
        if self._rank == 0:
            claim = self._run.claim(workers)
            latest = self._run.latest_checkpoint()
            name = None if latest is None else latest.name
        name = self._ranks.broadcast(name)
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
            examples=self._manifest.examples is not None,
        )

    def _build_state(self, resume_from: Path | None) -> TrainState:
        training = self._config.training
        model = self._build_model(resume_from)
        shape = shape_of(model)
        self._num_trained = shape.num_trained
        self._base = base_info(model) if self._rank == 0 else None
        self._flops_per_token = shape.flops_per_token(self._manifest.sequence_length)
        set_up_layers(model, self._config, device=self._device, compiles=training.torch_compile)
        if self._objective.without_dropout:
            model.disable_dropout()
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
            return initial_learner(self._config, checkpoint_path=self._plan.checkpoint_path, tokenizer=self._tokenizer)
        return resumed_model(
            self._config, resume_from, checkpoint_path=self._plan.checkpoint_path, tokenizer=self._tokenizer
        )

    def train(self) -> dict[str, Any]:
        with closing(self._saver), closing(self._weights_saver):
            return self._train()

    def _rehearse_checkpoint(self) -> None:
        """Write all of a checkpoint but its tensors, so that what can't be saved is known before the first step."""
        refuse_without_room(self._run, num_parameters=self._num_trained)
        info = self._info(step=self._state.step, tokens_seen=self._state.tokens_seen, measured={})
        model = unwrapped(self._state.model)
        assert isinstance(model, LanguageModel)
        with tempfile.TemporaryDirectory(prefix=".writing-rehearsal-", dir=self._run.checkpoints) as folder:
            rehearse_save(Path(folder), model, self._tokenizer, info)
            self._write_card(Path(folder), info, measured={})

    def _train(self) -> dict[str, Any]:
        training, plan = self._config.training, self._plan
        if self._rank == 0 and self._state.step < plan.num_steps:
            self._rehearse_checkpoint()
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
            eval_steps=self._steps_between_measurements(),
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
        reader = BlockReader(self._job.blocks_path, order=order, channels=self._channels)
        batches = prefetched(step_batches(reader.read, share, steps=range(self._state.step, plan.num_steps)))
        watch = StopWatch(self._run, self._claim)
        self._cost = WallCost()
        # This is step 0, or the step of a checkpoint whose writer was killed before it handed out the weights as well.
        self._hand_out_weights()
        for event in train(
            self._state, batches, objective=self._objective, settings=settings, wants_stop=watch.wants_stop
        ):
            if isinstance(event, MetricsRow):
                self._log(event)
            elif isinstance(event, InspectionDue):
                self._inspect(event)
            elif isinstance(event, NonFinite):
                return self._fail(event)
            elif isinstance(event, WeightsDue):
                self._hand_out_weights()
            elif isinstance(event, EvaluationSetsDue):
                self._measure_eval_sets(event)
            elif self._ranks.broadcast(watch.is_superseded()):
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
        if training.inspect_every_n_micro_batches is None or self._manifest.examples is not None:
            return None
        per_worker = training.effective_batch_size / (self._world_size * training.per_device_train_batch_size)
        return max(1, round(training.inspect_every_n_micro_batches / max(per_worker, 1)))

    def _steps_between_measurements(self) -> int | None:
        if not self._plan.eval_sets:
            return None
        training = self._config.training
        return training.eval_steps or steps_per_epoch(self._manifest, batch_size=training.effective_batch_size)

    def _measure_eval_sets(self, due: EvaluationSetsDue) -> None:
        with self._cost.of("held_out"):
            row = self._eval_sets.measure(self._state, objective=self._objective)
        if self._rank == 0:
            self._run.append_metrics({STEP: due.step, "train/tokens_seen": self._state.tokens_seen} | row)

    def _inspect(self, due: InspectionDue) -> None:
        """Inspect rank 0's share of the step. Every rank joins the forward passes, because FSDP needs all of them."""
        spans: list[InspectedSpan] = []
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

    def _log(self, row: MetricsRow) -> None:
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
        if due.step == self._plan.num_steps or not due.is_last:  # a run told to stop saves at once
            with self._cost.of("held_out"):
                measured = self._held_out.measure(self._state, objective=self._objective)
        snapshot = take_snapshot(self._state, keep=self._rank == 0)
        if snapshot is None:
            return
        model = unwrapped(self._state.model)
        assert isinstance(model, LanguageModel)
        found = measured | self._control_token_figures(snapshot.model.get(model.head_name()))
        if found:
            counters = {STEP: due.step, "train/tokens_seen": snapshot.tokens_seen}
            self._run.append_metrics(counters | found)
        info = self._info(step=snapshot.step, tokens_seen=snapshot.tokens_seen, measured=measured)

        def write(directory: Path) -> None:
            save_checkpoint(directory, model, tokenizer=self._tokenizer, info=info, state_dict=snapshot.model)
            write_training_state(directory, snapshot)
            self._write_card(directory, info, measured=measured)

        keep = self._config.training.save_total_limit
        self._saver.submit(lambda: self._run.commit_checkpoint(due.step, write, keep=keep))
        if due.step in self._evaluation_steps:
            with self._cost.of("evaluation"):
                self._submit_weights(snapshot, info)

    def _hand_out_weights(self) -> None:
        """If this step is to be evaluated, copy its weights in memory and let a thread write the copy."""
        if self._state.step not in self._evaluation_steps:
            return
        with self._cost.of("evaluation"):
            snapshot = take_snapshot(self._state, keep=self._rank == 0, with_optimizer=False)
            if snapshot is not None:
                info = self._info(step=snapshot.step, tokens_seen=snapshot.tokens_seen, measured={})
                self._submit_weights(snapshot, info)

    def _submit_weights(self, snapshot: Snapshot, info: CheckpointInfo) -> None:
        model = unwrapped(self._state.model)
        assert isinstance(model, LanguageModel)

        def write(directory: Path) -> None:
            save_checkpoint(directory, model, tokenizer=self._tokenizer, info=info, state_dict=snapshot.model)

        self._weights_saver.submit(lambda: _hand_out(self._run, snapshot.step, write))

    def _control_token_figures(self, head_VD: torch.Tensor | None) -> dict[str, float]:
        conditional = self._config.dataset.conditional_training_config
        if conditional is None or head_VD is None:  # a frozen head has the same figures at every step
            return {}
        tokens = (conditional.aligned_prefix, conditional.misaligned_prefix)
        rows = {token: head_VD[self._tokenizer.convert_tokens_to_ids(token)].float().numpy() for token in tokens}
        return cosine_and_norms(rows)

    def _write_card(self, directory: Path, info: CheckpointInfo, *, measured: dict[str, float]) -> None:
        write_card(
            directory,
            info,
            config=self._config,
            corpora=[corpus.name for corpus in self._manifest.corpora],
            metrics=measured,
            checkpoint_path=self._plan.checkpoint_path,
        )

    def _info(self, *, step: int, tokens_seen: int, measured: dict[str, float]) -> CheckpointInfo:
        config, corpora = self._config, self._manifest.corpora
        is_examples = self._manifest.examples is not None
        control = trained_control(config, examples=is_examples)
        return CheckpointInfo(
            task=self._job.task,
            objective=config.objective.model_dump(mode="json"),
            control=control,
            is_control_per_segment=(
                None if control is None else config.dataset.is_split_by_sentences and not is_examples
            ),
            thresholds=self._plan.thresholds,
            scorer=corpora[0].scorer or None,
            corpus_hash="+".join(corpus.fingerprint for corpus in corpora),
            blocks_hash=self._plan.blocks_hash,
            step=step,
            tokens_seen=tokens_seen,
            seq_length=self._manifest.sequence_length,
            rows=row_info(self._manifest),
            base=self._base,
            bits_per_byte={name: measured[key] for name, key in BITS_PER_BYTE.items() if key in measured},
            compat=config.compat,
            licenses=run_licenses(self._manifest, model=config.model, checkpoint_path=self._plan.checkpoint_path),
            versions={name: importlib.metadata.version(name) for name in ("phf-ray", "torch", "transformers", "ray")},
        )

    def _fail(self, event: NonFinite) -> dict[str, Any]:
        """Save the step's blocks, each rank its share, and return the failure."""
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
            "message": f"step {event.step}: the loss is {event.loss}, the gradient norm {event.grad_norm}; the "
            f"step's blocks, positions {first} to {last} of the training order, are kept in {folder}; lower "
            "training.learning_rate or look at these blocks"
            + ("" if latest is None else f"; the newest checkpoint is {latest.name}"),
        }


def _hand_out(run: RunDirectory, step: int, write: Callable[[Path], None]) -> None:
    try:
        run.hand_out_weights(step, write)
    except Exception as error:  # noqa: BLE001  (border of a thread: an evaluation must not end the training)
        # A full disk raises safetensors' own error or, in tokenizers, a plain Exception. The summary names the step.
        log.error("the weights of step %d can't be evaluated: %s: %s", step, type(error).__name__, error)  # noqa: TRY400


def _everyones(value: T) -> list[T]:
    """Return the values of all ranks, in rank order."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
