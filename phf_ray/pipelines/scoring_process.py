"""Segmenter and scorers in a child process that can be killed.

A detector can hang inside C code that holds the interpreter's lock, or crash; neither signals nor threads stop that.
The child notes in shared memory which document and which scorer it is at, so its parent sees without any message when
that does not move for `text_timeout_s`, kills it, quarantines that one document for that one scorer, and goes on in a
new child. Sending text costs about a thousandth of scoring it, and the parent reads and writes files meanwhile.
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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, Pipe
from typing import Any

from phf_ray.errors import DataError, PhfError
from phf_ray.records import Scored, ScorerIdentity
from phf_ray.scorers import Scorer
from phf_ray.segments import build_segmenter

log = logging.getLogger(__name__)

Scores = tuple[Sequence[float | None], Sequence[str | None]]
"""As in phf_ray.corpus, which is not imported: a child has no use for Arrow."""

_STATE = struct.Struct("qq")
"""Document of the batch, and step of that document."""
_SEGMENTING = 0
"""Step of the segmenter; scorer k has step k + 1."""
_WHOLE_BATCH = -1
_IDLE = (-2, -2)
_POLL_S = 0.25


@dataclass(frozen=True, slots=True)
class Setup:
    """What a child builds. Travels to other machines, so it holds configuration only."""

    scorers: tuple[dict[str, Any], ...]
    segmenter: str
    text_timeout_s: float
    factory: str = "phf_ray.scorers:build_scorer"
    """`module:function` that builds a scorer from its configuration."""


@dataclass(frozen=True, slots=True)
class Task:
    """One document to score: a text to cut, or segments."""

    text: str | None = None
    texts: tuple[str, ...] | None = None
    scores: Mapping[str, Scores] = field(default_factory=dict)
    """Scores that are known already, by scorer."""
    failures: Mapping[str, str] = field(default_factory=dict)
    """Scorer -> the error that all segments get from it, without asking it again."""


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
        self._deaths: dict[tuple[int, int], int] = {}
        self.identities: tuple[ScorerIdentity, ...] = ()
        self._start()

    def submit(self, batch: Sequence[Task]) -> None:
        self._batch = list(batch)
        self._deaths = {}
        try:
            self._connection.send((self._batch, False))
        except OSError:
            # The child died while it had nothing to do, for want of memory perhaps.
            self._stop()
            self._start()
            self._connection.send((self._batch, False))

    def collect(self) -> Answer:
        """Waits for the answer to the last batch, one outcome per task."""
        problems: dict[int, tuple[str, str]] = {}
        alone = False
        while True:
            answer = self._receive()
            if not isinstance(answer, str):
                outcomes = list(answer.outcomes)
                for index, problem in problems.items():
                    outcomes[index] = Outcome(problem=problem)
                return replace(answer, outcomes=outcomes)
            self._stop()
            place = _STATE.unpack_from(self._state)
            if place[0] < 0:
                if alone:
                    raise PhfError(f"the scoring process fails between texts ({answer}); see its output above")
                alone = True
            elif self._is_final(answer, place):
                self._quarantine(place, answer, problems)
            self._start()
            self._connection.send((self._batch, alone))

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
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
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

    def _stop(self) -> None:
        self._process.kill()
        self._process.wait()
        self._connection.close()

    def _receive(self) -> "Answer | str":
        """The answer, or why it will not come: `timeout` or `crash`."""
        place = _STATE.unpack_from(self._state)
        moved = time.monotonic()
        while not self._connection.poll(_POLL_S):
            now_at = _STATE.unpack_from(self._state)
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

    def _is_final(self, cause: str, place: tuple[int, int]) -> bool:
        """A process that died may be the victim of its neighbours on the machine: each text gets a second try."""
        self._deaths[place] = self._deaths.get(place, 0) + 1
        return cause == "timeout" or self._deaths[place] > 1

    def _quarantine(self, place: tuple[int, int], cause: str, problems: dict[int, tuple[str, str]]) -> None:
        index, step = place
        if cause == "timeout":
            detail = f"nothing after {self._setup.text_timeout_s:g} s"
        else:
            detail = f"the process ended with code {self._process.returncode}"
        task = self._batch[index]
        characters = len(task.text or "".join(task.texts or ()))
        if step == _SEGMENTING:
            problems[index] = (cause, f"segmenter {self._setup.segmenter}, {characters} characters: {detail}")
            self._batch[index] = Task(texts=())
        else:
            name = self.identities[step - 1].name
            self._batch[index] = replace(task, failures={**task.failures, name: f"{cause}: {detail}"})
            log.warning("%s: %s on a text of %d characters; quarantined", name, detail, characters)


# -------------------------------------------------------------------------------------------------------------- child


def child_main(connection_file: int, state_file: int) -> None:
    """The child's side: build, then answer batches until the parent is gone."""
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

    def answer(self, batch: Sequence[Task], alone: bool) -> Answer:
        truncated = {scorer.name: -_num_truncated(scorer) for scorer in self.scorers}
        outcomes = [self._cut(index, task) for index, task in enumerate(batch)]
        for step, scorer in enumerate(self.scorers, start=1):
            if is_batched(scorer) and not alone:
                # What fails together is tried one document at a time below.
                with contextlib.suppress(Exception):
                    self._score_together(step, scorer, outcomes)
            for index, (task, outcome) in enumerate(zip(batch, outcomes, strict=True)):
                self._score_one(index, step, scorer=scorer, task=task, outcome=outcome)
            truncated[scorer.name] += _num_truncated(scorer)
        self._rest()
        return Answer(outcomes=outcomes, truncated=truncated)

    def _cut(self, index: int, task: Task) -> Outcome:
        if task.texts is not None:
            return Outcome(texts=task.texts, scores=dict(task.scores))
        assert task.text is not None
        self._at(index, _SEGMENTING)
        try:
            texts = self._segment(task.text)
        except Exception as error:  # noqa: BLE001  quarantined with its reason; the batch goes on
            return Outcome(problem=("not_segmented", f"{type(error).__name__}: {error}"[:500]))
        if "".join(texts) != task.text:
            return Outcome(problem=("not_segmented", "the segments do not join to the document"))
        return Outcome(texts=texts, scores=dict(task.scores))

    def _score_one(self, index: int, step: int, *, scorer: Scorer, task: Task, outcome: Outcome) -> None:
        if scorer.name in outcome.scores:
            return
        failure = task.failures.get(scorer.name)
        if failure is None:
            self._at(index, step)
            scored = _guarded(scorer.score_segments, outcome.texts)
        else:
            scored = [Scored(None, failure)] * len(outcome.texts)
        _store(outcome, scorer.name, scored)

    def _score_together(self, step: int, scorer: Scorer, outcomes: Sequence[Outcome]) -> None:
        """All segments of all documents at once, so that a model sees full batches."""
        waiting = [outcome for outcome in outcomes if scorer.name not in outcome.scores]
        self._at(_WHOLE_BATCH, step)
        scored = iter(scorer.score_all([text for outcome in waiting for text in outcome.texts]))
        for outcome in waiting:
            _store(outcome, scorer.name, list(itertools.islice(scored, len(outcome.texts))))

    def _at(self, document: int, step: int) -> None:
        _STATE.pack_into(self._state, 0, document, step)
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
    return "torch" in scorer.packages and type(scorer).score_segments is Scorer.score_segments


def _num_truncated(scorer: Scorer) -> int:
    return int(getattr(scorer, "num_truncated", 0))


def _guarded(score: Callable[[Sequence[str]], list[Scored]], texts: Sequence[str]) -> list[Scored]:
    try:
        return score(texts)
    except Exception as error:  # noqa: BLE001  quarantined with its reason; the batch goes on
        return [Scored(None, f"{type(error).__name__}: {error}"[:500])] * len(texts)


def _store(outcome: Outcome, name: str, scored: Sequence[Scored]) -> None:
    assert isinstance(outcome.scores, dict)
    outcome.scores[name] = ([one.score for one in scored], [one.error for one in scored])
