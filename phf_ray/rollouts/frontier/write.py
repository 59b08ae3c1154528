"""Writes the frontier: `frontier.json` with every figure, and `frontier.html`, the page that is drawn from them."""

import json
from collections.abc import Sequence
from pathlib import Path

from phf_ray.rollouts.frontier.collect import Frontier, collect
from phf_ray.rollouts.frontier.page import frontier_page
from phf_ray.storage.files import write_text

FIGURES, PAGE = "frontier.json", "frontier.html"


def write_frontier(given: Sequence[str], output: Path) -> Frontier:
    """Read the sources, `[NAME=]DIR` each, and write both files. Nothing is written if one of them can't be read."""
    frontier = collect(given)
    page = frontier_page(frontier)
    figures = json.dumps(frontier.as_json(), indent=1, allow_nan=False)
    write_text(output / FIGURES, figures + "\n")
    write_text(output / PAGE, page)
    return frontier
