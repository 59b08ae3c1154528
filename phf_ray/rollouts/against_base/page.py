"""The page and the JSON of a comparison: one row for each model, gold against KL, answers side by side."""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

from phf_ray.evaluation.report.page import render_page, shown_plots
from phf_ray.evaluation.report.plots import PALETTE, Plot, add_legend, new_axes
from phf_ray.measures.clusters import ClusteredMean
from phf_ray.rollouts.against_base.arms import ComparedModel, Difference
from phf_ray.rollouts.against_base.verdict import reasons_against
from phf_ray.rollouts.figures import RolloutRow

_NUM_SHOWN = 6
"""Prompts whose answers are shown."""
_COLUMNS = (
    ("", "model"),
    ("gold", "mean gold reward with half of its 95% interval; the answers to a prompt are one draw"),
    ("above the base", "difference of the means over the same prompts, 95% bootstrap interval over prompts"),
    ("sound answers only", "the same without empty, comment-only and repeated answers, on both sides"),
    ("KL", "k1 from the base, nats per answer"),
    ("chars", "characters per answer"),
    ("distinct-2", "mean over answers of different / all pairs of words"),
    ("degenerate", "share of the answers that are empty, repeated, or nothing but comments and strings"),
    ("no gold", "answers without a gold reward; they enter no mean"),
    ("minutes", "of training, or of drawing and choosing"),
    ("wins", "whether it beats the base beyond the noise, and not by degenerate text"),
)


def comparison_json(models: Sequence[ComparedModel], **facts: Any) -> dict[str, Any]:
    """Return all figures as JSON. `facts`: what else the report is to hold."""
    base = models[0]
    return {
        **facts,
        "models": [_model_json(one, base) for one in models],
    }


def _model_json(one: ComparedModel, base: ComparedModel) -> dict[str, Any]:
    found = {
        "name": one.name,
        "gold": _estimate_json(one.figures.gold),
        "difference": _difference_json(one.difference),
        "sound_difference": _difference_json(one.sound_difference),
        "kl": _estimate_json(one.figures.kl),
        "kl_upper_bound": one.kl_upper_bound,
        "tokens": _estimate_json(one.figures.num_tokens),
        "chars": _estimate_json(one.figures.num_chars),
        "distinct_2": one.figures.distinct_2,
        "distinct_2_corpus": one.figures.distinct_2_corpus,
        "degenerate": dict(one.degenerate),
        "degenerate_share": one.degenerate_share,
        "truncated": one.figures.truncated,
        "num_answers": one.figures.num_answers,
        "num_drawn": one.figures.num_drawn,
        "num_without_gold": one.figures.num_without_gold,
        "failures": dict(one.figures.failures),
        "minutes": one.minutes,
        "learned": one.learned,
        "against": None if one is base else reasons_against(one, base),
    }
    if one.seeds:
        found["seeds"] = {str(number): _model_json(run, base) for number, run in one.seeds.items()}
    return found


class PageTable(NamedTuple):
    columns: Sequence[tuple[str, str]]
    """Title and explanation of each."""
    rows: Sequence[Sequence[str]]
    """The cells of each model, its name first."""


def comparison_page(
    models: Sequence[ComparedModel],
    *,
    title: str,
    intro: Sequence[str],
    failure: Sequence[str],
    table: PageTable | None = None,
) -> str:
    """Return the whole page, which needs no network and no script. Answers may be hostile: every text is escaped.

    `table`: one with other figures of the models, in place of the page's own.
    """
    base = models[0]
    table = table or PageTable(_COLUMNS, table_cells(models))
    against = {one.name: reasons_against(one, base) for one in models[1:]}
    return render_page(
        "against_base.html.jinja",
        package="phf_ray.rollouts.against_base",
        title=title,
        intro=intro,
        failure=failure,
        winners=[one.name for one in models[1:] if one.learned and not against[one.name]],
        plots=shown_plots([_against_kl(models)]),
        columns=table.columns,
        rows=table.rows,
        notes=[f"{name}: {'; '.join(reasons)}" for name, reasons in against.items() if reasons],
        samples=_samples(models),
    )


def table_cells(models: Sequence[ComparedModel]) -> list[list[str]]:
    """Return the cells of each model, in the order of the page's columns."""
    base = models[0]
    return [
        [
            one.name,
            _with_half(one.figures.gold),
            _shown(one.difference),
            _shown(one.sound_difference),
            _kl(one),
            _mean(one.figures.num_chars),
            "-" if one.figures.distinct_2 is None else f"{one.figures.distinct_2:.3f}",
            f"{one.degenerate_share:.1%}",
            f"{one.figures.num_without_gold:,}",
            "-" if one.minutes is None else f"{one.minutes:.1f}",
            "-" if one is base else "no" if reasons_against(one, base) else "yes",
        ]
        for one in models
    ]


