"""Many kills at random moments of one run: DPO, a reward model, and DPO of adapters.

FAULTS_SEED=N draws the moments of an earlier campaign again. `-o log_cli=true` shows where the kills hit.
"""

import logging
import os
import random
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import pytest
from feedback_runs import make_config, write_feedback, write_task
from killed_runs import Job, assert_equal_runs, assert_near_runs, kill_worker, largest_difference
from tiny_adapters import write_base
from train_runs import arguments, losses, run_folder

from jobs.train_lm import main
from phf_ray.runs.directory import RunDirectory
from phf_ray.runs.rows import STEP

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]

# Of a start's first seconds: imports, blocks, the reference, workers that connect.
START = "driver in its first seconds"
KILLS = (START, "driver", "worker") * 2
SEED = int(os.environ.get("FAULTS_SEED") or random.randrange(2**32))
log = logging.getLogger(__name__)
METHODS = ("dpo", "reward_model", "lora_dpo")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = write_feedback(tmp_path_factory.mktemp("campaign"))
    write_base(folder / "base")
    return folder


def task_of(folder: Path, method: str) -> Path:
    # Checkpoints so often that kills hit their writing, too.
    settings = {"num_epochs": 40, "learning_rate": 5e-4, "save_steps": 5, "save_total_limit": 3, "max_failures": -1}
    objective = {"name": "BradleyTerry"} if method == "reward_model" else {"name": "DPO", "beta": 0.1}
    model = None
    if method == "lora_dpo":
        base = {"path_or_name": str(folder / "base"), "from_scratch": False, "model_type": None, "config_kwargs": {}}
        model = base | {"lora": {"r": 4, "alpha": 8, "dropout": 0.1}}
    config = make_config(folder, objective=objective, model=model, **settings)
    return write_task(folder, method, config, corpora=["pairs"])


@pytest.fixture(scope="module", params=METHODS)
def whole(request, folder, local_ray) -> tuple[Path, Path]:
    """Task file and folder of a run that two workers trained undisturbed."""
    task = task_of(folder, request.param)
    assert main(arguments(task, "training.num_workers=2", name=f"whole-{request.param}")) == 0
    return task, run_folder(task, f"whole-{request.param}")


class Killed:
    """One run that is killed again and again, until it is left alone."""

    def __init__(self, task: Path, storage: Path, *, workers: Iterator[int], draw: random.Random, num_steps: int):
        self._command = [*arguments(task, name="killed"), "--storage-path", str(storage)]
        self.run, self._workers, self._draw = storage / "killed", workers, draw
        self._directory = RunDirectory(self.run)
        steps = sorted(draw.sample(range(1, num_steps - 100), len(KILLS)))
        self._moments = list(zip(steps, draw.sample(KILLS, len(KILLS)), strict=True))

    def go(self) -> list[str]:
        """Kill, and start again, to the end. Return what was killed where."""
        hits, job, claim = [], self._started(), None
        for step, kind in self._moments:
            is_early, rank = kind == START, self._draw.randrange(self._num_workers)
            patience = self._draw.uniform(0, 20) if is_early else 600
            self._wait(job, 1 if is_early else step, after=claim, patience_s=patience)
            time.sleep(self._draw.uniform(0, 0.2))
            job.assert_runs()
            is_training = self._directory.current_claim() not in (None, claim)
            claim = self._directory.current_claim()
            where = f"step {self._step()}" if is_training else "the start"
            if is_training and kind == "worker":
                kill_worker(self.run, rank=rank)
                hits.append(f"worker {rank} of {self._num_workers} at {where}")
            else:
                job.kill()
                hits.append(f"driver of {self._num_workers} at {where}")
                job = self._started()
        job.ends_with(0)
        return hits

    def _started(self) -> Job:
        self._num_workers = next(self._workers)
        return Job([*self._command, "--override", f"training.num_workers={self._num_workers}"])

    def _step(self) -> int:
        return max((row[STEP] for row in self._directory.read_metrics()), default=0)

    def _wait(self, job: Job, step: int, *, after: str | None, patience_s: float) -> None:
        """Wait until workers that claimed the run since `after` have come to the step, or until patience ends."""
        end = time.monotonic() + patience_s

        def is_there() -> bool:
            return self._directory.current_claim() not in (None, after) and self._step() >= step

        job.wait_until(lambda: time.monotonic() > end or is_there())


@pytest.mark.parametrize("changes", ["two workers", "two, one, two ... workers"])
def test_a_run_that_is_killed_at_random_moments_ends_as_if_nothing_had_happened(whole, changes, tmp_path):
    task, undisturbed = whole
    draw = random.Random(f"{SEED} {task.stem} {changes}")
    is_steady = changes == "two workers"
    workers = cycle((2, 2) if is_steady else (2, 1))
    killed = Killed(task, tmp_path, workers=workers, draw=draw, num_steps=max(losses(undisturbed)))
    begin = time.monotonic()
    hits = killed.go()
    difference = largest_difference(killed.run, undisturbed)
    log.warning(
        "%s, %s, seed %d: %d kills in %.0f s (%s); largest difference of a weight %.3g",
        task.stem,
        changes,
        SEED,
        len(hits),
        time.monotonic() - begin,
        "; ".join(hits),
        difference,
    )
    if is_steady:
        assert_equal_runs(killed.run, undisturbed)
    else:
        assert_near_runs(killed.run, undisturbed)
