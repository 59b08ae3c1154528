"""Licences of the data that a run's model is made from."""

import logging
from typing import Any

from phf_ray.blocks.manifest import BlockManifest
from phf_ray.checkpoint import read_info
from phf_ray.storage.licenses import license_facts as stated
from phf_ray.storage.licenses import union

log = logging.getLogger(__name__)


def run_licenses(manifest: BlockManifest, *, checkpoint_path: str | None) -> tuple[str, ...]:
    """Return the licences of the blocks and of the data of the checkpoint that the run starts from, as far as known."""
    start = None if checkpoint_path is None else read_info(checkpoint_path)
    return union([*manifest.licenses, *(() if start is None else start.licenses)])


def license_facts(manifest: BlockManifest, *, checkpoint_path: str | None) -> dict[str, Any]:
    """Return what the run's summary says of the licences, and log a warning if one forbids commercial use."""
    licenses = run_licenses(manifest, checkpoint_path=checkpoint_path)
    facts = stated(licenses)
    for warning in facts.get("warnings", ()):
        log.warning("%s", warning)
    return facts
