"""One worker that learns from rounds: it makes a round, has the algorithm weigh it, and trains on what it weighed.

Every round has the same number of optimizer steps, so the step says the round. The batches are made when the training
loop asks for the first one of a round, with the weights of that moment.
"""

import dataclasses
import importlib.metadata
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from phf_ray.checkpoint import CheckpointInfo, Control, RowInfo
from phf_ray.errors import DataError
from phf_ray.generation.chat import template_source
from phf_ray.models.actor_critic import ActorCritic
from phf_ray.models.language_model import LanguageModel
from phf_ray.objectives.build import build_objective
from phf_ray.objectives.weighted_likelihood import WeightedLikelihood
from phf_ray.records import TokenKind
from phf_ray.rollouts.algorithms.base import RoundArrays, Weighed
from phf_ray.rollouts.algorithms.base import round_figures as round_figures_of
from phf_ray.rollouts.algorithms.build import build_algorithm
from phf_ray.rollouts.critics import resumed_critic, starting_critic
from phf_ray.rollouts.drawing import AnswerDrawing
from phf_ray.rollouts.figures import RoundFigures, round_figures
from phf_ray.rollouts.forward import Forward
from phf_ray.rollouts.guard.alarms import AlarmWatch
from phf_ray.rollouts.guard.metrics import metrics_row
from phf_ray.rollouts.guard.read import read_figures, read_round, read_weighed
from phf_ray.rollouts.guard.stop import StopRules, decide
from phf_ray.rollouts.identity import check_rewards_identity
from phf_ray.rollouts.order import units_of_minibatch
from phf_ray.rollouts.plan import RolloutJob, RolloutPlan, read_stored_prompts
from phf_ray.rollouts.policies import Reference, SamplingPolicy
from phf_ray.rollouts.rewards.build import build_rewarders
from phf_ray.rollouts.round_arrays import arrays_of
from phf_ray.rollouts.round_maker import MadeRound, RoundMaker, RoundModels
from phf_ray.rollouts.rounds import LOGPROBS, REWARDS, SAMPLES, WEIGHED, RoundFiles, StoredWeighing
from phf_ray.rollouts.sampling_places import Copies, DrawingStopped, SamplingPlace, SamplingPool, Workers
from phf_ray.rollouts.token_rows import TokenRows
from phf_ray.runs.directory import RunDirectory
from phf_ray.runs.rows import ROUND, STEP
from phf_ray.training.batches import MicroBatch, batch_of, share_of_step
from phf_ray.training.events import CheckpointDue, MetricsRow
from phf_ray.training.learner import Learner
from phf_ray.training.licenses import model_licenses
from phf_ray.training.ranks import Ranks, from_rank_zero
from phf_ray.training.start import initial_model, starting_model
from phf_ray.training.watch import StopWatch

log = logging.getLogger(__name__)

_LARGE_DIFFERENCE = 0.05
"""Nats per token. In fp32 the two agree to 1e-6; a forward pass in bf16 is off by about 1e-2."""


