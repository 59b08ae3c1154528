"""What must be left of a run of rounds that was killed: files as they were first stored, every prompt answered once."""

import json
from pathlib import Path

import pyarrow.parquet as pq

from phf_ray.rollouts.order import prompts_of_round

TWO, ONE = "training.num_workers=2", "training.num_workers=1"
PER_ROUND, SAMPLES, STEPS_PER_ROUND = 4, 3, 2
"""As `rollout_values` has them."""


def stored(run: Path) -> dict[str, bytes]:
    """Content of every file of every round, by name, but of those that are being written."""
    folder = run / "rollouts"
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def num_rounds(run: Path) -> int:
    return len(list((run / "rollouts").glob("round-*/weighed.json")))


def answers(run: Path) -> list[list[dict]]:
    columns = ["prompt_id", "sample", "completion_ids"]
    files = sorted((run / "rollouts").glob("round-*/samples.parquet"))
    return [pq.read_table(file, columns=columns).to_pylist() for file in files]


def assert_prompts_once(run: Path, *, num_rounds: int) -> None:
    """Every prompt that a round should answer is answered as often as it should be, and no other one."""
    storage = run.parent / "prompts"
    (file,) = storage.glob("prompts-*.jsonl")
    ids = [json.loads(line)["id"] for line in file.read_text(encoding="utf-8").splitlines()]
    rounds = answers(run)
    assert len(rounds) == num_rounds
    for number, rows in enumerate(rounds):
        chosen = prompts_of_round(number, num_prompts=len(ids), per_round=PER_ROUND, seed=42)
        wanted = [(ids[place], sample) for place in chosen for sample in range(SAMPLES)]
        assert [(row["prompt_id"], row["sample"]) for row in rows] == wanted
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [row["train/global_step"] for row in rows if "rollouts/round" not in row]
    assert steps == list(range(1, num_rounds * STEPS_PER_ROUND + 1)), "a step was learned twice, or never"
    assert [row["rollouts/round"] for row in rows if "rollouts/round" in row] == list(range(num_rounds))
