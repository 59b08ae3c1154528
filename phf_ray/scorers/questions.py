"""Answers questions about single texts, as servers ask them. This is the child's side; see `process`.

A text whose question can't be answered gets a reason instead, and the other texts are answered.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from phf_ray.scorers.base import FindsSpans, HasClasses, ReadsPrompts, Scorer, failure
from phf_ray.scorers.tasks import Ask, Place, TextQuestion

log = logging.getLogger(__name__)

Segment = Callable[[str], list[str]]

TOGETHER = ("score", "classes")
"""Questions that a scorer answers for several texts in one call."""


def answers_to(
    question: TextQuestion,
    slices: Iterable[tuple[int, int]],
    *,
    scorer: Scorer,
    segment: Segment,
    at: Callable[[Place], None],
) -> list[Any]:
    """Return the answer for each text, or as a str the reason why there is none.

    `slices`: (begin, end) of the texts that share a call; if a call fails, each of its texts is tried alone. `at` is
    told which texts are next.
    """

    def asked(begin: int, end: int) -> list[Any]:
        at(Place(document=0, step=1, first_text=begin, num_texts=end - begin))
        try:
            texts = question.texts[begin:end]
            if question.prompts is not None:
                return _scores_of_answers(scorer, question.prompts[begin:end], texts)
            return _ask(question.ask, texts, scorer=scorer, segment=segment)
        except Exception as error:  # noqa: BLE001  libraries can raise anything; the other texts are answered
            if end - begin == 1:
                return [failure(error).error]
            log.warning("%s: %r on %d texts at once; each is tried alone", scorer.name, error, end - begin)
        return [answer for index in range(begin, end) for answer in asked(index, index + 1)]

    found: list[Any] = []
    for begin, end in slices:
        found += [question.failures[begin]] if begin in question.failures else asked(begin, end)
    return found


def _ask(ask: Ask, texts: Sequence[str], *, scorer: Scorer, segment: Segment) -> list[Any]:
    if ask == "score":
        return list(scorer.score_all(texts))
    if ask == "classes":
        return _class_scores(scorer, texts)
    if ask == "spans":
        assert isinstance(scorer, FindsSpans)
        return [scorer.spans(text) for text in texts]
    return [segment(text) for text in texts]


def _scores_of_answers(scorer: Scorer, prompts: Sequence[str], texts: Sequence[str]) -> list[Any]:
    assert isinstance(scorer, ReadsPrompts)
    return list(scorer.score_answers(list(zip(prompts, texts, strict=True))))


def _class_scores(scorer: Scorer, texts: Sequence[str]) -> list[Any]:
    assert isinstance(scorer, HasClasses)
    found = scorer.class_scores(texts)
    return [
        scores or scorer.score_all([text])[0].error or "not_scored: the scorer gives no reason"
        for text, scores in zip(texts, found, strict=True)
    ]
