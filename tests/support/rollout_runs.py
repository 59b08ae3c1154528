"""Runs of rounds with a tiny model: one worker in this process, or ranks of a gloo group."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tiny_models import tiny_tokenizer

from phf_ray.blocks.tokenizer import load_tokenizer
from phf_ray.config import Config, parse_config
from phf_ray.rollouts.driver import PreparedRun, prepare_rollouts, run_rollouts
from phf_ray.rollouts.in_process import fit_rollouts_here
from phf_ray.rollouts.plan import RolloutJob
from phf_ray.rollouts.worker import RolloutWorker
from phf_ray.runs.directory import RunDirectory
from phf_ray.training.driver import Helpers, Tracking, plain_job
from phf_ray.training.ranks import from_rank_zero

WORDS = ["apple", "brown", "clock", "dog", "eagle", "fox", "grape", "house", "import", "jumps", "lazy", "over"]


def write_prompts(folder: Path) -> Path:
    """A tokenizer and a file of twelve prompts."""
    tiny_tokenizer().save_pretrained(folder / "tokenizer")
    rows = [{"prompt": f"the {word} "} for word in WORDS]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def rollout_values(folder: Path, *, algorithm: dict[str, Any] | None = None, **rollouts: Any) -> dict[str, Any]:
    return {
        "tokenizer": {"path_or_name": str(folder / "tokenizer")},
        "model": {
            "path_or_name": None,
            "model_type": "gpt2",
            "config_kwargs": {"n_layer": 1, "n_head": 2, "n_embd": 32, "n_positions": 64, "resid_pdrop": 0.1},
        },
        "training": {
            "per_device_train_batch_size": 4,
            "learning_rate": 0.003,
            "lr_scheduler_type": "constant",
            "precision": "fp32",
            "warmup_ratio": 0.0,
            "resources_per_worker": {"CPU": 1},
        },
        "rollouts": {
            "prompts": [str(folder / "prompts.jsonl")],
            "reward": {"rule": "shorter"},
            "rounds": 4,
            "prompts_per_round": 4,
            "samples_per_prompt": 3,
            "epochs": 1,
            "minibatches": 2,
            "max_tokens": 12,
            "sampling_batch": 6,
        }
        | rollouts,
        "algorithm": algorithm or {"name": "rloo", "kl_coef": 0.01},
    }


def rollout_config(folder: Path, *, training: dict[str, Any] | None = None, **changes: Any) -> Config:
    values = rollout_values(folder, **changes)
    values["training"] |= training or {}
    return parse_config(values)


def prepared(config: Config, folder: Path) -> PreparedRun:
    return prepare_rollouts(
        config, tokenizer=load_tokenizer(config.tokenizer), checkpoint_path=None, folder=str(folder / "prompts")
    )


def run_here(
    config: Config, run: Path, *, plan: PreparedRun, fit: Any = fit_rollouts_here, sinks: Sequence[Any] = ()
) -> dict[str, Any]:
    return run_rollouts(
        config,
        plan,
        run=RunDirectory(run),
        task="test",
        tracking=Tracking(),
        helpers=Helpers(fit=fit, sinks=sinks),
    )


class GlooRanks:
    """The ranks of a process group, as `RayRanks` has those of Ray Train."""

    node = "local"

    def __init__(self) -> None:
        self.rank, self.world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        self.local_world_size, self.device = self.world_size, torch.device("cpu")

    def broadcast(self, value):
        return from_rank_zero(value)


def run_on_rank(config: Config, run: Path, plan: PreparedRun, _rank: int) -> None:
    """Run this rank's worker of a run that `prepare_run` has made."""
    job = RolloutJob(**job_values(config, run, plan))
    RolloutWorker(job, RunDirectory(run), GlooRanks()).train()


def job_values(config: Config, run: Path, plan: PreparedRun) -> dict[str, Any]:
    import dataclasses

    values = plain_job(config, plan=dataclasses.asdict(plan.plan), run=RunDirectory(run), task="test")
    return values | {"prompts_path": plan.prompts.path, "num_threads": 1}


def prepare_run(config: Config, run: Path, plan: PreparedRun) -> None:
    import dataclasses

    RunDirectory(run).prepare(config=config.model_dump(mode="json"), plan=dataclasses.asdict(plan.plan))


def round_files(run: Path) -> dict[str, bytes]:
    """Content of every file of every round, by name."""
    folder = run / "rollouts"
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def final_weights(run: Path) -> bytes:
    summary = json.loads((run / "summary.json").read_text()) if (run / "summary.json").exists() else None
    checkpoint = RunDirectory(run).latest_checkpoint() if summary is None else run / summary["checkpoint"]
    assert checkpoint is not None
    return (checkpoint / "model.safetensors").read_bytes()
