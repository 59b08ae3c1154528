"""A run of one worker in this process, without Ray."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

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


@contextlib.contextmanager
def worker_here() -> Iterator[None]:
    """Let the worker of jobs.train_lm run in this process: that of Ray Train takes fifteen CPU seconds to start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("phf_ray.training.on_ray.fit_on_ray", fit_here)
        yield


@contextlib.contextmanager
def stopped_after(*, num_rows: int) -> Iterator[None]:
    """Let a run of this process be told to stop when it has written some metrics. It looks at every step."""
    append, written = RunDirectory.append_metrics, []

    def append_and_stop(run: RunDirectory, row: Mapping[str, Any]) -> None:
        append(run, row)
        written.append(row)
        if len(written) == num_rows:
            run.request_stop()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunDirectory, "append_metrics", append_and_stop)
        patch.setattr("phf_ray.training.watch._POLL_S", -1.0)
        yield
