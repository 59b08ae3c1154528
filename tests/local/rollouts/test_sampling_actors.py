"""Answers drawn by Ray actors are those of one process without Ray, also if an actor is killed while it draws."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from rollout_runs import final_weights, prepared, rollout_values, round_files, run_here, write_prompts
from sampling_pools import run_with_pool
from train_runs import arguments, run_folder

from jobs.train_rl import main
from phf_ray.config import parse_config

pytestmark = pytest.mark.timeout(900)

ACTORS = {"place": "actors", "actors": {"min": 2, "max": 2}}
# One prompt in a batch, so that each actor gets several of a round.
SMALL = {"sampling_batch": 3, "max_tokens": 40, "rounds": 3}


@pytest.mark.parametrize("changes", [{}, {"max_staleness": 1}], ids=["fresh", "ahead"])
def test_a_killed_actor_does_not_show_and_neither_does_ray(local_ray, tmp_path, changes):
    folder = write_prompts(tmp_path)
    values = rollout_values(folder, **SMALL, **ACTORS, **changes)
    task = folder / "alpaca" / "task.yml"
    task.parent.mkdir()
    task.write_text(yaml.safe_dump(values), encoding="utf-8")
    with killing_one_that_draws() as killed:
        assert main(arguments(task)) == 0
    assert killed, "no actor was seen that draws"
    here = tmp_path / "here"
    if changes:
        config = parse_config(values)
        run_with_pool(config, here, plan=prepared(config, folder))
    else:
        config = parse_config(rollout_values(folder, **SMALL))
        run_here(config, here, plan=prepared(config, folder))
    run = run_folder(task)
    assert round_files(run) == round_files(here)
    assert final_weights(run) == final_weights(here)
    wait_until(lambda: not list(drawing()), "an actor outlives its run")


def wait_until(condition: Callable[[], bool], otherwise: str) -> None:
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.1)
    pytest.fail(otherwise)


@contextlib.contextmanager
def killing_one_that_draws() -> Iterator[list[int]]:
    killed: list[int] = []
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.is_set() and not killed:
            for pid in drawing(b"ray::SamplingActor.draw"):
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)
                    break
            time.sleep(0.01)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield killed
    finally:
        is_over.set()
        thread.join()


def drawing(title: bytes = b"ray::SamplingActor") -> Iterator[int]:
    """Processes of this test's Ray that are such actors, or are what their title says."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (folder / "cmdline").read_bytes().startswith(title) and os.getpid() in parents_of(folder.name):
                yield int(folder.name)


def parents_of(pid: str) -> Iterator[int]:
    while pid != "0":
        # "pid (name) state parent ...", where the name may hold spaces.
        pid = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
        yield int(pid)
