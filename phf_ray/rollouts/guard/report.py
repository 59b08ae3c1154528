"""Writes the report of a run of rounds, `report.json` and `report.html`, from what the run has stored."""

import json
from pathlib import Path
from typing import Any

from phf_ray.rollouts.guard.page import rounds_page
from phf_ray.rollouts.guard.plots import draw_round_plots
from phf_ray.rollouts.guard.read import read_figures, read_round
from phf_ray.rollouts.guard.samples import choose_samples
from phf_ray.rollouts.guard.stop import StopRules
from phf_ray.rollouts.guard.summary import RoundsSummary, summarize
from phf_ray.runs.directory import RunDirectory
from phf_ray.storage.files import write_text


def write_rounds_report(run: Path, *, rules: StopRules, output: Path | None = None, seed: int = 0) -> RoundsSummary:
    """Write both files and return what they say. `output`: their folder; by default the run's directory."""
    summary = summarize(run.resolve().name, read_figures(run), rules)
    samples = choose_samples(summary.rounds, lambda number: read_round(run, number), seed=seed)
    page = rounds_page(summary, draw_round_plots(summary), samples)
    folder = run if output is None else output
    write_text(
        folder / "report.json", json.dumps(summary.as_json(), indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    )
    write_text(folder / "report.html", page)
    return summary


def stop_rules_of(run: Path) -> StopRules:
    """Return the rules that the run was started with; none if its configuration is not there."""
    section: dict[str, Any] = RunDirectory(run).read_config().get("rollouts") or {}
    stop: dict[str, Any] = section.get("stop") or {}
    return StopRules(kl=stop.get("kl"), gold_patience=stop.get("gold_patience"), rounds=section.get("rounds"))
