"""The table and the verdict of `phf align`: what each arm's answers are worth beside the base's, answer by answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.align_data import AnswerPair
from jobs.code_pieces import whole_lines
from phf_ray.measures.length_control import fit_length_control
from phf_ray.measures.preferences import DRAW
from phf_ray.measures.texts import parse_outcome
from phf_ray.measures.win_rates import WinRate, win_rate
from phf_ray.rollouts.against_base.arms import ComparedModel, mean_of
from phf_ray.rollouts.against_base.page import PageTable
from phf_ray.rollouts.against_base.verdict import reasons_against
from phf_ray.rollouts.figures import RolloutRow

NEEDED = 2
"""Methods that have to beat the base."""
_COLUMNS = (
    ("arm", "a method, the base, or an upper bound"),
    ("gold", "mean gold with half of its 95% interval; the answers to a prompt are one draw"),
    ("above the base", "difference of the means over the same prompts, 95% bootstrap interval over prompts"),
    ("wins by gold", "percent of the answers that gold prefers to the base's, with 95% interval"),
    ("length-c.", "the same if both answers had the same length (unregularised)"),
    ("wins by pool", "percent that the pool prefers, without noise"),
    ("length-c.", "the same if both answers had the same length (unregularised)"),
    ("KL", "k1 from the base, nats per answer; of a best of n the upper bound"),
    ("chars", "characters per answer"),
    ("dist.-2", "mean over answers of different / all pairs of words"),
    ("empty", "share of the answers without a word"),
    ("comments", "share of the lines that are comments, without lines that the limit cut"),
    ("c. only", "share of the answers that are nothing but comments and strings"),
    ("repeated", "share of the answers that repeat themselves or another"),
    ("parse", "share of the answers that Python parses behind their header, without the line that the limit cut"),
    ("min", "minutes of this arm alone, over all starts"),
    ("counts", "won, no, or bound: an upper bound that never counts"),
)

_SEED_COLUMNS = (
    ("above the base", "mean difference over training seeds, 95% interval over prompts and seeds"),
    ("over prompts", "its 95% interval over prompts alone"),
    ("by seed", "lowest and highest difference of the training seeds, and their number"),
)
"""What stands for the difference if arms were trained from several seeds. All other intervals are over prompts."""
_DIFFERENCE = 2
"""Its column."""

PoolLabels = Mapping[AnswerPair, float]


@dataclass(frozen=True, slots=True)
class WinRates:
    """Of an arm against the base, over prompts that both answered."""

    plain: WinRate
    length_controlled: float | None
    """Percent if both answers had the same length (unregularised); None: not defined."""
    reason: str | None
    """Why not."""


@dataclass(frozen=True, slots=True)
class AlignedArm:
    """An arm with all that the table says of it."""

    compared: ComparedModel
    by_gold: WinRates | None
    """None of the base."""
    by_pool: WinRates | None
    comment_lines: float | None
    """Share of the lines with anything in them; the line that the limit cut is none."""
    parse_rate: float | None
    """Share of the answers that Python can parse behind their header, without the line that the limit cut."""

    @property
    def name(self) -> str:
        return self.compared.name


def align_arms(models: Sequence[ComparedModel], labels: PoolLabels) -> list[AlignedArm]:
    """Return the arms, the base first. `labels`: of pairs (prompt, the base's answer, the arm's)."""
    base = models[0]
    return [
        AlignedArm(
            compared=one,
            by_gold=None if one is base else _win_rates(_pairs(one, base), _gold_preference),
            by_pool=None if one is base else _win_rates(_pairs(one, base), _PoolPreference(labels)),
            comment_lines=_comment_lines(one.rows),
            parse_rate=_parse_rate(one.rows),
        )
        for one in models
    ]


def pairs_with_base(models: Sequence[ComparedModel]) -> list[tuple[RolloutRow, RolloutRow]]:
    """Return the base's answer and the arm's of every pair that is compared."""
    base = models[0]
    return [pair for one in models[1:] for pair in _pairs(one, base)]


def _pairs(one: ComparedModel, base: ComparedModel) -> list[tuple[RolloutRow, RolloutRow]]:
    """Pair the answers of every training seed with the base's."""
    return [pair for run in one.runs for pair in _paired(run.rows, base.rows)]


