"""Segmenter and scorers in a child process that can be killed.

A detector can hang inside C code that holds the interpreter's lock, or crash; neither signals nor threads stop that.
The child notes in shared memory which texts and which scorer it is at, so its parent sees without any message when
that does not move for `text_timeout_s`, kills it, and has the batch done again text by text in a new child; what stands
still then is quarantined for that one scorer: one segment, or the document where a scorer needs all of it at once.
Sending text costs about a thousandth of scoring it, and the parent reads and writes files meanwhile.
"""

import contextlib
import faulthandler
import importlib
import itertools
import logging
import mmap
import os
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, Pipe
from types import MappingProxyType
from typing import Any

from phf_ray import logs
from phf_ray.errors import DataError, PhfError
from phf_ray.records import Scored, ScorerIdentity
from phf_ray.scorers import Scorer, on_cpu
from phf_ray.scorers.base import failure
from phf_ray.segments import build_segmenter

log = logging.getLogger(__name__)

Scores = tuple[Sequence[float | None], Sequence[str | None]]
"""As in phf_ray.corpus, which is not imported: a child has no use for Arrow."""

_Place = tuple[int, int, int, int]
"""Document of the batch, step, first text, and number of texts, where each of them can be tried alone."""
_STATE = struct.Struct("qqqq")
"""A _Place."""
_SEGMENTING = 0
"""Step of the segmenter; scorer k has step k + 1."""
_WHOLE_BATCH = -1
_IDLE = (-2, -2, 0, 0)
_IN_CONTEXT = 0
"""Number of texts where a scorer takes all of a document at once."""
_SLICE = 512
"""Texts in one call of a scorer: they fill a GPU, and take a core some seconds, less than one text may take."""
_CHARACTERS_PER_TEXT = 128
"""A slice has no more characters than so many texts of this length, unless it is one text."""
_POLL_S = 0.25


@dataclass(frozen=True, slots=True)
class Setup:
    """What a child builds. Travels to other machines, so it holds configuration only."""

    scorers: tuple[dict[str, Any], ...]
    segmenter: str
    text_timeout_s: float
    factory: str = "phf_ray.scorers:build_scorer"
    """`module:function` that builds a scorer from its configuration."""
    num_threads: int | None = None
    """Of one scorer's computations; None: as the environment says, which Ray sets for its actors."""


def on_cpus(setup: Setup) -> Setup:
    return replace(setup, scorers=tuple(map(on_cpu, setup.scorers)))


@dataclass(frozen=True, slots=True)
class Task:
    """One document to score: a text to cut, or segments."""

    text: str | None = None
    texts: tuple[str, ...] | None = None
    scores: Mapping[str, Scores] = field(default_factory=dict)
    """Scores that are known already, by scorer."""
    failures: Mapping[tuple[str, int | None], str] = field(default_factory=dict)
    """Scorer and segment, None for all of them -> the error that it gets, without asking the scorer again."""


@dataclass(frozen=True, slots=True)
class Outcome:
    texts: Sequence[str] = ()
    scores: Mapping[str, Scores] = field(default_factory=dict)
    problem: tuple[str, str] | None = None
    """Reason and detail where the document could not be cut; it has no segments then."""


@dataclass(frozen=True, slots=True)
class Answer:
    """To one batch."""

    outcomes: list[Outcome]
    truncated: Mapping[str, int]
    """Texts of which a scorer read only the beginning."""


# ------------------------------------------------------------------------------------------------------------- parent


