"""Measures: numbers or texts in, numbers out; no files, no models, no Ray.

A higher score is always worse. Samples that have no score or were never drawn are counted separately and never enter a
mean. A figure that can't be computed is None, never 0; `length_controlled_win_rate` and `bradley_terry` alone return
NaN, and warn with the reason, which `fit_length_control` and `fit_bradley_terry` return. `maxima.py` and `intervals.py`
measure scores; `texts.py`, `ngrams.py` and `bleu.py` measure texts; `build.py` finds a metric by name. `win_rates.py`,
`length_control.py`, `ratings.py`, `judges.py` and `significance.py` measure preferences between answers, and
`best_of_n.py` rewards, where higher is better. Open `maxima.py` first.

A file never has the name of something that is exported: `from phf_ray.measures import x` would give the file.
"""

from typing import Any

from phf_ray.exports import load_export

_EXPORTS = {
    "BradleyTerry": "ratings",
    "Calibration": "calibration",
    "Compilability": "texts",
    "Histogram": "histogram",
    "Interval": "intervals",
    "Length": "texts",
    "LengthControlled": "length_control",
    "Metric": "metric",
    "NGramStats": "ngrams",
    "PairedDifference": "significance",
    "Repetition": "texts",
    "SelfBLEU": "bleu",
    "SwapConsistency": "judges",
    "UndefinedFigureWarning": "undefined",
    "WinRate": "win_rates",
    "auc": "agreement",
    "best_of_n_estimate": "best_of_n",
    "best_of_n_kl": "best_of_n",
    "bootstrap_difference": "intervals",
    "bootstrap_max_at_k": "intervals",
    "bootstrap_mean": "intervals",
    "bootstrap_share": "intervals",
    "bradley_terry": "ratings",
    "build_metric": "build",
    "calibrate": "calibration",
    "calibration_error": "calibration",
    "cohen_kappa": "judges",
    "corrected_rate": "judges",
    "elo": "ratings",
    "fit_bradley_terry": "ratings",
    "fit_length_control": "length_control",
    "grouped_max_at_k": "maxima",
    "holm": "significance",
    "krippendorff_alpha": "judges",
    "length_controlled_win_rate": "length_control",
    "max_at_k": "maxima",
    "order_statistic_weights": "maxima",
    "paired_difference": "significance",
    "pareto_front": "pareto",
    "parse_outcome": "texts",
    "spearman": "agreement",
    "swap_consistency": "judges",
    "win_rate": "win_rates",
}


def __getattr__(name: str) -> Any:
    return load_export(__name__, _EXPORTS, name)
