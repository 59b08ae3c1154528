"""Rounds on Ray under kills of the driver and of workers, with 2, 1 and again 2 workers."""

import contextlib
import json
import logging
import os
import random
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from killed_runs import Job, kill_worker, largest_difference, last_checkpoint, tensor_files
from rollout_runs import rollout_values, round_files, write_prompts
from train_runs import arguments, run_folder

from jobs.train_rl import main
from phf_ray.rollouts.order import prompts_of_round

pytestmark = pytest.mark.timeout(900)

log = logging.getLogger(__name__)
TWO, ONE = "training.num_workers=2", "training.num_workers=1"
ROUNDS, PER_ROUND, SAMPLES = 8, 4, 3


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> Path:
    folder = write_prompts(tmp_path_factory.mktemp("rollout faults"))
    path = folder / "alpaca" / "task.yml"
    path.parent.mkdir()
    path.write_text(yaml.safe_dump(rollout_values(folder, rounds=ROUNDS)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def whole(task, local_ray) -> Path:
    """The run with two workers to which nothing happens."""
    assert main(arguments(task, TWO, name="whole")) == 0
    return run_folder(task, "whole")


def stored(run: Path) -> dict[str, bytes]:
    return {name: content for name, content in round_files(run).items() if "/." not in name}


def num_rounds(run: Path) -> int:
    return len(list((run / "rollouts").glob("round-*/weighed.json")))


def answers(run: Path) -> list[list[dict]]:
    columns = ["prompt_id", "sample", "completion_ids"]
    files = sorted((run / "rollouts").glob("round-*/samples.parquet"))
    return [pq.read_table(file, columns=columns).to_pylist() for file in files]


def assert_prompts_once(run: Path, *, num_rounds: int = ROUNDS) -> None:
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
    kinds = [(row["train/global_step"], "rollouts/round" in row) for row in rows]
    assert len(kinds) == len(set(kinds)) == num_rounds * 3


def test_a_killed_driver_and_a_killed_worker_do_not_show_with_equal_numbers_of_workers(task, whole):
    run = run_folder(task, "equal")
    job = Job(arguments(task, TWO, name="equal"), job="train_rl")
    job.wait_until(lambda: num_rounds(run) >= 2)
    job.kill()
    before = stored(run)
    job = Job(arguments(task, TWO, name="equal"), job="train_rl")
    job.wait_until(lambda: num_rounds(run) >= 4)
    kill_worker(run, rank=1)
    job.ends_with(0)
    assert before.items() <= stored(run).items()
    assert stored(run) == stored(whole)
    mine, other = last_checkpoint(run), last_checkpoint(whole)
    assert tensor_files(mine) == tensor_files(other)
    for file in tensor_files(other):
        assert (mine / file).read_bytes() == (other / file).read_bytes(), file
    assert_prompts_once(run)


def test_two_workers_then_one_then_two_keep_stored_rounds_and_draw_the_same_answers(task, whole):
    run = run_folder(task, "changed")
    kept: dict[str, bytes] = {}
    for number, workers in ((2, TWO), (5, ONE)):
        job = Job(arguments(task, workers, name="changed"), job="train_rl")
        job.wait_until(lambda least=number: num_rounds(run) >= least)
        job.kill()
        now = stored(run)
        assert kept.items() <= now.items()
        kept = now
    assert main(arguments(task, TWO, name="changed")) == 0
    assert kept.items() <= stored(run).items()
    assert answers(run) == answers(whole)
    assert_prompts_once(run)
    assert largest_difference(run, whole) <= 1e-3


@pytest.mark.faults
@pytest.mark.timeout(3600)
def test_twenty_kills_at_random_moments(task, local_ray):
    """Of the driver, of a worker, or of both; with 2, 1, 2 workers and so on. FAULTS_SEED=N draws the same again."""
    seed = int(os.environ.get("FAULTS_SEED") or random.randrange(2**32))
    draw, num_rounds, longer = random.Random(seed), 30, "rollouts.rounds=30"
    log.info("FAULTS_SEED=%d", seed)
    assert main(arguments(task, TWO, longer, name="undisturbed")) == 0
    whole, run = run_folder(task, "undisturbed"), run_folder(task, "campaign")
    kept: dict[str, bytes] = {}
    moments = sorted(draw.sample(range(1, 4 * num_rounds - 4), 20))
    for number, moment in enumerate(moments):
        workers = (TWO, ONE, TWO)[number % 3]
        job = Job(arguments(task, workers, longer, name="campaign"), job="train_rl")
        job.wait_until(lambda least=moment: len(files_of_rounds(run)) >= least)
        time.sleep(draw.uniform(0, 0.5))
        if draw.random() < 0.5:
            # It may be ending, or not be there yet.
            with contextlib.suppress(OSError, IndexError, AssertionError):
                kill_worker(run, rank=draw.randrange(2))
            time.sleep(draw.uniform(0, 1))
        job.kill()
        now = stored(run)
        assert kept.items() <= now.items(), "a stored file of a round was changed"
        kept = now
    assert main(arguments(task, TWO, longer, name="campaign")) == 0
    assert kept.items() <= stored(run).items()
    assert answers(run) == answers(whole)
    assert_prompts_once(run, num_rounds=num_rounds)
    assert largest_difference(run, whole) <= 1e-3


def files_of_rounds(run: Path) -> list[Path]:
    return list((run / "rollouts").glob("round-*/[!.]*"))
