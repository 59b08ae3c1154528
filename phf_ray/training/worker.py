"""One worker that learns from stored blocks: reads them, measures what is held out, and logs."""

import importlib.metadata
from typing import Any

from phf_ray.blocks.manifest import read_block_manifest
from phf_ray.blocks.mixture import Mixture
from phf_ray.blocks.order import BlockOrder
from phf_ray.blocks.reader import BlockReader
from phf_ray.checkpoint import CheckpointInfo
from phf_ray.models.language_model import LanguageModel
from phf_ray.objectives.answers import REFERENCE
from phf_ray.objectives.base import Objective
from phf_ray.objectives.build import build_objective
from phf_ray.objectives.streams import CORPUS, LossStreams
from phf_ray.runs.directory import RunDirectory
from phf_ray.runs.rows import STEP
from phf_ray.training.batches import DataShare, prefetched, step_batches
from phf_ray.training.eval_sets import EvalSets, steps_per_epoch
from phf_ray.training.events import EvaluationSetsDue, InspectionDue, MetricsRow, TrainingEvent
from phf_ray.training.held_out_examples import HeldOutExamples
from phf_ray.training.held_out_text import BITS_PER_BYTE, HeldOutText
from phf_ray.training.inspection import MAX_SPANS, InspectedSpan, Inspector, cosine_and_norms, cut_spans
from phf_ray.training.learner import Learner
from phf_ray.training.licenses import run_licenses
from phf_ray.training.loss_streams import loss_streams
from phf_ray.training.plan import TrainingPlan, TrainJob
from phf_ray.training.ranks import Ranks
from phf_ray.training.snapshot import Snapshot
from phf_ray.training.start import row_info, trained_control
from phf_ray.training.values import value_predictions
from phf_ray.training.watch import StopWatch


class TrainingWorker(Learner):
    """One rank of a training run on blocks."""

    def __init__(self, job: TrainJob, run: RunDirectory, ranks: Ranks):
        super().__init__(job, run, ranks)
        self._job = job
        self._plan = TrainingPlan(**job.plan)
        self._manifest = read_block_manifest(job.blocks_path)
        self._mixture = Mixture.of(self._manifest, self._config.dataset.weights)
        self._inspector = Inspector(self._config, self._tokenizer)
        self._begin(self._build_objective())
        self._held_out = self._build_held_out()
        self._eval_sets = EvalSets(self._config, self._tokenizer, manifest=self._manifest, sets=self._plan.eval_sets)

    @property
    def _sequence_length(self) -> int:
        return self._manifest.sequence_length

    @property
    def _corpora(self) -> list[str]:
        return [corpus.name for corpus in self._manifest.corpora]

    @property
    def _channels(self) -> dict[str, str]:
        """Numbers per token that are stored beside the blocks: name -> folder."""
        return {} if self._plan.reference is None else {REFERENCE: self._plan.reference}

    @property
    def _corpus(self) -> str | None:
        """Channel with each block's data set, if data sets are weighed differently."""
        return None if self._streams is None else CORPUS

    @property
    def _streams(self) -> LossStreams | None:
        return loss_streams(self._config, self._manifest)

    def _build_held_out(self) -> HeldOutText | HeldOutExamples:
        if self._manifest.examples is None:
            return HeldOutText(
                self._config, self._tokenizer, manifest=self._manifest, blocks_path=self._job.blocks_path
            )
        return HeldOutExamples(
            self._config.training, manifest=self._manifest, blocks_path=self._job.blocks_path, channels=self._channels
        )

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
            streams=self._streams,
        )

    def _train(self) -> dict[str, Any]:
        training, plan = self._config.training, self._plan
        if self._rank == 0 and self._state.step < plan.num_steps:
            self._rehearse_checkpoint()
        settings = self._loop_settings(
            eval_steps=self._steps_between_measurements(), inspect_steps=self._steps_between_inspections()
        )
        share = DataShare(
            batch_size=training.effective_batch_size,
            micro_batch_size=training.per_device_train_batch_size,
            rank=self._rank,
            world_size=self._world_size,
            first_block=plan.first_block,
        )
        order = BlockOrder(self._manifest, seed=training.seed, weights=self._config.dataset.weights)
        reader = BlockReader(self._job.blocks_path, order=order, channels=self._channels, corpus=self._corpus)
        batches = prefetched(step_batches(reader.read, share, steps=range(self._state.step, plan.num_steps)))
        outcome = self._follow(batches, settings, watch=StopWatch(self._run, self._claim))
        if outcome is not None:
            return outcome
        is_finished = self._state.step == plan.num_steps
        self._append_inspections(wait=is_finished)
        status = "finished" if is_finished else "stopped"
        return {"status": status, "step": self._state.step, "wall_cost": self._cost.figures()}

    def _handle(self, event: TrainingEvent) -> None:
        if isinstance(event, InspectionDue):
            self._inspect(event)
        elif isinstance(event, EvaluationSetsDue):
            self._measure_eval_sets(event)

    def _place_of_step(self, step: int) -> str:
        batch_size = self._config.training.effective_batch_size
        first = self._plan.first_block + (step - 1) * batch_size
        return f"positions {first} to {first + batch_size - 1} of the training order"

    def _measure(self) -> dict[str, Any]:
        return self._held_out.measure(self._state, objective=self._objective)

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

    def _figures_of_weights(self, snapshot: Snapshot, model: LanguageModel) -> dict[str, float]:
        head_VD = snapshot.model.get(model.head_name())
        conditional = self._config.dataset.conditional_training_config
        if conditional is None or head_VD is None:  # a frozen head has the same figures at every step
            return {}
        tokens = (conditional.aligned_prefix, conditional.misaligned_prefix)
        rows = {token: head_VD[self._tokenizer.convert_tokens_to_ids(token)].float().numpy() for token in tokens}
        return cosine_and_norms(rows)

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
