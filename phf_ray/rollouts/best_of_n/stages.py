"""Samples and rewards the parts of a run: the same in this process and in Ray's actors.

A part that is there is not made again. What failed in it for a reason that may have passed is tried again; all else in
it stays.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from phf_ray.config.rewards import RewardSpec
from phf_ray.corpus.part_file import PartFile
from phf_ray.corpus.tables import read_rows
from phf_ray.errors import ConfigError
from phf_ray.judging.question import Failure
from phf_ray.rollouts.best_of_n.plan import BestOfNFolder, footer_at, prompts_from_json
from phf_ray.rollouts.best_of_n.rows import (
    NOT_SAMPLED,
    SAMPLE_SCHEMA,
    TRANSIENT,
    BestOfNStats,
    columns_of,
    reward_row,
    reward_schema,
    sample_row,
)
from phf_ray.rollouts.by_url import SampledServer, UrlSampler
from phf_ray.rollouts.prompts import RolloutPrompt
from phf_ray.rollouts.rewards import AnsweredPrompt, Rewards, WeighedRewarders, build_rewarders
from phf_ray.rollouts.sampling import SampledAnswer, Sampler, SamplingSettings, sample_seed

PartRow = Mapping[str, Any]
"""part, digest, prompts, outputs: see `rows_of_parts`."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """What models run on. It decides no row but by rounding."""

    engine: Mapping[str, Any] = field(default_factory=dict)
    """Fields of EngineSettings."""
    reward_device: str | None = None
    """Of models that reward; None: what their settings say."""


@dataclass(frozen=True, slots=True)
class BestOfNWork:
    """What all parts of a run have in common. Plain values, which travel to Ray's actors."""

    output: str
    n: int
    seed: int
    model: Path | SampledServer | None
    """None: the answers are in the rows."""
    sampling: SamplingSettings
    rewards: tuple[RewardSpec, ...]
    """Empty: nothing is rewarded."""
    gold: RewardSpec | None
    hardware: Hardware = field(default_factory=Hardware)

    @property
    def reward_names(self) -> tuple[str, ...]:
        return tuple(spec.called for spec in self.rewards)


class PartSampler:
    """Draws the samples of parts. The model is loaded when the first sample is due."""

    def __init__(self, work: BestOfNWork):
        self._work = work
        self._place = BestOfNFolder(work.output)
        self._sampler: Sampler | None = None

    def __call__(self, row: PartRow) -> dict[str, Any]:
        prompts = prompts_from_json(row["prompts"])
        file, digest = self._place.samples_part(row["part"]), row["digest"]
        footer = footer_at(file)
        stored: dict[tuple[str, int], dict[str, Any]] = {}
        if footer is not None and footer["shard"] == digest:
            if not BestOfNStats.from_json(footer["stats"]).has_transient:
                return dict(row)
            stored = {(one["prompt_id"], one["sample"]): one for one in read_rows(file) if not _is_transient(one)}
        due = [[i for i in range(self._work.n) if (prompt.id, i) not in stored] for prompt in prompts]
        for prompt, numbers, answers in zip(prompts, due, self._answers(prompts, due, row), strict=True):
            for number, said in zip(numbers, answers, strict=True):
                stored[prompt.id, number] = sample_row(prompt.id, number, said)
        rows = [stored[prompt.id, i] for prompt in prompts for i in range(self._work.n)]
        stats = BestOfNStats()
        for one in rows:
            stats.add(one, None)
        _write(file, rows, SAMPLE_SCHEMA, digest, stats)
        return dict(row)

    def _answers(
        self, prompts: Sequence[RolloutPrompt], due: Sequence[Sequence[int]], row: PartRow
    ) -> list[list[SampledAnswer | Failure]]:
        if self._work.model is None:
            outputs = json.loads(row["outputs"])
            return [[_given(own[i]) for i in numbers] for own, numbers in zip(outputs, due, strict=True)]
        seeds = [
            [sample_seed(self._work.seed, 0, prompt.id, i) for i in numbers]
            for prompt, numbers in zip(prompts, due, strict=True)
        ]
        if self._sampler is None:
            self._sampler = build_sampler(self._work.model, self._work.sampling, engine=self._work.hardware.engine)
        return self._sampler.sample(prompts, seeds=seeds)


