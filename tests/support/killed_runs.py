"""Runs of jobs.train_lm that are killed, and what must be left: the weights of a run that nothing happened to."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from places import ROOT
from safetensors.torch import load_file
from train_runs import losses, metrics

from phf_ray.runs.directory import RunDirectory

# As tests/local/training/test_train.py has it for another number of workers: fp32 sums in another order.
TOLERANCE, WEIGHT_TOLERANCE = 5e-4, 1e-3


class Job:
    """jobs.train_lm, or another job, as a user starts it, on the cluster of these tests."""

    def __init__(
        self, arguments: Sequence[str], *, job: str = "train_lm", environment: Mapping[str, str] | None = None
    ):
        """`environment`: of a cluster other than the one that these tests share."""
        if environment is None:
            import ray

            environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
        # A pipe that nobody reads while the job runs could fill up.
        descriptor, self._log = tempfile.mkstemp(prefix=f"{job}-", suffix=".log")
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"jobs.{job}", *arguments],
            cwd=ROOT,
            env=dict(environment),
            stdout=descriptor,
            stderr=subprocess.STDOUT,
        )
        os.close(descriptor)

    def output(self) -> str:
        return Path(self._log).read_text(encoding="utf-8")

    def exit_code(self) -> int | None:
        """None: it runs."""
        return self._process.poll()

    def assert_runs(self) -> None:
        assert self._process.poll() is None, self.output()

    def ends_with(self, code: int) -> str:
        """Wait for the end. Return the output."""
        assert self._process.wait(timeout=600) == code, self.output()
        return self.output()

    def wait_until(self, condition: Callable[[], object]) -> None:
        for _ in range(3000):
            if condition():
                return
            self.assert_runs()
            time.sleep(0.1)
        pytest.fail(f"the job did not come so far in five minutes: {self.output()}")

    def wait_for_checkpoints(self, run: Path, *, number: int = 2) -> None:
        self.wait_until(lambda: len(RunDirectory(run).complete_checkpoints()) >= number)

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


def kill_worker(run: Path, *, rank: int = 0) -> int:
    """Kill a worker of the newest start. Return its process."""
    owner = json.loads((run / "owner.json").read_text())
    pid = int(owner["workers"][rank]["pid"])
    assert b"ray::" in Path(f"/proc/{pid}/cmdline").read_bytes(), "no process but the worker may be killed"
    os.kill(pid, signal.SIGKILL)
    return pid


def last_checkpoint(run: Path) -> Path:
    return run / json.loads((run / "summary.json").read_text())["checkpoint"]


def tensor_files(checkpoint: Path) -> list[str]:
    """All files of weights, and of the optimizer's state."""
    return sorted(str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*.safetensors"))


def assert_rows_once(run: Path) -> None:
    steps = [(row["train/global_step"], "train/loss" in row) for row in metrics(run)]
    assert len(steps) == len(set(steps)), "a row was written twice"


def assert_equal_runs(ours: Path, theirs: Path) -> None:
    """Equal to the last byte: neither kills nor starts show."""
    mine, other = last_checkpoint(ours), last_checkpoint(theirs)
    files = tensor_files(other)
    assert len(files) >= 2
    assert tensor_files(mine) == files
    for file in files:
        assert (mine / file).read_bytes() == (other / file).read_bytes(), file
    assert losses(ours) == losses(theirs)
    assert_rows_once(ours)


def largest_difference(ours: Path, theirs: Path) -> float:
    """Largest difference between the final weights of two runs, without the optimizer's state."""
    return difference_of_checkpoints(last_checkpoint(ours), last_checkpoint(theirs))


def difference_of_checkpoints(ours: Path, theirs: Path) -> float:
    found = 0.0
    for file in [name for name in tensor_files(theirs) if "/" not in name]:
        tensors, wanted = load_file(ours / file), load_file(theirs / file)
        assert tensors.keys() == wanted.keys()
        found = max([found, *((tensors[name] - wanted[name]).abs().max().item() for name in wanted)])
    return found


def assert_near_runs(ours: Path, theirs: Path) -> None:
    """Equal but for the order of sums: some steps were trained by another number of workers."""
    curve, wanted = losses(ours), losses(theirs)
    assert list(curve) == list(wanted)
    assert list(curve.values()) == pytest.approx(list(wanted.values()), abs=TOLERANCE)
    assert largest_difference(ours, theirs) <= WEIGHT_TOLERANCE
    tokens = [[row["train/tokens_seen"] for row in metrics(run)] for run in (ours, theirs)]
    assert tokens[0] == tokens[1]
    assert_rows_once(ours)
