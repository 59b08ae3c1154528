"""Rounds of rollouts made on the spot: rows, their figures, and the files of a run."""

import json
import math
from collections.abc import Sequence

import numpy as np

from phf_ray.rollouts.figures import RolloutRow, RoundFigures, round_figures
from phf_ray.rollouts.rounds import (
    RoundFiles,
    RowKey,
    StoredLogprobs,
    StoredReward,
    StoredSample,
    StoredWeighing,
)


def rollout_row(prompt_id="p", sample=0, *, completion="a b c", reward=0.0, logprobs=None, **changes) -> RolloutRow:
    """`logprobs`: (policy, reference) of each token."""
    policy, reference = zip(*logprobs, strict=True) if logprobs else (None, None)
    values = {
        "prompt": f"prompt {prompt_id}",
        "num_tokens": len(logprobs) if logprobs else len((completion or "").split()),
        "finish_reason": "stop",
        "weights": "step-00000000",
        "rewards": {},
        "gold": None,
        "error": None,
        **changes,
    }
    return RolloutRow(
        prompt_id=prompt_id, sample=sample, completion=completion, reward=reward, policy=policy, reference=reference,
        **values,
    )  # fmt: skip


def gold_round(
    number: int, gold: Sequence[float], *, kl: float = 0.0, reward: float = 0.0, text="a b c"
) -> RoundFigures:
    """Figures of a round with one answer for each prompt; prompts of different rounds differ."""
    rows = [
        rollout_row(
            f"{number}-{place}", gold=float(value), reward=reward, logprobs=[(-1.0, -1.0 - kl)], completion=text
        )
        for place, value in enumerate(gold)
    ]
    return round_figures(number, rows)


def gold_curve(means: Sequence[float], *, num_prompts: int, noise: float, seed: int = 0, kls=None, rewards=None):
    """Rounds whose gold rewards have these means but for noise, whose standard deviation is given."""
    rng = np.random.default_rng(seed)
    return [
        gold_round(
            number,
            mean + noise * rng.normal(size=num_prompts),
            kl=kls[number] if kls else 0.0,
            reward=rewards[number] if rewards else 0.0,
        )
        for number, mean in enumerate(means)
    ]


def write_round(run, number: int, rows: Sequence[RolloutRow], *, figures=None) -> None:
    """Write the files of a round, as a run does. All rows have the weights of the first."""
    files = RoundFiles(run, number)
    keys = [RowKey(row.prompt_id, row.sample) for row in rows]
    files.write_samples(
        [
            StoredSample(
                key,
                row.prompt,
                row.completion,
                None if row.completion is None else tuple(range(row.num_tokens)),
                row.finish_reason,
                row.error if row.completion is None else None,
            )
            for key, row in zip(keys, rows, strict=True)
        ],
        weights=rows[0].weights,
    )
    files.write_rewards(
        [StoredReward(key, row.reward, row.rewards, row.gold, row.error) for key, row in zip(keys, rows, strict=True)]
    )
    files.write_logprobs(
        [
            StoredLogprobs(
                key, *(None if one is None else np.asarray(one, np.float32) for one in (row.policy, row.reference))
            )
            for key, row in zip(keys, rows, strict=True)
        ]
    )
    files.write_weighing(StoredWeighing(figures or {}, {"kl_coef": 0.05}))


HOSTILE = "</pre><script>document.title='taken'</script><img src='http://127.0.0.1:9/x' onerror=alert(1)>\x00\u202e$x$"
_WORDS = [f"word{number}" for number in range(20)]


def write_overoptimized_run(run, *, num_rounds=16, num_prompts=24, num_samples=4, repeats=True, stop=None) -> None:
    """Write a run whose reward rises throughout, whose gold follows Gao's form, and whose text degenerates a little.

    repeats: every third round asks the same prompts. Many answers and prompts are hostile, one
    answer failed.
    """
    rng = np.random.default_rng(0)
    for number in range(num_rounds):
        way = number / max(1, num_rounds - 1)
        distance = math.sqrt(14.4 * way)
        rows = []
        for place in range(num_prompts):
            prompt = f"q{number % 3}-{place}" if repeats else f"q{number}-{place}"
            ask = f"Below is an instruction.\n\n### Instruction:\nSay something about {prompt}.\n\n### Response:\n"
            for sample in range(num_samples):
                length = int(rng.integers(12, 40) * (1 + 0.8 * way))
                words = [str(word) for word in rng.choice(_WORDS[: max(4, int(20 - 15 * way))], size=length)]
                kl = 0.0 if not number else way * 1.6 * float(rng.gamma(9.0)) / length
                policy = -rng.gamma(2.0, 0.5, size=length + 1)
                gold = distance * (0.9 - 0.6 * math.log(distance or 1.0)) + 0.5 * float(rng.normal())
                is_first = (place, sample) == (0, 0)
                rows.append(
                    rollout_row(
                        prompt,
                        sample,
                        prompt=ask + (HOSTILE if place % 4 == 0 else ""),
                        completion=" ".join(words) + (HOSTILE if place % 2 else ""),
                        reward=None if is_first and number == 2 else 2 * way + 0.4 * float(rng.normal()),
                        gold=gold,
                        rewards={"helpful": 2 * way + 0.1, "brief": -0.1},
                        error=f"timeout: {HOSTILE}" if is_first and number == 2 else None,
                        finish_reason="length" if rng.random() < 0.05 + 0.3 * way else "stop",
                        weights=f"step-{2 * number:08d}",
                        logprobs=[(float(p), float(p) - kl) for p in policy],
                    )
                )
        write_round(run, number, rows)
    config = {"rollouts": {"rounds": num_rounds, "stop": stop or {}}}
    (run / "config.json").write_text(json.dumps(config))
