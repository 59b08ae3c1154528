"""Reads the rounds that a run has stored: their rows, and the figures computed from them.

A round counts once the algorithm has weighed it (`weighed.json`, the last of its files). What was under way when a run
was stopped is the newest round; a gap before it is an error.
"""

import math
import re
from pathlib import Path

from phf_ray.errors import ConfigError, DataError
from phf_ray.rollouts.figures import RolloutRow, RoundFigures, round_figures
from phf_ray.rollouts.rounds import (
    LOGPROBS,
    SAMPLES,
    WEIGHED,
    RoundFiles,
    RowKey,
    StoredLogprobs,
    StoredReward,
    StoredSample,
)
from phf_ray.runs.directory import ROLLOUTS

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
        round_figures(number, read_round(run, number), weighed=read_weighed(run, number))
        for number in stored_rounds(run)[:until]
    ]


def read_round(run: Path, number: int) -> list[RolloutRow]:
    """Return the rows of a round. Raises DataError that names the file if its tables do not fit each other."""
    files = RoundFiles(run, number)
    keys, weights = _keys(files)
    tables = zip(files.read_samples(keys), files.read_rewards(keys), files.read_logprobs(keys), weights, strict=True)
    return [_row(files, *parts) for parts in tables]


def read_weighed(run: Path, number: int) -> dict[str, float]:
    """Return figures and state of the algorithm; what is no finite number is left out."""
    weighing = RoundFiles(run, number).read_weighing()
    found = {**weighing.state, **weighing.figures}
    return {
        name: float(value) for name, value in found.items() if isinstance(value, int | float) and math.isfinite(value)
    }


def _keys(files: RoundFiles) -> tuple[list[RowKey], list[str]]:
    """Return the keys of a round's answers, and the weights that each was drawn with."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = files.path / SAMPLES
    try:
        table = pq.read_table(path, columns=["prompt_id", "sample", "weights"]).to_pydict()
        keys = [RowKey(*key) for key in zip(table["prompt_id"], table["sample"], strict=True)]
        return keys, table["weights"]
    except (OSError, KeyError, pa.ArrowException) as error:
        raise DataError(
            f"{path} is not what a run writes: {type(error).__name__}: {error}; put the file back"
        ) from None


def _row(
    files: RoundFiles, sample: StoredSample, reward: StoredReward, logprobs: StoredLogprobs, weights: str
) -> RolloutRow:
    num_tokens = len(sample.completion_ids or ())
    # Figures are of the policy that wrote the answer, and so are its rewards.
    policy = logprobs.policy if logprobs.behaviour is None else logprobs.behaviour
    for name, numbers in (("policy", policy), ("reference", logprobs.reference)):
        if sample.completion is not None and numbers is not None and len(numbers) != num_tokens:
            raise DataError(
                f"{files.path / LOGPROBS}: prompt {sample.key.prompt_id}, sample {sample.key.sample} has "
                f"{len(numbers)} log-probabilities of the {name} for {num_tokens} tokens; put the file back"
            )
    return RolloutRow(
        prompt_id=sample.key.prompt_id,
        sample=sample.key.sample,
        prompt=sample.prompt,
        completion=sample.completion,
        num_tokens=num_tokens,
        finish_reason=sample.finish_reason,
        weights=weights,
        reward=_known(reward.reward),
        rewards={name: _known(value) for name, value in reward.by_name.items()},
        gold=_known(reward.gold),
        error=reward.error or sample.error,
        policy=None if policy is None else policy.tolist(),
        reference=None if logprobs.reference is None else logprobs.reference.tolist(),
    )


def _known(value: float | None) -> float | None:
    """Return the number; None for what is none, so that a failure stored as NaN enters no mean."""
    return value if value is not None and math.isfinite(value) else None
