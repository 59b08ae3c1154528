"""A pool of Ray actors that draw answers: copies of the policy, which get the weights of a round from Ray's store.

Rank 0 of the training owns the pool, and it ends with that process. Actors can die at any time, with their node too:
the batch that one held is drawn again, to the same answers, by another one.
"""

import logging
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import ray
import torch
from ray.exceptions import RayActorError, RayTaskError

from phf_ray.config import Config, evaluation_steps, parse_config
from phf_ray.config.scoring import PoolConfig
from phf_ray.errors import IncompleteError, PhfError
from phf_ray.evaluation.on_ray import evaluation_resources
from phf_ray.rollouts.plan import RolloutJob
from phf_ray.rollouts.policy_copy import PolicyCopy
from phf_ray.rollouts.prompts import RolloutPrompt
from phf_ray.rollouts.rounds import StoredSample
from phf_ray.rollouts.shared_weights import SharedWeights
from phf_ray.training.on_ray import resources_of_a_worker

log = logging.getLogger(__name__)

_DEATHS = 3
"""Actors that may die over one batch, after which the workers start anew, as `training.max_failures` allows."""
_POLL_S = 1.0

Batch = Sequence[RolloutPrompt]


@dataclass(frozen=True, slots=True)
class RoundOfWeights:
    """What an actor is told of a round beside the prompts."""

    number: int
    weights: str
    """Name of the weights that draw it."""
    with_behaviour: bool
    reference: list[Any]
    """Where Ray's store has the weights; in a list, so that only actors without these weights fetch them."""


class SamplingActor:
    """Builds the policy with its first call, because Ray hides the error of an actor that can't be made."""

    def __init__(self, job: RolloutJob, pool: PoolConfig):
        self._job, self._pool = job, pool
        self._copy: PolicyCopy | None = None

    def build(self) -> PolicyCopy:
        if self._copy is None:
            torch.set_num_threads(max(1, int(self._pool.num_cpus)))
            device = torch.device("cuda" if self._pool.num_gpus and torch.cuda.is_available() else "cpu")
            self._copy = PolicyCopy(self._job, device=device)
        return self._copy

    def start(self) -> None:
        self.build()

    def draw(self, round_: RoundOfWeights, prompts: Batch) -> list[StoredSample]:
        copy = self.build()
        if copy.weights != round_.weights:
            copy.take(ray.get(round_.reference[0]))
        return copy.draw(round_.number, prompts, with_behaviour=round_.with_behaviour)


