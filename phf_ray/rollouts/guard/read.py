"""Reads the rounds that a run has stored: their rows, and the figures computed from them.

A round counts once the algorithm has weighed it (`weighed.json`, the last of its files). What was under way when a run
was stopped is the newest round; a gap before it is an error.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from phf_ray.errors import ConfigError, DataError
from phf_ray.rollouts.figures import RolloutRow, RoundFigures, figures_of_round

ROLLOUTS = "rollouts"
SAMPLES, REWARDS, LOGPROBS, WEIGHED = "samples.parquet", "rewards.parquet", "logprobs.parquet", "weighed.json"
_ROUND = re.compile(r"round-(\d{5,})")


def stored_rounds(run: Path) -> list[int]:
    """Return the numbers of the finished rounds, in order. Raises ConfigError if there is no run of rounds."""
    folder = run / ROLLOUTS
    if not folder.is_dir():
        raise ConfigError(
            f"{run} holds no rounds: there is no folder {folder}; give the directory of a run of phf train-rl"
        )
    found = {int(match[1]): path for path in folder.iterdir() if (match := _ROUND.fullmatch(path.name))}
    finished = sorted(number for number, path in found.items() if (path / WEIGHED).exists())
    if not finished:
        raise ConfigError(f"{folder} holds no finished round yet; wait until one has its {WEIGHED}")
    missing = sorted({*range(finished[-1])} - {*finished})
    if missing:
        raise DataError(
            f"{folder}: round {missing[0]} is not there or has no {WEIGHED}, but round {finished[-1]} has one; put its "
            "files back: figures of the run need every round"
        )
    return finished


def read_figures(run: Path, *, until: int | None = None) -> list[RoundFigures]:
    """Return the figures of all finished rounds, or of those before `until`."""
    return [
        figures_of_round(number, read_round(run, number), weighed=read_weighed(run, number))
        for number in stored_rounds(run)[:until]
    ]


def read_round(run: Path, number: int) -> list[RolloutRow]:
    """Return the rows of a round. Raises DataError that names the file if its tables do not fit each other."""
    folder = _folder(run, number)
    samples = _rows(folder / SAMPLES)
    rewards = _rows(folder / REWARDS)
    has_logprobs = (folder / LOGPROBS).exists()
    logprobs = _rows(folder / LOGPROBS) if has_logprobs else [{}] * len(samples)
    for name, rows in ((REWARDS, rewards), (LOGPROBS, logprobs)):
        if name == LOGPROBS and not has_logprobs:
            continue
        _check_same(folder / name, rows, samples)
    return [
        _row(folder, sample, reward, numbers)
        for sample, reward, numbers in zip(samples, rewards, logprobs, strict=True)
    ]


def read_weighed(run: Path, number: int) -> dict[str, float]:
    """Return what the algorithm said of the round; what is no number is left out."""
    path = _folder(run, number) / WEIGHED
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        figures = {**content["state"], **content["figures"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from None
    return {name: float(value) for name, value in figures.items() if isinstance(value, int | float)}


def _row(folder: Path, sample: Mapping[str, Any], reward: Mapping[str, Any], numbers: Mapping[str, Any]) -> RolloutRow:
    ids = sample["completion_ids"]
    for name in ("policy", "reference"):
        if numbers.get(name) is not None and ids is not None and len(numbers[name]) != len(ids):
            raise _damaged(
                folder / LOGPROBS,
                f"prompt {sample['prompt_id']}, sample {sample['sample']} has {len(numbers[name])} log-probabilities "
                f"of the {name} for {len(ids)} tokens",
            )
    return RolloutRow(
        prompt_id=sample["prompt_id"],
        sample=sample["sample"],
        prompt=sample["prompt"],
        completion=sample["completion"],
        num_tokens=len(ids or ()),
        finish_reason=sample["finish_reason"],
        weights=sample["weights"],
        reward=_known(reward["reward"]),
        rewards={name.removeprefix("reward_"): _known(reward[name]) for name in reward if name.startswith("reward_")},
        gold=_known(reward["gold"]),
        error=reward["error"] or sample.get("error"),
        policy=numbers.get("policy"),
        reference=numbers.get("reference"),
    )


def _known(value: float | None) -> float | None:
    """Return the number; None for what is none, so that a failure stored as NaN enters no mean."""
    return value if value is not None and math.isfinite(value) else None


def _rows(path: Path) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from None
    needed = {
        SAMPLES: ("prompt_id", "sample", "prompt", "completion", "completion_ids", "finish_reason", "weights"),
        REWARDS: ("prompt_id", "sample", "reward", "gold", "error"),
        LOGPROBS: ("prompt_id", "sample", "policy", "reference"),
    }[path.name]
    missing = [name for name in needed if rows and name not in rows[0]]
    if missing or not rows:
        raise _damaged(path, f"it has no column {missing[0]}" if missing else "it has no rows")
    return rows


def _check_same(path: Path, rows: Sequence[Mapping[str, Any]], samples: Sequence[Mapping[str, Any]]) -> None:
    theirs, ours = ([(row["prompt_id"], row["sample"]) for row in table] for table in (rows, samples))
    if theirs != ours:
        wrong = next(
            (i for i, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b), min(len(theirs), len(ours))
        )
        raise _damaged(path, f"it has {len(rows)} rows for {len(ours)} samples, and row {wrong} is another one")


def _folder(run: Path, number: int) -> Path:
    return run / ROLLOUTS / f"round-{number:05d}"


def _damaged(path: Path, what: str) -> DataError:
    return DataError(f"{path} is not what a run writes: {what}; put the file back")
