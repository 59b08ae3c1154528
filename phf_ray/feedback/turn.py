"""Makes examples of comparisons: `--to sft|feedme|kto|reward-conditioning`.

sft                 the better answer
feedme              the same for every pair (AlpacaFarm's binary FeedME); an answer that won twice counts twice
kto                 both answers, labelled true and false
reward-conditioning both answers, the better behind the control token `good`, the other behind `bad`
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from phf_ray.feedback.formats.base import UnfitRecord
from phf_ray.feedback.rows import Comparison, Example


@dataclass(frozen=True, slots=True)
class Turn:
    """A way to make examples of a comparison that has a better answer."""

    make: Callable[[Comparison, str, str], list[Example]]
    """(comparison, better, worse) -> examples."""
    drops_equal_examples: bool
    """Whether equal examples made of different comparisons are duplicates."""


TURNS: Mapping[str, Turn] = {
    "sft": Turn(lambda pair, better, _: [Example(pair.prompt, better)], drops_equal_examples=True),
    "feedme": Turn(lambda pair, better, _: [Example(pair.prompt, better)], drops_equal_examples=False),
    "kto": Turn(
        lambda pair, better, worse: [
            Example(pair.prompt, better, label=True),
            Example(pair.prompt, worse, label=False),
        ],
        drops_equal_examples=False,
    ),
    "reward-conditioning": Turn(
        lambda pair, better, worse: [
            Example(pair.prompt, better, control="good"),
            Example(pair.prompt, worse, control="bad"),
        ],
        drops_equal_examples=False,
    ),
}


def examples_of(comparison: Comparison, to: str) -> list[Example]:
    """Return the examples that a comparison makes. Raises UnfitRecord if nothing says which answer is better."""
    better, worse = comparison.better, comparison.worse
    if better is None or worse is None:
        verdict = comparison.verdict
        raise UnfitRecord("tie" if verdict == "tie" else "no_preference", f"--to {to} needs a better answer")
    return TURNS[to].make(comparison, better, worse)
