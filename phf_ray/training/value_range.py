"""Refuses AWR on scores that its value head can't reach."""

import logging
from collections.abc import Sequence

from phf_ray.config import AWRConfig, Config
from phf_ray.corpus.manifest import CorpusManifest
from phf_ray.corpus.stats import ScorerStats
from phf_ray.errors import ConfigError

log = logging.getLogger(__name__)

_FEW = 0.001
"""Largest share of segments outside the range that only warns: a rate such as violations per character can exceed 1 in
a line of two characters."""


def check_value_range(config: Config, *, manifests: Sequence[CorpusManifest]) -> None:
    """Raise ConfigError if AWR would learn values of scores outside [0, 1].

    A value is minus a sigmoid, so it stands for a score in (0, 1). The advantage of any other score never shrinks.
    """
    # DIFFERS: phf-ray refuses scores that the value head can't reach; the original trains on them.
    objective = config.objective
    if config.original is not None or not isinstance(objective, AWRConfig) or objective.fixed_value is not None:
        return
    stats = ScorerStats()
    for manifest in manifests:
        stats.merge(manifest.scorer_stats())
    histogram = stats.segment_histogram
    outside = sum(count for count, _ in histogram.negative.values()) + histogram.split(1.0)[1].count
    if not outside:
        return
    found = (
        f"{outside:,} of {histogram.count:,} segments score outside [0, 1] ({histogram.min:.4g} to "
        f"{histogram.max:.4g}), which the value head of AWR can't reach"
    )
    if outside > _FEW * histogram.count:
        raise ConfigError(
            f"{found}; score the corpus with a scorer whose scores lie in [0, 1] (HuggingFaceScorer: activation: "
            "sigmoid), use `objective: {name: RWR}`, or set objective.fixed_value"
        )
    log.warning("%s", found)
