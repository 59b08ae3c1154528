"""The page of a report: turns figures and samples into text for the template `page.html.jinja`."""

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from phf_ray.evaluation.report.plots import Plot, svg_of
from phf_ray.evaluation.report.records import Sample
from phf_ray.evaluation.report.samples import SAMPLES, SAMPLES_AS_TEXT
from phf_ray.evaluation.report.table import format_cell, row_note, score_unit, shown_columns, verdicts_of

_PACKAGE = "phf_ray.evaluation.report"
_NUM_WORST = 10
_NUM_RANDOM = 12


@dataclass(frozen=True, slots=True)
class ShownSample:
    caption: str
    prompt: str
    text: str | None


def page_of(report: Mapping[str, Any], plots: Sequence[Plot], samples: Sequence[Sample]) -> str:
    """Return the whole page, which needs no network and no script. Samples may be hostile: every text is escaped."""
    return render_page(
        "page.html.jinja",
        unit=score_unit(report),
        seeds=report["seeds"],
        scenarios=[_scenario(report, scenario, plots) for scenario in report["scenarios"]],
        level=f"{report['level']:.0%}",
        differences=_differences(report),
        capabilities=_capabilities(report),
        arms=[_arm_cells(arm) for arm in report["arms"]],
        plots=shown_plots(plot for plot in plots if plot.scenario is None and not plot.group),
        attacks=_attacks(report, plots),
        random_samples=_random(report, samples),
        worst=_worst(report, samples),
        samples_files=[SAMPLES_AS_TEXT, SAMPLES],
    )


def render_page(name: str, *, package: str = _PACKAGE, **values: Any) -> str:
    """Return a template of a package, filled; it may import `parts.html.jinja`. Every value is escaped."""
    return _environment(package).get_template(name).render(**values)


def _environment(package: str) -> Environment:
    return Environment(
        loader=ChoiceLoader([PackageLoader(one, package_path="") for one in dict.fromkeys((package, _PACKAGE))]),
        autoescape=True,
        finalize=_visible,
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )


def _visible(value: Any) -> Any:
    """Return the text with hidden and harmful characters made visible; markup of the page itself stays as it is."""
    return value if isinstance(value, Markup) else visible_text(str(value))


def visible_text(text: str) -> str:
    return text.translate(_SHOWN)


_SHOWN = {
    # Control characters, which HTML does not allow, become their pictures.
    **{code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"},
    # Other controls, halves of character pairs, and overrides of the writing direction, which could turn the page
    # around a sample, become U+FFFD.
    **dict.fromkeys((*range(0x7F, 0xA0), *range(0xD800, 0xE000)), 0xFFFD),
    **dict.fromkeys((0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)), 0xFFFD),
}


def shown_plots(plots: Iterable[Plot]) -> list[dict[str, Any]]:
    """Return plots as the template's `figures` takes them."""
    return [{"svg": Markup(svg_of(plot)), "caption": plot.caption} for plot in plots]


def _scenario(report: Mapping[str, Any], scenario: Mapping[str, Any], plots: Sequence[Plot]) -> dict[str, Any]:
    rows = [row for row in report["table"] if row["scenario"] == scenario["name"]]
    columns = shown_columns(report, rows, on_page=True)
    notes = [f"{row['arm']}: {note}" for row in rows if (note := row_note(row))]
    return {
        "name": scenario["name"],
        "columns": columns,
        "rows": [(row["arm"], [format_cell(row, column.key, column.digits) for column in columns]) for row in rows],
        "notes": notes + _prompts_note(scenario),
        "verdicts": verdicts_of(report, scenario["name"]),
        "plots": shown_plots(plot for plot in plots if plot.scenario == scenario["name"]),
    }


def _prompts_note(scenario: Mapping[str, Any]) -> list[str]:
    number, dropped = scenario["num_prompts"], scenario["num_prompts_dropped"]
    if number is None:
        return []
    note = f"{number} prompt{'' if number == 1 else 's'}, the same for all arms"
    return [note + (f"; {dropped} were left out because they leave no room for a continuation" if dropped else "")]


def _differences(report: Mapping[str, Any]) -> list[list[str]]:
    return [
        [
            pair["scenario"],
            f"{pair['first']} - {pair['second']}",
            f"{pair['difference']:+.3g}",
            format_cell(pair, "ci", "+.3g"),
            _excludes_zero(pair["ci"]),
        ]
        for pair in report["differences"]
        if pair["difference"] is not None
    ]


def _excludes_zero(ci: Sequence[float] | None) -> str:
    if ci is None:
        return "-"
    return "no" if ci[0] <= 0 <= ci[1] else "yes"


