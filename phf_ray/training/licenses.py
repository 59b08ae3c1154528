"""Licences of the data and of the model that a run's model is made from."""

import logging
from pathlib import Path
from typing import Any

from phf_ray.blocks.manifest import BlockManifest
from phf_ray.checkpoint import read_info
from phf_ray.config import ModelConfig
from phf_ray.storage.hub import HubModel, hub_model_license, parse_hub_model
from phf_ray.storage.licenses import folder_license, union
from phf_ray.storage.licenses import license_facts as facts_of

log = logging.getLogger(__name__)


def run_licenses(manifest: BlockManifest, *, model: ModelConfig, checkpoint_path: str | None) -> tuple[str, ...]:
    """Return the licences of the blocks and of the model that the run starts from, as far as known."""
    return union([*manifest.licenses, *model_licenses(model, checkpoint_path=checkpoint_path)])


def model_licenses(model: ModelConfig, *, checkpoint_path: str | None) -> tuple[str, ...]:
    """Return the licences of the model that a run starts from, as far as known."""
    start, revision = (model.path_or_name, model.revision) if checkpoint_path is None else (checkpoint_path, None)
    if start is None or (checkpoint_path is None and model.from_scratch):
        return ()
    return _model_licenses(start, revision=revision)


def _model_licenses(source: str, *, revision: str | None) -> tuple[str, ...]:
    """Return the licences of a checkpoint's data, or that which the card of another model states."""
    folder = Path(source)
    if folder.is_dir():
        info = read_info(folder)
        stated = folder_license(folder)
        return info.licenses if info is not None else (() if stated is None else (stated,))
    named = parse_hub_model(source)
    stated = None if named is None else hub_model_license(HubModel(named.id, named.revision or revision))
    return () if stated is None else (stated,)


def license_facts(manifest: BlockManifest, *, model: ModelConfig, checkpoint_path: str | None) -> dict[str, Any]:
    """Return what the run's summary says of the licences, and log a warning if one forbids commercial use."""
    facts = facts_of(run_licenses(manifest, model=model, checkpoint_path=checkpoint_path))
    for warning in facts.get("warnings", ()):
        log.warning("%s", warning)
    return facts
