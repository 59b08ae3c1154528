"""Reads judgements of models: a leaderboard of `phf leaderboard`, or the rows that `phf annotate` stored."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from phf_ray.errors import ConfigError, DataError
from phf_ray.judging.board.figures import build_board
from phf_ray.judging.board.read import read_judged
from phf_ray.judging.board.stored import BOARD, BoardSettings, read_rows_file
from phf_ray.rollouts.frontier.stored_json import stored_json

_NEEDED = {"models", "ratings", "matrix", "level", "num_resamples", "annotators", "by_length_difference", "baselines",
           "human", "rows"}  # fmt: skip
"""Keys of leaderboard.json that are read; one without them is computed again from its rows."""


@dataclass(frozen=True, slots=True)
class FrontierBoard:
    name: str
    source: str
    board: Mapping[str, Any] = field(repr=False)
    """Content of leaderboard.json."""

    def as_json(self) -> dict[str, Any]:
        shown = ("models", "ratings", "matrix", "level", "num_resamples", "annotators", "warnings")
        return {"name": self.name, "source": self.source, **{key: self.board.get(key) for key in shown}}


def read_board(folder: Path, *, name: str, source: str) -> FrontierBoard:
    stored = stored_json(folder / BOARD)
    if not stored.keys() >= _NEEDED:
        stored = build_board(*read_rows_file(str(folder)))
    return FrontierBoard(name, source, stored)


def read_annotated(folder: Path, *, name: str, source: str) -> FrontierBoard:
    """Rank the models of a comparisons corpus. Raises ConfigError if its rows do not name them."""
    try:
        return FrontierBoard(name, source, build_board(read_judged([str(folder)], option=source), BoardSettings()))
    except DataError as error:
        raise ConfigError(
            f"{source} holds comparisons that can't be ranked: {error}; or rank them with phf leaderboard, and give "
            "its output"
        ) from None
