"""Checks of the judge: baselines that it must beat, consistency under swapped order, agreement with humans."""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from phf_ray.judging.board.duels import Duel, mean_of
from phf_ray.judging.board.rows import JudgedRow
from phf_ray.judging.board.standings import pair_of
from phf_ray.measures import bootstrap_mean, cohen_kappa, swap_consistency
from phf_ray.measures.preferences import DRAW
from phf_ray.storage.hashing import digest

_SIDES = 3
"""Answer 1, a draw, answer 2."""
_ENOUGH = 20
"""Judgements from which on it is odd that all say the same."""

Judge = Callable[[Duel], float]
"""Duel -> preference."""


def baselines(seed: int) -> dict[str, Judge]:
    """Return the judges that know nothing of answers, which any judge must beat."""
    return {
        "longer": lambda duel: 1.5 + 0.5 * float(np.sign(duel.longer_by)),
        "constant": lambda _: 1.0,
        "random": lambda duel: 1.0 + int(digest([seed, *duel.key]), 16) % 2,
    }


def baseline_rows(duels: Sequence[Duel], *, level: float, seed: int) -> list[dict[str, Any]]:
    """Return how often each baseline agrees with the judge, over duels that the judge decided."""
    return [
        {"name": name, **_agreement(duels, judge, lambda duel: duel.preference, level=level, seed=seed)}
        for name, judge in baselines(seed).items()
    ]


def human_rows(duels: Sequence[Duel], *, level: float, seed: int, num_resamples: int) -> list[dict[str, Any]]:
    """Return how often the judge, each of its annotators, and the baselines agree with humans; empty without labels.

    Accuracy is over duels that the humans decided; a draw of the judge is half right. Kappa is over all that both
    judged, in three classes.
    """
    known = [duel for duel in duels if duel.human_preference is not None and duel.preference is not None]
    if not known:
        return []
    annotators = sorted({duel.annotator for duel in known if duel.annotator is not None})
    judges: dict[str, tuple[Sequence[Duel], Judge]] = {"all annotators": (known, _verdict)}
    if len(annotators) > 1:
        judges |= {name: ([duel for duel in known if duel.annotator == name], _verdict) for name in annotators}
    elif annotators:
        judges = {annotators[0]: (known, _verdict)}
    rows = []
    for name, (members, judge) in judges.items():
        rows.append({"name": name, "is_baseline": False, **_with_humans(members, judge, level, seed, num_resamples)})
    for name, judge in baselines(seed).items():
        rows.append({"name": name, "is_baseline": True, **_with_humans(known, judge, level, seed, num_resamples)})
    return rows


def _verdict(duel: Duel) -> float:
    return 1 + duel.share


def _with_humans(duels: Sequence[Duel], judge: Judge, level: float, seed: int, num_resamples: int) -> dict[str, Any]:
    found = _agreement(duels, judge, lambda duel: duel.human_preference, level=level, seed=seed)
    table_PKK = _tables(duels, judge)
    kappa = cohen_kappa(table_PKK.sum(axis=0))
    rng = np.random.default_rng(seed)
    resampled = []
    for _ in range(num_resamples if len(table_PKK) > 1 else 0):
        value = cohen_kappa(table_PKK[rng.integers(len(table_PKK), size=len(table_PKK))].sum(axis=0))
        if value is not None:
            resampled.append(value)
    bounds = None
    if kappa is not None and resampled:
        bounds = [float(bound) for bound in np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])]
    return {
        "accuracy": found["agreement"],
        "accuracy_interval": found["interval"],
        "n_decided": found["n_decided"],
        "kappa": kappa,
        "kappa_interval": bounds,
        "n_total": len(duels),
    }