class ScoringProcess:
    """The parent's side. `submit` a batch, do something useful, `collect` its answer."""

    def __init__(self, setup: Setup):
        """Raises what building the segmenter or a scorer raised."""
        self._setup = setup
        # A file, not anonymous memory: it is passed to children that are not forks.
        with tempfile.TemporaryFile() as file:
            file.truncate(_STATE.size)
            self._state_file = os.dup(file.fileno())
        self._state = mmap.mmap(self._state_file, _STATE.size)
        self._batch: list[Task] = []
        self._deaths: dict[_Place, int] = {}
        self._slice = _SLICE
        self.identities: tuple[ScorerIdentity, ...] = ()
        self._start()

    def submit(self, batch: Sequence[Task]) -> None:
        self._batch = list(batch)
        self._deaths = {}
        try:
            self._connection.send((self._batch, self._slice))
        except OSError:
            # The child died while it had nothing to do, for want of memory perhaps.
            self._stop()
            self._start()
            self._connection.send((self._batch, self._slice))

    def collect(self) -> Answer:
        """Waits for the answer to the last batch, one outcome per task."""
        problems: dict[int, tuple[str, str]] = {}
        size = self._slice
        is_slow = False
        while True:
            answer = self._receive()
            if not isinstance(answer, str):
                if is_slow:
                    # No single text was to blame: so many together take too long.
                    self._slice = max(2, self._slice // 8)
                outcomes = list(answer.outcomes)
                for index, problem in problems.items():
                    outcomes[index] = Outcome(problem=problem)
                return replace(answer, outcomes=outcomes)
            self._stop()
            place = self._place()
            if place[0] < 0 or place[3] > 1:
                if size == 1:
                    raise PhfError(f"the scoring process fails between texts ({answer}); see its output above")
                is_slow = answer == "timeout" and place[3] > 1
            elif self._is_final(answer, place):
                self._quarantine(place, answer, problems)
                is_slow = False
            if place[3] != _IN_CONTEXT or place[0] < 0:
                size = 1
            self._start()
            self._connection.send((self._batch, size))

    def close(self) -> None:
        self._stop()
        self._state.close()
        os.close(self._state_file)

    def _start(self) -> None:
        self._state[:] = _STATE.pack(*_IDLE)
        ours, theirs = Pipe()
        code = f"from {__name__} import child_main; child_main({theirs.fileno()}, {self._state_file})"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            pass_fds=(theirs.fileno(), self._state_file),
            stdin=subprocess.DEVNULL,
            env=self._environment(),
        )
        theirs.close()
        self._connection: Connection[Any, Any] = ours
        self._connection.send(self._setup)
        try:
            ready = self._connection.recv()
        except EOFError:
            code_text = f"exit code {self._process.wait()}"
            raise DataError(f"the scoring process ended while it started ({code_text}); see its output above") from None
        if isinstance(ready, BaseException):
            self._stop()
            raise ready
        self.identities = ready

    def _environment(self) -> dict[str, str]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        if self._setup.num_threads is not None:
            environment["OMP_NUM_THREADS"] = str(self._setup.num_threads)
        return environment

    def _stop(self) -> None:
        self._process.kill()
        self._process.wait()
        self._connection.close()

    def _receive(self) -> "Answer | str":
        """The answer, or why it will not come: `timeout` or `crash`."""
        place = self._place()
        moved = time.monotonic()
        while not self._connection.poll(_POLL_S):
            now_at = self._place()
            if now_at != place:
                place, moved = now_at, time.monotonic()
            elif time.monotonic() - moved > self._setup.text_timeout_s:
                return "timeout"
        try:
            answer: Answer | BaseException = self._connection.recv()
        except (EOFError, OSError):
            return "crash"
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def _place(self) -> _Place:
        place: _Place = _STATE.unpack_from(self._state)
        return place

    def _is_final(self, cause: str, place: _Place) -> bool:
        """A process that died may be the victim of its neighbours on the machine: each text gets a second try."""
        self._deaths[place] = self._deaths.get(place, 0) + 1
        return cause == "timeout" or self._deaths[place] > 1

    def _quarantine(self, place: _Place, cause: str, problems: dict[int, tuple[str, str]]) -> None:
        index, step, text, count = place
        if cause == "timeout":
            detail = f"nothing after {self._setup.text_timeout_s:g} s"
        else:
            detail = f"the process ended with code {self._process.returncode}"
        task = self._batch[index]
        if step == _SEGMENTING:
            characters = len(task.text or "")
            problems[index] = (cause, f"segmenter {self._setup.segmenter}, {characters} characters: {detail}")
            self._batch[index] = Task(texts=())
        else:
            name = self.identities[step - 1].name
            segment = None if count == _IN_CONTEXT else text
            failures = {**task.failures, (name, segment): f"{cause}: {detail}"}
            self._batch[index] = replace(task, failures=failures)
            what = "a document" if segment is None else f"segment {segment} of a document"
            characters = len(task.text or "".join(task.texts or ()))
            log.warning("%s: %s on %s of %d characters; quarantined", name, detail, what, characters)


# -------------------------------------------------------------------------------------------------------------- child


def child_main(connection_file: int, state_file: int) -> None:
    """The child's side: build, then answer batches until the parent is gone."""
    logs.set_up_worker()
    connection: Connection[Any, Any] = Connection(connection_file)
    worker = None
    # The parent died or has had enough: nobody is left to tell.
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        setup = connection.recv()
        try:
            worker = _Worker(setup, mmap.mmap(state_file, _STATE.size))
            connection.send(tuple(scorer.identity() for scorer in worker.scorers))
            while True:
                connection.send(worker.answer(*connection.recv()))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise
        except PhfError as error:
            connection.send(error)
        except Exception as error:  # noqa: BLE001  the border of a process: the parent raises it
            connection.send(PhfError(f"the scoring process failed: {traceback.format_exc()}\n{error!r}"))


