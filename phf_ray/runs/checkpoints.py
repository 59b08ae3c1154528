"""Finds the checkpoint that a text refers to: a model directory, a training run's newest, or a model of the hub."""

import re
from pathlib import Path

from phf_ray.adapter_folder import base_folder, is_adapter
from phf_ray.checkpoint import require_model
from phf_ray.errors import ConfigError
from phf_ray.runs.directory import RunDirectory
from phf_ray.storage.hub import fetch_hub_model, hub_model


def find_checkpoint(path: str | Path, *, option: str) -> Path:
    """Return `path` if it is a model directory, or the newest complete checkpoint if it is a run.

    A name such as `owner/name@revision` that is no path is a model of the Hugging Face hub, fetched into the hub's
    cache. `option`: the option that the user gave the path to, such as `--model`; errors begin with it. Raises
    ConfigError if `path` does not exist, holds no model, is a run without a complete checkpoint, or holds an adapter
    whose base model does not exist.
    """
    checkpoint = checkpoint_at(path, option=option)
    if is_adapter(checkpoint):
        base_folder(checkpoint, option=option)
    return checkpoint


def checkpoint_at(path: str | Path, *, option: str) -> Path:
    """As `find_checkpoint`, without asking for the base model of an adapter."""
    named = hub_model(str(path))
    path = Path(path)
    if not path.is_dir():
        if named is not None:
            return require_model(fetch_hub_model(named, option=option), option=option)
        raise ConfigError(
            f"{option} {path}: no such directory; give a checkpoint such as out/mle/checkpoints/step-00000500, the "
            "folder of a training run, or a model of the hub (owner/name)"
        )
    if (path / "checkpoints").is_dir():
        newest = RunDirectory(path).latest_checkpoint()
        if newest is None:
            raise ConfigError(f"{option} {path}: the run has no complete checkpoint yet; train it first")
        return newest
    return require_model(path, option=option)


def name_after_run(checkpoint: Path) -> str:
    """Return a name for a model: that of the checkpoint's run, of the hub's repository, or of its own folder."""
    if checkpoint.parent.name == "snapshots":  # of the hub's cache: models--owner--name/snapshots/<commit>
        return re.sub(r"[^A-Za-z0-9_.-]", "-", checkpoint.parent.parent.name.rpartition("--")[2])
    folder = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint
    return re.sub(r"[^A-Za-z0-9_.-]", "-", folder.resolve().name)
