"""Best of n on Ray: an actor that rewards dies, then the job; the second start draws only what was not stored."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import ray
from best_of_n_runs import write_prompts
from feedback_files import bytes_of
from places import ROOT
from tiny_models import write_checkpoint

from jobs.best_of_n import main

pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("local_ray")]


def start(command: list[str]) -> subprocess.Popen:
    with tempfile.TemporaryFile() as log:
        return subprocess.Popen(
            [sys.executable, "-m", "jobs.best_of_n", *command],
            cwd=ROOT,
            env={**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def stored(output: Path) -> dict[str, int]:
    """Parts, and when they were written. A job that is through removes them, also while this looks."""
    found: dict[str, int] = {}
    with contextlib.suppress(FileNotFoundError):
        for path in (output / "parts").glob("*.parquet"):
            found[path.name] = path.stat().st_mtime_ns
    return found


def test_a_run_whose_actor_and_then_driver_are_killed_ends_byte_for_byte(tmp_path):
    model = write_checkpoint(tmp_path / "model")
    prompts = write_prompts(tmp_path / "prompts.json", 240)
    mark = tmp_path / "mark"
    reward = f"{{class_name: 'own_rewarders:DyingRewarder', settings: {{mark: '{mark}', word: a}}, name: words}}"
    command = ["--model", str(model), "--prompts", prompts, "--reward", reward, "--gold", "shorter", "--n", "4"]
    command += ["--template", "plain", "--max-tokens", "40", "--samplers", "1,2", "--scorers", "1,2"]

    killed = start([*command, "--output", str(tmp_path / "out")])
    deadline = time.monotonic() + 300
    while sum(name.startswith("rewards-") for name in stored(tmp_path / "out")) < 2:
        assert killed.poll() is None
        assert time.monotonic() < deadline, "the job did not come so far"
        time.sleep(0.02)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert mark.exists(), "no actor died"
    # An actor may outlive the job for a while, and store parts that are not among these.
    before = stored(tmp_path / "out")
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    assert len(before) < 30, "the job was killed too late to have anything to do"

    again = start([*command, "--output", str(tmp_path / "out")])
    seen: dict[str, set[int]] = {}
    while again.poll() is None:
        for name, written in stored(tmp_path / "out").items():
            seen.setdefault(name, set()).add(written)
        assert time.monotonic() < deadline + 240, "the second start did not end"
        time.sleep(0.02)
    assert again.returncode == 0
    assert all(seen[name] == {written} for name, written in before.items() if name in seen), "a part was made again"
    assert set(before) <= set(seen)

    assert main([*command, "--in-process", "--output", str(tmp_path / "whole")]) == 0
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")