def _paired(ours: Sequence[RolloutRow], theirs: Sequence[RolloutRow]) -> list[tuple[RolloutRow, RolloutRow]]:
    """Pair the answers to a prompt in their order, and leave out those that the other side has no more of."""
    mine, base = _drawn_by_prompt(ours), _drawn_by_prompt(theirs)
    return [pair for prompt, answers in base.items() for pair in zip(answers, mine.get(prompt, ()), strict=False)]


def _drawn_by_prompt(rows: Sequence[RolloutRow]) -> dict[str, list[RolloutRow]]:
    found: dict[str, list[RolloutRow]] = {}
    for row in sorted(rows, key=lambda row: (row.prompt, row.sample)):
        if row.completion is not None:
            found.setdefault(row.prompt, []).append(row)
    return found


def _gold_preference(base: RolloutRow, arm: RolloutRow) -> float | None:
    if base.gold is None or arm.gold is None:
        return None
    return DRAW + (arm.gold > base.gold) / 2 - (arm.gold < base.gold) / 2


class _PoolPreference:
    def __init__(self, labels: PoolLabels):
        self._labels = labels

    def __call__(self, base: RolloutRow, arm: RolloutRow) -> float | None:
        return self._labels.get(AnswerPair(base.prompt, base.completion or "", arm.completion or ""))


def _win_rates(pairs: Sequence[tuple[RolloutRow, RolloutRow]], prefer: Any) -> WinRates:
    preferences = [prefer(base, arm) for base, arm in pairs]
    lengths = [[len(row.completion or "") for row in side] for side in zip(*pairs, strict=True)] or [[], []]
    fitted = fit_length_control(preferences, *lengths)
    return WinRates(
        plain=win_rate(preferences, clusters=[base.prompt for base, _ in pairs]),
        length_controlled=None if fitted.reason else fitted.win_rate,
        reason=fitted.reason,
    )


def _whole(row: RolloutRow) -> str:
    return whole_lines(row.completion or "", is_ended=row.finish_reason == "stop")


def _comment_lines(rows: Sequence[RolloutRow]) -> float | None:
    lines = [line.lstrip() for row in rows for line in _whole(row).splitlines() if line.strip()]
    return sum(line.startswith("#") for line in lines) / len(lines) if lines else None


def _parse_rate(rows: Sequence[RolloutRow]) -> float | None:
    drawn = [row for row in rows if row.completion is not None]
    parsed = [parse_outcome(row.prompt + _whole(row)) == "parses" for row in drawn]
    return sum(parsed) / len(parsed) if parsed else None


# -- The verdict -------------------------------------------------------------------------------------------------------


def failure_of(models: Sequence[ComparedModel]) -> list[str]:
    """Return why too few methods beat the base, a line for each that did not; empty if enough do.

    Only methods that learned from the pool's labels count (`ComparedModel.learned`); of several training seeds their
    mean does, with an interval over prompts and seeds.
    """
    base = models[0]
    against = {model.name: reasons_against(model, base) for model in models if model.learned}
    num_won = sum(not reasons for reasons in against.values())
    if num_won >= NEEDED:
        return []
    return [
        f"{num_won} of {len(against)} methods that learned from the pool's labels beat the base; {NEEDED} have to",
        *(f"{name}: {'; '.join(reasons)}" for name, reasons in against.items() if reasons),
    ]


# -- Shown -------------------------------------------------------------------------------------------------------------


