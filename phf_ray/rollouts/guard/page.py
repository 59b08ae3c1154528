"""The page of a run of rounds: turns figures and samples into text for the template `rounds.html.jinja`."""

from collections import Counter
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from phf_ray.evaluation.report.page import render_page, shown_plots
from phf_ray.evaluation.report.plots import Plot
from phf_ray.measures.overoptimization import OveroptimizationFit
from phf_ray.rollouts.figures import RoundFigures
from phf_ray.rollouts.guard.samples import SampleChoice, ShownAnswer
from phf_ray.rollouts.guard.summary import RoundsSummary
from phf_ray.rollouts.guard.table import rounds_table
from phf_ray.runs.directory import ROLLOUTS

_MOST_OPEN = 40
"""More rounds are folded."""
_LONGEST_TITLE = 90


def rounds_page(summary: RoundsSummary, plots: Sequence[Plot], samples: SampleChoice) -> str:
    """Return the whole page, which needs no network and no script. Answers may be hostile: every text is escaped."""
    rounds, fits = summary.rounds, summary.fits
    columns, rows = rounds_table(rounds)
    return render_page(
        "rounds.html.jinja",
        package="phf_ray.rollouts.guard",
        run=summary.name,
        intro=_intro(rounds),
        decision=_decision(summary),
        alarms=summary.alarms,
        plots=shown_plots(plots),
        fits=[fit_cells(of, found) for of, found in fits.items() if isinstance(found, OveroptimizationFit)],
        fit_notes=[f"No fit of {of}: {found}" for of, found in fits.items() if isinstance(found, str)],
        columns=columns,
        rows=rows,
        peak=None if summary.peak is None else str(summary.peak.round),
        most_open=_MOST_OPEN,
        failures=_failures(rounds),
        same_prompts=samples.are_same_prompts,
        samples=_samples(samples),
        folder=ROLLOUTS,
    )


def _intro(rounds: Sequence[RoundFigures]) -> list[str]:
    first, last = rounds[0], rounds[-1]
    answers = sum(figures.num_answers for figures in rounds)
    prompts = len({prompt for figures in rounds for prompt in figures.prompt_ids})
    lines = [f"{len(rounds):,} rounds, {answers:,} answers to {prompts:,} prompts. Higher rewards are better."]
    if first.is_reference and first.reward is not None:
        gold = f", gold {first.gold.mean:.4g}" if first.gold is not None else ""
        lines.append(
            f"The policy of round {first.round} is the reference: its reward is {first.reward.mean:.4g}{gold}."
        )
    if last.kl is not None and len(rounds) > 1:
        lines.append(f"The last round has a KL of {last.kl.mean:.4g} nats per answer from the reference.")
    return lines


def _decision(summary: RoundsSummary) -> list[str]:
    decision = summary.decision
    reasons = [reason[:1].upper() + reason[1:] for reason in decision.reasons]
    if not reasons:
        return ["No rule would stop the run before its last round (rollouts.stop)"]
    if not decision.stops:
        return [f"Not stopped. {reason}" for reason in reasons]
    if decision.learns:
        return [f"All rounds are done. {reasons[0]}", *reasons[1:]]
    first = f"Stopped before the updates of round {summary.stop_round} (rule: {decision.rule}). {reasons[0]}"
    return [first, *reasons[1:]]


def fit_cells(of: str, fit: OveroptimizationFit) -> list[str]:
    if fit.peak_kl is None:
        peak = "none"
    else:
        peak = f"{fit.peak_kl:.3g}" + (
            "" if fit.kl_range[0] <= fit.peak_kl <= fit.kl_range[1] else ", outside the rounds"
        )
    return [
        of,
        f"{fit.alpha:.3g} +- {fit.alpha_error:.2g}",
        f"{fit.beta:.3g} +- {fit.beta_error:.2g}",
        f"{fit.r_squared:.3f}",
        f"{fit.num_points}",
        peak,
    ]


def _failures(rounds: Sequence[RoundFigures]) -> list[list[str]]:
    answers: Counter[str] = Counter()
    places: Counter[str] = Counter()
    for figures in rounds:
        answers.update(figures.failures)
        places.update({*figures.failures})
    return [[reason, f"{count:,}", f"{places[reason]:,}"] for reason, count in answers.most_common(20)]


def _samples(choice: SampleChoice) -> list[tuple[str, str | None, list[dict[str, Any]]]]:
    """Return title, common prompt and answers of each group."""
    if not choice.are_same_prompts:
        return [
            (
                f"Round {group[0].round}",
                None,
                [_answer(one, title=f"answer {number}", with_prompt=True) for number, one in enumerate(group, 1)],
            )
            for group in choice.groups
        ]
    prompts = [group[0].row.prompt for group in choice.groups]
    return [
        (title, prompt, [_answer(one, title=f"round {one.round}", with_prompt=False) for one in group])
        for title, prompt, group in zip(_titles(prompts), prompts, choice.groups, strict=True)
    ]


def _answer(one: ShownAnswer, *, title: str, with_prompt: bool) -> dict[str, Any]:
    row = one.row
    figures = [
        f"{what} {value:.4g}" for what, value in (("reward", row.reward), ("gold", row.gold)) if value is not None
    ]
    if row.reward is None:
        figures.insert(0, f"no reward: {row.error or 'no reason given'}")
    end = "" if row.finish_reason == "stop" else ", cut"
    return {
        "title": title,
        "caption": f"{', '.join(figures)}; {row.num_tokens} tokens{end} (sample {row.sample})",
        "prompt": row.prompt if with_prompt else "",
        "text": row.completion,
        "error": row.error or "no reason given",
    }


def _titles(prompts: Sequence[str]) -> list[str]:
    """Return what differs between the prompts, each on one line: the rest is their template's."""
    words = [prompt.split() for prompt in prompts]
    start = _num_common(words)
    end = _num_common([mine[: start - 1 if start else None : -1] for mine in words])
    titles = [" ".join(mine[start : len(mine) - end]) or " ".join(mine) for mine in words]
    return [title if len(title) <= _LONGEST_TITLE else f"{title[:_LONGEST_TITLE]}..." for title in titles]


def _num_common(lists: Sequence[Sequence[str]]) -> int:
    """Return how many words all lists begin with; 0 for a single list."""
    if len(lists) < 2:
        return 0
    same = (len(set(words)) == 1 for words in zip(*lists, strict=False))
    return len(list(takewhile(bool, same)))
