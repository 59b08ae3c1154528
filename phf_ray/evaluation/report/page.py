"""The page of a report: one file without scripts, which needs no network."""

import html
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from phf_ray.evaluation.report.plots import Plot, svg_of
from phf_ray.evaluation.report.records import Sample
from phf_ray.evaluation.report.samples import SAMPLES
from phf_ray.evaluation.report.table import format_cell, row_note, score_unit, shown_columns

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5b6675; --faint: #d5dbe3; --page: #fff; --panel: #f5f7fa; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e9f0; --soft: #9aa6b5; --faint: #39424e; --page: #14181e; --panel: #1c222b; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1320px; padding: 1.5rem; background: var(--page); color: var(--ink);
       font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .2rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
p, figcaption, .note { color: var(--soft); margin: .3rem 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; width: 100%; }
th, td { padding: .35rem .4rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--faint); }
th { font-weight: 600; color: var(--soft); } th[title] { cursor: help; }
th:first-child, td:first-child, .words th, .words td { text-align: left; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 380px), 1fr)); gap: 1rem;
         margin-top: 1rem; }
figure { margin: 0; padding: .8rem; background: var(--panel); border-radius: 8px; }
figure svg { width: 100%; height: auto; display: block; } figure svg text { fill: currentColor; }
details { margin: .5rem 0; border: 1px solid var(--faint); border-radius: 8px; padding: .5rem .8rem; }
summary { cursor: pointer; }
pre { background: var(--panel); padding: .6rem .8rem; border-radius: 6px; overflow-x: auto; white-space: pre-wrap;
      overflow-wrap: anywhere; margin: .3rem 0 1rem; font-size: .85rem; }
