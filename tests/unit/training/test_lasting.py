"""Errors that would come again after a restart, told apart from the death of a worker."""

import errno
import json
import shutil
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.train import FailureConfig
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.exceptions import WorkerGroupError
from safetensors import SafetensorError

from phf_ray.errors import ConfigError, IncompleteError, PhfError
from phf_ray.runs.directory import RunDirectory
from phf_ray.training.in_process import work
from phf_ray.training.lasting import lasting_error, refuse_without_room
from phf_ray.training.on_ray import _known_error, _trainer_class
from phf_ray.training.plan import TrainJob
from phf_ray.training.worker import TrainingWorker


@pytest.fixture
def run(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    directory.prepare(config={}, plan={})
    return directory


def caught(action) -> Exception:
    with pytest.raises(Exception) as error:  # noqa: PT011 - the test is what becomes of it
        action()
    return error.value


def write_to_a_full_disk():
    with Path("/dev/full").open("w") as file:
        file.write("x")


@pytest.mark.parametrize(
    "error",
    [
        caught(write_to_a_full_disk),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
        Exception("No space left on device (os error 28)"),
    ],
    ids=["files", "quota", "weights", "tokenizer"],
)
def test_a_full_disk_is_said_and_the_newest_checkpoint_is_kept(run, error):
    run.commit_checkpoint(5, lambda folder: (folder / "a").write_text("a"), keep=1)
    found = lasting_error(error, run=run)
    assert isinstance(found, IncompleteError)
    assert "is full" in str(found)
    assert "the newest checkpoint is step-00000005" in str(found)
    assert run.latest_step() == 5


def test_a_full_disk_behind_another_error_is_found(run):
    def wrapped():
        try:
            write_to_a_full_disk()
        except OSError as error:
            raise RuntimeError("could not save") from error

    assert isinstance(lasting_error(caught(wrapped), run=run), IncompleteError)


@pytest.mark.parametrize(
    "action", [lambda: {}["a"], lambda: int("a"), lambda: 1 / 0, lambda: None.a, lambda: len(1)], ids=range(5)
)
def test_an_error_of_the_code_is_named_with_its_place_and_not_repeated(run, action):
    error = caught(action)
    found = lasting_error(error, run=run)
    assert type(found) is PhfError
    assert f"{type(error).__name__}: {error}" in str(found)
    assert "test_lasting.py, line " in str(found)
    assert "there is no checkpoint yet" in str(found)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Connection closed by peer"),
        ConnectionResetError("peer"),
        OSError(errno.EIO, "Input/output error"),
        SafetensorError("I/O error: Stale file handle (os error 116)"),
        MemoryError(),
    ],
)
def test_after_what_a_dying_peer_or_node_causes_the_workers_start_again(run, error):
    assert lasting_error(error, run=run) is None


def test_no_step_is_taken_without_room_for_one_checkpoint(run, monkeypatch):
    refuse_without_room(run, num_parameters=1000)
    with pytest.raises(IncompleteError, match=r"room for .* GB, but a checkpoint takes 12000000000\.00 GB"):
        refuse_without_room(run, num_parameters=10**18)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 0))
    refuse_without_room(run, num_parameters=10**18)


def job_of(run):
    return TrainJob(
        config={},
        plan={},
        run_path=str(run.path),
        blocks_path="",
        task="",
        num_threads=1,
        working_directory=str(run.path),
    )


class BrokenRank:
    """A rank that fails as soon as the worker asks for its place."""

    @property
    def rank(self):
        raise KeyError("rank")


def test_a_worker_that_is_started_again_after_such_an_error_ends_at_once_with_it(run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PhfError, match="KeyError: 'rank'"):
        work(job_of(run), run, BrokenRank(), worker=TrainingWorker)
    again = work(job_of(run), run, BrokenRank(), worker=TrainingWorker)
    assert (again["status"], again["kind"]) == ("failed", "PhfError")
    assert again == json.loads((run.path / "failure.json").read_text())


def test_the_driver_finds_the_error_of_a_worker_that_could_not_leave_it_in_the_folder():
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
    from ray.train.v2.api.exceptions import WorkerGroupError

    error = ConfigError("too wide")
    failures = {1: RuntimeError("peer"), 0: UserExceptionWithTraceback(error, "traceback")}
    assert _known_error(WorkerGroupError("failed", failures)) is error
    assert _known_error(WorkerGroupError("failed", {0: RuntimeError("peer")})) is None


def test_ray_starts_the_workers_again_after_the_death_of_one_and_not_after_an_error_that_would_come_again(monkeypatch):
    given = {}
    monkeypatch.setattr(
        DataParallelTrainer, "_initialize_and_run_controller", lambda _, **options: given.update(options)
    )
    trainer = object.__new__(_trainer_class())
    trainer.run_config = SimpleNamespace(failure_config=FailureConfig(max_failures=3))
    trainer._initialize_and_run_controller()
    died, raised = RuntimeError("connection closed by peer"), ConfigError("num_heads")
    decisions = [
        given["failure_policy"].make_decision(WorkerGroupError("", failures))
        for failures in ({0: died}, {0: died, 1: raised})
    ]
    assert decisions == [FailureDecision.RETRY, FailureDecision.RAISE]
