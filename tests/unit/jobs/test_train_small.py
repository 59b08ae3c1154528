"""Small runs need no Ray: who packs and trains, and what a signal does. jobs.train_lm and jobs.build_blocks."""

import os
import signal
import subprocess
import sys

import pytest
from places import ROOT
from train_runs import arguments, checkpoint_names, losses, run_folder, write_inputs

from jobs import build_blocks
from jobs.train_lm import main
from phf_ray.runs.directory import RunDirectory

SMALL = "training.num_tokens=3000"


def write_small(folder):
    """Write the inputs of a run that says nothing of its workers: what it says of them would be for Ray."""
    return write_inputs(folder, resources_per_worker={})


class RayStartedError(Exception):
    pass


@pytest.fixture
def no_ray(monkeypatch):
    """Say that a job would start Ray, in place of starting it."""

    def start():
        raise RayStartedError

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for job in ("train_lm", "build_blocks"):
        monkeypatch.setattr(f"jobs.{job}.start_ray", start)


def test_a_small_run_is_packed_and_trained_in_this_process_and_says_so(no_ray, tmp_path, caplog):
    caplog.set_level("INFO")
    task = write_small(tmp_path)
    assert main(arguments(task, SMALL)) == 0
    assert RunDirectory(run_folder(task)).read_summary()["status"] == "finished"
    assert "packing in this process" in caplog.text
    assert "a small run: training in this process, without Ray and its restarts; RAY_ADDRESS=local" in caplog.text


@pytest.mark.parametrize(
    "override",
    [
        "training.num_workers=2",
        "training.max_failures=5",
        "training.resources_per_worker={CPU: 1}",
        "training.num_tokens=1e12",
        "generation.scenario_configs=[{name: plain, num_samples: 1}]",
    ],
)
def test_a_run_is_trained_on_ray_if_it_is_large_or_asks_for_what_ray_does(no_ray, tmp_path, override):
    with pytest.raises(RayStartedError):
        main(arguments(write_small(tmp_path), SMALL, override))
    assert list((tmp_path / "runs" / "blocks").glob("*/_SUCCESS")), "packing needs no Ray, whoever trains"


def test_an_address_puts_a_small_run_on_ray(no_ray, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "local")
    with pytest.raises(RayStartedError):
        main(arguments(write_small(tmp_path), SMALL))
    assert not (tmp_path / "runs" / "blocks").exists()


def test_many_groups_are_packed_on_ray_unless_it_is_not_wanted(no_ray, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("phf_ray.blocks.small.GROUPS_HERE", 0)
    task = write_small(tmp_path)
    with pytest.raises(RayStartedError):
        build_blocks.main(["--task", str(task)])
    assert build_blocks.main(["--task", str(task), "--in-process"]) == 0
    monkeypatch.setattr("phf_ray.blocks.small.GROUPS_HERE", 1)
    other = ["--task", str(task), "--override", "dataset.held_out_fraction=0"]
    assert build_blocks.main(other) == 0
    assert len(set(capsys.readouterr().out.split())) == 2


@pytest.mark.timeout(300)
def test_a_signal_saves_the_last_step_and_ends_with_the_code_of_unfinished_work(tmp_path):
    task = write_small(tmp_path)
    command = arguments(task, "training.num_tokens=2e6", "training.save_steps=1000")
    job = subprocess.Popen(
        [sys.executable, "-m", "jobs.train_lm", *command],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        # The first line of progress: the loop runs.
        assert any("step 1/" in line for line in job.stderr)
        job.send_signal(signal.SIGTERM)
        _, rest = job.communicate(timeout=200)
    finally:
        job.kill()
    assert job.returncode == 5, rest
    assert "SIGTERM: saving a checkpoint and ending" in rest
    assert "because it was told to stop" in rest
    (saved,) = checkpoint_names(run_folder(task))
    assert int(saved.removeprefix("step-")) == max(losses(run_folder(task)))
