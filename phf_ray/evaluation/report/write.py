"""Writes a report: `samples.parquet` and `samples.jsonl`, `report.json`, plots as PNG, `report.html`."""

import json
from collections.abc import Sequence
from typing import Any

from phf_ray.evaluation.report.figures import build_report
from phf_ray.evaluation.report.page import page_of
from phf_ray.evaluation.report.plots import draw_plots, png_of
from phf_ray.evaluation.report.records import Evaluation, Sample
from phf_ray.evaluation.report.samples import sort_samples, write_samples
from phf_ray.storage.files import write_file


def write_report(directory: str, samples: Sequence[Sample], evaluation: Evaluation) -> dict[str, Any]:
    """Write samples.parquet and samples.jsonl, report.json, the plots as PNG and report.html, and return the report."""
    samples = sort_samples(samples, evaluation)
    report = build_report(samples, evaluation)
    write_samples(directory, samples, evaluation)
    write_file(f"{directory}/report.json", (json.dumps(report, indent=1, allow_nan=False) + "\n").encode())
    plots = draw_plots(report, samples, evaluation)
    for plot in plots:
        write_file(f"{directory}/{plot.name}.png", png_of(plot.figure))
    write_file(f"{directory}/report.html", page_of(report, plots, samples).encode())
    return report
