"""Who packs token blocks for a job: this process, or Ray."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from jobs.cli import asks_for_ray

if TYPE_CHECKING:
    from phf_ray.blocks.build import GroupBuilder


def block_builder(*, in_process: bool, start: Callable[[], None]) -> "GroupBuilder":
    """Return this process as the builder if it is told to, or if few blocks are missing and nobody asks for Ray.

    `start` starts Ray, once it is needed.
    """
    from phf_ray.blocks.build import build_here
    from phf_ray.blocks.small import few_here

    def on_ray() -> "GroupBuilder":
        start()
        from phf_ray.blocks.on_ray import build_groups

        return build_groups

    if in_process:
        return build_here
    return on_ray() if asks_for_ray() else few_here(on_ray)
