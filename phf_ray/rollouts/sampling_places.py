"""Where the answers of a round are drawn: in the training workers, or by copies of the policy beside them.

Both draw the same batches with the same random numbers. Copies can draw while the workers train: with the weights of
the moment at which they were told to begin.
"""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from phf_ray.rollouts.drawing import AnswerDrawing
from phf_ray.rollouts.policies import SamplingPolicy
from phf_ray.rollouts.prompts import RolloutPrompt
from phf_ray.rollouts.rounds import StoredSample
from phf_ray.rollouts.shared_weights import SharedWeights, share_weights
from phf_ray.training.ranks import Ranks, from_rank_zero
from phf_ray.training.state import TrainState

T = TypeVar("T")

_POLL_S = 5.0
"""How often rank 0 tells the others that it still waits: torch gives up on a rank that is silent for half an hour."""


class DrawingStopped(Exception):  # noqa: N818  no error: somebody asked for it
    """The run is to stop, and nobody is there who would draw its answers to their end. All ranks raise it together."""


class SamplingPlace(Protocol):
    def begin(self, number: int, prompts: Sequence[RolloutPrompt], *, weights: str) -> None:
        """Begin to draw a round with the weights of now, which have this name. Collective."""
        ...

    def draw(self, number: int, prompts: Sequence[RolloutPrompt], *, weights: str) -> list[StoredSample]:
        """Return this rank's part of the answers: of what was begun, else with the weights of now. Collective.

        Raises DrawingStopped.
        """
        ...

    def is_drawing(self, number: int) -> bool:
        """Whether the round was begun and its answers were not handed over yet."""
        ...

    def close(self) -> None: ...


class Workers:
    """The policy draws where it learns, each rank its share of the batches."""

    def __init__(self, policy: SamplingPolicy, *, drawing: AnswerDrawing, ranks: Ranks):
        self._policy, self._drawing, self._ranks = policy, drawing, ranks

    def begin(self, number: int, prompts: Sequence[RolloutPrompt], *, weights: str) -> None:
        del number, prompts, weights
        raise AssertionError("workers that train can't draw at the same time; the configuration refuses it")

    def draw(self, number: int, prompts: Sequence[RolloutPrompt], *, weights: str) -> list[StoredSample]:
        del weights
        engine = self._policy.engine()
        mine = share_of(self._drawing.batches(prompts), self._ranks)
        return [row for batch in mine for row in self._drawing.draw(engine, number, batch)]

    def is_drawing(self, number: int) -> bool:
        del number
        return False

    def close(self) -> None:
        """The policy is the worker's."""


class AnswersUnderWay(Protocol):
    def wait(self, timeout_s: float) -> bool:
        """Whether all are drawn, or an error has ended it."""
        ...

    def is_anyone_there(self) -> bool:
        """Whether a copy draws, or could."""
        ...

    def rows(self) -> list[StoredSample]:
        """Return the answers of all batches, in order, or raise the error."""
        ...


class SamplingPool(Protocol):
    """Copies of the policy that draw."""

    def start(
        self,
        batches: Sequence[Sequence[RolloutPrompt]],
        *,
        number: int,
        weights: SharedWeights,
        with_behaviour: bool,
    ) -> AnswersUnderWay:
        """Begin to draw the batches of a round. The weights may change as soon as this returns.

        `with_behaviour`: also compute the log-probabilities of the answers.
        """
        ...

    def close(self) -> None: ...


class Copies:
    """A pool draws, and rank 0 has it: it hands over the weights and gets all answers."""

    def __init__(
        self,
        pool: SamplingPool | None,
        state: TrainState,
        *,
        drawing: AnswerDrawing,
        ranks: Ranks,
        is_ahead: bool = False,
        wants_stop: Callable[[], bool] = lambda: False,
    ):
        """`pool`: None on other ranks. `is_ahead`: rounds but the first are drawn with weights older than theirs.

        `wants_stop`: ends a wait for copies that have no room. What they draw is drawn to its end.
        """
        self._pool, self._state, self._drawing, self._ranks = pool, state, drawing, ranks
        self._is_ahead, self._wants_stop = is_ahead, wants_stop
        self._begun: int | None = None
        self._under_way: AnswersUnderWay | None = None

    def begin(self, number: int, prompts: Sequence[RolloutPrompt], *, weights: str) -> None:
        shared = share_weights(self._state, name=weights, keep=self._pool is not None)
        self._begun = number
        if self._pool is not None:
            assert shared is not None
            self._under_way = self._pool.start(
                self._drawing.batches(prompts),
                number=number,
                weights=shared,
                with_behaviour=self._is_ahead and number > 0,
            )

    def draw(self, number: int, prompts: Sequence[RolloutPrompt], *, weights: str) -> list[StoredSample]:
        if self._begun != number:
            self.begin(number, prompts, weights=weights)
        under_way = self._under_way
        while not from_rank_zero(under_way is None or under_way.wait(_POLL_S)):
            waits = under_way is not None and not under_way.is_anyone_there()
            if from_rank_zero(waits and self._wants_stop()):
                raise DrawingStopped
        self._begun = self._under_way = None
        return [] if under_way is None else under_way.rows()

    def is_drawing(self, number: int) -> bool:
        return self._begun == number

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()


def share_of(items: Sequence[T], ranks: Ranks) -> Sequence[T]:
    """Return this rank's contiguous part."""
    begin, end = (rank * len(items) // ranks.world_size for rank in (ranks.rank, ranks.rank + 1))
    return items[begin:end]
