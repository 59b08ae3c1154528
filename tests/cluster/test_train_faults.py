"""Kills in the middle of a run: the weights at the end are those of a run that nothing happened to, byte for byte."""

import json
from pathlib import Path

import pytest
from killed_runs import Job, assert_equal_runs, kill_worker
from train_here import worker_here
from train_runs import arguments, losses, run_folder, write_inputs

from jobs.train_lm import main
from phf_ray.runs.directory import RunDirectory

pytestmark = pytest.mark.timeout(600)

SAVE_STEPS = 20


@pytest.fixture(scope="module")
def reference(tmp_path_factory, local_ray) -> Path:
    """Task file of a run of some hundred steps, and that run, undisturbed."""
    task = write_inputs(
        tmp_path_factory.mktemp("faults"), num_tokens=100_000, save_steps=SAVE_STEPS, save_total_limit=3
    )
    with worker_here():
        assert main(arguments(task, name="reference")) == 0
    return task


def test_sigterm_saves_and_the_same_command_resumes(reference):
    run = run_folder(reference, "terminated")
    job = Job(arguments(reference, name="terminated"))
    job.wait_for_checkpoints(run)
    job.terminate()
    output = job.ends_with(5)
    assert "run the same command again to resume" in output
    assert not (run / "summary.json").exists()
    stopped_at = int(RunDirectory(run).latest_checkpoint().name.rpartition("-")[2])
    assert stopped_at == max(losses(run)), "the checkpoint is that of the last step, not the last multiple"
    assert main(arguments(reference, name="terminated")) == 0
    assert_equal_runs(run, run_folder(reference, "reference"))


def test_a_killed_worker_is_replaced_and_goes_on_from_the_newest_checkpoint(reference):
    run = run_folder(reference, "worker-killed")
    job = Job(arguments(reference, name="worker-killed"))
    job.wait_for_checkpoints(run)
    killed = kill_worker(run)
    output = job.ends_with(0)
    assert "the workers died and were restarted; they continue from step-" in output
    assert json.loads((run / "owner.json").read_text())["pid"] != killed
    assert_equal_runs(run, run_folder(reference, "reference"))


def test_after_a_killed_driver_the_same_command_resumes(reference):
    run = run_folder(reference, "driver-killed")
    job = Job(arguments(reference, name="driver-killed"))
    job.wait_for_checkpoints(run)
    job.kill()
    assert main(arguments(reference, name="driver-killed")) == 0
    assert_equal_runs(run, run_folder(reference, "reference"))
