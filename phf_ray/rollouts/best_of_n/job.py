"""Runs best of n: samples and rewards the missing parts, and writes the end. Killed at any moment, the same call goes
on: a part that is there is not drawn again."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from phf_ray.corpus.layout import SUCCESS
from phf_ray.errors import IncompleteError
from phf_ray.judging.failures import MAX_FAILED_FRACTION, check_fraction
from phf_ray.rollouts.best_of_n.finish import Finished, finish, read_finished
from phf_ray.rollouts.best_of_n.plan import PARTS, BestOfNFolder, BestOfNPlan, footer_at, plan_best_of_n, rows_of_parts
from phf_ray.rollouts.best_of_n.request import BestOfNRequest
from phf_ray.rollouts.best_of_n.rows import BestOfNStats
from phf_ray.rollouts.best_of_n.stages import (
    BestOfNWork,
    Hardware,
    PartRewarder,
    PartRow,
    PartSampler,
    counted,
    digest_of_rewards,
)
from phf_ray.storage.one_at_a_time import only_command

log = logging.getLogger(__name__)

Outcome = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class PartState:
    """What is there of a part."""

    has_samples: bool
    stats: BestOfNStats | None
    """Its counts, if nothing of it is left to do."""


class BestOfNRunner(Protocol):
    def __call__(self, work: BestOfNWork, rows: Sequence[PartRow]) -> Iterator[Outcome]:
        """Sample and reward the parts, and yield their outcomes as they come."""
        ...


def best_of_n_here(work: BestOfNWork, rows: Sequence[PartRow]) -> Iterator[Outcome]:
    """Sample and reward the parts in this process, one after the other. A `BestOfNRunner`."""
    sampler, place = PartSampler(work), BestOfNFolder(work.output)
    rewarder = PartRewarder(work) if work.rewards else None
    for row in rows:
        sampled = sampler(row)
        yield counted(sampled, place) if rewarder is None else rewarder(sampled)


def best_of_n(
    request: BestOfNRequest,
    output: str,
    *,
    hardware: Hardware | None = None,
    max_failed_fraction: float = MAX_FAILED_FRACTION,
    restart: bool = False,
    runner: BestOfNRunner = best_of_n_here,
) -> Finished:
    """Sample, reward and pick into the folder or URL `output`. A second call does only what is missing.

    Raises ConfigError if the request does not fit what `output` holds or another command works on it, IncompleteError
    if too many samples or rewards failed.
    """
    check_fraction(max_failed_fraction)
    with only_command(output) as is_alone:
        place = BestOfNFolder(output)
        return _best_of_n(
            request,
            place,
            plan_best_of_n(request, place, restart=restart, is_alone=is_alone),
            hardware=hardware or Hardware(),
            max_failed_fraction=max_failed_fraction,
            runner=runner,
        )


def _best_of_n(
    request: BestOfNRequest,
    place: BestOfNFolder,
    plan: BestOfNPlan,
    *,
    hardware: Hardware,
    max_failed_fraction: float,
    runner: BestOfNRunner,
) -> Finished:
    if place.has(SUCCESS):
        place.remove(PARTS)
        return read_finished(place)
    states = [state_of(place, plan, part, is_rewarded=bool(request.rewards)) for part in range(plan.num_parts)]
    total = BestOfNStats()
    for state in states:
        if state.stats is not None:
            total.merge(state.stats)
    todo = [part for part, state in enumerate(states) if state.stats is None]
    num_sampled = sum(state.has_samples for state in states)
    if num_sampled:
        log.info("%d of %d parts are sampled, %d of them finished", num_sampled, len(states), len(states) - len(todo))
    total.check(max_failed_fraction, num_samples=request.num_samples)
    work = BestOfNWork(
        output=place.name(),
        n=request.n,
        seed=request.seed,
        model=request.model,
        sampling=request.sampling,
        rewards=request.rewards,
        gold=request.gold,
        hardware=hardware,
    )
    if todo:
        outcomes = runner(work, rows_of_parts(request, plan, todo))
        for done, outcome in enumerate(outcomes, 1 + plan.num_parts - len(todo)):
            total.merge(BestOfNStats.from_json(json.loads(outcome["stats"])))
            log.info("%d/%d parts: %d samples, %d failed", done, plan.num_parts, total.rows, total.failed_rows)
            total.check(max_failed_fraction, num_samples=request.num_samples)
    if total.rows != request.num_samples:
        raise IncompleteError(f"{total.rows} of {request.num_samples} samples are there; start the same command again")
    return finish(request, plan, place, total)


def state_of(place: BestOfNFolder, plan: BestOfNPlan, part: int, *, is_rewarded: bool) -> PartState:
    """Return what is there of a part. What failed and may succeed now is left to do."""
    digest, samples_file = plan.digest(part), place.samples_part(part)
    sampled = footer_at(samples_file)
    if sampled is None or sampled["shard"] != digest:
        return PartState(False, None)
    stats = BestOfNStats.from_json(sampled["stats"])
    if is_rewarded and not stats.has_transient:
        rewarded = footer_at(place.rewards_part(part))
        if rewarded is None or rewarded["shard"] != digest_of_rewards(digest, samples_file):
            return PartState(True, None)
        stats = BestOfNStats.from_json(rewarded["stats"])
    return PartState(True, None if stats.has_transient else stats)
