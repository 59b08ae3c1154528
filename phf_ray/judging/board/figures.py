"""Computes the figures of a leaderboard, from rows alone.

Nothing in it depends on the time, the machine or the order of the rows, so equal rows give equal files.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from phf_ray.errors import DataError
from phf_ray.judging.board.checks import baseline_rows, consistency_rows, human_rows, judge_errors, judge_warnings
from phf_ray.judging.board.duels import battles_of, duels_of, sum_of
from phf_ray.judging.board.published import WARNING, published_rows
from phf_ray.judging.board.rows import NO_REASON, NOISE, NOT_NAMED, JudgedRow
from phf_ray.judging.board.standings import (
    LENGTH_CONTROLLED,
    average_length,
    by_length_difference,
    differences_of,
    standings_of,
)
from phf_ray.judging.board.stored import ROWS, BoardSettings, read_rows_file, sort_rows
from phf_ray.judging.board.strengths import matrix_of, strengths_of
from phf_ray.judging.question import Failure
from phf_ray.measures import corrected_rate


def build_board(rows: Sequence[JudgedRow], settings: BoardSettings) -> dict[str, Any]:
    """Return leaderboard.json's content. Raises DataError if no row was judged."""
    given, rows = rows, [row for row in rows if row.source != NOISE]
    if all(row.preference is None for row in rows):
        reasons = Counter(Failure(row.error or NO_REASON).kind for row in rows)
        reasons[NOISE] += len(given) - len(rows)
        told = (
            ", ".join(f"{reason} x {count:,}" for reason, count in reasons.most_common(5) if count)
            or "there are no rows"
        )
        raise DataError(f"none of the {len(given):,} rows has a preference ({told}); judge them again")
    rows = sort_rows(rows)
    duels = duels_of(rows)
    battles = battles_of(duels)
    shown = [row for row in rows if not row.lacks_answer]
    level, seed = settings.level, settings.seed
    models = standings_of(duels, level=level)
    errors = judge_errors(duels)
    for row in models:
        row["corrected_win_rate"] = _corrected(row["discrete_win_rate"], errors)
    strengths = strengths_of(battles, level=level, seed=seed, num_resamples=settings.num_resamples)
    human = human_rows(battles, seed=seed)
    names = {row["name"] for row in models}
    answers = {(one.opponent, one.prompt, one.output_1): one.output_1 for one in duels if not one.lacks_answer}
    references = sorted({duel.opponent for duel in duels} - names)
    return {
        "models": models,
        "references": [
            {"name": name, "avg_length": average_length(text for (one, *_), text in answers.items() if one == name)}
            for name in references
        ],
        "ratings": strengths,
        "matrix": matrix_of(battles, level=level),
        "differences": differences_of(duels, level=level),
        "by_length_difference": by_length_difference(duels),
        "baselines": baseline_rows(duels, seed=seed),
        "consistency": consistency_rows(rows),
        "human": human,
        "judge_errors": None if errors is None else {"sensitivity": errors[0], "specificity": errors[1]},
        "published": published_rows() if settings.show_published else [],
        "warnings": [*judge_warnings(shown), *_warnings(models, human), *_noise_told(given), *settings.notes]
        + [WARNING] * settings.show_published,
        "annotators": dict(sorted(Counter(row.annotator or NOT_NAMED for row in shown).items())),
        "length_control": LENGTH_CONTROLLED,
        "price": sum_of(row.price for row in rows),
        "n_rows": len(rows),
        "n_rows_of_noise": len(given) - len(rows),
        "n_rows_without_price": sum(row.price is None for row in shown),
        "n_draws_of_rows": len(duels),
        "rows": ROWS,
        **settings.model_dump(mode="json", exclude={"show_published", "notes"}),
    }


def _corrected(rate: float | None, errors: tuple[float, float] | None) -> float | None:
    """Return the win rate, in percent, that a judge with these errors would report as this one (Rogan and Gladen)."""
    if rate is None or errors is None:
        return None
    found = corrected_rate(rate / 100, sensitivity=errors[0], specificity=errors[1])
    return None if found is None else 100 * found


def recompute_board(directory: str) -> dict[str, Any]:
    """Compute the leaderboard of a folder again, from its rows alone."""
    return build_board(*read_rows_file(directory))


def _noise_told(rows: Sequence[JudgedRow]) -> list[str]:
    noise, all_rows = (
        Counter(row.generator_2 for row in some) for some in ([row for row in rows if row.source == NOISE], rows)
    )
    if not noise:
        return []
    told = ", ".join(f"{name}: {count:,} of {all_rows[name]:,}" for name, count in sorted(noise.items()))
    return [
        f"{noise.total():,} of {len(rows):,} rows ({noise.total() / len(rows):.0%}) are label noise, which no judge "
        f"gave, and count nowhere ({told})"
    ]


def _warnings(models: Sequence[dict[str, Any]], human: Sequence[dict[str, Any]]) -> list[str]:
    found = []
    mixed = [row["name"] for row in models if len(row["references"]) > 1]
    if mixed:
        found.append(
            f"win rates of {', '.join(mixed)} are against several models, so they do not compare with others; the "
            "ratings do"
        )
    by_reference: dict[str, list[str]] = {}
    for row in models:
        if len(row["references"]) == 1:
            by_reference.setdefault(row["references"][0], []).append(row["name"])
    if len(by_reference) > 1:
        told = "; ".join(
            f"{reference}: {', '.join(sorted(names))}" for reference, names in sorted(by_reference.items())
        )
        found.append(
            f"win rates are against several references ({told}), so they compare only where the reference is the same"
        )
    longer = next((row for row in human if row["name"] == "longer" and row["is_baseline"]), None)
    for row in human:
        if longer is None or row["is_baseline"] or row["accuracy"] is None or longer["accuracy"] is None:
            continue
        if row["accuracy"] <= longer["accuracy"]:
            found.append(
                f"{row['name']} agrees with humans no more often than a judge that takes the longer answer "
                f"({row['accuracy']:.1%} against {longer['accuracy']:.1%})"
            )
    return found
