"""Builds metrics from their configurations."""

from phf_ray.config import Compat, MetricConfig
from phf_ray.errors import ConfigError
from phf_ray.measures.bleu import SelfBLEU
from phf_ray.measures.metric import Metric
from phf_ray.measures.ngrams import NGramStats
from phf_ray.measures.texts import Compilability, Length


def build_metric(config: MetricConfig, *, compat: Compat = None) -> Metric:
    match config.class_name:
        case "Length":
            return Length()
        case "NGramStats":
            if config.n is None:
                raise ConfigError(
                    "generation.metrics_configs: NGramStats needs n; write {class_name: NGramStats, n: 1}"
                )
            return NGramStats(config.n, compat=compat)
        case "SelfBLEU" | "SelfBlEU":
            return SelfBLEU(5 if config.n is None else config.n, compat=compat)
        case "Compilability":
            return Compilability()