def _tables(duels: Sequence[Duel], judge: Judge) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return for each prompt how often the judge took side i and the humans side j, shape (P, 3, 3)."""
    prompts: dict[str, int] = {}
    cells = [(prompts.setdefault(duel.prompt, len(prompts)), _side(judge(duel)), _human_side(duel)) for duel in duels]
    table_PKK = np.zeros((len(prompts), _SIDES, _SIDES))
    for cell in cells:
        table_PKK[cell] += 1
    return table_PKK


def _side(preference: float) -> int:
    return 1 + int(np.sign(preference - DRAW))


def _human_side(duel: Duel) -> int:
    assert duel.human_preference is not None
    return _side(duel.human_preference)


def _agreement(
    duels: Sequence[Duel], judge: Judge, truth: Callable[[Duel], float | None], *, level: float, seed: int
) -> dict[str, Any]:
    """Return how often the judge takes the side of the truth where that is no draw; a draw of the judge is half."""
    groups: defaultdict[str, list[float]] = defaultdict(list)
    for duel in duels:
        preference = truth(duel)
        if preference is not None and preference != DRAW:
            groups[duel.prompt].append(1 - abs(_side(judge(duel)) - _side(preference)) / 2)
    values = [value for group in groups.values() for value in group]
    return {
        "agreement": mean_of(values),
        "interval": pair_of(bootstrap_mean(list(groups.values()), seed=seed, level=level)),
        "n_decided": len(values),
    }


def consistency_rows(rows: Sequence[JudgedRow]) -> list[dict[str, Any]]:
    """Return what each annotator does when answers change places, over pairs that it judged in both orders.

    Such are rows with order `both`, and rows of the same two answers that were shown in other orders. If no row has an
    `order`, all were shown as they stand; otherwise rows without were shown to nobody.
    """
    says_order = any(row.order is not None for row in rows)
    seen: defaultdict[str, dict[Hashable, tuple[list[float], list[float]]]] = defaultdict(dict)
    for row in rows:
        first, second = (row.generator_1, row.output_1), (row.generator_2, row.output_2)
        turned = second < first
        orders = seen[row.annotator or ""].setdefault((row.prompt, *sorted((first, second))), ([], []))
        for preference, is_second_first in _shown_preferences(row, says_order=says_order):
            orders[is_second_first != turned].append(3 - preference if turned else preference)
    found = []
    for annotator, pairs in sorted(seen.items()):
        both = [(mean_of(one), mean_of(other)) for one, other in pairs.values() if one and other]
        if both:
            measured = swap_consistency([one for one, _ in both], [other for _, other in both])
            found.append({"annotator": annotator or None, "n_pairs": len(both), **asdict(measured)})
    return found


def _shown_preferences(row: JudgedRow, *, says_order: bool) -> Iterator[tuple[float, bool]]:
    """Yield each preference of a row, and whether answer 2 was shown first for it."""
    if row.order == "both":
        found = [(row.preference_12, False), (row.preference_21, True)]
    elif row.order is None and says_order:
        found = []
    else:
        found = [(row.preference, row.order == "21")]
    yield from ((preference, is_second_first) for preference, is_second_first in found if preference is not None)


def judge_warnings(rows: Sequence[JudgedRow]) -> list[str]:
    """Return what is odd about annotators: those that always say the same, and those that often failed."""
    by_annotator: defaultdict[str, list[JudgedRow]] = defaultdict(list)
    for row in rows:
        by_annotator[row.annotator or "the judge"].append(row)
    found = []
    for name, mine in sorted(by_annotator.items()):
        shown: Mapping[str, Sequence[float]] = {
            "answer 2": [row.preference for row in mine if row.preference is not None],
            "the answer that it sees second": [
                row.preference if row.order == "12" else 3 - row.preference
                for row in mine
                if row.preference is not None and row.order in ("12", "21")
            ],
        }
        for what, preferences in shown.items():
            sides = Counter(map(_side, preferences))
            if len(sides) == 1 and len(preferences) >= _ENOUGH:
                said = {0: f"against {what}", 1: "a draw", 2: f"for {what}"}[next(iter(sides))]
                found.append(f"{name} says the same every time: {said} in all {len(preferences):,} rows")
                break
        failed = sum(row.preference is None for row in mine)
        if failed > len(mine) / 20:
            found.append(f"{name} gave no preference for {failed:,} of {len(mine):,} rows ({failed / len(mine):.0%})")
    return found
