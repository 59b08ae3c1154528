"""Standings: what the rows say of each model against the reference, and of the differences between models."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from phf_ray.judging.board.duels import Duel, mean_of, sum_of
from phf_ray.judging.question import Failure
from phf_ray.measures import fit_length_control, holm, paired_difference, win_rate
from phf_ray.measures.intervals import Interval
from phf_ray.measures.win_rates import WinRate

LENGTH_CONTROLLED = "length-controlled, unregularised"
_FEW_PROMPTS, _FEW_OF_EITHER = 50, 5
"""Prompts, and wins or losses, below which the interval of a win rate covers less than it says."""


def standings_of(duels: Sequence[Duel], *, level: float) -> list[dict[str, Any]]:
    """Return a row for each model that was ranked, the best first; models without a judged duel last."""
    by_model: defaultdict[str, list[Duel]] = defaultdict(list)
    for duel in duels:
        by_model[duel.model].append(duel)
    rows = [_standing(name, mine, level=level) for name, mine in by_model.items()]
    return sorted(
        rows, key=lambda row: (-math.inf if row["win_rate"] is None else row["win_rate"], row["name"]), reverse=True
    )


def _standing(name: str, duels: Sequence[Duel], *, level: float) -> dict[str, Any]:
    preferences = [duel.preference for duel in duels]
    found = win_rate(preferences)
    clustered = win_rate(preferences, [duel.prompt for duel in duels])
    interval = clustered.interval(level)
    controlled = fit_length_control(
        preferences, [len(duel.output_1) for duel in duels], [len(duel.output_2) for duel in duels]
    )
    judged = [duel for duel in duels if duel.preference is not None]
    answers = [duel.output_2 for duel in duels if not duel.lacks_answer]
    return {
        "name": name,
        "references": sorted({duel.opponent for duel in duels}),
        "win_rate": found.win_rate,
        "standard_error": found.standard_error,
        "n_total": found.n_total,
        "n_wins": found.n_wins,
        "n_wins_base": found.n_wins_base,
        "n_draws": found.n_draws,
        "discrete_win_rate": discrete_win_rate(found),
        "clustered_standard_error": clustered.standard_error,
        "interval": pair_of(interval),
        "interval_note": _interval_note(clustered, num_prompts=len({duel.prompt for duel in judged})),
        "length_controlled_win_rate": None if math.isnan(controlled.win_rate) else controlled.win_rate,
        "length_controlled_reason": controlled.reason,
        "avg_length": average_length(answers),
        "n_prompts": len({duel.prompt for duel in judged}),
        "n_rows": sum(duel.num_rows for duel in duels),
        "n_failed": len(duels) - found.n_total,
        "failures": dict(
            sorted(Counter(Failure(duel.reason).kind for duel in duels if duel.reason is not None).items())
        ),
        "n_empty_answers": sum(not answer.strip() for answer in answers),
        "price": sum_of(duel.price for duel in duels),
    }


def discrete_win_rate(found: WinRate) -> float | None:
    """Return the win rate if every preference is rounded to a win, a draw or a loss, in percent."""
    return 100 * (found.n_wins + found.n_draws / 2) / found.n_total if found.n_total else None


def average_length(answers: Iterable[str]) -> int | None:
    """Return the mean number of characters, cut to a whole number as AlpacaFarm does."""
    length = mean_of(map(len, answers))
    return None if length is None else int(length)


def pair_of(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [interval.low, interval.high]


def _interval_note(found: WinRate, *, num_prompts: int) -> str | None:
    if found.win_rate is None:
        return "no row was judged"
    if found.standard_error is None:
        return "one prompt says nothing about the spread"
    if found.standard_error == 0:
        return "all rows say the same, which tells nothing about the spread"
    if num_prompts < _FEW_PROMPTS:
        return f"of {num_prompts} prompts, a 95% interval covers less than it says: 91% of the time for 20, 86% for 10"
    if found.n_draws / 2 + min(found.n_wins, found.n_wins_base) < _FEW_OF_EITHER:
        side = "wins" if found.n_wins < found.n_wins_base else "losses"
        return f"with so few {side}, a 95% interval covers less than it says: 92% of the time for 3, 70% for 1"
    return None


def differences_of(duels: Sequence[Duel], *, level: float) -> list[dict[str, Any]]:
    """Return the difference of win rates for each pair of models, over what both were judged on, with Holm's p-values.

    Only prompts count on which both were judged against the same opponents; a prompt is one draw.
    """
    shares: dict[str, dict[tuple[str, str], list[float]]] = defaultdict(lambda: defaultdict(list))
    for duel in duels:
        mine = shares[duel.model]
        if duel.preference is not None:
            mine[duel.prompt, duel.opponent].append(100 * duel.share)
    rows = [_difference(shares, first, second, level=level) for first, second in combinations(sorted(shares), 2)]
    for row, corrected in zip(rows, holm([row["p_value"] for row in rows]), strict=True):
        row["p_value_holm"] = corrected
        row["significant"] = None if corrected is None else corrected < 1 - level
    return rows


def _difference(
    shares: Mapping[str, Mapping[tuple[str, str], Sequence[float]]], first: str, second: str, *, level: float
) -> dict[str, Any]:
    by_prompt: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    for key in sorted(shares[first].keys() & shares[second].keys()):
        by_prompt[key[0]].append((float(np.mean(shares[first][key])), float(np.mean(shares[second][key]))))
    means_P2 = np.array([np.mean(pairs, axis=0) for pairs in by_prompt.values()], dtype=np.float64).reshape(-1, 2)
    found = paired_difference(means_P2[:, 0], means_P2[:, 1], level=level)
    return {
        "first": first,
        "second": second,
        "difference": found.mean,
        "interval": pair_of(found.interval),
        "p_value": found.p_value,
        "n_prompts": found.n_pairs,
        "reason": _no_test(found.n_pairs) if found.p_value is None else None,
    }


def _no_test(n_prompts: int) -> str:
    if not n_prompts:
        return "no prompt on which both were judged against the same model"
    return f"{n_prompts} prompts, on which the models differ by the same, are no test"


def by_length_difference(duels: Sequence[Duel], *, num_bins: int = 5) -> list[dict[str, Any]]:
    """Return each model's win rate for answers that are shorter or longer than the other, in bins of equal size.

    The bins are the same for all models.
    """
    judged = [duel for duel in duels if duel.preference is not None]
    if not judged:
        return []
    differences_N = np.array([duel.longer_by for duel in judged], dtype=np.float64)
    edges = np.unique(np.quantile(differences_N, np.linspace(0, 1, num_bins + 1)[1:-1]))
    bin_N = np.searchsorted(edges, differences_N, side="right")
    cells: defaultdict[tuple[str, int], list[int]] = defaultdict(list)
    for index, duel in enumerate(judged):
        cells[duel.model, int(bin_N[index])].append(index)
    rows = []
    for (name, number), members in sorted(cells.items()):
        found = win_rate([judged[index].preference for index in members], [judged[index].prompt for index in members])
        rows.append(
            {
                "name": name,
                "bin": number,
                "longer_by": float(np.median(differences_N[bin_N == number])),
                "win_rate": found.win_rate,
                "standard_error": found.standard_error,
                "n_total": found.n_total,
            }
        )
    return rows