def arms_json(arms: Sequence[AlignedArm]) -> dict[str, Any]:
    """Return name -> the figures that `comparison_json` does not have."""
    return {
        one.name: {
            "win_rate_gold": _win_rates_json(one.by_gold),
            "win_rate_pool": _win_rates_json(one.by_pool),
            "comment_lines": one.comment_lines,
            "parse_rate": one.parse_rate,
        }
        for one in arms
    }


def _win_rates_json(found: WinRates | None) -> dict[str, Any] | None:
    if found is None:
        return None
    interval = found.plain.interval()
    return {
        "win_rate": found.plain.win_rate,
        "interval": None if interval is None else [interval.low, interval.high],
        "standard_error": found.plain.standard_error,
        "n_total": found.plain.n_total,
        "length_controlled": found.length_controlled,
        "reason": found.reason,
    }


def page_table(arms: Sequence[AlignedArm]) -> PageTable:
    base = arms[0].compared
    columns, rows = list(_COLUMNS), [_cells(arm, base) for arm in arms]
    if any(arm.compared.seeds for arm in arms):
        columns[_DIFFERENCE : _DIFFERENCE + 1] = _SEED_COLUMNS
        for arm, row in zip(arms, rows, strict=True):
            row[_DIFFERENCE + 1 : _DIFFERENCE + 1] = _seed_cells(arm.compared)
    return PageTable(columns, [[_cell(one) for one in row] for row in rows])


def table_text(arms: Sequence[AlignedArm]) -> str:
    """Return the table for a terminal."""
    table = page_table(arms)
    rows = [[title for title, _ in table.columns], *table.rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(table.columns))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _cells(arm: AlignedArm, base: ComparedModel) -> list[str | None]:
    one = arm.compared
    gold, difference = one.figures.gold, one.difference
    half = "" if gold is None or gold.interval is None else f" +-{gold.interval.high - gold.mean:.4f}"
    above = None
    if difference is not None:
        above = f"{difference.mean:+.4f} ({difference.interval.low:+.4f} .. {difference.interval.high:+.4f})"
    counts = "" if one is base else "bound" if not one.learned else "no" if reasons_against(one, base) else "won"
    return [
        one.name,
        None if gold is None else f"{gold.mean:.4f}{half}",
        above,
        *_win_cells(arm.by_gold),
        *_win_cells(arm.by_pool),
        _kl(one),
        _number(mean_of(one.figures.num_chars), ".0f"),
        _number(one.figures.distinct_2, ".3f"),
        _number(one.degenerate.get("empty"), ".0%"),
        _number(arm.comment_lines, ".0%"),
        _number(one.degenerate.get("comment-only"), ".0%"),
        _number(one.degenerate.get("repeated"), ".0%"),
        _number(arm.parse_rate, ".0%"),
        _number(one.minutes, ".1f"),
        counts,
    ]


def _seed_cells(one: ComparedModel) -> tuple[str | None, str | None]:
    found = one.difference
    if found is None or found.over_prompts is None:
        return None, None
    low, high = min(found.by_seed), max(found.by_seed)
    return (
        f"{found.over_prompts.low:+.4f} .. {found.over_prompts.high:+.4f}",
        f"{low:+.4f} .. {high:+.4f} ({len(found.by_seed)})",
    )


def _win_cells(found: WinRates | None) -> tuple[str | None, str | None]:
    if found is None or found.plain.win_rate is None:
        return None, None
    interval = found.plain.interval()
    shown = "" if interval is None else f" ({interval.low:.0f} .. {interval.high:.0f})"
    return f"{found.plain.win_rate:.0f}{shown}", _number(found.length_controlled, ".0f")


def _kl(one: ComparedModel) -> str | None:
    if one.figures.kl is not None:
        return f"{max(0.0, one.figures.kl.mean):.1f}"
    return None if one.kl_upper_bound is None else f"<= {one.kl_upper_bound:.1f}"


def _number(value: float | None, form: str) -> str | None:
    return None if value is None else format(value, form)


def _cell(text: str | None) -> str:
    return "-" if text is None else text
