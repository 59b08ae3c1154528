"""Samples of evaluated weights as tables, named as in the original code."""

import logging
from typing import Any

from phf_ray.runs.directory import RunDirectory

log = logging.getLogger(__name__)


def sample_tables(run: RunDirectory, step: int) -> dict[str, dict[str, Any]]:
    """Return the samples drawn from the weights of `step`: one table per scenario, named as in the original code."""
    import pyarrow.parquet as pq

    path = run.evaluation_folder(step) / "samples.parquet"
    if not path.exists():
        return {}
    columns = ["prompt", "text", "score", "error"]
    rows: dict[str, list[list[Any]]] = {}
    for sample in pq.read_table(path, columns=["scenario", *columns]).to_pylist():
        rows.setdefault(sample["scenario"], []).append([sample[column] for column in columns])
    return {
        f"generation/{scenario}/current_samples": {"columns": columns, "rows": found}
        for scenario, found in rows.items()
    }


def all_sample_tables(run: RunDirectory, *, max_rows: int) -> dict[str, dict[str, Any]]:
    """Return the samples of all evaluated weights: one table per scenario, with the step as first column.

    If a table could exceed `max_rows`, it holds only the first samples of each step, equally many per step.
    """
    tables: dict[str, dict[str, Any]] = {}
    steps = run.evaluated_steps()
    most = max_rows // max(1, len(steps))
    is_cut = False
    for step in steps:
        for name, table in sample_tables(run, step).items():
            whole = name.removesuffix("current_samples") + "all_samples"
            found = tables.setdefault(whole, {"columns": ["step", *table["columns"]], "rows": []})
            found["rows"] += [[step, *row] for row in table["rows"][:most]]
            is_cut = is_cut or len(table["rows"]) > most
    if is_cut:
        log.warning(
            "a table on wandb has at most %d rows: all_samples has the first %d samples of each of %d steps; all are "
            "in %s",
            max_rows,
            most,
            len(steps),
            run.evaluations,
        )
    return tables
