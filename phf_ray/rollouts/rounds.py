"""The files of a round. Each is written once, whole or not at all, and is never changed afterwards.

    <run>/rollouts/round-00000/samples.parquet    what the policy answered, by (prompt, sample)
                               rewards.parquet    what the answers are worth, or why that is not known
                               logprobs.parquet   log-probabilities of their tokens, and values
                               weighed.json       figures and state of the algorithm

All tables have the same rows in the same order.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from phf_ray.errors import DataError
from phf_ray.runs.directory import ROLLOUTS
from phf_ray.storage.files import write_file, write_text

if TYPE_CHECKING:
    import pyarrow as pa

SAMPLES, REWARDS, LOGPROBS, WEIGHED = "samples.parquet", "rewards.parquet", "logprobs.parquet", "weighed.json"
UNFINISHED = ".unfinished-rewards.parquet"
"""Rewards of a round of which too many failed: those that are known are not asked for again."""


_BEHAVIOUR = "behaviour"
_OF_SAMPLERS, _OF_TRAINING = ("sampler", _BEHAVIOUR), ("policy", "reference", "value", _BEHAVIOUR)


class RowKey(NamedTuple):
    prompt_id: str
    sample: int


@dataclass(frozen=True, slots=True)
class StoredSample:
    """An answer; if it could not be drawn, its text, tokens and end are None."""

    key: RowKey
    prompt: str
    completion: str | None
    completion_ids: tuple[int, ...] | None
    """With the end of text, if the model ended its answer."""
    finish_reason: str | None
    error: str | None = None
    sampler: NDArray[np.float32] | None = None
    """Log-probability of each token as the sampler saw it; None at a temperature or top_p other than 1."""
    behaviour: NDArray[np.float32] | None = None
    """Log-probability of each token by the weights that drew it, as training computes it; None if these weights are
    those that the round's updates start from."""


@dataclass(frozen=True, slots=True)
class StoredReward:
    key: RowKey
    reward: float | None
    """What is learned from: the weighted sum, with penalties."""
    by_name: Mapping[str, float | None]
    gold: float | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class StoredLogprobs:
    """Numbers of each token of the answer, float32; None if there are none."""

    key: RowKey
    policy: NDArray[np.float32] | None
    reference: NDArray[np.float32] | None = None
    value: NDArray[np.float32] | None = None
    behaviour: NDArray[np.float32] | None = None
    """As in the samples."""


@dataclass(frozen=True, slots=True)
class StoredWeighing:
    figures: Mapping[str, float]
    state: Mapping[str, float]


