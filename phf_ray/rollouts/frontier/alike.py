"""What does not compare among methods on one plot: another base, other prompts, another gold or proxy reward."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from phf_ray.rollouts.frontier.methods import Aspect, FrontierMethod

_MOST_NAMED = 6
_WARNINGS: dict[Aspect, str] = {
    "base": "They start from different base models, so their KL is measured from different places",
    "prompts": "They answer different prompts, so a difference of gold or KL may be one of prompts",
    "gold": "Their gold rewards are not the same, so gold does not compare",
}
_PROXIES = "Their proxies are different rewards, which have plots of their own"


@dataclass(frozen=True, slots=True)
class Unlike:
    """What a reader must see before comparing (warnings) and what nobody knows (notes)."""

    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def compare_methods(methods: Sequence[FrontierMethod]) -> Unlike:
    """Compare the identities that the results have stored. `methods`: those of one plot, whose names differ."""
    found = Unlike()
    for aspect in ("base", "prompts", "gold", "proxy"):
        shown = [method for method in methods if _is_measured(method, aspect)]
        groups, unknown = group_alike(shown, aspect)
        if len(groups) > 1:
            text = _WARNINGS.get(aspect, _PROXIES)
            line = f"{text}: {' | '.join(_told(group, aspect) for group in groups)}{_in_common(groups, aspect)}"
            (found.notes if aspect == "proxy" else found.warnings).append(line)
        if unknown and len(shown) > 1:
            found.notes.append(f"Whether the {_WORDS[aspect]} the same can't be told of {_names(unknown)}")
    return found


_WORDS: dict[Aspect, str] = {
    "base": "base is",
    "prompts": "prompts are",
    "gold": "gold reward is",
    "proxy": "proxy is",
}


def _is_measured(method: FrontierMethod, aspect: Aspect) -> bool:
    if aspect in ("gold", "proxy"):
        return any(getattr(point, aspect) is not None for point in method.points)
    return any(point.across is not None for point in method.points)


def group_alike(
    methods: Sequence[FrontierMethod], aspect: Aspect
) -> tuple[list[list[FrontierMethod]], list[FrontierMethod]]:
    """Return groups of those that have the same, and those of which nothing can be told."""
    groups: list[list[FrontierMethod]] = []
    unknown = []
    for method in methods:
        if not method.claims.get(aspect) and not (aspect == "prompts" and method.prompts):
            unknown.append(method)
            continue
        said = [[_is_same(method, other, aspect) for other in group] for group in groups]
        place = next((number for number, verdicts in enumerate(said) if True in verdicts), None)
        if place is not None:
            groups[place].append(method)
        elif all(False in verdicts for verdicts in said):
            groups.append([method])
        else:
            unknown.append(method)
    return groups, unknown


def _is_same(one: FrontierMethod, other: FrontierMethod, aspect: Aspect) -> bool | None:
    """None: they say nothing that compares."""
    ours, theirs = one.claims.get(aspect, {}), other.claims.get(aspect, {})
    told = next((ours[kind] == theirs[kind] for kind in ours if kind in theirs), None)
    if told is None and aspect == "prompts" and one.prompts and other.prompts:
        return one.prompts == other.prompts
    return told


def _told(group: Sequence[FrontierMethod], aspect: Aspect) -> str:
    number = len(group[0].prompts)
    return _names(group) + (f" ({number:,} prompts)" if aspect == "prompts" and number else "")


def _in_common(groups: Sequence[Sequence[FrontierMethod]], aspect: Aspect) -> str:
    if aspect != "prompts" or not all(group[0].prompts for group in groups):
        return ""
    shared = frozenset.intersection(*(group[0].prompts for group in groups))
    return f"; {len(shared):,} in common" if shared else "; none in common"


def _names(methods: Sequence[FrontierMethod]) -> str:
    names = list(dict.fromkeys(method.title for method in methods))
    return ", ".join(names[:_MOST_NAMED]) + (
        f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    )
