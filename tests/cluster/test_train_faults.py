"""Kills in the middle of a run: the weights at the end are those of a run that nothing happened to, byte for byte."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from places import ROOT
from train_runs import arguments, losses, metrics, run_folder, write_inputs

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
    assert main(arguments(task, name="reference")) == 0
    return task


def start(task: Path, name: str) -> "subprocess.Popen[str]":
    """The job as a user starts it, on the cluster of these tests."""
    import ray

    return subprocess.Popen(
        [sys.executable, "-m", "jobs.train_lm", *arguments(task, name=name)],
        cwd=ROOT,
        env={**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_until(condition: Callable[[], object], job: "subprocess.Popen[str]") -> None:
    for _ in range(3000):
        if condition():
            return
        assert job.poll() is None, job.communicate()[0]
        time.sleep(0.1)
    pytest.fail("the job did not come so far in five minutes")


def wait_for_second_checkpoint(run: Path, job: "subprocess.Popen[str]") -> None:
    wait_until(lambda: len(RunDirectory(run).complete_checkpoints()) >= 2, job)


def assert_equal_to_reference(task: Path, name: str) -> None:
    ours, theirs = run_folder(task, name), run_folder(task, "reference")
    summary = json.loads((ours / "summary.json").read_text())
    for file in ("model.safetensors", "training_state/optimizer.safetensors"):
        paths = [run / summary["checkpoint"] / file for run in (ours, theirs)]
        assert paths[0].read_bytes() == paths[1].read_bytes(), file
    assert losses(ours) == losses(theirs)
    steps = [(row["train/global_step"], "train/loss" in row) for row in metrics(ours)]
    assert len(steps) == len(set(steps)), "a row was written twice"


def test_sigterm_saves_and_the_same_command_resumes(reference):
    run = run_folder(reference, "terminated")
    job = start(reference, "terminated")
    wait_for_second_checkpoint(run, job)
    job.send_signal(signal.SIGTERM)
    output, _ = job.communicate(timeout=300)
    assert job.returncode == 5, output
    assert "run the same command again to resume" in output
    assert not (run / "summary.json").exists()
    stopped_at = int(RunDirectory(run).latest_checkpoint().name.rpartition("-")[2])
    assert stopped_at == max(losses(run)), "the checkpoint is that of the last step, not the last multiple"
    assert main(arguments(reference, name="terminated")) == 0
    assert_equal_to_reference(reference, "terminated")


def test_a_killed_worker_is_replaced_and_goes_on_from_the_newest_checkpoint(reference):
    run = run_folder(reference, "worker-killed")
    job = start(reference, "worker-killed")
    wait_for_second_checkpoint(run, job)
    owner = json.loads((run / "owner.json").read_text())
    os.kill(owner["pid"], signal.SIGKILL)
    output, _ = job.communicate(timeout=300)
    assert job.returncode == 0, output
    assert "the workers died and were restarted; they continue from step-" in output
    assert json.loads((run / "owner.json").read_text())["pid"] != owner["pid"]
    assert_equal_to_reference(reference, "worker-killed")


def test_after_a_killed_driver_the_same_command_resumes(reference):
    run = run_folder(reference, "driver-killed")
    job = start(reference, "driver-killed")
    wait_for_second_checkpoint(run, job)
    job.kill()
    job.communicate()
    assert main(arguments(reference, name="driver-killed")) == 0
    assert_equal_to_reference(reference, "driver-killed")
