"""Rules that any judge worth its price must beat: the longer answer, the shorter one, chance, the first one."""

from collections.abc import Sequence

from phf_ray.config.annotators import Rule
from phf_ray.judging.draws import draw_fraction
from phf_ray.judging.judges.base import Judge
from phf_ray.judging.pairs import Pair, Preference


class RuleJudge(Judge):
    def __init__(self, rule: Rule, *, seed: int = 0):
        self._rule = rule
        self._seed = seed

    def prefer(self, pairs: Sequence[Pair]) -> list[Preference]:
        return [self._preference(pair) for pair in pairs]

    def _preference(self, pair: Pair) -> Preference:
        if self._rule == "constant":
            return 1.0
        if self._rule == "random":
            return 1.0 if draw_fraction("random judge", self._seed, pair.key) < 0.5 else 2.0
        more_first = len(pair.output_1) - len(pair.output_2)
        return lower_wins(-more_first, 0) if self._rule == "longer" else lower_wins(more_first, 0)


def lower_wins(first: float, second: float) -> Preference:
    """Return 1 if the first number is lower, 2 if the second is, 1.5 if they are equal."""
    return 1.0 if first < second else 2.0 if second < first else 1.5
