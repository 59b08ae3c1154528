"""Runs segmenter and scorers in a child process that can be killed. This is the child's side."""

import contextlib
import faulthandler
import itertools
import logging
import mmap
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from types import MappingProxyType
from typing import Any

from phf_ray import logs
from phf_ray.corpus.segments import build_segmenter
from phf_ray.errors import PhfError
from phf_ray.records import Scored
from phf_ray.scorers.base import Scorer, failure
from phf_ray.scorers.build import build_scorer
from phf_ray.scorers.questions import TOGETHER, answers_to
from phf_ray.scorers.tasks import (
    IDLE,
    IN_CONTEXT,
    PLACE_STRUCT,
    SEGMENTING,
    WHOLE_BATCH,
    Place,
    ScoringAnswer,
    ScoringOutcome,
    ScoringSetup,
    ScoringTask,
    TextAnswers,
    TextQuestion,
)

log = logging.getLogger(__name__)


_CHARACTERS_PER_TEXT = 128
"""A slice of `size` texts has at most `size` times this many characters, unless it is a single text."""


def child_main(connection_file: int, state_file: int) -> None:
    """Build segmenter and scorers, then answer batches until the parent is gone."""
    logs.set_up_worker()
    connection: Connection[Any, Any] = Connection(connection_file)
    worker = None
    # If the parent died or closed the connection, there is nobody to report to.
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        setup = connection.recv()
        try:
            worker = _Worker(setup, mmap.mmap(state_file, PLACE_STRUCT.size))
            connection.send(tuple(scorer.identity() for scorer in worker.scorers))
            while True:
                asked = connection.recv()
                connection.send(worker.find(asked) if isinstance(asked, TextQuestion) else worker.answer(*asked))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise
        except PhfError as error:
            connection.send(error)
        except Exception as error:  # noqa: BLE001  process boundary: the parent raises it
            connection.send(PhfError(f"the scoring process failed: {traceback.format_exc()}\n{error!r}"))