class RaySamplingPool:
    """A `SamplingPool`. Calls return at once; a thread hands out the batches, also while the run trains."""

    def __init__(self, job: RolloutJob):
        config = parse_config(job.config)
        assert config.rollouts is not None
        self._job, self._limits = job, config.rollouts.actors
        self._most = most_actors(config, num_steps=job.plan["num_steps"])
        self._ready: list[Any] = []
        self._starting: dict[Any, Any] = {}
        """Answer of an actor's first call in a round -> actor."""
        self._under_way: dict[Any, tuple[Any, int]] = {}
        """Answer of an actor that draws -> actor, and number of the batch."""
        self._stillborn = 0
        """Actors in a row that died before they could draw."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sampling")
        self._is_closed = False

    def start(
        self, batches: Sequence[Batch], *, number: int, weights: SharedWeights, with_behaviour: bool
    ) -> "FutureAnswers":
        round_ = RoundOfWeights(number, weights.name, with_behaviour, [ray.put(weights)])
        return FutureAnswers(self, self._thread.submit(self._draw, round_, batches))

    def is_anyone_there(self) -> bool:
        """Whether an actor has started and not died since, as far as is known."""
        return bool(self._ready or self._under_way)

    def close(self) -> None:
        self._is_closed = True
        for actor in [*self._ready, *self._starting.values(), *(actor for actor, _ in self._under_way.values())]:
            ray.kill(actor)
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _draw(self, round_: RoundOfWeights, batches: Sequence[Batch]) -> list[StoredSample]:
        waiting = deque(range(len(batches)))
        found: dict[int, list[StoredSample]] = {}
        deaths: Counter[int] = Counter()
        self._call_up(len(batches))
        while len(found) < len(batches):
            if self._is_closed:
                raise IncompleteError(f"round {round_.number} was not drawn to its end, because the run ended")
            finished, _ = ray.wait([*self._under_way, *self._starting], timeout=_POLL_S)
            if self._is_closed:
                continue  # whoever died now was ended by `close`
            for answer in finished:
                if answer in self._starting:
                    self._receive(answer, num_batches=len(batches))
                    continue
                actor, place = self._under_way.pop(answer)
                try:
                    found[place] = _answer(answer)
                    self._ready.append(actor)
                except RayActorError as error:
                    deaths[place] += 1
                    log.warning("an actor that drew answers of round %d died: %s", round_.number, _said(error))
                    if deaths[place] > _DEATHS:
                        raise
                    waiting.appendleft(place)
                    self._grow(len(batches))
            while self._ready and waiting:
                actor, place = self._ready.pop(0), waiting.popleft()
                self._under_way[actor.draw.remote(round_, batches[place])] = actor, place
        return [row for _, rows in sorted(found.items()) for row in rows]

    def _call_up(self, num_batches: int) -> None:
        """Ask all actors whether they are still there, as many as are wanted; end the others."""
        present, self._ready = self._ready, []
        wanted = self._wanted(num_batches)
        for actor in present[wanted:]:
            ray.kill(actor)
        self._starting |= {actor.start.remote(): actor for actor in present[:wanted]}
        self._grow(num_batches)

    def _grow(self, num_batches: int) -> None:
        """Start the actors that are missing. A cluster that grows on demand sees those that have no room yet."""
        num_there = len(self._ready) + len(self._starting) + len(self._under_way)
        for _ in range(self._wanted(num_batches) - num_there):
            actor = _new_actor(self._job, self._limits)
            self._starting[actor.start.remote()] = actor

    def _wanted(self, num_batches: int) -> int:
        return max(self._limits.min, min(self._most, num_batches))

    def _receive(self, answer: Any, *, num_batches: int) -> None:
        """Take in an actor that has started, or replace one that died meanwhile."""
        actor = self._starting.pop(answer)
        try:
            _answer(answer)
        except RayActorError as error:
            self._stillborn += 1
            log.warning("an actor that draws answers is gone: %s", _said(error))
            if self._stillborn > max(_DEATHS, self._most):
                raise
            self._grow(num_batches)
        else:
            self._stillborn = 0
            self._ready.append(actor)


class FutureAnswers:
    """`AnswersUnderWay` of a thread."""

    def __init__(self, pool: RaySamplingPool, future: Future[list[StoredSample]]):
        self._pool, self._future = pool, future

    def wait(self, timeout_s: float) -> bool:
        return bool(wait([self._future], timeout=timeout_s).done)

    def is_anyone_there(self) -> bool:
        return self._pool.is_anyone_there()

    def rows(self) -> list[StoredSample]:
        return self._future.result()


def _new_actor(job: RolloutJob, pool: PoolConfig) -> Any:
    remote: Any = ray.remote  # its types are for classes with fixed options
    return (
        remote(SamplingActor)
        .options(
            num_cpus=pool.num_cpus,
            num_gpus=pool.num_gpus,
            resources=pool.resources or None,
            # Not among the resources that the training workers have reserved.
            scheduling_strategy="DEFAULT",
        )
        .remote(job, pool)
    )


def _answer(reference: Any) -> Any:
    """Return what an actor said. Raises its PhfError as it is."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, PhfError):
            raise error.cause from None
        raise


def _said(error: RayActorError) -> str:
    return str(error).partition("\n")[0]


def most_actors(config: Config, *, num_steps: int) -> int:
    """Return how many actors there may be. Without a limit, they leave room for an evaluation during the training,
    which would otherwise wait until the run has ended."""
    assert config.rollouts is not None
    limits = config.rollouts.actors
    if limits.max is not None:
        return limits.max
    evaluates = any(evaluation_steps(config, num_steps=num_steps))
    return max(limits.min, room_for_actors(config, left_free=evaluation_resources(config) if evaluates else {}))


def room_for_actors(config: Config, *, left_free: Mapping[str, float] = MappingProxyType({})) -> int:
    """Return how many actors the cluster has room for beside the training workers and what is left free."""
    assert config.rollouts is not None
    pool, num_workers = config.rollouts.actors, config.training.num_workers
    total = ray.cluster_resources()
    of_a_worker = resources_of_a_worker(config, total)
    of_an_actor = {"CPU": pool.num_cpus, "GPU": pool.num_gpus, **pool.resources}
    rooms = [
        int((total.get(name, 0.0) - left_free.get(name, 0.0) - num_workers * of_a_worker.get(name, 0.0)) / amount)
        for name, amount in of_an_actor.items()
        if amount > 0
    ]
    # Actors that take nothing still compute.
    return max(0, min(rooms, default=int(total.get("CPU", 1.0))))
