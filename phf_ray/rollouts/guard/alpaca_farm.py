"""Rounds as AlpacaFarm's trainers leave them: `rollouts/step_{i}.json`, an array of queries, responses and rewards."""

import json
from pathlib import Path

from phf_ray.rollouts.guard.read import read_round, stored_rounds
from phf_ray.runs.directory import ROLLOUTS
from phf_ray.storage.files import write_text


def write_alpaca_farm_rollouts(run: Path, *, output: Path | None = None) -> list[Path]:
    """Write a file for each finished round and return them all. AlpacaFarm counts from 1: round 0 is `step_1.json`.

    A row whose answer could not be drawn is left out, as nothing stands for it there; a reward that failed is null.
    """
    folder = (run if output is None else output) / ROLLOUTS
    written = []
    for number in stored_rounds(run):
        rows = [
            {"queries": row.prompt, "responses": row.completion, "rewards": row.reward}
            for row in read_round(run, number)
            if row.completion is not None
        ]
        path = folder / f"step_{number + 1}.json"
        write_text(path, json.dumps(rows, indent=4, ensure_ascii=False, allow_nan=False) + "\n")
        written.append(path)
    return written
