"""Everything that was asked and answered in an attack, written down as it comes.

An attack started again replays these answers and asks only for what is missing; the price of an interruption is the
requests under way.
"""

import gzip
import json
from collections.abc import Mapping, Sequence
from typing import Any

import fsspec

from phf_ray.evaluation.store import claim_directory
from phf_ray.storage.files import write_file

TRANSCRIPT = "transcript.jsonl.gz"
_STEPS = "steps"


class Transcript:
    """The output directory: `plan.json`, and every answer, in a file of its own until the attack is over."""

    def __init__(self, output: str):
        self._output = output
        self._filesystem, self._root = fsspec.core.url_to_fs(output)
        self._whole: dict[str, dict[str, Any]] = {}

    def claim(self, plan: Mapping[str, Any], *, restart: bool) -> None:
        """Write down what is attacked and how; refuse a directory that holds another attack."""
        results = (_STEPS, TRANSCRIPT, "samples.parquet")
        claim_directory(self._output, plan, holds="an attack", restart=restart, results=results)

    def load(self) -> None:
        """Take in an attack that was over; more trials and rounds go on from it."""
        path = f"{self._root}/{TRANSCRIPT}"
        if self._filesystem.exists(path):
            lines = gzip.decompress(self._filesystem.cat_file(path)).decode().splitlines()
            self._whole = {step["key"]: step for step in map(json.loads, lines)}

    def get(self, key: str) -> dict[str, Any] | None:
        path = f"{self._root}/{_STEPS}/{key}.json"
        if key in self._whole or not self._filesystem.exists(path):
            return self._whole.get(key)
        return dict(json.loads(self._filesystem.cat_file(path)))

    def put(self, key: str, step: Mapping[str, Any]) -> None:
        content = json.dumps({"key": key, **step}, allow_nan=False)
        write_file(f"{self._output}/{_STEPS}/{key}.json", content.encode())

    def num_steps(self) -> int:
        return len(self._whole) + len(self._step_keys())

    def _step_keys(self) -> list[str]:
        folder = f"{self._root}/{_STEPS}"
        found = self._filesystem.ls(folder, detail=False) if self._filesystem.exists(folder) else []
        names = (str(path).rpartition("/")[2] for path in found)
        return [name.removesuffix(".json") for name in names if name.endswith(".json")]

    def close(self, keys: Sequence[str]) -> None:
        """One file of all answers, these first and in this order, in place of one for each.

        The others are of an attack with more trials or rounds, which may go on from them.
        """
        ordered = dict.fromkeys([*keys, *sorted({*self._whole, *self._step_keys()})])
        lines = "".join(json.dumps(self.get(key), allow_nan=False) + "\n" for key in ordered)
        # The time of writing is left out: the same attack gives the same file.
        write_file(f"{self._output}/{TRANSCRIPT}", gzip.compress(lines.encode(), mtime=0))
        if self._filesystem.exists(f"{self._root}/{_STEPS}"):
            self._filesystem.rm(f"{self._root}/{_STEPS}", recursive=True)
