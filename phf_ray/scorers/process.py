"""Runs segmenter and scorers in a child process that can be killed. This is the parent's side.

A detector can crash, or hang inside C code that holds the interpreter's lock; neither signals nor threads stop that.
The child records in shared memory its current text and scorer. If they do not change for `text_timeout_s`, the parent
kills the child, starts a new one and sends the batch again, to be scored text by text. A text that hangs or crashes
again is quarantined for that one scorer: one segment, or the whole document if the scorer needs all of it at once.
Sending a text costs about a thousandth of scoring it, and the parent reads and writes files in the meantime.

A server asks about single texts instead (`ask`), and a text that hangs or crashes gets a reason instead of an answer.
"""

import logging
import mmap
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, Pipe
from typing import Any

from phf_ray.errors import DataError, PhfError
from phf_ray.records import ScorerIdentity
from phf_ray.scorers.tasks import (
    IDLE,
    IN_CONTEXT,
    PLACE_STRUCT,
    SEGMENTING,
    SLICE_TEXTS,
    Ask,
    Place,
    ScoringAnswer,
    ScoringOutcome,
    ScoringSetup,
    ScoringTask,
    TextAnswers,
    TextQuestion,
)

log = logging.getLogger(__name__)


_POLL_S = 0.25


class ScoringProcess:
    """The parent's side: `submit` a batch, do other work, then `collect` the answer."""

    def __init__(self, setup: ScoringSetup):
        """Raises what building the segmenter or a scorer raises in the child."""
        self._setup = setup
        # Use a file, not anonymous memory: the children are not forks, so they need a file descriptor.
        with tempfile.TemporaryFile() as file:
            file.truncate(PLACE_STRUCT.size)
            self._state_file = os.dup(file.fileno())
        self._state = mmap.mmap(self._state_file, PLACE_STRUCT.size)
        self._batch: list[ScoringTask] = []
        self._deaths: dict[Place, int] = {}
        self._slice = SLICE_TEXTS
        self.identities: tuple[ScorerIdentity, ...] = ()
        self._start()

    @property
    def pid(self) -> int:
        """The child's process id; another one after a text that hung or crashed."""
        return self._process.pid

    def submit(self, batch: Sequence[ScoringTask]) -> None:
        self._batch = list(batch)
        self._deaths = {}
        self._send((self._batch, self._slice))

    def _send(self, message: Any) -> None:
        try:
            self._connection.send(message)
        except OSError:
            # The child died while idle, perhaps for lack of memory.
            self._stop()
            self._start()
            self._connection.send(message)

    def ask(
        self,
        ask: Ask,
        texts: Sequence[str],
        *,
        prompts: Sequence[str] | None = None,
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> list[Any]:
        """Ask the first scorer about each text. Return one answer per text, or as a str the reason why there is none.

        `prompts`: what each text answers, for the scores of a scorer that reads prompts. `is_wanted`: asked after a
        text has hung or crashed; if it returns False, the rest is not asked.
        """
        self._deaths = {}
        question = TextQuestion(
            ask, tuple(texts), size=self._slice, prompts=None if prompts is None else tuple(prompts)
        )
        is_slow = False
        while True:
            self._send(question)
            answer = self._receive()
            if isinstance(answer, TextAnswers):
                if is_slow:
                    self._slice = max(2, self._slice // 8)
                return answer.found
            assert isinstance(answer, str), answer
            self._stop()
            place = self._place()
            reasons = dict(question.failures)
            if place.is_in_one_document and place.num_texts == 1:
                if self._is_final(answer, place):
                    reasons[place.first_text] = f"{answer}: {self._detail(answer)}"
            elif question.size == 1:
                raise PhfError(f"the scoring process failed between texts ({answer}); see its output above")
            is_slow = answer == "timeout" and place.num_texts > 1
            self._start()
            if not is_wanted():
                return [reasons.get(index, "given_up: nobody waits for the answer") for index in range(len(texts))]
            question = replace(question, size=1, failures=reasons)

    def collect(self) -> ScoringAnswer:
        """Wait for the answer to the last batch, with one outcome per task."""
        problems: dict[int, tuple[str, str]] = {}
        size = self._slice
        is_slow = False
        while True:
            answer = self._receive()
            if not isinstance(answer, str):
                assert isinstance(answer, ScoringAnswer)
                if is_slow:
                    # No single text hung: the slice was too large to finish in time.
                    self._slice = max(2, self._slice // 8)
                outcomes = list(answer.outcomes)
                for index, problem in problems.items():
                    outcomes[index] = ScoringOutcome(problem=problem)
                return replace(answer, outcomes=outcomes)
            self._stop()
            place = self._place()
            if not place.is_in_one_document or place.num_texts > 1:
                if size == 1:
                    raise PhfError(f"the scoring process failed between texts ({answer}); see its output above")
                is_slow = answer == "timeout" and place.num_texts > 1
            elif self._is_final(answer, place):
                self._quarantine(place, answer, problems)
                is_slow = False
            if place.num_texts != IN_CONTEXT or not place.is_in_one_document:
                size = 1
            self._start()
            self._connection.send((self._batch, size))

    def close(self) -> None:
        self._stop()
        self._state.close()
        os.close(self._state_file)

    def _start(self) -> None:
        self._state[:] = PLACE_STRUCT.pack(*IDLE)
        ours, theirs = Pipe()
        code = (
            f"from phf_ray.scorers.process_child import child_main; child_main({theirs.fileno()}, {self._state_file})"
        )
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
            raise DataError(f"the scoring process ended during its start ({code_text}); see its output above") from None
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

    def _receive(self) -> ScoringAnswer | TextAnswers | str:
        """Return the answer, or the reason why there will be none: `timeout` or `crash`."""
        place = self._place()
        moved = time.monotonic()
        while not self._connection.poll(_POLL_S):
            now_at = self._place()
            if now_at != place:
                place, moved = now_at, time.monotonic()
            elif time.monotonic() - moved > self._setup.text_timeout_s:
                return "timeout"
        try:
            answer: ScoringAnswer | TextAnswers | BaseException = self._connection.recv()
        except (EOFError, OSError):
            return "crash"
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def _place(self) -> Place:
        return Place(*PLACE_STRUCT.unpack_from(self._state))

    def _is_final(self, cause: str, place: Place) -> bool:
        """Whether to quarantine the text. A text that crashed gets a second try: other processes may be to blame."""
        self._deaths[place] = self._deaths.get(place, 0) + 1
        return cause == "timeout" or self._deaths[place] > 1

    def _detail(self, cause: str) -> str:
        if cause == "timeout":
            return f"nothing after {self._setup.text_timeout_s:g} s"
        return f"the process ended with code {self._process.returncode}"

    def _quarantine(self, place: Place, cause: str, problems: dict[int, tuple[str, str]]) -> None:
        index, step, text, count = place
        detail = self._detail(cause)
        task = self._batch[index]
        if step == SEGMENTING:
            characters = len(task.text or "")
            problems[index] = (cause, f"segmenter {self._setup.segmenter}, {characters} characters: {detail}")
            self._batch[index] = ScoringTask(texts=())
        else:
            name = self.identities[step - 1].name
            segment = None if count == IN_CONTEXT else text
            failures = {**task.failures, (name, segment): f"{cause}: {detail}"}
            self._batch[index] = replace(task, failures=failures)
            what = "a document" if segment is None else f"segment {segment} of a document"
            characters = len(task.text or "".join(task.texts or ()))
            log.warning("%s: %s on %s of %d characters; quarantined", name, detail, what, characters)
