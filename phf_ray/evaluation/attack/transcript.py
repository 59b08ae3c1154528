"""Stores every question and answer of an attack as they arrive.

A restarted attack replays the stored answers and asks only what is missing. An interruption costs only the requests in
progress.
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
    """The output directory: `plan.json` and every answer, each in its own file until the attack is over."""

    def __init__(self, output: str):
        self._output = output
        self._filesystem, self._root = fsspec.core.url_to_fs(output)
        self._whole: dict[str, dict[str, Any]] = {}

    def claim(self, plan: Mapping[str, Any], *, restart: bool) -> None:
        """Write the plan of the attack; refuse a directory that holds another attack."""
        results = (_STEPS, TRANSCRIPT, "samples.parquet")
        claim_directory(self._output, plan, holds="an attack", restart=restart, results=results)

    def load(self) -> None:
        """Read the answers of a finished attack, so that more trials and rounds can continue it."""
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
        """Replace the files of single answers by one file with all answers, those of `keys` first and in this order.

        The other answers belong to an attack with more trials or rounds, which may continue from them.
        """
        ordered = dict.fromkeys([*keys, *sorted({*self._whole, *self._step_keys()})])
        lines = "".join(json.dumps(self.get(key), allow_nan=False) + "\n" for key in ordered)
        # The time of writing is left out, so that the same attack gives the same file.
        write_file(f"{self._output}/{TRANSCRIPT}", gzip.compress(lines.encode(), mtime=0))
        if self._filesystem.exists(f"{self._root}/{_STEPS}"):
            self._filesystem.rm(f"{self._root}/{_STEPS}", recursive=True)
