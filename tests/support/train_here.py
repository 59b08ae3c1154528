"""A run of one worker in this process, without Ray."""

import time
from typing import Any

from phf_ray.blocks.build import build_here, ensure_blocks
from phf_ray.blocks.manifest import read_block_manifest
from phf_ray.config import Config
from phf_ray.runs.directory import RunDirectory
from phf_ray.training.driver import Helpers, Tracking, run_training
from phf_ray.training.in_process import fit_here
from phf_ray.training.plan import TrainingPlan, plan_training

Prepared = tuple[Config, TrainingPlan, str]
"""Configuration, plan, and folder of the blocks."""


def prepared_run(config: Config, *, corpus: str, folder: str) -> Prepared:
    blocks = ensure_blocks(config, corpora=[corpus], output_root=f"{folder}/blocks", builder=build_here).root
    plan = plan_training(config, manifest=read_block_manifest(blocks), objective_threshold=None, checkpoint_path=None)
    return config, plan, blocks


def train_here(prepared: Prepared, run: RunDirectory) -> dict[str, Any]:
    config, plan, blocks = prepared
    return run_training(
        config, plan=plan, run=run, blocks_path=blocks, task="pep8", tracking=Tracking(), helpers=Helpers(fit=fit_here)
    )


def stop_after(run: RunDirectory, *, num_rows: int) -> None:
    """Ask the run to stop once it has written some metrics."""
    while not run.metrics_path.exists() or len(run.read_metrics()) < num_rows:
        time.sleep(0.01)
    run.request_stop()