class _Worker:
    def __init__(self, setup: Setup, state: mmap.mmap):
        self._state = state
        self._segment = build_segmenter(setup.segmenter)
        module, _, function = setup.factory.partition(":")
        build: Callable[[Mapping[str, Any]], Scorer] = getattr(importlib.import_module(module), function)
        self.scorers = [build(config) for config in setup.scorers]
        self._watch_s = 2 * setup.text_timeout_s + 30
        self._watched = 0.0

    def answer(self, batch: Sequence[Task], size: int) -> Answer:
        """`size`: texts in one call of a scorer; 1: each alone, to find the one that hangs."""
        truncated = {scorer.name: -_num_truncated(scorer) for scorer in self.scorers}
        outcomes = [self._cut(index, task) for index, task in enumerate(batch)]
        for step, scorer in enumerate(self.scorers, start=1):
            if is_batched(scorer) and size > 1:
                self._score_together(step, scorer=scorer, outcomes=outcomes, size=size)
            for index, (task, outcome) in enumerate(zip(batch, outcomes, strict=True)):
                if scorer.name not in outcome.scores:
                    scored = self._score_one((index, step), scorer=scorer, task=task, texts=outcome.texts, size=size)
                    _store(outcome, scorer.name, scored)
            truncated[scorer.name] += _num_truncated(scorer)
        self._rest()
        return Answer(outcomes=outcomes, truncated=truncated)

    def _cut(self, index: int, task: Task) -> Outcome:
        if task.texts is not None:
            return Outcome(texts=task.texts, scores=dict(task.scores))
        assert task.text is not None
        self._at((index, _SEGMENTING, 0, _IN_CONTEXT))
        try:
            texts = self._segment(task.text)
        except Exception as error:  # noqa: BLE001  quarantined with its reason; the batch goes on
            return Outcome(problem=("not_segmented", f"{type(error).__name__}: {error}"[:500]))
        if "".join(texts) != task.text:
            return Outcome(problem=("not_segmented", "the segments do not join to the document"))
        return Outcome(texts=texts, scores=dict(task.scores))

    def _score_together(self, step: int, *, scorer: Scorer, outcomes: Sequence[Outcome], size: int) -> None:
        """All segments of all documents, so that a model sees full batches."""
        waiting = [outcome for outcome in outcomes if scorer.name not in outcome.scores]
        texts = [text for outcome in waiting for text in outcome.texts]
        scored = iter(self._score_slices((_WHOLE_BATCH, step), scorer=scorer, texts=texts, size=size))
        for outcome in waiting:
            _store(outcome, scorer.name, list(itertools.islice(scored, len(outcome.texts))))

    def _score_one(
        self, at: tuple[int, int], *, scorer: Scorer, task: Task, texts: Sequence[str], size: int
    ) -> list[Scored]:
        failures = {segment: error for (name, segment), error in task.failures.items() if name == scorer.name}
        if None in failures:
            return [Scored(None, failures[None])] * len(texts)
        if needs_context(scorer):
            self._at((*at, 0, _IN_CONTEXT))
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
        """What fails together is tried one text at a time."""
        scored: list[Scored] = []
        for begin, end in _slices(texts, size):
            self._at((*at, begin, end - begin))
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
                    self._at((*at, index, 1))
                    scored += _guarded(scorer.score_all, texts[index : index + 1])
        return scored

    def _at(self, place: _Place) -> None:
        _STATE.pack_into(self._state, 0, *place)
        now = time.monotonic()
        if now - self._watched > 5:
            # Should the parent be killed while this process hangs, nobody else would end it. Needs no lock to fire.
            faulthandler.dump_traceback_later(self._watch_s, exit=True)
            self._watched = now

    def _rest(self) -> None:
        """However long the next batch takes to come: a parent that is killed meanwhile is noticed at once."""
        _STATE.pack_into(self._state, 0, *_IDLE)
        faulthandler.cancel_dump_traceback_later()
        self._watched = 0.0


def is_batched(scorer: Scorer) -> bool:
    """Whether texts of several documents should be scored in one call: models that need no context."""
    return "torch" in scorer.packages and not needs_context(scorer)


def needs_context(scorer: Scorer) -> bool:
    """Whether the segments of a document must be scored in one call."""
    return type(scorer).score_segments is not Scorer.score_segments


def _slices(texts: Sequence[str], size: int) -> Iterator[tuple[int, int]]:
    """Begin and end of consecutive slices."""
    begin = characters = 0
    for index, text in enumerate(texts):
        if index > begin and (index - begin >= size or characters + len(text) > size * _CHARACTERS_PER_TEXT):
            yield begin, index
            begin, characters = index, 0
        characters += len(text)
    if begin < len(texts):
        yield begin, len(texts)


def _num_truncated(scorer: Scorer) -> int:
    return int(getattr(scorer, "num_truncated", 0))


def _guarded(score: Callable[[Sequence[str]], list[Scored]], texts: Sequence[str]) -> list[Scored]:
    try:
        return score(texts)
    except Exception as error:  # noqa: BLE001  quarantined with its reason; the batch goes on
        return [failure(error)] * len(texts)


def _store(outcome: Outcome, name: str, scored: Sequence[Scored]) -> None:
    assert isinstance(outcome.scores, dict)
    outcome.scores[name] = ([one.score for one in scored], [one.error for one in scored])
