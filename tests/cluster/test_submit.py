"""`ray job submit` as a user types it, against a cluster that asks for a token."""

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import ROOT
from train_runs import arguments, losses, metrics, run_folder, write_inputs

from phf_ray.runs.directory import RunDirectory

pytestmark = pytest.mark.timeout(600)

PATIENCE_S = 180
PORTS = (
    "port",
    "dashboard-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "metrics-export-port",
    "ray-client-server-port",
)


class Head:
    """`ray start --head` with ports and a folder of its own; ended by ending what it started and nothing else."""

    def __init__(self, *, shared: Path) -> None:
        # Sockets have short names only, so not pytest's folder.
        self.folder = tempfile.mkdtemp(prefix="phf-", dir="/tmp")
        # Ray 2.60 starts its client server by a shell command without quotes, which a space in its path breaks.
        environment = Path(self.folder, "environment")
        environment.symlink_to(sys.prefix)
        self._ray = [str(environment / "bin" / "python"), "-m", "ray.scripts.scripts"]
        self.environment = {
            **os.environ,
            "PATH": f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(16),
            "RAY_TMPDIR": self.folder,
            "RAY_USAGE_STATS_ENABLED": "0",
            "PHF_SHARED_ROOTS": str(shared),
            "OMP_NUM_THREADS": "1",
        }
        self.environment.pop("RAY_ADDRESS", None)
        ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        self.address = f"http://127.0.0.1:{ports['dashboard-port']}"
        command = [*self._ray, "start", "--head", "--block", "--num-cpus=4", f"--temp-dir={self.folder}/ray"]
        command += ["--node-ip-address=127.0.0.1", "--min-worker-port=0", "--max-worker-port=0"]
        command += [f"--{name}={port}" for name, port in ports.items()]
        self._log = Path(self.folder, "start.log")
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command, env=self.environment, cwd=self.folder, stdout=log, stderr=subprocess.STDOUT
            )
        self._wait_until_it_answers()

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while self.ray("job", "list", "--address", self.address).returncode != 0:
            assert self.process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(1)

    def ray(self, *words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        command = [*self._ray, *words]
        given = {**self.environment, **environment}
        return subprocess.run(command, env=given, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S * 2)

    def submit(self, *words: str, options: tuple[str, ...] = (), **environment: str):
        """Of the documentation: docs/operate.md."""
        return self.ray(
            *("job", "submit", "--address", self.address, *options),
            *("--runtime-env", "configs/runtime_env.yaml", "--working-dir", ".", "--", *words),
            **environment,
        )

    def info(self, job: str):
        """What the cluster knows of a job."""
        code = (
            "import sys; from ray.job_submission import JobSubmissionClient as Client; "
            "print(Client(sys.argv[1]).get_job_info(sys.argv[2]).json())"
        )
        command = [sys.executable, "-c", code, self.address, job]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=PATIENCE_S)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    def logs(self, job: str) -> str:
        return self.ray("job", "logs", "--address", self.address, job).stdout

    def kill(self) -> None:
        """As when the machines are taken away."""
        for pid in [*descendants(self.process.pid), self.process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def descendants(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # "pid (name) state parent ...", where the name may hold spaces.
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(path.parent.name))
    found, waiting = [], [root]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


@contextlib.contextmanager
def head(shared: Path) -> Iterator[Head]:
    one = Head(shared=shared)
    try:
        yield one
    finally:
        one.kill()


@pytest.fixture(scope="module")
def storage(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("storage")


@pytest.fixture(scope="module")
def task(storage) -> Path:
    return write_inputs(storage / "inputs", num_tokens=60_000, save_steps=10, save_total_limit=3)


def job_name(answer: "subprocess.CompletedProcess[str]") -> str:
    said = answer.stdout + answer.stderr
    found = re.search(r"raysubmit_\w+", said)
    assert found is not None, f"no job was submitted (exit code {answer.returncode}):\n{said}"
    return found[0]


def train(task: Path, *, storage_path: str | None = None) -> list[str]:
    words = ["python", "-m", "jobs.train_lm", *arguments(task)]
    if storage_path is not None:
        words[words.index("--storage-path") + 1] = storage_path
    return words


def test_jobs_are_submitted_fail_honestly_and_resume_on_another_cluster(storage, task):
    with head(storage) as first:
        refused_without_a_token(first, task)
        failure_of_a_job_keeps_its_code(first)
        local_output_is_refused(first, task)
        words_arrive_as_they_were_typed(first)
        killed_at = submit_and_kill_the_cluster(first, task)
    with head(storage) as second:
        done = second.submit(*train(task))
        assert done.returncode == 0, done.stdout + done.stderr
        assert second.info(job_name(done))["driver_exit_code"] == 0
        resumed_at = int(re.search(r"training resumes from step-(\d+)", done.stdout + done.stderr)[1])
        assert resumed_at >= killed_at > 0
    run = run_folder(task)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "finished"
    steps = [row["train/global_step"] for row in metrics(run) if "train/loss" in row]
    assert steps == list(range(1, max(losses(run)) + 1)), "a step is missing or was written twice"
    assert not (ROOT / "runs").exists()


def refused_without_a_token(cluster: Head, task: Path) -> None:
    answer = cluster.submit(*train(task), RAY_AUTH_TOKEN="wrong")
    assert answer.returncode != 0
    assert "uthentication" in answer.stdout + answer.stderr


def failure_of_a_job_keeps_its_code(cluster: Head) -> None:
    """The client turns every failure into 1."""
    answer = cluster.submit(
        *("python", "-m", "jobs.train_lm", "--task", "configs/demo/pretrain.yml"),
        *("--run-name", "none", "--storage-path", "/mnt/shared/runs"),
    )
    assert answer.returncode == 1
    info = cluster.info(job_name(answer))
    assert (info["status"], info["driver_exit_code"]) == ("FAILED", 2)
    assert "dataset.datasets is empty" in answer.stdout + answer.stderr


def local_output_is_refused(cluster: Head, task: Path) -> None:
    answer = cluster.submit(*train(task, storage_path="runs"))
    assert answer.returncode == 1
    said = answer.stdout + answer.stderr
    assert cluster.info(job_name(answer))["driver_exit_code"] == 2, said
    assert "--storage-path runs is on one node's own disk" in said
    assert "/mnt/shared/runs" in said


def words_arrive_as_they_were_typed(cluster: Head) -> None:
    words = ["two words", 'with "quotes"', "it's", "", "a=[b, 'c d']", "$HOME *", "back\\slash", "caf\u00e9; exit 3"]
    answer = cluster.submit("python", "-c", "import json, sys; print('words', json.dumps(sys.argv[1:]))", *words)
    said = answer.stdout + answer.stderr
    assert answer.returncode == 0, said
    [line] = re.findall(r"^words (\[.*\])$", said, re.MULTILINE)
    assert json.loads(line) == words


def submit_and_kill_the_cluster(cluster: Head, task: Path) -> int:
    """The step of the newest checkpoint when all of it ends."""
    answer = cluster.submit(*train(task), options=("--no-wait",))
    assert answer.returncode == 0, answer.stdout + answer.stderr
    job = job_name(answer)
    run = RunDirectory(run_folder(task))
    deadline = time.monotonic() + PATIENCE_S
    while len(run.complete_checkpoints()) < 2:
        assert cluster.info(job)["status"] in ("PENDING", "RUNNING"), cluster.logs(job)
        assert time.monotonic() < deadline, cluster.logs(job)
    cluster.kill()
    assert run.read_summary() == {}, "the job was through before it could be killed; give it more tokens"
    latest = run.latest_checkpoint()
    assert latest is not None
    return int(latest.name.rpartition("-")[2])
