"""Judges that compare the scores of both answers, as they are or with stated biases. The lower score is better."""

import math
import re
from collections.abc import Sequence
from typing import Any

from phf_ray.config import BiasedScorerSettings
from phf_ray.judging.judges.base import Judge
from phf_ray.judging.judges.rules import lower_wins
from phf_ray.judging.pairs import Pair, Preference
from phf_ray.judging.question import Failure
from phf_ray.records import Scored
from phf_ray.scorers import build_scorer
from phf_ray.scorers.base import ReadsPrompts


class ScorerJudge(Judge):
    """Prefers the answer with the lower score. A reward model sees the instruction too."""

    def __init__(self, scorer: Any, *, biases: BiasedScorerSettings | None = None):
        """`scorer`: the config of one; without biases, its preference alone counts."""
        self._scorer = build_scorer(scorer)
        self._biases = biases

    def prefer(self, pairs: Sequence[Pair]) -> list[Preference | Failure]:
        scores = self._scores(
            [
                (pair.whole_instruction, shown_to_scorer(text, self._biases))
                for pair in pairs
                for text in (pair.output_1, pair.output_2)
            ]
        )
        return [
            preference_by_scores(pair, _number(first), _number(second), self._biases)
            for pair, first, second in zip(pairs, scores[::2], scores[1::2], strict=True)
        ]

    def _scores(self, answers: Sequence[tuple[str, str]]) -> list[Scored]:
        if isinstance(self._scorer, ReadsPrompts):
            return self._scorer.score_answers(answers)
        return self._scorer.score_all([answer for _, answer in answers])


def shown_to_scorer(answer: str, biases: BiasedScorerSettings | None) -> str:
    """Return what the scorer sees of an answer."""
    ignores = biases is not None and "white_space" in biases.ignore
    return _without_white_space(answer) if ignores else answer


def preference_by_scores(
    pair: Pair, first: float | Failure, second: float | Failure, biases: BiasedScorerSettings | None
) -> Preference | Failure:
    """Return the preference between answers with these scores. Without biases, the scores alone count."""
    for number, score in enumerate((first, second), start=1):
        if isinstance(score, Failure):
            return Failure(f"{score.kind}: answer {number} as shown:{score.reason.partition(':')[2]}")
    assert not isinstance(first, Failure)
    assert not isinstance(second, Failure)
    if biases is None:
        return lower_wins(first, second)
    return lower_wins(-_gain_of_first(pair, first, second, biases), 0)


def _number(scored: Scored) -> float | Failure:
    return Failure(f"unscored: {scored.error}") if scored.score is None else scored.score


def _gain_of_first(pair: Pair, first: float, second: float, biases: BiasedScorerSettings) -> float:
    """Above 0: the first answer is better."""
    # Relative, so that a bias weighs as much on texts with few faults as on texts with many.
    by_score = (second - first) / (abs(first) + abs(second)) if first != second else 0.0
    # The one more keeps an empty answer's logarithm finite.
    times_as_long = math.log((len(pair.output_1) + 1) / (len(pair.output_2) + 1))
    return by_score + biases.length_weight * times_as_long + biases.position_weight


def _without_white_space(text: str) -> str:
    """The text with its white space tidied: indents in steps of four, single spaces, no space at the ends of lines, no
    empty lines, and a line break at the end."""
    return "".join(f"{_tidied(line)}\n" for line in text.splitlines() if not line.isspace() and line)


def _tidied(line: str) -> str:
    words = line.strip()
    indent = len(line.expandtabs()) - len(line.expandtabs().lstrip())
    return " " * (4 * round(indent / 4)) + re.sub(r"[ \t]+", " ", words)
