"""Executors score shards: in this process, or in pools of Ray actors (`on_ray`)."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from phf_ray.config import PoolConfig
from phf_ray.scoring.progress import ScoreProgress
from phf_ray.scoring.shard import ScoringStage, ShardScorer


@dataclass(frozen=True, slots=True)
class ScoringPool:
    """Actors that all run the same stage."""

    stage: ScoringStage
    config: PoolConfig


class ScoringExecutor(Protocol):
    """Scores shards, in this process or elsewhere."""

    def start(self, num_bytes: int) -> None:
        """Called before the first shard, only if there is work: that many bytes of text."""

    def has(self, pool: PoolConfig) -> bool:
        """Whether the resources that one of the pool's actors asks for exist."""

    def may_grow(self) -> bool:
        """Whether more resources may be added later."""

    def tell(self, progress: ScoreProgress) -> None:
        """Called after the start and after each shard."""

    def score(self, pools: Sequence[ScoringPool], rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Send each row through all pools. Yields the rows in any order."""


class InProcessScoring:
    """Scores one shard after the other, without Ray."""

    def start(self, num_bytes: int) -> None:
        pass

    def has(self, pool: PoolConfig) -> bool:
        return not pool.num_gpus and not pool.resources

    def may_grow(self) -> bool:
        return False

    def tell(self, progress: ScoreProgress) -> None:
        pass

    def score(self, pools: Sequence[ScoringPool], rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        with contextlib.ExitStack() as stack:
            scorers = [stack.enter_context(contextlib.closing(ShardScorer(pool.stage))) for pool in pools]
            for row in rows:
                for scorer in scorers:
                    row = scorer(row)
                yield row
