"""Rounds on Ray under kills of the driver and of workers, with 2, 1 and again 2 workers."""

from pathlib import Path

import pytest
import yaml
from killed_rounds import ONE, TWO, answers, assert_prompts_once, num_rounds, stored
from killed_runs import Job, kill_worker, largest_difference, last_checkpoint, tensor_files
from rollout_runs import rollout_values, write_prompts
from train_runs import arguments, run_folder

from jobs.train_rl import main
from phf_ray.runs.directory import RunDirectory

pytestmark = pytest.mark.timeout(900)

ROUNDS = 8


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


def test_a_killed_driver_and_a_killed_worker_do_not_show_with_equal_numbers_of_workers(task, whole):
    run = run_folder(task, "equal")
    job = Job(arguments(task, TWO, name="equal"), job="train_rl")
    job.wait_until(lambda: num_rounds(run) >= 2)
    job.kill()
    before, claim = stored(run), RunDirectory(run).current_claim()
    job = Job(arguments(task, TWO, name="equal"), job="train_rl")
    # The workers of the killed one may store a round or two before they end.
    job.wait_until(lambda: RunDirectory(run).current_claim() != claim and num_rounds(run) >= 4)
    kill_worker(run, rank=1)
    job.ends_with(0)
    assert before.items() <= stored(run).items()
    assert stored(run) == stored(whole)
    mine, other = last_checkpoint(run), last_checkpoint(whole)
    assert tensor_files(mine) == tensor_files(other)
    for file in tensor_files(other):
        assert (mine / file).read_bytes() == (other / file).read_bytes(), file
    assert_prompts_once(run, num_rounds=ROUNDS)


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
    assert_prompts_once(run, num_rounds=ROUNDS)
    assert largest_difference(run, whole) <= 1e-3
