"""Lets a reward model judge the answers of comparisons. What can't be judged has a reason in place of rewards."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from phf_ray.generation.chat.prompts import Prompt
from phf_ray.records import Scored
from phf_ray.scorers.base import failure

log = logging.getLogger(__name__)

ITEMS_AT_ONCE = 256
"""Enough that the scorer can fill batches with answers of about one length, few enough to tell of the progress."""


class JudgesPrompts(Protocol):
    """A scorer that reads prompts of every form."""

    def score_prompts(self, answers: Sequence[tuple[Prompt, str]]) -> list[Scored]: ...


@dataclass(frozen=True, slots=True)
class RewardItem:
    """A prompt, its better answers and its worse ones: one of each in most sets, one to three in RewardBench 2."""

    id: str
    subset: str | None
    prompt: Prompt
    chosen: tuple[str, ...]
    rejected: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class JudgedItem:
    item: RewardItem
    chosen: tuple[float, ...] = ()
    """Rewards; none if one of the answers could not be judged."""
    rejected: tuple[float, ...] = ()
    error: str | None = None

    @property
    def is_right(self) -> bool:
        """Whether every better answer has a higher reward than every worse one. Equal rewards are not right."""
        return min(self.chosen) > max(self.rejected)


def judge(items: Sequence[RewardItem], scorer: JudgesPrompts) -> Iterator[JudgedItem]:
    """Yield the items with their rewards, in order."""
    for begin in range(0, len(items), ITEMS_AT_ONCE):
        part = items[begin : begin + ITEMS_AT_ONCE]
        yield from _judged(part, scorer)
        log.info("%d of %d comparisons are judged", begin + len(part), len(items))


def _judged(items: Sequence[RewardItem], scorer: JudgesPrompts) -> list[JudgedItem]:
    answers = [(item.prompt, answer) for item in items for answer in (*item.chosen, *item.rejected)]
    try:
        scored = iter(scorer.score_prompts(answers))
    except Exception as error:  # noqa: BLE001  libraries can raise anything; the other comparisons are judged
        if len(items) == 1:
            return [JudgedItem(items[0], error=failure(error).error)]
        log.warning("%r on %d comparisons at once; each is tried alone", error, len(items))
        return [judged for item in items for judged in _judged([item], scorer)]
    return [_with_rewards(item, [next(scored) for _ in (*item.chosen, *item.rejected)]) for item in items]


def _with_rewards(item: RewardItem, scored: Sequence[Scored]) -> JudgedItem:
    rewards = [-one.score for one in scored if one.score is not None]
    if len(rewards) < len(scored):
        return JudgedItem(item, error=next(one.error for one in scored if one.score is None))
    middle = len(item.chosen)
    return JudgedItem(item, tuple(rewards[:middle]), tuple(rewards[middle:]))
