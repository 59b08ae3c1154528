"""Answers of a model to held-out prompts: drawn, judged and scored as those of a round, and stored as one."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from phf_ray.config.rewards import RewardSpec
from phf_ray.errors import ConfigError
from phf_ray.generation.engine import Engine
from phf_ray.judging.question import Failure
from phf_ray.model_folder import weights_fingerprint
from phf_ray.models.loading import LoadedCheckpoint, load_checkpoint
from phf_ray.rollouts.figures import RolloutRow
from phf_ray.rollouts.forward import Forward, ForwardShare, TokenNumbers
from phf_ray.rollouts.guard.read import read_round
from phf_ray.rollouts.prompts import RolloutPrompt
from phf_ray.rollouts.rewards.base import AnsweredPrompt, Rewarder
from phf_ray.rollouts.rewards.build import build_rewarder
from phf_ray.rollouts.rewards.weighted import checked_rewards
from phf_ray.rollouts.rounds import RoundFiles, RowKey, StoredLogprobs, StoredReward, StoredSample
from phf_ray.rollouts.sampling import SamplingSettings, sample_with_engine, seeds_of
from phf_ray.rollouts.token_rows import TokenRows, token_rows
from phf_ray.storage.files import write_text
from phf_ray.storage.hashing import digest

_MICRO_BATCH = 32
_KEY = "asked.json"
"""What the stored answers answer. Written last."""


@dataclass(frozen=True, slots=True)
class HeldOutSettings:
    """How every model is asked. Answers are drawn from the whole distribution, whose KL is measured."""

    gold: RewardSpec
    samples_per_prompt: int = 4
    max_tokens: int = 300
    seed: int = 0
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class HeldOutPrompts:
    """The prompts, and what every model needs: the base and the gold reward, loaded once."""

    prompts: Sequence[RolloutPrompt]
    settings: HeldOutSettings
    base: LoadedCheckpoint = field(repr=False)
    rewarder: Rewarder = field(repr=False)
    key: Mapping[str, Any] = field(repr=False)
    """All that decides answers, rewards and log-probabilities beside the model. JSON."""


def held_out_prompts(prompts: Sequence[RolloutPrompt], base: Path, settings: HeldOutSettings) -> HeldOutPrompts:
    """Load what all models share. Raises ConfigError without prompts."""
    if len(prompts) < 2:
        raise ConfigError(f"{len(prompts)} held-out prompts say nothing of the spread between prompts; give more")
    loaded = load_checkpoint(base, device=settings.device)
    rewarder = build_rewarder(settings.gold, device=settings.device)
    key = {
        "prompts": digest([prompt.text for prompt in prompts], size=16),
        "base": weights_fingerprint(base),
        "gold": rewarder.identity,
        **{name: getattr(settings, name) for name in ("samples_per_prompt", "max_tokens", "seed")},
    }
    return HeldOutPrompts(prompts, settings, loaded, rewarder, key)


def draw_answers(directory: Path, asked: HeldOutPrompts, *, store: Path) -> list[RolloutRow]:
    """Draw, judge and score a model's answers, and store them as round 0 of the folder `store`.

    What is stored there of the same models, prompts and settings is taken as it is.
    """
    key = {**asked.key, "model": weights_fingerprint(directory)}
    if _stored_key(store) == key:
        return read_round(store, 0)
    loaded = load_checkpoint(directory, device=asked.settings.device)
    samples = _samples(loaded, asked)
    gold = _judged(samples, asked)
    rows = _token_rows(samples, loaded.tokenizer)
    policy, reference = (_logprobs(one, rows) for one in (loaded, asked.base))
    files = RoundFiles(store, 0)
    files.write_samples(samples, weights=key["model"])
    files.write_rewards([_reward(sample.key, said, sample.error) for sample, said in zip(samples, gold, strict=True)])
    files.write_logprobs(
        [
            StoredLogprobs(sample.key, *(None if sample.completion_ids is None else one for one in numbers))
            for sample, *numbers in zip(samples, policy, reference, strict=True)
        ]
    )
    write_text(store / _KEY, json.dumps(key, indent=1) + "\n")
    return read_round(store, 0)


def best_rows(samples: Sequence[Mapping[str, Any]], *, weights: str) -> list[RolloutRow]:
    """Return the best answers among the rows of `samples.parquet` of best-of-n, one for each prompt.

    They have no log-probabilities: nobody knows those of a choice. A prompt without a best answer has a row, too.
    """
    best: dict[str, Mapping[str, Any]] = {}
    for row in samples:
        if row["is_best"] or row["prompt_id"] not in best:
            best[row["prompt_id"]] = row
    return [_best_row(row, weights) for row in best.values()]


def _best_row(row: Mapping[str, Any], weights: str) -> RolloutRow:
    is_best = bool(row["is_best"])
    gold = row["gold"] if is_best else None
    return RolloutRow(
        prompt_id=row["prompt_id"],
        sample=row["sample"],
        prompt=row["prompt"],
        completion=row["completion"] if is_best else None,
        num_tokens=len(row["completion_ids"] or ()) if is_best else 0,
        finish_reason=row["finish_reason"] if is_best else None,
        weights=weights,
        reward=gold,
        rewards={},
        gold=gold,
        error=row["error"] if is_best else f"no_reward: none of the samples has one; {row['error']}",
        policy=None,
        reference=None,
    )


def _stored_key(store: Path) -> Any:
    try:
        return json.loads((store / _KEY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _samples(loaded: LoadedCheckpoint, asked: HeldOutPrompts) -> list[StoredSample]:
    settings = asked.settings
    engine = Engine(loaded.model.backbone, loaded.tokenizer, info=loaded.info)
    drawn = sample_with_engine(
        engine,
        [tuple(_encode(loaded.tokenizer, prompt.text)) for prompt in asked.prompts],
        seeds=seeds_of(asked.prompts, num_samples=settings.samples_per_prompt, seed=settings.seed),
        settings=SamplingSettings(top_p=1.0, max_tokens=settings.max_tokens, control="none"),
    )
    return [
        _sample(prompt, number, answer)
        for prompt, own in zip(asked.prompts, drawn, strict=True)
        for number, answer in enumerate(own)
    ]


def _sample(prompt: RolloutPrompt, number: int, answer: Any) -> StoredSample:
    key = RowKey(prompt.id, number)
    if isinstance(answer, Failure):
        return StoredSample(key, prompt.text, None, None, None, answer.reason)
    return StoredSample(key, prompt.text, answer.completion, answer.completion_ids, answer.finish_reason)


def _judged(samples: Sequence[StoredSample], asked: HeldOutPrompts) -> list[float | Failure | None]:
    """Return the gold reward of each sample; None of one that was not drawn."""
    by_id = {prompt.id: prompt for prompt in asked.prompts}
    answers = [
        AnsweredPrompt(by_id[sample.key.prompt_id], sample.completion, sample.finish_reason or "")
        for sample in samples
        if sample.completion is not None
    ]
    said = iter(checked_rewards(asked.rewarder, answers, name="gold"))
    return [None if sample.completion is None else next(said) for sample in samples]


def _reward(key: RowKey, said: float | Failure | None, error: str | None) -> StoredReward:
    if isinstance(said, Failure):
        return StoredReward(key, None, {}, None, f"gold: {said.reason}")
    return StoredReward(key, said, {}, said, error)


def _token_rows(samples: Sequence[StoredSample], tokenizer: Any) -> TokenRows:
    pad_id = tokenizer.pad_token_id
    return token_rows(
        [_encode(tokenizer, sample.prompt) for sample in samples],
        [sample.completion_ids or () for sample in samples],
        pad_id=int(tokenizer.eos_token_id if pad_id is None else pad_id),
    )


def _logprobs(loaded: LoadedCheckpoint, rows: TokenRows) -> TokenNumbers:
    forward = Forward(loaded.model, precision="fp32", temperature=1.0)
    return forward.logprobs(rows, ForwardShare(_MICRO_BATCH))


def _encode(tokenizer: Any, prompt: str) -> list[int]:
    """The end-of-text token and the prompt, as in a round."""
    return [tokenizer.eos_token_id, *tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"]]
