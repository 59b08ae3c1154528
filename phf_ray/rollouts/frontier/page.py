"""The page of the frontier: turns methods and boards into text for the template `frontier.html.jinja`."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from phf_ray.evaluation.report.page import render_page, shown_plots
from phf_ray.evaluation.report.plots import Plot
from phf_ray.judging.board.page import matrix_cells, rating_cells, rating_notes
from phf_ray.judging.board.plots import draw_board_plots
from phf_ray.measures.overoptimization import OveroptimizationFit
from phf_ray.rollouts.frontier.boards import FrontierBoard
from phf_ray.rollouts.frontier.collect import Frontier
from phf_ray.rollouts.frontier.methods import FrontierMethod
from phf_ray.rollouts.frontier.plots import draw_frontier
from phf_ray.rollouts.frontier.table import cost_table, worth_table
from phf_ray.rollouts.guard.page import fit_cells

_BOARD_PLOTS = ("win-rates", "ratings")


def frontier_page(frontier: Frontier) -> str:
    """Return the whole page, which needs no network and no script. Names may be hostile: every text is escaped."""
    return render_page(
        "frontier.html.jinja",
        package="phf_ray.rollouts.frontier",
        intro=_intro(frontier),
        warnings=frontier.unlike.warnings,
        notes=frontier.unlike.notes,
        plots=shown_plots(draw_frontier(frontier.methods)),
        worth=worth_table(frontier.methods),
        cost=cost_table(frontier.methods),
        method_notes=[(method.title, line) for method in frontier.methods if (line := _told(method))],
        fits=[cells for method in frontier.methods for cells in _fits(method)],
        fit_notes=[line for method in frontier.methods for line in _without_fit(method)],
        boards=[_board(number, board) for number, board in enumerate(frontier.boards)],
        sources=list(dict.fromkeys([*(m.source for m in frontier.methods), *(b.source for b in frontier.boards)])),
    )


def _intro(frontier: Frontier) -> list[str]:
    methods = frontier.methods
    if not methods:
        return ["Only judgements were given: nothing here has gold or KL."]
    unplaced = [
        method.title
        for method in methods
        if not any(point.across is not None and (point.gold or point.proxy) for point in method.points)
    ]
    lines = [f"{len(methods)} methods, models and bases. Higher gold and proxy are better."]
    if unplaced:
        lines.append(f"On no plot, because they lack KL, or gold and proxy alike: {', '.join(unplaced)}.")
    return lines


def _told(method: FrontierMethod) -> str:
    return "; ".join([*method.missing, *method.notes])


def _fits(method: FrontierMethod) -> list[list[str]]:
    return [
        [method.title, *fit_cells(of, fit)] for of, fit in method.fits.items() if isinstance(fit, OveroptimizationFit)
    ]


def _without_fit(method: FrontierMethod) -> list[str]:
    return [f"No fit of {of} of {method.title}: {fit}" for of, fit in method.fits.items() if isinstance(fit, str)]


def _board(number: int, one: FrontierBoard) -> dict[str, Any]:
    board: Mapping[str, Any] = one.board
    annotators = ", ".join(f"{name} ({count:,} rows)" for name, count in board["annotators"].items())
    return {
        "name": one.name,
        "intro": f"Judged by {annotators}. Their prompts and answers need not be those of the methods above.",
        "plots": shown_plots(_board_plots(board, number)),
        "ratings": [rating_cells(row) for row in board["ratings"]["players"]],
        "notes": rating_notes(board["ratings"]),
        "matrix": matrix_cells(board["matrix"]),
        "level": f"{board['level']:.0%}",
        "num_resamples": board["num_resamples"],
    }


def _board_plots(board: Mapping[str, Any], number: int) -> Sequence[Plot]:
    """Return plots whose ids differ from those of other boards on the page."""
    return [
        dataclasses.replace(plot, name=f"board-{number}-{plot.name}")
        for plot in draw_board_plots(board)
        if plot.name in _BOARD_PLOTS
    ]
