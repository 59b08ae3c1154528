"""Best of n with Ray Data: one pool of actors samples parts, another rewards them, and both grow between limits.

Actors can die at any time: a part is written whole or not at all, and Ray gives it to another actor.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.data import ActorPoolStrategy

from phf_ray.corpus.on_ray import cluster_resources, data_settings, own_errors
from phf_ray.evaluation.on_ray import label_selector
from phf_ray.rollouts.best_of_n.job import BestOfNRunner, Outcome
from phf_ray.rollouts.best_of_n.plan import BestOfNFolder
from phf_ray.rollouts.best_of_n.stages import BestOfNWork, PartRewarder, PartRow, PartSampler, counted
from phf_ray.rollouts.by_url import SampledServer
from phf_ray.rollouts.rewards.build import computes


@dataclass(frozen=True, slots=True)
class ActorPool:
    """Limits of a pool, and what each of its actors takes."""

    min_size: int = 1
    max_size: int | None = None
    """None: one actor for each CPU, or for each GPU if actors take one."""
    num_gpus: float = 0.0

    def strategy(self, *, num_parts: int, room: int) -> ActorPoolStrategy:
        most = max(1, min(num_parts, self.max_size or room))
        # One part under way and one waiting: a killed actor loses little, and a new one finds work.
        return ActorPoolStrategy(min_size=min(self.min_size, most), max_size=most, max_tasks_in_flight_per_actor=2)


def best_of_n_on_ray(*, samplers: ActorPool | None = None, rewarders: ActorPool | None = None) -> BestOfNRunner:
    """Return a runner with these pools. Ray must be running."""
    samplers, rewarders = samplers or ActorPool(), rewarders or ActorPool()

    def run(work: BestOfNWork, rows: Sequence[PartRow]) -> Iterator[Outcome]:
        with data_settings(), own_errors():
            data: Any = ray.data.from_items([dict(row) for row in rows], override_num_blocks=len(rows))
            data = data.map(
                PartSampler,
                fn_constructor_args=(work,),
                compute=samplers.strategy(num_parts=len(rows), room=_room(samplers)),
                **_resources(samplers, computes=not isinstance(work.model, SampledServer) and work.model is not None),
                label_selector=label_selector(
                    [work.model.endpoint.url] if isinstance(work.model, SampledServer) else []
                ),
            )
            if not work.rewards:
                place = BestOfNFolder(work.output)
                yield from (counted(row, place) for row in data.iter_rows())
                return
            specs = [*work.rewards, *([] if work.gold is None else [work.gold])]
            data = data.map(
                PartRewarder,
                fn_constructor_args=(work,),
                compute=rewarders.strategy(num_parts=len(rows), room=_room(rewarders)),
                **_resources(rewarders, computes=any(map(computes, specs))),
                label_selector=label_selector([spec.url.url for spec in specs if spec.url is not None]),
            )
            yield from data.iter_rows()

    return run


def _resources(pool: ActorPool, *, computes: bool) -> dict[str, Any]:
    """Return what an actor takes: no CPU if it only waits for a server, and half of one on a single CPU, so that both
    pools have room."""
    total = ray.cluster_resources().get("CPU", 1)
    found: dict[str, Any] = {"num_cpus": 0 if not computes else 1 if total >= 2 else 0.5}
    return found | ({"num_gpus": pool.num_gpus} if pool.num_gpus else {})


def _room(pool: ActorPool) -> int:
    resources = cluster_resources()
    return max(1, int(resources.get("GPU", 1) / pool.num_gpus if pool.num_gpus else resources.get("CPU", 1)))
