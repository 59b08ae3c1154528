"""Decides whether a job is so small that scoring it in this process takes less time than starting Ray."""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from phf_ray.config import Config, PoolConfig
from phf_ray.scorers.build import scorer_class, scorer_configs
from phf_ray.scoring.executor import InProcessScoring, ScoringExecutor, ScoringPool
from phf_ray.scoring.progress import ScoreProgress

log = logging.getLogger(__name__)

_BYTES_HERE, _BYTES_OF_MODELS_HERE = 1 << 20, 64 << 10
"""Input up to this size is scored in this process. A megabyte makes two shards, so a second core could at
most halve the ten seconds that PII takes for it, and Ray's start takes longer than it saves. The smaller one holds
where a scorer is a model."""


def bytes_here(config: Config) -> int:
    """Return up to how many bytes of text this process scores by itself; 0 if the configuration sets up pools."""
    if config.scoring.pools.model_fields_set:
        return 0
    classes = [scorer_class(one["class_name"]) for one in scorer_configs(config)]
    return _BYTES_OF_MODELS_HERE if any(one.runs_on_device for one in classes) else _BYTES_HERE


class SmallScoring:
    """Scores in this process if there are at most `most` bytes of text left, else on the executor `elsewhere`."""

    def __init__(self, elsewhere: Callable[[], ScoringExecutor], *, most: int):
        self._elsewhere = elsewhere
        self._most = most
        self._chosen: ScoringExecutor = InProcessScoring()

    def start(self, num_bytes: int) -> None:
        if num_bytes > self._most:
            self._chosen = self._elsewhere()
        else:
            log.info(
                "scoring %.1f kB of text in this process, which takes less time than starting Ray; RAY_ADDRESS=local, "
                "or the address of a cluster, has it on Ray",
                num_bytes / 1e3,
            )
        self._chosen.start(num_bytes)

    def has(self, pool: PoolConfig) -> bool:
        return self._chosen.has(pool)

    def may_grow(self) -> bool:
        return self._chosen.may_grow()

    def tell(self, progress: ScoreProgress) -> None:
        self._chosen.tell(progress)

    def score(self, pools: Sequence[ScoringPool], rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        return self._chosen.score(pools, rows)
