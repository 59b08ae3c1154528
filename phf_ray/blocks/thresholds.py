"""Resolves thresholds to numbers. Quantiles are read from the corpus."""

from collections.abc import Callable, Sequence

from phf_ray.config import Compat, Config, MLEConfig, Quantile, Threshold, UnlikelihoodConfig
from phf_ray.corpus.manifest import CorpusManifest
from phf_ray.corpus.stats import ScorerStats
from phf_ray.errors import ConfigError, DataError
from phf_ray.measures.histogram import Histogram


def resolve_threshold(
    threshold: Threshold | None, *, quantile_of: Callable[[float], float | None], compat: Compat
) -> float | None:
    """Return the threshold as a number; None stays None. `quantile_of` reads the corpus manifest.

    Under `compat: korbak2023`, a quantile gives the paper's number, which belongs to the paper's corpora.
    """
    if not isinstance(threshold, Quantile):
        return threshold
    if compat == "korbak2023":
        if threshold.korbak2023 is None:
            raise ConfigError(
                f"threshold {{quantile: {threshold.quantile}}} has no number from the paper, which compat: korbak2023 "
                "needs; write the threshold as a number"
            )
        return threshold.korbak2023
    resolved = quantile_of(threshold.quantile)
    if resolved is None:
        raise DataError(
            f"threshold {{quantile: {threshold.quantile}}} can't be read from a corpus without a single score; "
            "see `errors` in its parts and run jobs.score_corpus again"
        )
    return resolved


def resolve_thresholds(config: Config, *, manifests: Sequence[CorpusManifest]) -> dict[str, float]:
    """Return the configured thresholds as numbers: `conditional`, `filter`, `objective`.

    Quantiles are over segments, except for `filter`, where they are over documents. Several corpora count as one.
    """
    conditional = config.dataset.conditional_training_config
    merged = ScorerStats()
    for manifest in manifests:
        if manifest.is_scored:
            merged.merge(manifest.scorer_stats())
    wanted: dict[str, tuple[Threshold | None, Histogram]] = {
        "conditional": (None if conditional is None else conditional.threshold, merged.segment_histogram),
        "filter": (config.dataset.filter_threshold, merged.document_histogram),
        "objective": (_objective_threshold(config), merged.segment_histogram),
    }
    resolved = {
        name: resolve_threshold(threshold, quantile_of=histogram.quantile, compat=config.original)
        for name, (threshold, histogram) in wanted.items()
    }
    return {name: threshold for name, threshold in resolved.items() if threshold is not None}


def _objective_threshold(config: Config) -> Threshold | None:
    if isinstance(config.objective, UnlikelihoodConfig):
        return config.objective.score_threshold
    return config.objective.mask_above if isinstance(config.objective, MLEConfig) else None
