"""Reads results of lm-eval for the same models, for the same report."""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import fsspec

from phf_ray.errors import ConfigError, DataError
from phf_ray.evaluation.report.records import TaskResult


def read_lm_eval(path: str) -> tuple[TaskResult, ...]:
    """Return the figures in a results file of lm-eval (0.4), by task and metric in the file's order.

    `path`: the file, or the folder that lm-eval got as `--output_path`; the newest results in it count.
    """
    filesystem, name = fsspec.core.url_to_fs(path)
    if filesystem.isdir(name):
        # The file names contain the time, so the last one is the newest.
        found = sorted(filesystem.glob(f"{name}/**/results_*.json"), key=lambda one: one.rpartition("/")[2])
        if not found:
            raise ConfigError(f"--lm-eval {path}: the folder holds no results_*.json; give lm-eval's --output_path")
        name = found[-1]
    try:
        content = json.loads(filesystem.cat_file(name))
        return tuple(result for task in content["results"] for result in _results_of(task, content))
    except FileNotFoundError:
        raise ConfigError(f"--lm-eval {path}: no such file; give lm-eval's --output_path or a results file") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{name} is not a results file of lm-eval ({type(error).__name__}: {error}); run lm-eval with --output_path"
        ) from None


def _results_of(task: str, content: Mapping[str, Any]) -> Iterator[TaskResult]:
    figures = content["results"][task]
    for key, value in figures.items():
        metric, comma, filter_name = key.partition(",")
        # Some entries are not figures: names (`alias`), counts, and `N/A`.
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = figures.get(f"{metric}_stderr,{filter_name}")
        counts = (content.get("n-samples") or {}).get(task) or {}
        yield TaskResult(
            task=task,
            metric=metric if filter_name == "none" else f"{metric} ({filter_name})",
            value=_finite(value, where=f"{task}, {key}"),
            standard_error=float(error) if isinstance(error, int | float) and math.isfinite(error) else None,
            num_samples=counts.get("effective"),
            num_shots=(content.get("n-shot") or {}).get(task),
            higher_is_better=((content.get("higher_is_better") or {}).get(task) or {}).get(metric),
        )


def _finite(value: float, *, where: str) -> float:
    if not math.isfinite(value):
        raise ValueError(f"{where} is {value}")
    return float(value)