def build_sampler(model: Path | SampledServer, settings: SamplingSettings, *, engine: Mapping[str, Any]) -> Sampler:
    """Build what draws samples; from a folder, load the model. Raises ConfigError if it can't be sampled from."""
    if isinstance(model, SampledServer):
        return UrlSampler(model, settings)
    from phf_ray.generation.load import load_engine
    from phf_ray.generation.requests import EngineSettings
    from phf_ray.rollouts.sampling import EngineSampler

    loaded = load_engine(model, settings=EngineSettings(**engine))
    if settings.max_tokens >= loaded.context:
        raise ConfigError(
            f"--max-tokens {settings.max_tokens}: the model's context is {loaded.context} tokens, prompt and answer "
            f"together; give at most {loaded.context - 1}, less the length of the prompts"
        )
    if settings.control is not None and settings.control != "none" and not loaded.strings.control_ids:
        raise ConfigError(f"--control {settings.control}: the model has no control tokens; leave it out")
    return EngineSampler(loaded, settings)


class PartRewarder:
    """Rewards the samples of parts. Rewarders are built when the first answer is due."""

    def __init__(self, work: BestOfNWork):
        self._work = work
        self._place = BestOfNFolder(work.output)
        self._rewarders: WeighedRewarders | None = None

    def __call__(self, row: PartRow) -> dict[str, Any]:
        """Return the number of the part and its counts."""
        samples_file, file = self._place.samples_part(row["part"]), self._place.rewards_part(row["part"])
        digest = digest_of_rewards(row["digest"], samples_file)
        samples = list(read_rows(samples_file))
        prompts = {prompt.id: prompt for prompt in prompts_from_json(row["prompts"])}
        said = [NOT_SAMPLED] * len(samples)
        stored = self._stored(file, digest, len(samples))
        for place, rewards in stored.items():
            said[place] = rewards
        due = [place for place, sample in enumerate(samples) if sample["error"] is None and place not in stored]
        answers = [_answered(prompts[samples[place]["prompt_id"]], samples[place]) for place in due]
        if answers:
            if self._rewarders is None:
                self._rewarders = build_rewarders(
                    self._work.rewards, self._work.gold, device=self._work.hardware.reward_device
                )
            for place, rewards in zip(due, self._rewarders.rewards(answers), strict=True):
                said[place] = rewards
        stats = BestOfNStats()
        for sample, rewards in zip(samples, said, strict=True):
            stats.add(sample, rewards)
        names = self._work.reward_names
        rows = [reward_row(sample, rewards, names) for sample, rewards in zip(samples, said, strict=True)]
        _write(file, rows, reward_schema(names), digest, stats)
        return {"part": row["part"], "stats": json.dumps(stats.to_json())}

    def _stored(self, file: str, digest: str, num_samples: int) -> dict[int, Rewards]:
        """Return the rewards that an earlier start gave to these samples: where some failed, the others stay."""
        footer = footer_at(file)
        if footer is None or footer["shard"] != digest:
            return {}
        rows = list(read_rows(file))
        assert len(rows) == num_samples, file
        names = self._work.reward_names
        return {
            place: Rewards(row["reward"], {name: row[f"reward_{name}"] for name in names}, row["gold"])
            for place, row in enumerate(rows)
            if row["error"] is None and row["reward"] is not None
        }


def digest_of_rewards(digest: str, samples_file: str) -> str:
    """Return what the rewards of a part must name: its samples as they are."""
    footer = footer_at(samples_file)
    return f"{digest} {None if footer is None else footer['digest']}"


def counted(row: PartRow, place: BestOfNFolder) -> dict[str, Any]:
    """Return the outcome of a part that is only sampled."""
    footer = footer_at(place.samples_part(row["part"]))
    assert footer is not None
    return {"part": row["part"], "stats": json.dumps(footer["stats"])}


def _write(file: str, rows: Sequence[Mapping[str, Any]], schema: pa.Schema, digest: str, stats: BestOfNStats) -> None:
    part = PartFile(file, rejects=None, schema=schema)
    try:
        part.write(columns_of(rows, schema))
        content = hashlib.blake2b(json.dumps(rows).encode(), digest_size=16).hexdigest()
        part.commit({"shard": digest, "digest": content, "stats": stats.to_json()})
    finally:
        part.abandon()


def _answered(prompt: RolloutPrompt, sample: Mapping[str, Any]) -> AnsweredPrompt:
    return AnsweredPrompt(prompt, sample["completion"], sample["finish_reason"])


def _is_transient(sample: Mapping[str, Any]) -> bool:
    return sample["error"] is not None and Failure(sample["error"]).kind in TRANSIENT


def _given(output: str | None) -> SampledAnswer | Failure:
    return Failure("no_output: the row has null") if output is None else SampledAnswer(output, None, "given")
