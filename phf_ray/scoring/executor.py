"""Where shards are scored: in this process, or (`on_ray`) in pools of Ray actors."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from phf_ray.config import PoolConfig
from phf_ray.scoring.progress import ScoreProgress
from phf_ray.scoring.shard import ScoringStage, ShardScorer


@dataclass(frozen=True, slots=True)
class ScoringPool:
    """Actors that all do one stage."""

    stage: ScoringStage
    config: PoolConfig


class ScoringExecutor(Protocol):
    """Where shards are scored."""

    def start(self) -> None:
        """Called once it is known that there is work."""

    def has(self, pool: PoolConfig) -> bool:
        """Whether the resources that the actors of a pool ask for exist."""

    def may_grow(self) -> bool:
        """Whether resources that do not exist may come."""

    def tell(self, progress: ScoreProgress) -> None:
        """Called when it has started, and after each shard."""

    def score(self, pools: Sequence[ScoringPool], rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Takes each row through all pools; in any order."""


class InProcessScoring:
    """One shard after the other, without Ray."""

    def start(self) -> None:
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
