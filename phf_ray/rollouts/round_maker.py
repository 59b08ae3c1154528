"""Makes a round: answers, rewards, log-probabilities. What is stored already is taken as it is.

Each rank computes its share of a stage, all get all of it, and rank 0 writes it before the next stage begins. So a run
that was killed at any moment has lost at most the stage under way.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from phf_ray.config import RolloutsConfig
from phf_ray.errors import IncompleteError
from phf_ray.rollouts.drawing import AnswerDrawing
from phf_ray.rollouts.forward import Forward, ForwardShare, TokenNumbers
from phf_ray.rollouts.order import prompts_of_round
from phf_ray.rollouts.policies import Reference
from phf_ray.rollouts.prompts import RolloutPrompt
from phf_ray.rollouts.rewards.base import AnsweredPrompt
from phf_ray.rollouts.rewards.weighted import Rewards, WeighedRewarders
from phf_ray.rollouts.rounds import (
    LOGPROBS,
    REWARDS,
    SAMPLES,
    UNFINISHED,
    RoundFiles,
    RowKey,
    StoredLogprobs,
    StoredReward,
    StoredSample,
)
from phf_ray.rollouts.sampling_places import SamplingPlace, share_of
from phf_ray.training.ranks import Ranks, everyones, from_rank_zero

T = TypeVar("T")
log = logging.getLogger(__name__)

NOT_DRAWN = "not_drawn"
"""Kind of the reason why an answer that could not be drawn has no reward."""


@dataclass(frozen=True, slots=True)
class MadeRound:
    """All ranks have the same."""

    number: int
    samples: list[StoredSample]
    rewards: list[StoredReward]
    logprobs: list[StoredLogprobs]

    @property
    def failures(self) -> Counter[str]:
        """Kind of the reason -> answers without a reward."""
        return Counter((row.error or "no_reward").partition(": ")[0] for row in self.rewards if row.reward is None)

    def sampler_difference(self) -> dict[str, float]:
        """Return mean and largest difference per token between the sampler's log-probabilities and those that training
        computes with the same weights, under TRL's names; nothing where the sampler's are unknown."""
        differences = [
            np.abs(sample.sampler.astype(np.float64) - (row.policy if row.behaviour is None else row.behaviour))
            for sample, row in zip(self.samples, self.logprobs, strict=True)
            if sample.sampler is not None and row.policy is not None
        ]
        if not sum(map(len, differences)):
            return {}
        all_tokens = np.concatenate(differences)
        name = "sampling/sampling_logp_difference"
        return {f"{name}/mean": float(all_tokens.mean()), f"{name}/max": float(all_tokens.max())}


@dataclass(frozen=True, slots=True)
class RoundModels:
    policy: Forward
    reference: Reference | None
    reads_values: bool


class RoundMaker:
    def __init__(  # noqa: PLR0913 - everything that a round is made from
        self,
        settings: RolloutsConfig,
        *,
        run: Path,
        prompts: Sequence[RolloutPrompt],
        drawing: AnswerDrawing,
        place: SamplingPlace,
        models: RoundModels,
        rewarders: WeighedRewarders,
        ranks: Ranks,
        seed: int,
        micro_batch_size: int,
    ):
        self._settings, self._run, self._prompts = settings, run, prompts
        self._drawing, self._place = drawing, place
        self._models, self._rewarders = models, rewarders
        self._ranks, self._seed = ranks, seed
        self._share = ForwardShare(micro_batch_size, rank=ranks.rank, world_size=ranks.world_size)

    def make(self, number: int, *, weights: str, wants_stop: Callable[[], bool] = lambda: False) -> MadeRound | None:
        """Return the round. Collective. `weights`: name of the policy's. None: a stop was asked for between stages.

        Raises IncompleteError if too many answers have no reward; nothing that is known is lost.
        """
        files = RoundFiles(self._run, number)
        prompts = self.prompts_of(number)
        keys = self._keys(prompts)
        if from_rank_zero(wants_stop()):
            return None
        samples = self.draw(number, weights=weights)
        if from_rank_zero(wants_stop()):
            return None
        rewards = self._stage(
            files,
            REWARDS,
            read=lambda: files.read_rewards(keys),
            compute=lambda: self._ask(prompts, samples, known=self._known(files, keys)),
            write=lambda rows: self._write_rewards(files, rows),
        )
        if from_rank_zero(wants_stop()):
            return None
        logprobs = self._stage(
            files,
            LOGPROBS,
            read=lambda: files.read_logprobs(keys),
            compute=lambda: self._score(number, samples),
            write=files.write_logprobs,
        )
        return MadeRound(number, samples, rewards, logprobs)

    def begin(self, number: int, *, weights: str) -> None:
        """Begin to draw the answers of a round with the weights of now, unless they are stored. Collective."""
        if not from_rank_zero(RoundFiles(self._run, number).has(SAMPLES)):
            self._place.begin(number, self.prompts_of(number), weights=weights)

    def draw(self, number: int, *, weights: str) -> list[StoredSample]:
        """Return the answers of a round: the stored ones, those that are being drawn, or new ones. Collective."""
        files, prompts = RoundFiles(self._run, number), self.prompts_of(number)
        return self._stage(
            files,
            SAMPLES,
            read=lambda: files.read_samples(self._keys(prompts)),
            compute=lambda: self._place.draw(number, prompts, weights=weights),
            write=lambda rows: files.write_samples(rows, weights=weights),
        )

    def _keys(self, prompts: Sequence[RolloutPrompt]) -> list[RowKey]:
        return [RowKey(prompt.id, sample) for prompt in prompts for sample in range(self._settings.samples_per_prompt)]

    def prompts_of(self, number: int) -> list[RolloutPrompt]:
        chosen = prompts_of_round(
            number, num_prompts=len(self._prompts), per_round=self._settings.prompts_per_round, seed=self._seed
        )
        return [self._prompts[place] for place in chosen]

    def _stage(
        self,
        files: RoundFiles,
        name: str,
        *,
        read: Callable[[], list[T]],
        compute: Callable[[], list[T]],
        write: Callable[[list[T]], None],
    ) -> list[T]:
        is_first = self._ranks.rank == 0
        stored = from_rank_zero(read() if is_first and files.has(name) else None)
        if stored is not None:
            return stored
        rows = [row for part in everyones(compute()) for row in part]
        # Another start may have taken over meanwhile, and what it stored stays.
        stored = from_rank_zero(read() if is_first and files.has(name) else None)
        if stored is not None:
            return stored
        if is_first:
            write(rows)
        return rows

    # --- Rewards ---

    def _known(self, files: RoundFiles, keys: Sequence[RowKey]) -> dict[RowKey, StoredReward]:
        """Return the rewards that an earlier start got before too many failed."""
        is_there = self._ranks.rank == 0 and files.has(UNFINISHED)
        rows = from_rank_zero(files.read_rewards(keys, is_unfinished=True) if is_there else [])
        return {row.key: row for row in rows if row.error is None}

    def _ask(
        self, prompts: Sequence[RolloutPrompt], samples: Sequence[StoredSample], *, known: dict[RowKey, StoredReward]
    ) -> list[StoredReward]:
        """Ask for the rewards of this rank's share."""
        by_id = {prompt.id: prompt for prompt in prompts}
        mine = share_of(samples, self._ranks)
        asked = [row for row in mine if row.completion is not None and row.key not in known]
        answers = [
            AnsweredPrompt(by_id[row.key.prompt_id], row.completion or "", row.finish_reason or "") for row in asked
        ]
        said = {row.key: rewards for row, rewards in zip(asked, self._rewarders.rewards(answers), strict=True)}
        return [known.get(row.key) or self._rewarded(row, said.get(row.key)) for row in mine]

    def _rewarded(self, sample: StoredSample, said: Rewards | None) -> StoredReward:
        if said is None:
            names = dict.fromkeys(self._rewarders.names)
            return StoredReward(sample.key, None, names, None, f"{NOT_DRAWN}: {sample.error}")
        reward, penalty = said.reward, self._settings.penalty
        if reward is not None and sample.finish_reason != "stop":
            reward = reward - penalty.subtract if penalty.reward is None else penalty.reward
        return StoredReward(sample.key, reward, dict(said.by_name), said.gold, said.error)

    def _write_rewards(self, files: RoundFiles, rows: Sequence[StoredReward]) -> None:
        failed = [row for row in rows if row.reward is None]
        most = self._settings.max_failed_fraction
        if len(failed) <= most * len(rows):
            files.write_rewards(rows)
            files.remove_unfinished()
            return
        files.write_rewards(rows, is_unfinished=True)
        reasons = Counter(row.error or "no reason given" for row in failed).most_common(3)
        raise IncompleteError(
            f"round {files.number}: {len(failed)} of {len(rows)} answers have no reward, more than "
            f"rollouts.max_failed_fraction={most:g}: "
            + "; ".join(f"{number} x {reason}" for reason, number in reasons)
            + "; mend the cause and give the same command again: the answers are kept, and only these are asked again"
        )

    # --- Log-probabilities ---

    def _score(self, number: int, samples: Sequence[StoredSample]) -> list[StoredLogprobs]:
        rows = self._drawing.rows(samples, [self._drawing.prefix_of(number)] * len(samples))
        share, models = self._share, self._models
        policy = models.policy.logprobs(rows, share)
        # The reference does not know the policy's control tokens.
        bare = self._drawing.rows(samples, [""] * len(samples))
        reference = None if models.reference is None else models.reference.logprobs(bare, share)
        values = models.policy.values(rows, share) if models.reads_values else None
        mine = [samples[place] for part in share.parts(len(samples)) for place in part]

        def of(numbers: TokenNumbers | None, place: int) -> Any:
            return None if numbers is None or mine[place].completion_ids is None else numbers[place]

        return [
            StoredLogprobs(row.key, of(policy, place), of(reference, place), of(values, place), row.behaviour)
            for place, row in enumerate(mine)
        ]
