"""Writes a leaderboard: `rows.parquet`, `leaderboard.json`, `leaderboard.csv`, plots as PNG, `report.html`."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from phf_ray.errors import ConfigError
from phf_ray.evaluation.report.plots import png_of
from phf_ray.judging.board.figures import build_board
from phf_ray.judging.board.page import board_page
from phf_ray.judging.board.plots import draw_board_plots
from phf_ray.judging.board.rows import JudgedRow
from phf_ray.judging.board.stored import BOARD, BoardSettings, holds_board, read_rows_file, write_rows
from phf_ray.judging.board.table import csv_of
from phf_ray.storage.files import write_file


def write_board(directory: str, rows: Sequence[JudgedRow], settings: BoardSettings) -> dict[str, Any]:
    """Write everything, the rows first, and return leaderboard.json's content. If no row was judged, write nothing."""
    board = build_board(rows, settings)
    plots = draw_board_plots(board)
    files = {
        BOARD: (json.dumps(board, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode(),
        "leaderboard.csv": csv_of(board).encode(),
        **{f"{plot.name}.png": png_of(plot.figure) for plot in plots},
        "report.html": board_page(board, plots).encode(),
    }
    write_rows(directory, rows, settings)
    for name, content in files.items():
        write_file(f"{directory}/{name}", content)
    return board


def check_replaced(directory: str, rows: Sequence[JudgedRow]) -> None:
    """Raise ConfigError if the folder holds a leaderboard with rows that are not among these: they would be lost.

    A row without a preference is not lost if there is another of the same models and prompt: it was tried again.
    """
    if not holds_board(directory):
        return
    given, again = set(rows), {_matched_by(row) for row in rows}
    lost = [
        row
        for row in read_rows_file(directory)[0]
        if row not in given and (row.preference is not None or _matched_by(row) not in again)
    ]
    if lost:
        models = ", ".join(sorted({row.generator_2 for row in lost})[:5])
        raise ConfigError(
            f"--output {directory} holds a leaderboard with {len(lost):,} rows that these do not have (of {models}); "
            "add to it with --add, give another --output, or replace it with --overwrite"
        )


def _matched_by(row: JudgedRow) -> tuple[str, ...]:
    return row.generator_1, row.generator_2, row.instruction, row.input


def check_reference(directory: str, references: Iterable[str]) -> None:
    """Raise ConfigError if what is to be added is judged against a model that nothing in the leaderboard is against."""
    known = sorted({row.generator_1 for row in read_rows_file(directory)[0]})
    other = sorted(set(references).difference(known))
    if other:
        raise ConfigError(
            f"--add: the rows are judged against {', '.join(other[:5])}, and the leaderboard in {directory} against "
            f"{', '.join(known[:5])}; judge against that, or rank all with --comparisons {directory} and the rows: "
            "the table then says which models compare"
        )


def rows_with_added(directory: str, new: Sequence[JudgedRow], *, overwrite: bool) -> list[JudgedRow]:
    """Return the stored rows and the new ones. Rows that are stored already are not added again.

    A model that has other rows already is an error; with `overwrite`, its new rows replace them.
    """
    stored = read_rows_file(directory)[0]
    there, known = set(stored), {row.generator_2 for row in stored}
    again = {row.generator_2 for row in new if row not in there} & known
    if again and not overwrite:
        raise ConfigError(
            f"--add: the leaderboard in {directory} has {', '.join(sorted(again))} already, with other rows; replace "
            "them with --overwrite, or give the model another name"
        )
    replaced = {row.generator_2 for row in new} & known if overwrite else set()
    kept = [row for row in stored if row.generator_2 not in replaced]
    there = set(kept)
    return kept + [row for row in new if row not in there]
