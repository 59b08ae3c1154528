"""The parts of `bench_rounds` that need Ray: weights handed to actors, and rounds that are drawn ahead.

This process is rank 0 of the training, and Ray runs the actors.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch

from jobs.cli import start_local
from phf_ray.blocks.tokenizer import load_tokenizer
from phf_ray.config import Config
from phf_ray.rollouts.driver import PreparedRun, prepare_rollouts, run_rollouts
from phf_ray.rollouts.on_ray.sampling import RaySamplingPool
from phf_ray.rollouts.plan import RolloutJob
from phf_ray.rollouts.policy_copy import PolicyCopy
from phf_ray.rollouts.sampling_places import SamplingPool
from phf_ray.rollouts.shared_weights import SharedWeights, share_weights
from phf_ray.rollouts.worker import RolloutWorker
from phf_ray.runs.directory import RunDirectory
from phf_ray.training import loop
from phf_ray.training.driver import Helpers, Tracking, plain_job
from phf_ray.training.in_process import work
from phf_ray.training.ranks import OneRank
from phf_ray.training.start import initial_model
from phf_ray.training.state import TrainState


@contextmanager
def local_ray(num_cpus: int) -> Iterator[None]:
    start_local(num_cpus=num_cpus, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


def prepare(config: Config, folder: Path) -> PreparedRun:
    return prepare_rollouts(
        config, tokenizer=load_tokenizer(config.tokenizer), checkpoint_path=None, folder=str(folder / "prompts")
    )


def run_on_actors(
    config: Config,
    prepared: PreparedRun,
    run: Path,
    *,
    open_pool: Callable[[RolloutJob], SamplingPool] = RaySamplingPool,
) -> None:
    def fit(job: RolloutJob, *, config: Config, run: RunDirectory) -> dict[str, Any]:
        del config
        return work(job, run, OneRank(), worker=partial(RolloutWorker, open_pool=open_pool))

    run_rollouts(config, prepared, run=RunDirectory(run), task="bench", tracking=Tracking(), helpers=Helpers(fit=fit))


# -- Weights --


class Taker:
    """An actor that only takes weights."""

    def __init__(self, job: RolloutJob):
        torch.set_num_threads(1)
        self._copy = PolicyCopy(job, device=torch.device("cpu"))

    def take(self, reference: list[Any]) -> None:
        self._copy.take(ray.get(reference[0]))


def seconds_of_hand_overs(
    config: Config, prepared: PreparedRun, folder: Path, *, num_actors: int, times: int
) -> list[float]:
    """Return the time from a policy that has made its last step to actors that can draw with its weights."""
    values = plain_job(config, plan=dataclasses.asdict(prepared.plan), run=RunDirectory(folder), task="bench")
    job = RolloutJob(**values, prompts_path=prepared.prompts.path)
    model = initial_model(config, checkpoint_path=None, tokenizer=load_tokenizer(config.tokenizer))
    state = TrainState(model, torch.optim.AdamW(model.parameters()))
    remote: Any = ray.remote
    takers = [remote(Taker).options(num_cpus=1).remote(job) for _ in range(num_actors)]
    found = []
    for number in range(times + 1):
        since = time.perf_counter()
        reference = [ray.put(share_weights(state, name=str(number)))]
        ray.get([taker.take.remote(reference) for taker in takers])
        found.append(time.perf_counter() - since)
    for taker in takers:
        ray.kill(taker)
    # The first one waits for the actors.
    return found[1:]


# -- Rounds ahead --


@dataclass
class OnePool:
    """The same actors for many runs, whose weights must not be taken for each other's."""

    pool: SamplingPool
    run: int = 0

    def start(self, batches: Any, *, weights: SharedWeights, **named: Any) -> Any:
        named_weights = dataclasses.replace(weights, name=f"{self.run}-{weights.name}")
        return self.pool.start(batches, weights=named_weights, **named)

    def close(self) -> None:
        """The pool goes on."""


def ratios_of_rounds_ahead(
    configs: tuple[Config, Config], prepared: PreparedRun, folder: Path, pairs: int
) -> list[float]:
    """Return the time of runs with the second configuration over those with the first, from their first steps on."""
    pool: OnePool | None = None

    def open_pool(job: RolloutJob) -> OnePool:
        nonlocal pool
        pool = OnePool(RaySamplingPool(job)) if pool is None else pool
        pool.run += 1
        return pool

    seconds: list[float] = []
    for number in range(2 * (pairs + 1)):
        with first_step() as began:
            run_on_actors(configs[number % 2], prepared, folder / f"ahead-{number}", open_pool=open_pool)
            seconds.append(time.perf_counter() - began[0])
    if pool is not None:
        pool.pool.close()
    # The first pair waits for the actors.
    return [ahead / fresh for fresh, ahead in zip(seconds[2::2], seconds[3::2], strict=True)]


@contextmanager
def first_step() -> Iterator[list[float]]:
    began: list[float] = []
    original = loop.train_step

    def timed(*given: Any, **named: Any) -> Any:
        began.append(time.perf_counter())
        return original(*given, **named)

    loop.train_step = timed
    try:
        yield began
    finally:
        loop.train_step = original


def share_of_a_round(hand_overs: list[float], rounds: list[float]) -> list[float]:
    """Return each hand-over as a share of the median round."""
    return [seconds / statistics.median(rounds) for seconds in hand_overs]
