"""Measures: numbers or texts in, numbers out; no files, no models, no Ray.

A higher score is always worse. Samples that have no score or were never drawn are counted separately and never enter a
mean. A figure that can't be computed is None, never 0 or NaN. `maxima.py` and `intervals.py` measure scores;
`texts.py`, `ngrams.py` and `bleu.py` measure texts; `build.py` finds a metric by name. Open `maxima.py` first.
"""

from typing import Any

from phf_ray.exports import load_export

_EXPORTS = {
    "Calibration": "calibration",
    "Compilability": "texts",
    "Histogram": "histogram",
    "Interval": "intervals",
    "Length": "texts",
    "Metric": "metric",
    "NGramStats": "ngrams",
    "Repetition": "texts",
    "SelfBLEU": "bleu",
    "auc": "agreement",
    "bootstrap_difference": "intervals",
    "bootstrap_max_at_k": "intervals",
    "bootstrap_mean": "intervals",
    "build_metric": "build",
    "calibrate": "calibration",
    "grouped_max_at_k": "maxima",
    "max_at_k": "maxima",
    "order_statistic_weights": "maxima",
    "pareto_front": "pareto",
    "parse_outcome": "texts",
    "spearman": "agreement",
}


def __getattr__(name: str) -> Any:
    return load_export(__name__, _EXPORTS, name)
