"""What every worker that trains shares, whatever it learns from: its start, state, checkpoints, weights and failure."""

import logging
import os
import socket
import tempfile
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from phf_ray.blocks.tokenizer import load_tokenizer
from phf_ray.checkpoint import CheckpointInfo
from phf_ray.config import evaluation_steps, parse_config
from phf_ray.models.actor_critic import CRITIC_PREFIX
from phf_ray.models.card import write_card
from phf_ray.models.language_model import LanguageModel
from phf_ray.models.saving import rehearse_save, save_checkpoint
from phf_ray.models.shape import shape_of
from phf_ray.objectives.base import Objective
from phf_ray.runs.directory import RunDirectory
from phf_ray.runs.rows import STEP
from phf_ray.training.batches import MicroBatch
from phf_ray.training.events import CheckpointDue, MetricsRow, NonFinite, TrainingEvent, WeightsDue
from phf_ray.training.hardware import peak_flops
from phf_ray.training.lasting import refuse_without_room
from phf_ray.training.loop import LoopSettings, train
from phf_ray.training.plan import WorkerJob
from phf_ray.training.ranks import Ranks, everyones
from phf_ray.training.saving import Saver, WallCost
from phf_ray.training.schedule import Schedule
from phf_ray.training.snapshot import Snapshot, restore_training_state, take_snapshot, write_training_state
from phf_ray.training.start import base_info, forgetful_mask, initial_learner, resumed_model, set_up_layers
from phf_ray.training.state import TrainState, build_optimizer, parallelize, unwrapped
from phf_ray.training.step import StepSettings
from phf_ray.training.watch import StopWatch

log = logging.getLogger(__name__)