class _Worker:
    def __init__(self, setup: ScoringSetup, state: mmap.mmap):
        self._state = state
        self._segment = build_segmenter(setup.segmenter)
        self.scorers = [build_scorer(config) for config in setup.scorers]
        self._watch_s = 2 * setup.text_timeout_s + 30
        self._watched = 0.0

    def answer(self, batch: Sequence[ScoringTask], size: int) -> ScoringAnswer:
        """Score a batch. `size` is the number of texts per call of a scorer; 1 finds the text that hangs."""
        truncated = {scorer.name: -scorer.num_truncated for scorer in self.scorers}
        outcomes = [self._cut(index, task) for index, task in enumerate(batch)]
        for step, scorer in enumerate(self.scorers, start=1):
            if is_batched(scorer) and size > 1:
                self._score_together(step, scorer=scorer, outcomes=outcomes, size=size)
            for index, (task, outcome) in enumerate(zip(batch, outcomes, strict=True)):
                if scorer.name not in outcome.scores:
                    scored = self._score_one((index, step), scorer=scorer, task=task, texts=outcome.texts, size=size)
                    _store(outcome, scorer.name, scored)
            truncated[scorer.name] += scorer.num_truncated
        self._rest()
        return ScoringAnswer(outcomes=outcomes, truncated=truncated)

    def find(self, question: TextQuestion) -> TextAnswers:
        """Ask the first scorer about each text."""
        slices = _slices(question.whole_texts, question.size if question.ask in TOGETHER else 1)
        found = answers_to(question, slices, scorer=self.scorers[0], segment=self._segment, at=self._at)
        self._rest()
        return TextAnswers(found)

    def _cut(self, index: int, task: ScoringTask) -> ScoringOutcome:
        if task.texts is not None:
            return ScoringOutcome(texts=task.texts, scores=dict(task.scores))
        assert task.text is not None
        self._at(Place(index, SEGMENTING, first_text=0, num_texts=IN_CONTEXT))
        try:
            texts = self._segment(task.text)
        except Exception as error:  # noqa: BLE001  quarantined with its reason; the batch goes on
            return ScoringOutcome(problem=("not_segmented", f"{type(error).__name__}: {error}"[:500]))
        if "".join(texts) != task.text:
            return ScoringOutcome(problem=("not_segmented", "the segments do not join to the document"))
        return ScoringOutcome(texts=texts, scores=dict(task.scores))

    def _score_together(self, step: int, *, scorer: Scorer, outcomes: Sequence[ScoringOutcome], size: int) -> None:
        """Score the segments of all documents together, so that a model gets full batches."""
        waiting = [outcome for outcome in outcomes if scorer.name not in outcome.scores]
        texts = [text for outcome in waiting for text in outcome.texts]
        scored = iter(self._score_slices((WHOLE_BATCH, step), scorer=scorer, texts=texts, size=size))
        for outcome in waiting:
            _store(outcome, scorer.name, list(itertools.islice(scored, len(outcome.texts))))

    def _score_one(
        self, at: tuple[int, int], *, scorer: Scorer, task: ScoringTask, texts: Sequence[str], size: int
    ) -> list[Scored]:
        failures = {segment: error for (name, segment), error in task.failures.items() if name == scorer.name}
        if None in failures:
            return [Scored(None, failures[None])] * len(texts)
        if needs_context(scorer):
            self._at(Place(*at, first_text=0, num_texts=IN_CONTEXT))
            return _guarded(scorer.score_segments, texts)
        return self._score_slices(at, scorer=scorer, texts=texts, size=size, failures=failures)

    def _score_slices(
        self,
        at: tuple[int, int],
        *,
        scorer: Scorer,
        texts: Sequence[str],
        size: int,
        failures: Mapping[int | None, str] = MappingProxyType({}),
    ) -> list[Scored]:
        """Score slice by slice. If a slice fails, score its texts one at a time."""
        scored: list[Scored] = []
        for begin, end in _slices(texts, size):
            self._at(Place(*at, first_text=begin, num_texts=end - begin))
            if begin in failures:
                scored.append(Scored(None, failures[begin]))
                continue
            try:
                scored += scorer.score_all(texts[begin:end])
            except Exception as error:  # noqa: BLE001  quarantined with its reason; the batch goes on
                if end - begin == 1:
                    scored.append(failure(error))
                    continue
                log.warning("%s: %r on %d texts at once; each is tried alone", scorer.name, error, end - begin)
                for index in range(begin, end):
                    self._at(Place(*at, first_text=index, num_texts=1))
                    scored += _guarded(scorer.score_all, texts[index : index + 1])
        return scored

    def _at(self, place: Place) -> None:
        PLACE_STRUCT.pack_into(self._state, 0, *place)
        now = time.monotonic()
        if now - self._watched > 5:
            # Ends this process if it hangs after its parent was killed. Fires without the interpreter's lock.
            faulthandler.dump_traceback_later(self._watch_s, exit=True)
            self._watched = now

    def _rest(self) -> None:
        """Turn the watchdog off: the next batch may take long, and the connection reports a killed parent at once."""
        PLACE_STRUCT.pack_into(self._state, 0, *IDLE)
        faulthandler.cancel_dump_traceback_later()
        self._watched = 0.0


def is_batched(scorer: Scorer) -> bool:
    """Whether to score texts of several documents in one call."""
    return scorer.is_batched and not needs_context(scorer)


def needs_context(scorer: Scorer) -> bool:
    """Whether the segments of a document must be scored in one call."""
    return type(scorer).score_segments is not Scorer.score_segments


def _slices(texts: Sequence[str], size: int) -> Iterator[tuple[int, int]]:
    """Yield (begin, end) of consecutive slices."""
    begin = characters = 0
    for index, text in enumerate(texts):
        if index > begin and (index - begin >= size or characters + len(text) > size * _CHARACTERS_PER_TEXT):
            yield begin, index
            begin, characters = index, 0
        characters += len(text)
    if begin < len(texts):
        yield begin, len(texts)


def _guarded(score: Callable[[Sequence[str]], list[Scored]], texts: Sequence[str]) -> list[Scored]:
    try:
        return score(texts)
    except Exception as error:  # noqa: BLE001  quarantined with its reason; the batch goes on
        return [failure(error)] * len(texts)


def _store(outcome: ScoringOutcome, name: str, scored: Sequence[Scored]) -> None:
    assert isinstance(outcome.scores, dict)
    outcome.scores[name] = ([one.score for one in scored], [one.error for one in scored])
