"""Whether a model beats the base: on the gold reward beyond the noise, and not by text that is no answer."""

from collections.abc import Sequence

from phf_ray.rollouts.against_base.arms import ComparedModel, Difference, mean_of

_LEAST_PART = 0.5
"""Of the base's length and diversity."""
_MOST_DEGENERATE = 0.5
_MOST_MORE_WITHOUT_GOLD = 0.1
"""Share of the answers, above the base's."""


def reasons_against(model: ComparedModel, base: ComparedModel) -> list[str]:
    """Return why the model does not beat the base; empty if it does.

    A model that was trained from several seeds is judged by their mean, and its intervals cover prompts and seeds.
    """
    found = []
    if not _is_above(model.difference):
        found.append(f"gold is not above the base's beyond the noise: {shown_difference(model.difference)}")
    elif not _is_above(model.sound_difference):
        found.append(
            "only by degenerate text: without empty, comment-only and repeated answers, gold is "
            f"{shown_difference(model.sound_difference)} from the base's"
        )
    if model.degenerate_share > max(_MOST_DEGENERATE, base.degenerate_share):
        found.append(
            f"{model.degenerate_share:.0%} of its answers are empty, comment-only or repeated; "
            f"the base's {base.degenerate_share:.0%}"
        )
    ours_without, theirs_without = _share_without_gold(model), _share_without_gold(base)
    if ours_without > theirs_without + _MOST_MORE_WITHOUT_GOLD:
        found.append(
            f"{ours_without:.0%} of its answers have no gold reward, and enter no mean; the base's {theirs_without:.0%}"
        )
    for what, ours, theirs in (
        ("characters per answer", mean_of(model.figures.num_chars), mean_of(base.figures.num_chars)),
        ("distinct-2 of an answer", model.figures.distinct_2, base.figures.distinct_2),
        *_corpus_diversity(model, base),
    ):
        if theirs is None:
            found.append(f"the base has no {what} to compare with")
        elif ours is None or ours < _LEAST_PART * theirs:
            found.append(f"{what}: {'none' if ours is None else f'{ours:.3g}'}, under half of the base's {theirs:.3g}")
    return found


def failure_of(models: Sequence[ComparedModel]) -> list[str]:
    """Return why nothing is shown, a line for each model that learned; empty if one of them beats the base."""
    base = models[0]
    against = {model.name: reasons_against(model, base) for model in models if model.learned}
    if not against:
        return ["no model that learned was compared with the base"]
    if any(not reasons for reasons in against.values()):
        return []
    return [f"{name}: {'; '.join(reasons)}" for name, reasons in against.items()]


def shown_difference(difference: Difference | None) -> str:
    if difference is None:
        return "unknown, because fewer than two prompts have gold rewards on both sides"
    shown = f"{difference.mean:+.3g} [{difference.interval.low:+.3g}, {difference.interval.high:+.3g}]"
    if difference.by_seed:
        shown += f" (mean of the training seeds' {', '.join(f'{one:+.3g}' for one in difference.by_seed)})"
    return shown


def _share_without_gold(model: ComparedModel) -> float:
    golds = [row.gold for row in model.rows]
    return sum(gold is None for gold in golds) / len(golds) if golds else 1.0


def _corpus_diversity(model: ComparedModel, base: ComparedModel) -> list[tuple[str, float | None, float | None]]:
    """The share falls as the text grows, so it says something only of as many answers, or more."""
    if min(run.figures.num_drawn for run in model.runs) < base.figures.num_drawn:
        return []
    return [("distinct-2 of all answers", model.figures.distinct_2_corpus, base.figures.distinct_2_corpus)]


def _is_above(difference: Difference | None) -> bool:
    return difference is not None and difference.interval.low > 0