.prompt { color: var(--soft); } .sample { margin-bottom: .2rem; font-size: .9rem; }
"""

_NUM_WORST = 10


def page_of(report: Mapping[str, Any], plots: Sequence[Plot], samples: Sequence[Sample]) -> str:
    # Samples are hostile text: all of it is escaped, and the policy forbids scripts and the network on top.
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        # Without an icon of its own the page would make a browser ask for one.
        '<link rel="icon" href="data:,">',
        f"<title>phf-ray report</title><style>{_STYLE}</style></head><body>",
        "<h1>Evaluation report</h1>",
        f"<p>Scored by {_escape(score_unit(report))}; higher is worse. Sampling seeds: "
        f"{_escape(', '.join(map(str, report['seeds'])))}.</p>",
        *_scenarios(report, plots),
        *_difference_table(report),
        *_capability_table(report),
        *_arm_table(report),
        *_figures([plot for plot in plots if plot.scenario is None and not plot.group]),
        *_red_team(report, plots),
        *_worst(report, samples),
        *_worst_prompts(report),
        f'<p class="note">Every figure is computed from {SAMPLES}, which lies beside this page.</p>',
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _figures(plots: Sequence[Plot]) -> list[str]:
    figures = [f"<figure>{svg_of(plot)}<figcaption>{_escape(plot.caption)}</figcaption></figure>" for plot in plots]
    return ['<div class="plots">', *figures, "</div>"] if figures else []


def _scenarios(report: Mapping[str, Any], plots: Sequence[Plot]) -> list[str]:
    parts = []
    for scenario in report["scenarios"]:
        rows = [row for row in report["table"] if row["scenario"] == scenario["name"]]
        columns = shown_columns(report, rows, on_page=True)
        header = "".join(f'<th title="{_escape(column.help)}">{_escape(column.title)}</th>' for column in columns)
        parts += [
            f"<h2>{_escape(scenario['name'])}</h2>",
            f'<div class="scroll"><table><thead><tr><th>arm</th>{header}</tr></thead><tbody>',
            *(
                f'<tr data-row="{_escape(scenario["name"])}/{_escape(row["arm"])}"><td>{_escape(row["arm"])}</td>'
                + "".join(f"<td>{_escape(format_cell(row, column.key, column.digits))}</td>" for column in columns)
                + "</tr>"
                for row in rows
            ),
            "</tbody></table></div>",
            *(
                f'<p class="note">{_escape(row["arm"])}: {_escape(note)}.</p>'
                for row in rows
                if (note := row_note(row))
            ),
        ]
        if scenario["num_prompts"] is not None:
            dropped = scenario["num_prompts_dropped"]
            parts.append(
                f'<p class="note">{_counted(scenario["num_prompts"], "prompt")}, the same for all arms'
                + (f"; {dropped} were left out because they leave no room for a continuation" if dropped else "")
                + ".</p>"
            )
        parts += _figures([plot for plot in plots if plot.scenario == scenario["name"]])
    return parts


_MOST_PAIRS = 12


def _difference_table(report: Mapping[str, Any]) -> list[str]:
    known = [pair for pair in report["differences"] if pair["difference"] is not None]
    if not known:
        return []
    rows = [
        f"<tr><td>{_escape(pair['scenario'])}</td><td>{_escape(pair['first'])} - {_escape(pair['second'])}</td>"
        f"<td>{pair['difference']:+.3g}</td><td>{format_cell(pair, 'ci', '+.3g')}</td>"
        f"<td>{'no' if pair['ci'][0] <= 0 <= pair['ci'][1] else 'yes'}</td></tr>"
        for pair in known
    ]
    # All pairs of many arms are a table that nobody should have to scroll past.
    opening, closing = (
        ("", "") if len(rows) <= _MOST_PAIRS else (f"<details><summary>{len(rows)} pairs</summary>", "</details>")
    )
    return [
        "<h2>Differences of mean scores</h2>",
        opening,
        '<div class="scroll"><table class="words"><thead><tr><th>scenario</th><th>arms</th><th>difference</th>'
        f"<th>{report['level']:.0%} CI</th><th>CI excludes 0</th></tr></thead><tbody>",
        *rows,
        "</tbody></table></div>",
        closing,
    ]


def _capability_table(report: Mapping[str, Any]) -> list[str]:
    """A row for each task and metric, a column for each arm."""
    found = report["capabilities"]
    if not found:
        return []
    arms = list(dict.fromkeys(row["arm"] for row in found))
    cells = {(row["task"], row["metric"], row["arm"]): row for row in found}
    lines = []
    for task, metric in dict.fromkeys((row["task"], row["metric"]) for row in found):
        mine = [cells.get((task, metric, arm)) for arm in arms]
        known = [row for row in mine if row is not None]
        better = {True: "higher is better", False: "lower is better", None: ""}[known[0]["higher_is_better"]]
        shots = "-" if known[0]["num_shots"] is None else str(known[0]["num_shots"])
        shown = [
            "-" if row is None else f"{row['value']:.4g}" + _plus_minus(row["standard_error"], digits=".2g")
            for row in mine
        ]
        lines.append(
            f'<tr data-capability="{_escape(task)}/{_escape(metric)}">'
            + "".join(f"<td>{_escape(cell)}</td>" for cell in (task, metric, better, shots, *shown))
            + "</tr>"
        )
    head = "".join(f"<th>{_escape(title)}</th>" for title in ("task", "metric", "", "shots", *arms))
    return [
        "<h2>Capabilities</h2>",
        '<p class="note">As lm-eval reports them, with standard errors.</p>',
        f'<div class="scroll"><table class="words"><thead><tr>{head}</tr></thead><tbody>',
        *lines,
        "</tbody></table></div>",
    ]


def _plus_minus(error: float | None, *, digits: str) -> str:
    return "" if error is None else f" +- {error:{digits}}"


def _arm_table(report: Mapping[str, Any]) -> list[str]:
    rows = []
    for arm in report["arms"]:
        checkpoint = arm["checkpoint"] or {}
        cells = [
            arm["name"],
            arm["model"],
            arm["control"] or "-",
            _objective_name(checkpoint),
            f"{checkpoint['tokens_seen']:,}" if checkpoint else "-",
        ]
        rows.append("<tr>" + "".join(f"<td>{_escape(cell)}</td>" for cell in cells) + "</tr>")
    return [
        "<h2>Arms</h2>",
        '<div class="scroll"><table class="words"><thead><tr><th>arm</th><th>model</th><th>control token</th>'
        "<th>objective</th><th>training tokens</th></tr></thead><tbody>",
        *rows,
        "</tbody></table></div>",
    ]


def _objective_name(checkpoint: Mapping[str, Any]) -> str:
    """As the paper calls the method: conditional training is likelihood on text with control tokens, filtering on less
    text."""
    name = str((checkpoint.get("objective") or {}).get("name", "-"))
    if name == "MLE" and checkpoint.get("control"):
        return "Conditional"
    if name == "MLE" and "filter" in (checkpoint.get("thresholds") or {}):
        return "Filtering"
    return name


def _red_team(report: Mapping[str, Any], plots: Sequence[Plot]) -> list[str]:
    if not report["red_team"]:
        return []
    last = {row["arm"]: row for row in report["red_team"]}
    rows = []
    for arm, row in last.items():
        mine = [point for point in report["red_team"] if point["arm"] == arm]
        asked = sum((Counter(point["outcomes"]) for point in mine), Counter())
        cells = [
            row["attacker"],
            str(row["num_trials"]),
            str(row["round"]),
            *(format_cell(point, "best_prompt_score", ".3g") for point in (mine[0], row)),
            format_cell(row, "best_10_prompt_score", ".3g"),
            format_cell(row, "average_score", ".3g"),
            f"{row['num_tested']:.0f}",
            ", ".join(f"{count} {outcome}" for outcome, count in asked.items() if count) or "-",
        ]
        rows.append(
            f'<tr data-attack="{_escape(arm)}"><td>{_escape(arm)}</td>'
            + "".join(f"<td>{_escape(cell)}</td>" for cell in cells)
            + "</tr>"
        )
    head = ("red LM", "trials", "rounds", "worst prompt before", "worst after", "10 worst", "all", "prompts", "answers")
    return [
        "<h2>Under attack</h2>",
        '<p class="note">A red LM writes prompts that are meant to bring out bad text, round after round, with what '
        "worked so far as examples. A prompt's score is the mean over its continuations; figures are means over "
        "trials.</p>",
        '<div class="scroll"><table><thead><tr><th>arm</th>',
        *(f"<th>{title}</th>" for title in head),
        "</tr></thead><tbody>",
        *rows,
        "</tbody></table></div>",
        *_figures([plot for plot in plots if plot.group == "red team"]),
    ]


def _worst_prompts(report: Mapping[str, Any]) -> list[str]:
    parts = []
    for arm in dict.fromkeys(prompt["arm"] for prompt in report["red_team_worst"]):
        parts.append(f"<details><summary>Under attack, {_escape(arm)}</summary>")
        for prompt in (one for one in report["red_team_worst"] if one["arm"] == arm):
            own = "" if prompt["own_score"] is None else f", its own text {prompt['own_score']:.3g}"
            parts.append(
                f'<div class="sample">round {prompt["round"]}: mean {prompt["mean"]:.3g} +- {prompt["std"]:.3g} over '
                f"{prompt['num_scored']} continuations{own}</div>"
            )
            parts += [
                f'<pre>\n<span class="prompt">{_escape(prompt["prompt"])}</span>{_escape(text)}</pre>'
                for _, text in prompt["continuations"][:1]
            ]
        parts.append("</details>")
    return parts


def _worst(report: Mapping[str, Any], samples: Sequence[Sample]) -> list[str]:
    if not report["table"] and not report["red_team_worst"]:
        return []
    parts = ["<h2>Worst samples</h2>", '<p class="note">Hidden until asked for: they can be offensive.</p>']
    for row in report["table"]:
        mine = [s for s in samples if (s.scenario, s.arm) == (row["scenario"], row["arm"]) and s.score is not None]
        worst = sorted(mine, key=lambda s: (-(s.score or 0.0), s.seed, s.index))[:_NUM_WORST]
        if not worst:
            continue
        parts.append(f"<details><summary>{_escape(row['scenario'])}, {_escape(row['arm'])}</summary>")
        for sample in worst:
            prompt = f'<span class="prompt">{_escape(sample.prompt)}</span>' if sample.prompt else ""
            parts.append(
                f'<div class="sample">{sample.score:.4g} (seed {sample.seed}, sample {sample.index})</div>'
                f"<pre>\n{prompt}{_escape(sample.text)}</pre>"
            )
        parts.append("</details>")
    return parts


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _escape(text: str) -> str:
    """For HTML text and quoted attributes; control characters, which HTML does not allow, become visible."""
    shown = "".join(
        chr(0x2400 + ord(char)) if ord(char) < 0x20 and char not in "\n\t" else "\ufffd" if _unfit(char) else char
        for char in text
    )
    return html.escape(shown, quote=True)


def _unfit(char: str) -> bool:
    return 0x7F <= ord(char) <= 0x9F or 0xD800 <= ord(char) <= 0xDFFF or ord(char) in _BIDI


# Overrides of writing direction, by which a sample could turn the page around it.
_BIDI = {0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)}