def table_text(models: Sequence[ComparedModel]) -> str:
    """Return the table for a terminal."""
    titles = [title or help_ for title, help_ in _COLUMNS]
    rows = [titles, *table_cells(models)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(titles))]
    return "\n".join(
        "  ".join(cell.ljust(width) if column == 0 else cell.rjust(width) for column, (cell, width) in cells).rstrip()
        for cells in (list(enumerate(zip(row, widths, strict=True))) for row in rows)
    )


def _against_kl(models: Sequence[ComparedModel]) -> Plot:
    figure, axes = new_axes()
    for number, one in enumerate(models):
        gold, kl = one.figures.gold, one.figures.kl
        across = one.kl_upper_bound if kl is None else kl.mean
        if gold is None or across is None:
            continue
        container = axes.errorbar(
            [across], [gold.mean], xerr=[_half(kl)], yerr=[_half(gold)], fmt="o", capsize=3, markersize=6,
            color=PALETTE[number % len(PALETTE)], label=one.name,
        )  # fmt: skip
        container.lines[0].set_gid(f"mark-gold-against-kl-{one.name}")
    axes.margins(0.15)
    axes.set_xlabel("KL from the base (nats per answer)")
    axes.set_ylabel("gold reward")
    add_legend(axes)
    caption = "Gold reward against the distance from the base, with 95% intervals. Up and to the left is better."
    if any(one.kl_upper_bound is not None for one in models):
        caption += " A best of n stands at the upper bound of its KL."
    return Plot(None, "gold-against-kl", caption, figure)


def _samples(models: Sequence[ComparedModel]) -> list[tuple[str, list[dict[str, str]]]]:
    """Return some prompts, drawn by lot, with the first answer of each model."""
    first: list[dict[str, RolloutRow]] = []
    for one in models:
        answers: dict[str, RolloutRow] = {}
        for row in one.rows:
            answers.setdefault(row.prompt_id, row)
        first.append(answers)
    prompts = sorted(first[0], key=lambda prompt: blake2b(prompt.encode()).digest())[:_NUM_SHOWN]
    return [
        (
            first[0][prompt].prompt,
            [
                {"title": one.name, **_shown_answer(mine[prompt])}
                for one, mine in zip(models, first, strict=True)
                if prompt in mine
            ],
        )
        for prompt in prompts
    ]


def _shown_answer(row: RolloutRow) -> dict[str, str]:
    gold = f"no gold: {row.error or 'no reason given'}" if row.gold is None else f"gold {row.gold:.4g}"
    return {"caption": f"{gold}; {row.num_tokens} tokens", "text": row.completion or ""}


def _kl(one: ComparedModel) -> str:
    if one.figures.kl is not None:
        return _mean(one.figures.kl)
    return "-" if one.kl_upper_bound is None else f"at most {one.kl_upper_bound:.2f}"


def _shown(difference: Difference | None) -> str:
    if difference is None:
        return "-"
    return f"{difference.mean:+.3g} [{difference.interval.low:+.3g}, {difference.interval.high:+.3g}]"


def _with_half(found: ClusteredMean | None) -> str:
    if found is None or found.interval is None:
        return _mean(found)
    return f"{_mean(found)} +- {_half(found):.2g}"


def _mean(found: ClusteredMean | None) -> str:
    # Noise around 0 is no figure of three digits.
    return "-" if found is None else f"{0.0 if abs(found.mean) < 1e-6 else found.mean:.3g}"


def _half(found: ClusteredMean | None) -> float:
    return 0.0 if found is None or found.interval is None else found.interval.high - found.mean


def _estimate_json(found: ClusteredMean | None) -> dict[str, Any] | None:
    if found is None:
        return None
    interval = None if found.interval is None else [found.interval.low, found.interval.high]
    return {"mean": found.mean, "interval": interval, "num": found.num, "num_prompts": found.num_clusters}


def _difference_json(difference: Difference | None) -> dict[str, Any] | None:
    if difference is None:
        return None
    found = {
        "mean": difference.mean,
        "interval": [difference.interval.low, difference.interval.high],
        "num_prompts": difference.num_prompts,
    }
    if difference.over_prompts is not None:
        found["over_prompts"] = [difference.over_prompts.low, difference.over_prompts.high]
        found["by_seed"] = list(difference.by_seed)
    return found