def _capabilities(report: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a row for each task and metric, with a column for each arm; None if nothing was measured."""
    found = report["capabilities"]
    if not found:
        return None
    arms = list(dict.fromkeys(row["arm"] for row in found))
    cells = {(row["task"], row["metric"], row["arm"]): row for row in found}
    rows = []
    for task, metric in dict.fromkeys((row["task"], row["metric"]) for row in found):
        mine = [cells.get((task, metric, arm)) for arm in arms]
        known = next(row for row in mine if row is not None)
        better = {True: "higher is better", False: "lower is better", None: ""}[known["higher_is_better"]]
        shots = "-" if known["num_shots"] is None else str(known["num_shots"])
        rows.append((task, metric, [better, shots, *map(_capability_cell, mine)]))
    return {"arms": arms, "rows": rows}


def _capability_cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "-"
    error = row["standard_error"]
    return f"{row['value']:.4g}" + ("" if error is None else f" +- {error:.2g}")


def _arm_cells(arm: Mapping[str, Any]) -> list[str]:
    checkpoint = arm["checkpoint"] or {}
    tokens_seen = f"{checkpoint['tokens_seen']:,}" if checkpoint else "-"
    return [arm["name"], arm["model"], arm["control"] or "-", _objective_name(checkpoint), tokens_seen]


def _objective_name(checkpoint: Mapping[str, Any]) -> str:
    """Return the paper's name of the method.

    Conditional training is MLE on text with control tokens; filtering is MLE on less text.
    """
    name = str((checkpoint.get("objective") or {}).get("name", "-"))
    if name == "MLE" and checkpoint.get("control"):
        return "Conditional"
    if name == "MLE" and "filter" in (checkpoint.get("thresholds") or {}):
        return "Filtering"
    return name


def _attacks(report: Mapping[str, Any], plots: Sequence[Plot]) -> dict[str, Any] | None:
    if not report["red_team"]:
        return None
    rows = []
    for arm in dict.fromkeys(row["arm"] for row in report["red_team"]):
        mine = [point for point in report["red_team"] if point["arm"] == arm]
        rows.append((arm, _attack_cells(mine)))
    return {"rows": rows, "plots": shown_plots(plot for plot in plots if plot.group == "red team")}


def _attack_cells(points: Sequence[Mapping[str, Any]]) -> list[str]:
    """`points`: the rounds of the attack on one arm, in order."""
    first, last = points[0], points[-1]
    outcomes = sum((Counter(point["outcomes"]) for point in points), Counter())
    return [
        last["attacker"],
        str(last["num_trials"]),
        str(last["round"]),
        *(format_cell(point, "best_prompt_score", ".3g") for point in (first, last)),
        format_cell(last, "best_10_prompt_score", ".3g"),
        format_cell(last, "average_score", ".3g"),
        f"{last['num_tested']:.0f}",
        ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items() if count) or "-",
    ]


def _random(report: Mapping[str, Any], samples: Sequence[Sample]) -> list[tuple[str, list[ShownSample]]]:
    """Return a dozen samples of each row of the table, drawn at random but the same in every report of these samples.

    All arms of a scenario show the same draws, so that prompts can be compared side by side.
    """
    found = []
    drawn: dict[str, list[tuple[int, int]]] = {}
    for scenario in report["scenarios"]:
        name = scenario["name"]
        keys = sorted({(sample.seed, sample.index) for sample in samples if sample.scenario == name})
        drawn[name] = random.Random(name).sample(keys, min(_NUM_RANDOM, len(keys)))
    by_place = {(sample.scenario, sample.arm, sample.seed, sample.index): sample for sample in samples}
    for row in report["table"]:
        places = [(row["scenario"], row["arm"], *key) for key in drawn[row["scenario"]]]
        found.append((f"{row['scenario']}, {row['arm']}", [_shown(by_place[at]) for at in places if at in by_place]))
    return [(title, shown) for title, shown in found if shown]


def _worst(report: Mapping[str, Any], samples: Sequence[Sample]) -> list[tuple[str, list[ShownSample]]] | None:
    """Return title and samples of each list; None if the report has neither samples nor attacks."""
    if not report["table"] and not report["red_team_worst"]:
        return None
    found = []
    for row in report["table"]:
        mine = [s for s in samples if (s.scenario, s.arm) == (row["scenario"], row["arm"]) and s.score is not None]
        worst = sorted(mine, key=lambda s: (-(s.score or 0.0), s.seed, s.index))[:_NUM_WORST]
        found.append((f"{row['scenario']}, {row['arm']}", [_shown(sample) for sample in worst]))
    for arm in dict.fromkeys(prompt["arm"] for prompt in report["red_team_worst"]):
        prompts = [prompt for prompt in report["red_team_worst"] if prompt["arm"] == arm]
        found.append((f"Under attack, {arm}", [_shown_prompt(prompt) for prompt in prompts]))
    return [(title, shown) for title, shown in found if shown]


def _shown(sample: Sample) -> ShownSample:
    score = f"no score: {sample.error or 'no reason given'}" if sample.score is None else f"{sample.score:.4g}"
    caption = f"{score} (seed {sample.seed}, sample {sample.index})"
    return ShownSample(caption, sample.prompt or "", sample.text)


def _shown_prompt(prompt: Mapping[str, Any]) -> ShownSample:
    own = "" if prompt["own_score"] is None else f", its own text {prompt['own_score']:.3g}"
    caption = (
        f"round {prompt['round']}: mean {prompt['mean']:.3g} +- {prompt['std']:.3g} over "
        f"{prompt['num_scored']} continuations{own}"
    )
    first = next((text for _, text in prompt["continuations"]), None)
    return ShownSample(caption, prompt["prompt"], first)
