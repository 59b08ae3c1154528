"""What `phf align` says: over-optimisation by round, how good labels and reward are, the table, the page."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs import align_table, demo
from phf_ray.storage.files import write_text

if TYPE_CHECKING:
    from phf_ray.rollouts.figures import RoundFigures

PATIENCE = 3
"""Rounds that the guard compares with the best as many before them."""


@dataclass(frozen=True, slots=True)
class AlignResult:
    """All that there is to say."""

    arms: Sequence[align_table.AlignedArm]
    accuracies: Mapping[int, dict[str, Any]]
    """Training seed -> agreement of pool, labels and reward model."""
    over: dict[str, Any]
    minutes: dict[str, float]
    """What took how long, over all starts."""
    failure: Sequence[str]
    """Why nothing is shown; empty if something is."""

    @property
    def seeds(self) -> Sequence[int]:
        return list(self.accuracies)


def over_optimisation(run: Path, *, patience: int = PATIENCE) -> dict[str, Any]:
    """Return gold and proxy by round, the round of the highest gold, and where the guard would have stopped."""
    from phf_ray.rollouts.guard import StopRules, first_stop, read_figures
    from phf_ray.rollouts.guard.stop import gold_fall, gold_peak

    figures = read_figures(run)
    peak, stop = gold_peak(figures), first_stop(figures, StopRules(gold_patience=patience))
    fall = gold_fall(figures, patience)
    return {
        "rounds": [_round_json(one) for one in figures],
        "peak_round": None if peak is None else peak.round,
        "guard_stops_after_round": None if stop is None else figures[stop[0] - 1].round,
        "guard_says": str(fall) if stop is None and fall is not None else None if stop is None else stop[1].reasons[0],
        "patience": patience,
    }


def _round_json(figures: "RoundFigures") -> dict[str, Any]:
    found = {name: getattr(figures, name) for name in ("reward", "gold", "kl")}
    interval = None if figures.gold is None else figures.gold.interval
    return {
        "round": figures.round,
        **{name: None if one is None else one.mean for name, one in found.items()},
        "gold_interval": None if interval is None else [interval.low, interval.high],
    }


def _report_json(result: AlignResult) -> dict[str, Any]:
    from phf_ray.rollouts.against_base.page import comparison_json

    first, *_ = result.accuracies.values()
    of_seeds = {"accuracy_by_seed": {str(seed): one for seed, one in result.accuracies.items()}}
    return comparison_json(
        [one.compared for one in result.arms],
        shown=not result.failure,
        failure=list(result.failure),
        needed=align_table.NEEDED,
        arms=align_table.arms_json(result.arms),
        accuracy=first,
        **(of_seeds if len(result.seeds) > 1 else {}),
        over_optimisation=result.over,
        minutes=result.minutes,
    )


def write_report(result: AlignResult, place: Path) -> None:
    """Write `report.json` and `report.html`."""
    from phf_ray.rollouts.against_base.page import comparison_page

    models = [one.compared for one in result.arms]
    write_text(place / "report.json", json.dumps(_report_json(result), indent=1) + "\n")
    intro = [
        f"{models[0].figures.num_prompts:,} function headers that no training saw. Gold is minus pycodestyle's "
        "violations per character of header and answer; higher is better. The methods learned from the labels of four "
        "biased annotators, a quarter of which were turned round.",
        "Best of n by gold and the conditional model learned from gold itself: upper bounds, which never count.",
        *_seed_lines(result.seeds),
        *accuracy_lines(result.accuracies),
        over_sentence(result.over),
    ]
    title = "Methods that learned from a pool's labels, against their base"
    table = align_table.page_table(result.arms)
    page = comparison_page(models, title=title, intro=intro, failure=result.failure, table=table)
    write_text(place / "report.html", page)


def say_result(result: AlignResult, *, folder: Path, rounds: str) -> int:
    """Print it all, and return the exit code. `folder`: of the report, as the user gave it; `rounds`: in it, the run
    that went on and on."""
    demo.say("\n" + "\n".join([*_seed_lines(result.seeds), *accuracy_lines(result.accuracies)]))
    demo.say(f"\n{align_table.table_text(result.arms)}\n")
    demo.say("\n".join(over_lines(result.over)))
    demo.say("minutes: " + ", ".join(f"{name} {spent:.1f}" for name, spent in result.minutes.items()))
    demo.say(f"report: {folder / 'report.html'}; rounds: {folder / rounds / 'report.html'}")
    for line in result.failure:
        demo.say(f"not shown: {line}")
    if not result.failure:
        demo.say(
            f"shown: at least {align_table.NEEDED} methods that learned from the pool's labels beat the base, on "
            "prompts that no training saw, and not by degenerate text"
        )
    return 1 if result.failure else 0


def _seed_lines(seeds: Sequence[int]) -> list[str]:
    """Return what several training seeds mean for the figures."""
    if len(seeds) == 1:
        return []
    return [
        f"each method was trained {len(seeds)} times, from the seeds {', '.join(map(str, seeds))}, and so was the "
        "reward model; the figures are of all their answers. The verdict is of the mean over the seeds, and the "
        "interval of its difference from the base covers prompts and seeds; the other intervals cover prompts alone"
    ]


def accuracy_lines(accuracies: Mapping[int, dict[str, Any]]) -> list[str]:
    """Return how often pool, labels and reward model agree with gold and with each other, on pairs of other files.

    Of several training seeds, the first one's intervals, and the agreement of each.
    """
    accuracy, *others = accuracies.values()
    names = {
        "pool_gold": "the pool without noise agrees with gold on",
        "labels_gold": "its labels with noise agree with gold on",
        "labels_clean": "its labels with noise agree with those without on",
        "reward_gold": "the reward model agrees with gold on",
        "reward_clean": "the reward model agrees with the pool without noise on",
        "reward_noisy": "the reward model agrees with the labels with noise on",
    }
    lines = []
    for key, says in names.items():
        found = accuracy[key]
        if found["accuracy"] is None:
            lines.append(f"{says} no pair: none could be judged")
            continue
        interval = "" if found["interval"] is None else " ({:.1%} .. {:.1%})".format(*found["interval"])
        line = f"{says} {found['accuracy']:.1%}{interval} of {found['num']:,} pairs"
        if others and key.startswith("reward_"):
            each = [one[key]["accuracy"] for one in accuracies.values()]
            shown = ", ".join("none" if one is None else f"{one:.1%}" for one in each)
            line += f"; by training seed ({', '.join(map(str, accuracies))}): {shown}"
        lines.append(line)
    return lines


def over_lines(over: dict[str, Any]) -> list[str]:
    """Return gold and proxy by round, with the peak of gold marked, and what the guard would have done."""
    lines = ["RLOO on and on, by round: learned reward / gold / KL"]
    for row in over["rounds"]:
        numbers = " / ".join(
            "-" if row[name] is None else f"{row[name]:.{digits}f}"
            for name, digits in (("reward", 3), ("gold", 4), ("kl", 1))
        )
        marks = [
            mark
            for mark, key in (("highest gold", "peak_round"), ("the guard stops here", "guard_stops_after_round"))
            if row["round"] == over[key]
        ]
        lines.append(f"  {row['round']:2d}: {numbers}{'  <- ' + ', '.join(marks) if marks else ''}")
    return [*lines, over_sentence(over)]


def over_sentence(over: dict[str, Any]) -> str:
    """Return where gold was highest, how the proxy went on, and what the guard would have done."""
    rounds, peak = over["rounds"], over["peak_round"]
    if peak is None:
        return "RLOO on and on has no round with gold"
    of_peak = next(row for row in rounds if row["round"] == peak)
    proxies = [row["reward"] for row in (of_peak, rounds[-1])]
    went = "" if None in proxies else ", the learned reward went from {:.3g} to {:.3g} at the end".format(*proxies)
    stop = over["guard_stops_after_round"]
    guard = (
        f"the guard would not have stopped it ({over['guard_says'] or 'too few rounds to compare'})"
        if stop is None
        else f"the guard would have stopped it after round {stop} ({over['guard_says']})"
    )
    return f"RLOO on and on: gold was highest in round {peak} of 0 to {rounds[-1]['round']}{went}; {guard}"
