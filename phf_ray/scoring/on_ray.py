"""Scores shards with Ray Data. Each stage has one pool of actors, which grows and shrinks between its limits."""

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import ray
from ray.data import ActorPoolStrategy
from ray.util.metrics import Counter as MetricCounter
from ray.util.metrics import Gauge as MetricGauge

from phf_ray.config import GpuPoolConfig, PoolConfig
from phf_ray.corpus.on_ray import cluster_resources, data_settings, own_errors
from phf_ray.corpus.stats import CorpusStats
from phf_ray.errors import ConfigError
from phf_ray.scorers.tasks import without_gpus
from phf_ray.scoring.executor import ScoringPool
from phf_ray.scoring.pools import resources_of
from phf_ray.scoring.progress import ScoreProgress
from phf_ray.scoring.shard import ScoringStage, ShardScorer

log = logging.getLogger(__name__)


class ScoreShard(ShardScorer):
    """A Ray Data actor: a ShardScorer that adds its counts to Ray's metrics."""

    def __init__(self, stage: ScoringStage):
        super().__init__(stage)
        self._told: Counter[str] = Counter()
        self._counters = {
            name: MetricCounter(f"phf_{name}", description=f"{name.replace('_', ' ')} of jobs.score_corpus")
            for name in ("documents", "segments", "characters", "failed_segments", "rejected_records")
        }

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        self._told.clear()
        return super().__call__(row)

    def count(self, stats: CorpusStats) -> None:
        if not self._stage.is_last:
            return
        now = Counter(
            documents=stats.documents,
            segments=stats.segments,
            characters=stats.characters,
            failed_segments=stats.num_failed,
            rejected_records=stats.rejected.total(),
        )
        for name, value in (now - self._told).items():
            self._counters[name].inc(value)
        self._told = now


class RayScoring:
    """Scores shards with Ray Data, in one pool of actors per stage."""

    def __init__(self, start: Callable[[], None] | None = None):
        self._start = start
        self._gauges: dict[str, MetricGauge] = {}

    def start(self, num_bytes: int) -> None:
        del num_bytes
        if self._start is not None:
            self._start()
        self._gauges = {
            name: MetricGauge(f"phf_{name}", description=f"{name.replace('_', ' ')} of the jobs.score_corpus that runs")
            for name in ("shards", "shards_done", "eta_seconds")
        }

    def has(self, pool: PoolConfig) -> bool:
        available = ray.cluster_resources()
        return all(available.get(name, 0) >= amount for name, amount in resources_of(pool).items())

    def may_grow(self) -> bool:
        return _may_grow()

    def tell(self, progress: ScoreProgress) -> None:
        values = {"shards": progress.shards, "shards_done": progress.shards_done, "eta_seconds": progress.eta_s}
        for name, gauge in self._gauges.items():
            gauge.set(values[name])  # None (not known yet) sets nothing

    def score(self, pools: Sequence[ScoringPool], rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for pool in pools:
            if self.has(pool.config):
                continue
            if not self.may_grow():
                raise _never_fits(pool.config)
            log.warning("waiting for nodes with %s: the cluster has none yet", resources_of(pool.config))
        with data_settings(), own_errors():
            # One block is one shard. Items are already in the object store, so no read task has to wait for a CPU.
            data: ray.data.Dataset = ray.data.from_items(list(rows), override_num_blocks=len(rows))
            for pool in pools:
                data = _through(data, pool, most=min(len(rows), pool.config.max or _room_for(pool.config) or len(rows)))
            yield from data.iter_rows()


def _through(data: "ray.data.Dataset", pool: ScoringPool, *, most: int) -> "ray.data.Dataset":
    # An actor that asks for no GPU still sees the node's GPUs.
    stage = pool.stage if pool.config.num_gpus else replace(pool.stage, setup=without_gpus(pool.stage.setup))
    return data.map(
        ScoreShard,  # type: ignore[arg-type]
        fn_constructor_args=(stage,),
        compute=ActorPoolStrategy(min_size=min(pool.config.min, most), max_size=most, max_tasks_in_flight_per_actor=2),
        num_cpus=pool.config.num_cpus,
        num_gpus=pool.config.num_gpus or None,
        resources=pool.config.resources or None,
    )


def _never_fits(pool: PoolConfig) -> ConfigError:
    name = "gpu" if isinstance(pool, GpuPoolConfig) else "cpu"
    wanted, available = resources_of(pool), ray.cluster_resources()
    there = {resource: available.get(resource, 0.0) for resource in wanted}
    return ConfigError(
        f"scoring.pools.{name}: an actor asks for {wanted}, but Ray has only {there}, so no actor could start; "
        "ask for less, or set RAY_ADDRESS to a cluster that has enough"
    )


def _room_for(pool: PoolConfig) -> int | None:
    """Return the number of actors that fit on this machine, or None on a cluster, which may grow."""
    if _may_grow():
        return None
    available = cluster_resources()
    room = min((int(available.get(name, 0) / amount) for name, amount in resources_of(pool).items()), default=1)
    return max(pool.min, room) if room else None


def _may_grow() -> bool:
    """Whether this is a cluster, not the local Ray that a job starts on its own machine.

    The number of nodes does not decide it: a cluster that starts with no workers has only a head. Ray does not say
    whether an autoscaler runs, so this function assumes that every cluster may grow.
    """
    if os.environ.get("RAY_ADDRESS", "local") != "local" or sum(node["Alive"] for node in ray.nodes()) > 1:
        return True
    # RAY_ADDRESS is not set if a program passed the cluster to ray.init(address=...).
    own = ray._private.worker._global_node
    return own is None or not own.is_head()
