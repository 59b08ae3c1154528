"""Runs of best-of-n on a tiny model, without Ray, and what they leave."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from phf_ray.generation.chat.prompts import InstructionPrompt
from phf_ray.generation.chat.templates import load_template
from phf_ray.judging.question import Failure
from phf_ray.rollouts.best_of_n.request import BestOfNRequest
from phf_ray.rollouts.prompts import RolloutPrompt, rollout_prompt
from phf_ray.rollouts.rewards import named_rewards
from phf_ray.rollouts.sampling import SampledAnswer, SamplingSettings, sample_seed

SHORT = SamplingSettings(max_tokens=16)


def write_prompts(file: Path, num: int) -> str:
    rows = [
        {"instruction": f"Write {i} words", "input": "" if i % 2 else "now", "datasplit": "eval"} for i in range(num)
    ]
    file.write_text(json.dumps(rows))
    return str(file)


def prompts_of(num: int) -> tuple[RolloutPrompt, ...]:
    plain = load_template("plain")
    return tuple(rollout_prompt(InstructionPrompt(f"Write {i} words"), template=plain) for i in range(num))


def request_of(model: Path, *, num: int = 40, n: int = 4, reward: str = "longer", **changes: Any) -> BestOfNRequest:
    values: dict[str, Any] = {"prompts": prompts_of(num), "n": n, "model": model, "sampling": SHORT, "name": "tiny"}
    if changes.get("mode") != "decode":
        values["rewards"] = named_rewards(reward, option="--reward")
    return BestOfNRequest(**(values | changes))


def samples_in(output: Path) -> list[dict[str, Any]]:
    return pq.read_table(output / "samples.parquet").to_pylist()


class ScriptedSampler:
    """In place of a model: answers are words by the seed alone. `script(prompt, sample)` may return a Failure instead.

    Counts what is asked of it, over all that are built."""

    asked: Counter[tuple[str, int]] = Counter()
    script = staticmethod(lambda prompt, sample: None)

    def __init__(self, *_: Any, **__: Any):
        pass

    def sample(self, prompts, *, seeds):
        return [[self._one(prompt, seed) for seed in own] for prompt, own in zip(prompts, seeds, strict=True)]

    def _one(self, prompt: RolloutPrompt, seed: int) -> SampledAnswer | Failure:
        number = next(i for i in range(16) for own in (0, 1) if sample_seed(own, 0, prompt.id, i) == seed)
        type(self).asked[prompt.text, number] += 1
        failed = type(self).script(prompt, number)
        if failed is not None:
            return failed
        return SampledAnswer("word " * (seed % 7) + str(number), (1, 2), "stop")
