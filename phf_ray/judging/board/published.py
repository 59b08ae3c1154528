"""Published rows of AlpacaFarm's leaderboard, from `published.csv` beside this file."""

import csv
from importlib.resources import files
from typing import Any

WARNING = (
    "published rows are AlpacaFarm's own, over 805 prompts and by annotators that were retired since (a pool around "
    "GPT-4 in v0.1, AlpacaEval 1 in v0.2): neither the two versions nor rows judged here compare with each other"
)
_COUNTS = ("n_total", "n_wins", "n_wins_base", "n_draws", "avg_length")
_FIGURES = ("win_rate", "standard_error")


def published_rows() -> list[dict[str, Any]]:
    """Return the rows, by the columns of the file; None where AlpacaFarm gives no figure."""
    text = files("phf_ray.judging.board").joinpath("published.csv").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return [{name: _value(name, value) for name, value in row.items()} for row in csv.DictReader(lines)]


def _value(name: str, value: str) -> Any:
    if name in _COUNTS:
        return int(value) if value else None
    if name in _FIGURES:
        return float(value) if value else None
    return value
