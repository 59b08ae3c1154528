"""Checks of the judge: baselines that it must beat, consistency under swapped order, agreement with humans."""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from phf_ray.judging.board.duels import Duel, mean_of
from phf_ray.judging.board.rows import NOT_NAMED, JudgedRow
from phf_ray.judging.board.standings import pair_of
from phf_ray.judging.failures import always_the_same
from phf_ray.judging.label_agreement import LabelAgreement, agreement_with_labels
from phf_ray.judging.pairs import Judgement
from phf_ray.measures import swap_consistency
from phf_ray.measures.preferences import DRAW
from phf_ray.storage.hashing import digest

_ENOUGH = 20
"""Judgements from which on it is odd that all say the same."""

_Judge = Callable[[Duel], float | None]
"""Duel -> preference."""


def baselines(seed: int) -> dict[str, _Judge]:
    """Return the judges that know nothing of answers, which any judge must beat."""
    return {
        "longer": lambda duel: 1.5 + 0.5 * float(np.sign(duel.longer_by)),
        "constant": lambda _: 1.0,
        "random": lambda duel: 1.0 + int(digest([seed, *duel.key]), 16) % 2,
    }


def baseline_rows(duels: Sequence[Duel], *, seed: int) -> list[dict[str, Any]]:
    """Return how often each baseline agrees with the judge, over duels that the judge decided."""
    rows = []
    for name, judge in baselines(seed).items():
        found = _agreement(duels, judge, lambda duel: duel.preference, seed=seed)
        rows.append(
            {
                "name": name,
                "agreement": found.accuracy,
                "interval": pair_of(found.accuracy_interval),
                "n_decided": found.num_judged,
            }
        )
    return rows


def human_rows(duels: Sequence[Duel], *, seed: int) -> list[dict[str, Any]]:
    """Return how often the judge, each of its annotators, and the baselines agree with humans; empty without labels.

    All are over duels that the humans decided and the judge judged; a draw of the judge is half right.
    """
    known = [duel for duel in duels if duel.human_preference not in (None, DRAW) and duel.preference is not None]
    if not known:
        return []
    annotators = sorted({duel.annotator for duel in known if duel.annotator is not None})
    judges = {"all annotators": known} if len(annotators) != 1 else {}
    judges |= {name: [duel for duel in known if duel.annotator == name] for name in annotators}
    rows = [_human_row(name, mine, lambda duel: duel.preference, seed=seed) for name, mine in judges.items()]
    return rows + [
        {**_human_row(name, known, judge, seed=seed), "is_baseline": True} for name, judge in baselines(seed).items()
    ]


def _human_row(name: str, duels: Sequence[Duel], judge: _Judge, *, seed: int) -> dict[str, Any]:
    found = _agreement(duels, judge, lambda duel: duel.human_preference, seed=seed)
    return {
        "name": name,
        "is_baseline": False,
        "accuracy": found.accuracy,
        "accuracy_interval": pair_of(found.accuracy_interval),
        "kappa": found.kappa,
        "kappa_interval": pair_of(found.kappa_interval),
        "n_decided": found.num_judged,
        "n_ties": found.num_ties,
    }


def judge_errors(duels: Sequence[Duel]) -> tuple[float, float] | None:
    """Return how often the judge is right where humans prefer answer 2, and where they prefer answer 1.

    A draw of the judge is half right. None if humans prefer one side in no duel.
    """
    shares: dict[bool, list[float]] = {True: [], False: []}
    for duel in duels:
        if duel.human_preference is not None and duel.human_preference != DRAW and duel.preference is not None:
            second = duel.human_preference > DRAW
            side = 0.5 + 0.5 * float(np.sign(duel.preference - DRAW))
            shares[second].append(side if second else 1 - side)
    sensitivity, specificity = mean_of(shares[True]), mean_of(shares[False])
    return None if sensitivity is None or specificity is None else (sensitivity, specificity)


def _agreement(duels: Sequence[Duel], judge: _Judge, truth: _Judge, *, seed: int) -> LabelAgreement:
    return agreement_with_labels(
        [judge(duel) for duel in duels],
        [truth(duel) for duel in duels],
        clusters=[duel.prompt for duel in duels],
        seed=seed,
    )


def consistency_rows(rows: Sequence[JudgedRow]) -> list[dict[str, Any]]:
    """Return what each annotator does when answers change places, over pairs that it judged in both orders.

    Such are rows with order `both`, and rows of the same two answers that were shown in other orders. If no row has an
    `order`, all were shown as they stand; otherwise rows without were shown to nobody.
    """
    says_order = _says_order(rows)
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


def _says_order(rows: Sequence[JudgedRow]) -> bool:
    return any(row.order is not None for row in rows)


def judge_warnings(rows: Sequence[JudgedRow]) -> list[str]:
    """Return what is odd about annotators: those that always say the same, and those that often failed."""
    says_order = _says_order(rows)
    found = always_the_same(map(_as_judgement, rows)) if says_order else []
    by_annotator: defaultdict[str, list[JudgedRow]] = defaultdict(list)
    for row in rows:
        by_annotator[row.annotator or NOT_NAMED].append(row)
    for name, mine in sorted(by_annotator.items()):
        sides = Counter(float(np.sign(row.preference - DRAW)) for row in mine if row.preference is not None)
        if not says_order and len(sides) == 1 and sides.total() >= _ENOUGH:
            side = {-1.0: "answer 1 is better", 0.0: "a draw", 1.0: "answer 2 is better"}[next(iter(sides))]
            found.append(
                f"annotator {name} says the same of all {sides.total():,} pairs: {side}; the rows do not say in which "
                "order it saw the answers"
            )
        failed = sum(row.preference is None for row in mine)
        if failed > len(mine) / 20:
            found.append(
                f"annotator {name} gave no preference for {failed:,} of {len(mine):,} rows ({failed / len(mine):.0%})"
            )
    return found


def _as_judgement(row: JudgedRow) -> Judgement:
    order: Any = row.order
    return Judgement(
        row.annotator or NOT_NAMED,
        row.preference,
        error=row.error,
        # Noise, and pairs of equal answers: the others say in which order a judge saw them.
        source="noise" if order is None else "judge",
        order=order,
        in_both_orders=(row.preference_12, row.preference_21) if order == "both" else None,
    )