class RolloutWorker(Learner):
    """One rank of a run of rounds."""

    def __init__(
        self,
        job: RolloutJob,
        run: RunDirectory,
        ranks: Ranks,
        *,
        open_pool: Callable[[RolloutJob], SamplingPool] | None = None,
    ):
        """`open_pool`: makes what draws with `rollouts.place: actors`."""
        super().__init__(job, run, ranks)
        self._job, self._open_pool = job, open_pool
        self._plan = RolloutPlan(**job.plan)
        config = self._config
        assert config.rollouts is not None
        assert config.algorithm is not None
        self._settings = config.rollouts
        self._algorithm = build_algorithm(config.algorithm, compat=config.feedback_compat)
        self._objective_config = self._algorithm.objective()
        if self._objective_config["name"] == "PolicyGradient":
            self._objective_config |= {
                "temperature": self._settings.temperature,
                "importance_cap": self._settings.importance_cap,
            }
        objective = build_objective(self._objective_config, compat=config.feedback_compat, examples=True)
        # A policy is compared with itself, and other dropout in each pass would be noise.
        objective.without_dropout = True
        rewarders = build_rewarders(self._settings.reward, self._settings.gold, device=str(self._device))
        self._begin(objective)
        if self._rank == 0:
            check_rewards_identity(run.path, rewarders.identity)
        self._drawing = AnswerDrawing(config, tokenizer=self._tokenizer)
        self._place = self._build_place()
        self._maker = self._build_maker(rewarders)
        self._stopped_by: str | None = None
        self._constant_groups_told = False
        self._alarms = AlarmWatch(patience=self._settings.stop.gold_patience)
        self._history: list[RoundFigures] = []
        """On rank 0: the figures of all rounds so far."""

    def _build_model(self, resume_from: Path | None) -> LanguageModel:
        policy = super()._build_model(resume_from)
        if self._config.critic is None:
            return policy
        if resume_from is None:
            return ActorCritic(policy, starting_critic(self._config, tokenizer=self._tokenizer))
        return ActorCritic(policy, resumed_critic(resume_from, tokenizer=self._tokenizer))

    def _build_place(self) -> SamplingPlace:
        config, settings = self._config, self._settings
        if settings.place == "actors":
            assert self._open_pool is not None
            pool = self._open_pool(self._job) if self._rank == 0 else None
            is_ahead = settings.max_staleness > 0
            return Copies(
                pool,
                self._state,
                drawing=self._drawing,
                ranks=self._ranks,
                is_ahead=is_ahead,
                wants_stop=StopWatch(self._run, self._claim).wants_stop,
            )
        policy = SamplingPolicy(
            self._state,
            tokenizer=self._tokenizer,
            max_batch=settings.sampling_batch,
            build=lambda: initial_model(config, checkpoint_path=self._checkpoint_path, tokenizer=self._tokenizer),
        )
        return Workers(policy, drawing=self._drawing, ranks=self._ranks)

    def _build_maker(self, rewarders: Any) -> RoundMaker:
        config, settings = self._config, self._settings
        algorithm = self._algorithm
        needs_reference = settings.reports_kl or algorithm.needs_reference or algorithm.needs_reference_states
        precision = config.training.precision
        return RoundMaker(
            settings,
            run=self._run.path,
            prompts=read_stored_prompts(self._job.prompts_path),
            drawing=self._drawing,
            place=self._place,
            models=RoundModels(
                policy=Forward(self._state.model, precision=precision, temperature=settings.temperature),
                reference=self._build_reference() if needs_reference else None,
                reads_values=self._algorithm.needs_values,
            ),
            rewarders=rewarders,
            ranks=self._ranks,
            seed=config.training.seed,
            micro_batch_size=config.training.per_device_train_batch_size,
        )

    def _build_reference(self) -> Reference:
        is_inside = self._algorithm.needs_reference_states
        reference = Reference(
            self._state,
            config=self._config,
            checkpoint_path=self._checkpoint_path,
            tokenizer=self._tokenizer,
            runs_inside_policy=is_inside,
        )
        if is_inside:
            assert isinstance(self._objective, WeightedLikelihood)
            assert isinstance(reference.model, LanguageModel)
            # Tokens that were added for the policy are the last ones.
            starting = starting_model(self._config, checkpoint_path=self._checkpoint_path, tokenizer=self._tokenizer)
            num_tokens = len(self._tokenizer) - starting.num_additional_tokens
            self._objective.compare_with(reference.model.operands, num_tokens=num_tokens)
        return reference

    # --- The rounds ---

    def train(self) -> dict[str, Any]:
        with closing(self._place):
            return super().train()

    def _train(self) -> dict[str, Any]:
        if self._rank == 0 and self._state.step < self._num_steps:
            self._rehearse_checkpoint()
        settings = self._loop_settings()
        if settings.save_steps is None:
            settings = dataclasses.replace(settings, save_steps=self._plan.steps_per_round)
        watch = StopWatch(self._run, self._claim)
        outcome = self._follow(self._batches(watch), settings, watch=watch)
        if outcome is not None:
            return outcome
        is_finished = self._state.step == self._num_steps or self._stopped_by is not None
        # Between the stages of a round, another start is no different from a wish to stop.
        is_superseded = not is_finished and self._ranks.broadcast(watch.is_superseded())
        return {
            "status": "finished" if is_finished else "superseded" if is_superseded else "stopped",
            "step": self._state.step,
            "wall_cost": self._cost.figures(),
            "stopped_by": self._stopped_by or f"all {self._settings.rounds} rounds are done",
        }

    def _batches(self, watch: StopWatch) -> Iterator[list[MicroBatch]]:
        """Yield this rank's micro-batches of each step. Ends early if the run is to stop."""
        per_round = self._plan.steps_per_round
        while self._state.step < self._num_steps:
            number, done = divmod(self._state.step, per_round)
            made = self._made(number, done, watch)
            if made is None:
                return
            blocks = self._weighed(made)
            if self._rank == 0:
                self._remember(number)
                if not done:
                    self._log_round(made)
            self._stopped_by = from_rank_zero(self._reason_to_stop() if self._rank == 0 else None)
            if self._stopped_by is not None:
                log.info("the run ends before the updates of round %d: %s", number, self._stopped_by)
                return
            for index in range(done, per_round):
                yield self._micro_batches(blocks, number, index)

    def _made(self, number: int, done: int, watch: StopWatch) -> MadeRound | None:
        if done:
            self._refuse_incomplete(number)
        try:
            if self._settings.max_staleness:
                self._draw_ahead(number, done)
            return self._maker.make(number, weights=self._weights_of(number), wants_stop=watch.wants_stop)
        except DrawingStopped:
            return None

    def _draw_ahead(self, number: int, done: int) -> None:
        """Have the answers of this round, and begin to draw the next one's with the weights of now."""
        if number:
            self._refuse_undrawn(number)
        self._maker.draw(number, weights=self._weights_of(number))
        ahead = number + 1
        if ahead == self._settings.rounds:
            return
        if done:
            self._refuse_undrawn(ahead)
        else:
            self._maker.begin(ahead, weights=self._weights_of(ahead))

    def _refuse_undrawn(self, number: int) -> None:
        """Raise DataError if a round is neither drawn nor being drawn: the weights that draw it are gone."""
        files = RoundFiles(self._run.path, number)
        if self._rank == 0 and not self._place.is_drawing(number) and not files.has(SAMPLES):
            raise DataError(
                f"{files.path} lacks {SAMPLES}, which {self._weights_of(number)} drew, and the newest checkpoint is of "
                "a later step; restore the folder, or remove the checkpoints after that step"
            )

    def _checkpoint(self, due: CheckpointDue) -> None:
        # Weights that a later start can't have again must have drawn what they are to draw.
        ahead = (due.step - 1) // self._plan.steps_per_round + 1
        if self._settings.max_staleness and ahead < self._settings.rounds:
            try:
                self._maker.draw(ahead, weights=self._weights_of(ahead))
            except DrawingStopped:
                log.warning(
                    "step %d is not saved, because no actor is there that draws round %d; the run goes on from the "
                    "checkpoint before it",
                    due.step,
                    ahead,
                )
                return
        super()._checkpoint(due)

    def _refuse_incomplete(self, number: int) -> None:
        """Raise DataError if a round that was learned lacks a file: it would be made by weights that know the round."""
        files = RoundFiles(self._run.path, number)
        missing = [name for name in (SAMPLES, REWARDS, LOGPROBS, WEIGHED) if not files.has(name)]
        if self._rank == 0 and missing:
            raise DataError(
                f"{files.path} lacks {', '.join(missing)}, but the newest checkpoint has learned from it already; "
                "restore the folder, or remove that checkpoint"
            )

    def _weighed(self, made: MadeRound) -> TokenRows:
        """Store what the algorithm says of the round, and return it as blocks."""
        pool = [*self._earlier(made.number), made]
        arrays = arrays_of(pool)
        state = self._state_before(made.number)
        weighed = self._algorithm.weigh(arrays, state)
        if self._rank == 0:
            files = RoundFiles(self._run.path, made.number)
            if not files.has(WEIGHED):
                # Of a pool, the algorithm's figures are those of several rounds.
                own = round_figures_of(arrays_of([made])) if len(pool) > 1 else {}
                files.write_weighing(StoredWeighing(_finite({**weighed.figures, **own}), weighed.state))
        samples = [row for one in pool for row in one.samples]
        prefixes = weighed.prefix_R or [self._drawing.prefix_of(one.number) for one in pool for _ in one.samples]
        return self._blocks(self._drawing.rows(samples, prefixes), arrays, weighed)

    def _blocks(self, rows: TokenRows, arrays: RoundArrays, weighed: Weighed) -> TokenRows:
        keep_R = weighed.keep_R & arrays.usable_R
        blocks = rows.learned(keep_R, weighed.channels)
        if weighed.pairs is not None:
            return blocks.paired(weighed.pairs)
        # A row without targets costs as much time as one with them; a single one stands for none at all.
        return blocks.part(np.flatnonzero(keep_R) if keep_R.any() else np.array([0]))

    def _earlier(self, number: int) -> list[MadeRound]:
        """Return the rounds before, which are stored, as far as the algorithm learns from them again."""
        first = max(0, number + 1 - self._algorithm.num_pool_rounds)
        for earlier in range(first, number):
            self._refuse_incomplete(earlier)
        made = [self._maker.make(earlier, weights=self._weights_of(earlier)) for earlier in range(first, number)]
        return [one for one in made if one is not None]

    def _state_before(self, number: int) -> Mapping[str, float]:
        if number == 0:
            return {}
        read = partial(RoundFiles(self._run.path, number - 1).read_weighing)
        return from_rank_zero(read().state if self._rank == 0 else {})

    def _micro_batches(self, blocks: TokenRows, number: int, index: int) -> list[MicroBatch]:
        settings, size = self._settings, self._config.training.per_device_train_batch_size
        epoch, minibatch = divmod(index, settings.minibatches)
        units = units_of_minibatch(
            minibatch,
            num_minibatches=settings.minibatches,
            num_units=len(blocks.lengths),
            round_=number,
            epoch=epoch,
            seed=self._config.training.seed,
        )
        first = (number * self._plan.steps_per_round + index) * len(blocks.lengths)
        return [
            _micro_batch(blocks, units[begin:end], first_block=first + begin)
            for begin, end in share_of_step(
                0,
                self._rank,
                world_size=self._world_size,
                # Without units, a step of padding.
                batch_size=max(len(units), 1),
                micro_batch_size=size,
            )
        ]

    # --- What is said of them ---

    def _remember(self, number: int) -> None:
        """Add a stored round to the history, which begins with the rounds of earlier starts."""
        run = self._run.path
        if number and not self._history:
            self._history = read_figures(run, until=number)
        self._history.append(round_figures(number, read_round(run, number), weighed=read_weighed(run, number)))

    def _reason_to_stop(self) -> str | None:
        """Return why the newest round is not learned, None if it is."""
        stop = self._settings.stop
        decision = decide(self._history, StopRules(kl=stop.kl, gold_patience=stop.gold_patience))
        return None if decision.learns else decision.reasons[0]

    def _weights_of(self, number: int) -> str:
        """Return the name of the weights that draw a round. The plan alone says which, never what is done first."""
        begins_with = max(0, number - self._settings.max_staleness)
        return f"step-{begins_with * self._plan.steps_per_round:08d}"

    def _log_round(self, made: MadeRound) -> None:
        row = metrics_row(self._history[-1]) | made.sampler_difference()
        difference = row.get("sampling/sampling_logp_difference/mean", 0.0)
        if difference > _LARGE_DIFFERENCE:
            log.warning(
                "round %d: the log-probabilities of sampling and training differ by %.2g nats a token on average, so "
                "the answers come from another policy than the one that is learned; training.precision: fp32 agrees "
                "best",
                made.number,
                difference,
            )
        self._warn_of_constant_groups(made.number, row)
        for alarm in self._alarms.look(self._history):
            log.warning("round %d: %s", made.number, alarm.text)
        if made.failures:
            reasons = ", ".join(f"{number} x {reason}" for reason, number in made.failures.most_common())
            log.warning("round %d: answers without a reward are not learned: %s", made.number, reasons)
        self._run.append_metrics(
            {
                # The first step that learns it.
                STEP: self._state.step + 1,
                "train/tokens_seen": self._state.tokens_seen,
                **row,
                ROUND: made.number,
            }
        )

    def _warn_of_constant_groups(self, number: int, figures: Mapping[str, float]) -> None:
        constant = figures.get("rollouts/constant_groups", 0.0)
        if constant and not self._constant_groups_told:
            self._constant_groups_told = True
            log.warning(
                "round %d: all answers to %d of %d prompts have the same reward, and teach nothing to an algorithm "
                "that compares them; metrics count them as rollouts/constant_groups",
                number,
                constant,
                self._settings.prompts_per_round,
            )

    def _log(self, row: MetricsRow) -> None:
        if self._rank != 0:
            return
        rollouts = self._settings
        epoch = row.step / self._plan.steps_per_round * rollouts.prompts_per_round / self._plan.num_prompts
        self._run.append_metrics(
            row.metrics
            | {
                **(self._cost.row() if self._evaluation_steps else {}),
                "train/epoch": epoch,
                "objective/lr": row.metrics["train/learning_rate"],
            }
            | {
                name.removeprefix("objective/train/"): value
                for name, value in row.metrics.items()
                if name.startswith("objective/train/ppo/")
            }
        )

    # --- What the base asks for ---

    @property
    def _sequence_length(self) -> int:
        return self._settings.max_tokens

    @property
    def _corpora(self) -> list[str]:
        return [PurePath(source).name for source in self._settings.prompts]

    def _place_of_step(self, step: int) -> str:
        return f"answers of round {(step - 1) // self._plan.steps_per_round}"

    def _info(self, *, step: int, tokens_seen: int, measured: dict[str, float]) -> CheckpointInfo:
        del measured
        config = self._config
        assert config.algorithm is not None
        return CheckpointInfo(
            task=self._job.task,
            objective={**self._objective_config, "algorithm": config.algorithm.model_dump(mode="json")},
            control=self._control(),
            is_control_per_segment=None if self._algorithm.sampling_prefix is None else False,
            step=step,
            tokens_seen=tokens_seen,
            rows=self._row_info(),
            base=self._base,
            compat=config.compat,
            licenses=model_licenses(config.model, checkpoint_path=self._checkpoint_path),
            versions={name: importlib.metadata.version(name) for name in ("phf-ray", "torch", "transformers", "ray")},
        )

    def _control(self) -> Control | None:
        """Return the control tokens of the model: who asks it for nothing else gets answers as rounds draw them."""
        good, tokens = self._algorithm.sampling_prefix, self._algorithm.control_tokens
        return None if good is None else Control(good=good, bad=tokens[-1], policy="ban")

    def _row_info(self) -> RowInfo | None:
        name = self._config.dataset.prompt_template or ("tokenizer" if self._tokenizer.chat_template else None)
        if name is None:
            return None
        text = template_source(name, tokenizer=self._tokenizer)
        return RowInfo(template=PurePath(name).stem, template_text=text, length=self._plan.longest_row)


def _micro_batch(blocks: TokenRows, units: np.ndarray, *, first_block: int) -> MicroBatch:
    if len(units):
        return batch_of(blocks.part(units), slice(None), first_block=first_block)
    padding = batch_of(blocks.part(np.array([0])), slice(None), first_block=-1)
    kinds_BS = padding.token_kinds_BS.fill_(int(TokenKind.PAD))
    return dataclasses.replace(padding, token_kinds_BS=kinds_BS)


def _finite(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in figures.items() if np.isfinite(value)}
