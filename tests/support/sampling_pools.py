"""Pools of one copy of the policy in this process, in place of Ray's actors."""

import pickle
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rollout_runs import GlooRanks, job_values, run_here

from phf_ray.config import Config
from phf_ray.rollouts.driver import PreparedRun
from phf_ray.rollouts.plan import RolloutJob
from phf_ray.rollouts.policy_copy import PolicyCopy
from phf_ray.rollouts.worker import RolloutWorker
from phf_ray.runs.directory import RunDirectory
from phf_ray.training.in_process import work
from phf_ray.training.ranks import OneRank


class PoolHere:
    """Draws when its answers are asked for, long after the weights were handed over; `at_once`: when it is told to."""

    def __init__(self, job: RolloutJob, *, at_once: bool = False):
        self._copy = PolicyCopy(job, device=torch.device("cpu"))
        self._at_once = at_once
        self.num_handed_over = 0

    def start(self, batches, *, number, weights, with_behaviour):
        self.num_handed_over += 1
        # As Ray's store does: it copies at once.
        kept = pickle.loads(pickle.dumps(weights))

        def draw():
            self._copy.take(kept)
            return [row for batch in batches for row in self._copy.draw(number, batch, with_behaviour=with_behaviour)]

        return _Answers(draw, at_once=self._at_once)

    def close(self) -> None:
        pass


class _Answers:
    def __init__(self, draw, *, at_once):
        self._draw = draw
        self._rows = draw() if at_once else None

    def wait(self, timeout_s):
        del timeout_s
        return True

    def is_anyone_there(self):
        return True

    def rows(self):
        return self._draw() if self._rows is None else self._rows


class LeavingPool(PoolHere):
    """Has no copy left after some rounds. Whoever waits for one is told to stop meanwhile."""

    def __init__(self, job: RolloutJob, *, num_rounds: int):
        super().__init__(job)
        self._run, self._num_rounds = RunDirectory(job.run_path), num_rounds

    def start(self, batches, *, number, weights, with_behaviour):
        answers = super().start(batches, number=number, weights=weights, with_behaviour=with_behaviour)
        return answers if self.num_handed_over <= self._num_rounds else _NoAnswers(self._run)


class _NoAnswers:
    def __init__(self, run):
        self._run, self._num_waits = run, 0

    def wait(self, timeout_s):
        del timeout_s
        self._num_waits += 1
        assert self._num_waits < 3, "the wish to stop is not heard"
        self._run.request_stop()
        return False

    def is_anyone_there(self):
        return False


def run_with_pool(
    config: Config, run: Path, *, plan: PreparedRun, at_once: bool = False, open_pool: Any = None
) -> dict[str, Any]:
    opened = open_pool or partial(PoolHere, at_once=at_once)

    def fit(job, *, config, run):
        del config
        worker = partial(RolloutWorker, open_pool=opened)
        return work(job, run, OneRank(), worker=worker)

    return run_here(config, run, plan=plan, fit=fit)


def run_on_rank_with_pool(config: Config, run: Path, plan: PreparedRun, _rank: int) -> None:
    """Run this rank's worker of a run that `prepare_run` has made; rank 0 has the pool."""
    job = RolloutJob(**job_values(config, run, plan))
    RolloutWorker(job, RunDirectory(run), GlooRanks(), open_pool=PoolHere).train()