class Learner:
    """One rank of a run. A subclass says what is learned: it builds an objective, calls `_begin`, and makes batches."""

    def __init__(self, job: WorkerJob, run: RunDirectory, ranks: Ranks):
        num_cores = len(os.sched_getaffinity(0))
        torch.set_num_threads(job.num_threads or max(1, num_cores // ranks.local_world_size))
        self._run, self._ranks = run, ranks
        self._rank, self._world_size = ranks.rank, ranks.world_size
        self._config = parse_config(job.config)
        self._num_steps: int = job.plan["num_steps"]
        self._checkpoint_path: str | None = job.plan["checkpoint_path"]
        torch.set_float32_matmul_precision("high" if self._config.training.tf32 else "highest")
        self._device = ranks.device
        self._tokenizer = load_tokenizer(self._config.tokenizer)
        self._saver, self._weights_saver = Saver(), Saver()
        self._evaluation_steps = frozenset().union(*evaluation_steps(self._config, num_steps=self._num_steps))
        self._cost = WallCost()

    # --- What a subclass knows ---

    @property
    def _sequence_length(self) -> int:
        """Tokens of a block, for the FLOPs of a token."""
        raise NotImplementedError

    @property
    def _corpora(self) -> list[str]:
        """Names of what the run learns from."""
        raise NotImplementedError

    def _info(self, *, step: int, tokens_seen: int, measured: dict[str, float]) -> CheckpointInfo:
        raise NotImplementedError

    def _place_of_step(self, step: int) -> str:
        """Say where a step's blocks come from, as part of a sentence."""
        raise NotImplementedError

    def _measure(self) -> dict[str, Any]:
        """Measure what a checkpoint's row of metrics has. Collective."""
        return {}

    def _figures_of_weights(self, _snapshot: Snapshot, _model: LanguageModel, /) -> dict[str, float]:
        return {}

    def _train(self) -> dict[str, Any]:
        raise NotImplementedError

    def _log(self, row: MetricsRow) -> None:
        raise NotImplementedError

    def _handle(self, event: TrainingEvent) -> None:
        """Handle an event that only some runs have."""
        raise NotImplementedError

    # --- The start ---

    def _begin(self, objective: Objective) -> None:
        """Claim the run, and build the state that it starts from or goes on with."""
        self._objective = objective
        self._claim, resume_from = self._agree_on_start()
        self._state = self._build_state(resume_from)

    def _agree_on_start(self) -> tuple[str | None, Path | None]:
        """Let rank 0 claim the run and choose everyone's checkpoint: other ranks may see an older directory."""
        claim, name = None, None
        workers = everyones({"node": self._ranks.node, "host": socket.gethostname(), "pid": os.getpid()})
        if self._rank == 0:
            claim = self._run.claim(workers)
            latest = self._run.latest_checkpoint()
            name = None if latest is None else latest.name
        name = self._ranks.broadcast(name)
        return claim, None if name is None else self._run.checkpoints / name

    def _build_state(self, resume_from: Path | None) -> TrainState:
        training = self._config.training
        model = self._build_model(resume_from)
        shapes = [shape_of(part) for part in model.parts()]
        self._num_trained = sum(shape.num_trained for shape in shapes)
        self._base = base_info(model) if self._rank == 0 else None
        self._flops_per_token = sum(shape.flops_per_token(self._sequence_length) for shape in shapes)
        for part in model.parts():
            set_up_layers(part, self._config, device=self._device, compiles=training.torch_compile)
        if self._objective.without_dropout:
            model.disable_dropout()
        parallel = parallelize(model, training.parallelism, device=self._device)
        optimizer = build_optimizer(
            parallel,
            weight_decay=training.weight_decay,
            betas=(training.adam_beta1, training.adam_beta2),
            epsilon=training.adam_epsilon,
            critic_scale=self._config.critic_scale,
        )
        state = TrainState(parallel, optimizer, tokens_seen=training.tokens_already_seen)
        if resume_from is not None:
            restore_training_state(resume_from, state)
        if self._rank == 0:
            self._run.drop_metrics_after(state.step)
        return state

    def _build_model(self, resume_from: Path | None) -> LanguageModel:
        if resume_from is None:
            return initial_learner(self._config, checkpoint_path=self._checkpoint_path, tokenizer=self._tokenizer)
        return resumed_model(
            self._config, resume_from, checkpoint_path=self._checkpoint_path, tokenizer=self._tokenizer
        )

    # --- The loop ---

    def train(self) -> dict[str, Any]:
        with closing(self._saver), closing(self._weights_saver):
            return self._train()

    def _loop_settings(self, *, eval_steps: int | None = None, inspect_steps: int | None = None) -> LoopSettings:
        training = self._config.training
        return LoopSettings(
            schedule=Schedule(
                self._num_steps,
                training.learning_rate,
                kind=training.lr_scheduler_type,
                warmup_ratio=training.warmup_ratio,
            ),
            step=StepSettings(
                seed=training.seed,
                precision=training.precision,
                max_grad_norm=training.max_grad_norm,
                is_forgetful=forgetful_mask(self._config) is not None,
            ),
            count_tokens=training.count_tokens,
            logging_steps=training.logging_steps,
            save_steps=training.save_steps,
            evaluation_steps=self._evaluation_steps,
            eval_steps=eval_steps,
            inspect_steps=inspect_steps,
            flops_per_token=self._flops_per_token,
            peak_flops=peak_flops(torch.cuda.get_device_name(self._device)) if self._device.type == "cuda" else None,
        )

    def _follow(
        self, batches: Iterable[list[MicroBatch]], settings: LoopSettings, *, watch: StopWatch
    ) -> dict[str, Any] | None:
        """Train to the end. Return the outcome if the run ended otherwise, by its failure or by another start."""
        self._cost = WallCost()
        # This is step 0, or the step of a checkpoint whose writer was killed before it handed out the weights as well.
        self._hand_out_weights()
        for event in train(
            self._state, batches, objective=self._objective, settings=settings, wants_stop=watch.wants_stop
        ):
            if isinstance(event, MetricsRow):
                self._log(event)
            elif isinstance(event, NonFinite):
                return self._fail(event)
            elif isinstance(event, WeightsDue):
                self._hand_out_weights()
            elif not isinstance(event, CheckpointDue):
                self._handle(event)
            elif self._ranks.broadcast(watch.is_superseded()):
                return {"status": "superseded", "step": event.step}
            else:
                with self._cost.of("checkpoint"):
                    self._checkpoint(event)
        return None

    # --- What it leaves ---

    def _rehearse_checkpoint(self) -> None:
        """Write all of a checkpoint but its tensors, so that what can't be saved is known before the first step."""
        refuse_without_room(self._run, num_parameters=self._num_trained)
        info = self._info(step=self._state.step, tokens_seen=self._state.tokens_seen, measured={})
        model = unwrapped(self._state.model)
        assert isinstance(model, LanguageModel)
        with tempfile.TemporaryDirectory(prefix=".writing-rehearsal-", dir=self._run.checkpoints) as folder:
            rehearse_save(Path(folder), model, self._tokenizer, info)
            self._write_card(Path(folder), info, measured={})

    def _checkpoint(self, due: CheckpointDue) -> None:
        measured: dict[str, Any] = {}
        if due.step == self._num_steps or not due.is_last:  # a run told to stop saves at once
            with self._cost.of("held_out"):
                measured = self._measure()
        snapshot = take_snapshot(self._state, keep=self._rank == 0)
        if snapshot is None:
            return
        model = unwrapped(self._state.model)
        assert isinstance(model, LanguageModel)
        found = measured | self._figures_of_weights(snapshot, model)
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

        # A checkpoint's snapshot has the critic, which answers nothing.
        tensors = {name: each for name, each in snapshot.model.items() if not name.startswith(CRITIC_PREFIX)}

        def write(directory: Path) -> None:
            save_checkpoint(directory, model, tokenizer=self._tokenizer, info=info, state_dict=tensors)

        self._weights_saver.submit(lambda: hand_out(self._run, snapshot.step, write))

    def _write_card(self, directory: Path, info: CheckpointInfo, *, measured: dict[str, float]) -> None:
        write_card(
            directory,
            info,
            config=self._config,
            corpora=self._corpora,
            metrics=measured,
            checkpoint_path=self._checkpoint_path,
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
        latest = self._run.latest_checkpoint()
        return {
            "status": "failed",
            "kind": "DataError",
            "message": f"step {event.step}: the loss is {event.loss}, the gradient norm {event.grad_norm}; the "
            f"step's blocks, {self._place_of_step(event.step)}, are kept in {folder}; lower training.learning_rate or "
            "look at these blocks" + ("" if latest is None else f"; the newest checkpoint is {latest.name}"),
        }


def hand_out(run: RunDirectory, step: int, write: Callable[[Path], None]) -> None:
    try:
        run.hand_out_weights(step, write)
    except Exception as error:  # noqa: BLE001  (border of a thread: an evaluation must not end the training)
        # A full disk raises safetensors' own error or, in tokenizers, a plain Exception. The summary names the step.
        log.error("the weights of step %d can't be evaluated: %s: %s", step, type(error).__name__, error)  # noqa: TRY400
