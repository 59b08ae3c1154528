"""Finds the checkpoint that a path refers to: a model directory, or the newest checkpoint of a training run."""

import re
from pathlib import Path

from phf_ray.checkpoint import require_model
from phf_ray.errors import ConfigError
from phf_ray.runs.directory import RunDirectory


def find_checkpoint(path: str | Path, *, option: str) -> Path:
    """Return `path` if it is a model directory, or the newest complete checkpoint if it is a run.

    `option`: the option that the user gave the path to, such as `--model`; errors begin with it.
    Raises ConfigError if `path` does not exist, holds no model, or is a run without a complete checkpoint.
    """
    path = Path(path)
    if not path.is_dir():
        raise ConfigError(
            f"{option} {path}: no such directory; give a checkpoint such as out/mle/checkpoints/step-00000500, or the "
            "folder of a training run"
        )
    if (path / "checkpoints").is_dir():
        newest = RunDirectory(path).latest_checkpoint()
        if newest is None:
            raise ConfigError(f"{option} {path}: the run has no complete checkpoint yet; train it first")
        return newest
    return require_model(path, option=option)


def name_after_run(checkpoint: Path) -> str:
    """Return a name for a model: the name of the checkpoint's run or, without a run, of its own folder."""
    folder = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint
    return re.sub(r"[^A-Za-z0-9_.-]", "-", folder.resolve().name)