class RoundFiles:
    """The folder of one round."""

    def __init__(self, run: Path, number: int):
        self.number = number
        self.path = run / ROLLOUTS / f"round-{number:05d}"

    def has(self, name: str) -> bool:
        return (self.path / name).exists()

    def write_samples(self, rows: Sequence[StoredSample], *, weights: str) -> None:
        """`weights`: which weights of the policy answered."""
        import pyarrow as pa

        self._write(
            SAMPLES,
            {
                "round": pa.array([self.number] * len(rows), pa.int32()),
                **_keys([row.key for row in rows]),
                "prompt": pa.array([row.prompt for row in rows], pa.string()),
                "completion": pa.array([row.completion for row in rows], pa.string()),
                "completion_ids": pa.array([row.completion_ids for row in rows], pa.list_(pa.int32())),
                "finish_reason": pa.array([row.finish_reason for row in rows], pa.string()),
                "weights": pa.array([weights] * len(rows), pa.string()),
                "error": pa.array([row.error for row in rows], pa.string()),
                "sampler": _lists([row.sampler for row in rows]),
                **_behaviour(rows),
            },
        )

    def read_samples(self, keys: Sequence[RowKey]) -> list[StoredSample]:
        """`keys`: those that the round has to have. All reading methods raise DataError if it has others."""
        return [
            StoredSample(
                RowKey(row["prompt_id"], row["sample"]),
                row["prompt"],
                row["completion"],
                None if row["completion_ids"] is None else tuple(row["completion_ids"]),
                row["finish_reason"],
                row["error"],
                *(None if row.get(name) is None else np.asarray(row[name], np.float32) for name in _OF_SAMPLERS),
            )
            for row in self._read(SAMPLES, keys)
        ]

    def write_rewards(self, rows: Sequence[StoredReward], *, is_unfinished: bool = False) -> None:
        import pyarrow as pa

        names = list(rows[0].by_name) if rows else []
        self._write(
            UNFINISHED if is_unfinished else REWARDS,
            {
                **_keys([row.key for row in rows]),
                "reward": pa.array([row.reward for row in rows], pa.float64()),
                **{f"reward_{name}": pa.array([row.by_name[name] for row in rows], pa.float64()) for name in names},
                "gold": pa.array([row.gold for row in rows], pa.float64()),
                "error": pa.array([row.error for row in rows], pa.string()),
            },
        )

    def read_rewards(self, keys: Sequence[RowKey], *, is_unfinished: bool = False) -> list[StoredReward]:
        return [
            StoredReward(
                RowKey(row["prompt_id"], row["sample"]),
                row["reward"],
                {name.removeprefix("reward_"): row[name] for name in row if name.startswith("reward_")},
                row["gold"],
                row["error"],
            )
            for row in self._read(UNFINISHED if is_unfinished else REWARDS, keys)
        ]

    def remove_unfinished(self) -> None:
        (self.path / UNFINISHED).unlink(missing_ok=True)

    def write_logprobs(self, rows: Sequence[StoredLogprobs]) -> None:
        self._write(
            LOGPROBS,
            {
                **_keys([row.key for row in rows]),
                "policy": _lists([row.policy for row in rows]),
                "reference": _lists([row.reference for row in rows]),
                "value": _lists([row.value for row in rows]),
                **_behaviour(rows),
            },
        )

    def read_logprobs(self, keys: Sequence[RowKey]) -> list[StoredLogprobs]:
        return [
            StoredLogprobs(
                RowKey(row["prompt_id"], row["sample"]),
                *(None if row.get(name) is None else np.asarray(row[name], np.float32) for name in _OF_TRAINING),
            )
            for row in self._read(LOGPROBS, keys)
        ]

    def write_weighing(self, weighing: StoredWeighing) -> None:
        values = {"figures": dict(weighing.figures), "state": dict(weighing.state)}
        write_text(self.path / WEIGHED, json.dumps(values, indent=2) + "\n")

    def read_weighing(self) -> StoredWeighing:
        path = self.path / WEIGHED
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return StoredWeighing(values["figures"], values["state"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _damaged(path, f"{type(error).__name__}: {error}") from None

    def _write(self, name: str, columns: Mapping[str, "pa.Array"]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        sink = pa.BufferOutputStream()
        pq.write_table(pa.table(dict(columns)), sink)
        write_file(self.path / name, sink.getvalue().to_pybytes())

    def _read(self, name: str, keys: Sequence[RowKey]) -> list[dict[str, Any]]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.path / name
        try:
            rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
            found = [RowKey(row["prompt_id"], row["sample"]) for row in rows]
        except (OSError, KeyError, pa.ArrowException) as error:
            raise _damaged(path, f"{type(error).__name__}: {error}") from None
        if found != list(keys):
            wrong = next((i for i, (a, b) in enumerate(zip(found, keys, strict=False)) if a != b), len(found))
            raise _damaged(path, f"it has {len(found)} rows for {len(keys)} samples, and row {wrong} is another one")
        return rows


def _keys(keys: Sequence[RowKey]) -> dict[str, "pa.Array"]:
    import pyarrow as pa

    return {
        "prompt_id": pa.array([key.prompt_id for key in keys], pa.string()),
        "sample": pa.array([key.sample for key in keys], pa.int32()),
    }


def _lists(rows: Sequence[NDArray[np.float32] | None]) -> "pa.Array":
    import pyarrow as pa

    return pa.array(rows, pa.list_(pa.float32()))


def _behaviour(rows: Sequence[StoredSample] | Sequence[StoredLogprobs]) -> dict[str, "pa.Array"]:
    """Return the column of older weights; none if the round was drawn with its own."""
    numbers = [row.behaviour for row in rows]
    return {} if all(one is None for one in numbers) else {_BEHAVIOUR: _lists(numbers)}


def _damaged(path: Path, what: str) -> DataError:
    return DataError(
        f"{path} is not what this run wrote ({what}); if it was damaged, remove the folder of this round and all later "
        "ones, and the checkpoints after it, to draw them again"
    )
