"""`--seeds`: the names of what each training seed makes, and, for `phf demo` and `phf pareto`, the spread over seeds.

There every seed has runs and a report of its own, whose samples are drawn from its models alone. So the figures of two
seeds share nothing but the corpus, and Student's interval over seeds holds what sampling adds.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phf_ray.storage.files import write_text

if TYPE_CHECKING:
    from phf_ray.measures.clusters import ClusteredMean


def add_argument(
    parser: argparse.ArgumentParser, *, what: str = "all models are trained and compared once from each"
) -> None:
    parser.add_argument(
        "--seeds",
        default="0",
        metavar="N,N",
        help=f"training seeds: {what}. 0 is the configured `training.seed`, N adds N to it (default: 0)",
    )


def named(name: str, seed: int) -> str:
    """Return the name of a run or report of a seed. Seed 0 has those of a job without seeds."""
    return name if seed == 0 else f"{name}_seed{seed}"


def override_of(task: str, method: str, overrides: Sequence[str], seed: int) -> list[str]:
    """Return what a training of this seed differs in, to stand behind the other overrides."""
    from phf_ray.config import load_config

    if seed == 0:
        return []
    return [f"training.seed={load_config(task, method, list(overrides)).training.seed + seed}"]


def read_reports(output: Path, name: str, seeds: Sequence[int]) -> dict[int, dict[str, Any]]:
    return {
        seed: json.loads((output / named(name, seed) / "report.json").read_text(encoding="utf-8")) for seed in seeds
    }


def difference(reports: Mapping[int, dict[str, Any]], first: str, second: str, key: str) -> "ClusteredMean | None":
    """Return the mean over seeds of one arm's figure minus another's. None if a seed lacks one."""
    ours, theirs = (_values(reports, arm, key) for arm in (first, second))
    pairs = zip(ours, theirs, strict=True)
    return _mean([None if one is None or other is None else one - other for one, other in pairs])


def spread(reports: Mapping[int, dict[str, Any]], keys: Sequence[str]) -> list[dict[str, Any]]:
    """Return for each scenario, arm and figure the mean over seeds, its 95% interval, and the value of each seed."""
    first, *_ = reports.values()
    return [
        {
            "scenario": row["scenario"],
            "arm": row["arm"],
            "figure": key,
            **_spread_json(reports, _values(reports, row["arm"], key, scenario=row["scenario"])),
        }
        for row in first["table"]
        for key in keys
    ]


def say_spread(reports: Mapping[int, dict[str, Any]], keys: Sequence[str], *, file: Path) -> None:
    """Print and write the spread. Of one seed there is none."""
    if len(reports) == 1:
        return
    rows = spread(reports, keys)
    write_text(file, json.dumps({"seeds": list(reports), "spread": rows}, indent=1) + "\n")
    print(f"over {len(reports)} training seeds: mean, 95% interval over seeds, lowest .. highest", flush=True)
    for row in rows:
        print(f"  {row['scenario']}, {row['arm']}, {row['figure']}: {_shown(row)}", flush=True)
    print(f"figures: {file.name}", flush=True)


def _shown(row: Mapping[str, Any]) -> str:
    if row["mean"] is None:
        return "unknown, because a seed has none"
    low, high = row["interval"]
    values = row["by_seed"].values()
    return f"{row['mean']:.4g} [{low:.4g}, {high:.4g}], {min(values):.4g} .. {max(values):.4g}"


def _spread_json(reports: Mapping[int, Any], values: Sequence[float | None]) -> dict[str, Any]:
    found = _mean(values)
    interval = None if found is None or found.interval is None else [found.interval.low, found.interval.high]
    return {
        "mean": None if found is None else found.mean,
        "interval": interval,
        "num_seeds": len(values),
        "by_seed": {str(seed): value for seed, value in zip(reports, values, strict=True)},
    }


def _mean(values: Sequence[float | None]) -> "ClusteredMean | None":
    from phf_ray.measures.clusters import clustered_mean

    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    return clustered_mean({str(number): (value, 1) for number, value in enumerate(known)})


def _values(
    reports: Mapping[int, dict[str, Any]], arm: str, key: str, *, scenario: str | None = None
) -> list[float | None]:
    """Return the figure of each seed. `scenario`: None is the first one."""
    return [
        next((row[key] for row in report["table"] if row["arm"] == arm and scenario in (None, row["scenario"])), None)
        for report in reports.values()
    ]
