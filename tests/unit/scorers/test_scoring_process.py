"""Scorers in a child process: equal to calling them, and cut off when they hang or crash."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
from places import ROOT

from phf_ray.corpus.segments import build_segmenter
from phf_ray.errors import ConfigError
from phf_ray.records import Scored, Span
from phf_ray.scorers.build import build_scorer
from phf_ray.scorers.process import ScoringProcess
from phf_ray.scorers.tasks import ScoringSetup, ScoringTask

LENGTH = {"class_name": "fakes:LengthScorer"}
WORDS = {"class_name": "fakes:WordScorer"}


def setup(*scorers, segmenter="lines", timeout=30.0):
    return ScoringSetup(scorers=scorers, segmenter=segmenter, text_timeout_s=timeout)


@pytest.fixture
def start():
    started = []

    def start(*scorers, **options):
        started.append(ScoringProcess(setup(*scorers, **options)))
        return started[-1]

    yield start
    for process in started:
        process.close()


def ask(process, *texts):
    process.submit([ScoringTask(text=text) for text in texts])
    return process.collect()


def test_scores_are_those_of_the_scorer_called_directly(start):
    text = "import os\nx=1\n\n\n\ndef f( ):\n  return 1"
    process = start({"class_name": "PEP8Scorer"})
    (outcome,) = ask(process, text).outcomes
    segments = build_segmenter("lines")(text)
    scored = build_scorer({"class_name": "PEP8Scorer"}).score_segments(segments)
    assert list(outcome.texts) == segments
    assert outcome.scores == {"pep8": ([one.score for one in scored], [None] * len(segments))}
    assert sum(one.score > 0 for one in scored) > 1
    assert process.identities[0].name == "pep8"


def test_segments_and_scores_that_are_given_are_kept(start):
    process = start(LENGTH, WORDS)
    known = {"length": ([7.0, None], [None, "x: y"])}
    process.submit([ScoringTask(texts=("a b", "c"), scores=known)])
    (outcome,) = process.collect().outcomes
    assert outcome.scores == {**known, "words": ([2.0, 1.0], [None, None])}


@pytest.mark.parametrize(
    ("word", "error"), [("HANG", "timeout: nothing after 1 s"), ("CRASH", "crash: the process ended")]
)
def test_only_the_text_that_hangs_or_crashes_is_quarantined(start, word, error):
    process = start(LENGTH, WORDS, timeout=1.0)
    texts = ["before", f"one\n{word}\nthree", "after"]
    first, second, third = ask(process, *texts).outcomes
    assert (first.scores["length"], third.scores["length"]) == (([6.0], [None]), ([5.0], [None]))
    scores, errors = second.scores["length"]
    assert scores == [None, None, None]
    assert all(entry.startswith(error) for entry in errors)
    # And the process goes on.
    assert ask(process, "more").outcomes[0].scores["length"] == ([4.0], [None])


def test_a_batched_scorer_that_hangs_or_raises_costs_one_segment_only(start):
    process = start(WORDS, timeout=1.0)
    first, second, third = ask(process, "a b", "c\nHANG\nd e\nHANG", "d").outcomes
    assert (first.scores["words"], third.scores["words"]) == (([2.0], [None]), ([1.0], [None]))
    hung = "timeout: nothing after 1 s"
    assert second.scores["words"] == ([1.0, None, 2.0, None], [None, hung, None, hung])
    first, second = ask(process, "a b", "RAISE\nc d LONG").outcomes
    assert first.scores["words"] == ([2.0], [None])
    assert second.scores["words"] == ([None, 3.0], ["RuntimeError: the scorer has a bug", None])


def test_texts_that_take_long_together_are_not_taken_for_one_that_hangs(start):
    process = start({"class_name": "fakes:WordScorer", "delay_s": 0.08}, timeout=1.0)
    for _ in range(2):
        first, second = ask(process, "x\n" * 20, "y\n" * 2).outcomes
        assert first.scores["words"] == ([1.0] * 20, [None] * 20)
        assert second.scores["words"] == ([1.0] * 2, [None] * 2)
    # By now fewer are scored together, and no further child has to be killed.
    child = process._process.pid
    ask(process, "x\n" * 40)
    assert process._process.pid == child


def test_a_text_that_is_cut_counts_once_however_often_its_batch_was_tried(start):
    process = start(WORDS, timeout=1.0)
    assert ask(process, "LONG\na", "RAISE\nLONG").truncated == {"words": 2}
    assert ask(process, "LONG\na", "HANG\nLONG").truncated == {"words": 2}


FINDS = {"class_name": "fakes:FindingScorer"}
ANSWERS = {
    "score": lambda text: Scored(float(len(text))),
    "classes": lambda text: {"long": float(len(text))},
    "spans": lambda text: [Span("word", 0, len(text))],
    "cut": build_segmenter("lines"),
}


@pytest.mark.parametrize("what", ANSWERS)
def test_a_question_about_each_text_is_answered_as_by_the_scorer(start, what):
    texts = ["a b\nc", "d", "e\n"]
    assert start(FINDS).ask(what, texts) == [ANSWERS[what](text) for text in texts]


@pytest.mark.parametrize("what", ["score", "classes", "spans"])
def test_only_the_text_that_a_scorer_cannot_answer_gets_a_reason(start, what):
    process = start(FINDS, timeout=1.0)
    good = ["before", "between", "after"]
    found = process.ask(what, [good[0], "HANG", good[1], "CRASH", "RAISE", good[2]])
    assert [found[0], found[2], found[5]] == [ANSWERS[what](text) for text in good]
    assert found[1] == "timeout: nothing after 1 s"
    assert found[3].startswith("crash: the process ended with code -9")
    assert found[4] == "RuntimeError: the scorer has a bug"
    # And the process goes on.
    assert process.ask(what, ["more"]) == [ANSWERS[what]("more")]


def test_texts_that_take_long_together_are_not_taken_for_one_that_hangs_when_asked_about(start):
    process = start({"class_name": "fakes:WordScorer", "delay_s": 0.08}, timeout=1.0)
    for _ in range(2):
        assert process.ask("score", ["x"] * 20) == [Scored(1.0)] * 20
    child = process._process.pid
    process.ask("score", ["x"] * 40)
    assert process._process.pid == child


def test_a_question_that_nobody_waits_for_ends_with_the_text_that_hangs(start):
    process = start(FINDS, timeout=0.5)
    found = process.ask("spans", ["HANG", "HANG", "a"], is_wanted=lambda: False)
    assert found == ["timeout: nothing after 0.5 s", *["given_up: nobody waits for the answer"] * 2]
    assert process.ask("spans", ["a"]) == [ANSWERS["spans"]("a")]


def test_a_child_that_died_between_questions_is_replaced(start):
    process = start(FINDS)
    process._process.kill()
    process._process.wait()
    assert process.ask("score", ["three"]) == [Scored(5.0)]


def test_batching_over_documents_keeps_segments_apart(start):
    answer = ask(start(WORDS, segmenter="lines"), "a b\nc\n", "d e f", "LONG")
    assert [outcome.scores["words"][0] for outcome in answer.outcomes] == [[2.0, 1.0], [3.0], [1.0]]
    assert answer.truncated == {"words": 1}


def test_a_scorer_computes_with_as_many_threads_as_it_was_given(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    process = ScoringProcess(replace(setup({"class_name": "fakes:ThreadScorer"}), num_threads=1))
    (outcome,) = ask(process, "a").outcomes
    process.close()
    assert outcome.scores["threads"] == ([1.0], [None])


def test_a_scorer_that_can_not_be_built_is_reported_at_once():
    with pytest.raises(ConfigError, match="unknown scorer class_name 'Nonsense'"):
        ScoringProcess(setup({"class_name": "Nonsense"}))
    with pytest.raises(ConfigError, match="'no_such_module' can't be imported"):
        ScoringProcess(setup({"class_name": "no_such_module:MyScorer"}))


def test_the_child_ends_with_its_parent():
    process = ScoringProcess(setup(LENGTH))
    child = process._process
    process._connection.close()
    assert child.wait(timeout=60) == 0
    process.close()


IDLE = """
import mmap, sys, time
from phf_ray.scorers.process_child import _Worker
from phf_ray.scorers.tasks import PLACE_STRUCT, ScoringSetup, ScoringTask
setup = ScoringSetup(({"class_name": "PEP8Scorer"},), segmenter="lines", text_timeout_s=60)
worker = _Worker(setup, mmap.mmap(-1, PLACE_STRUCT.size))
worker._watch_s = 0.5
worker.answer([ScoringTask(text="x=1")], 512)
time.sleep(1.5)
"""


def test_a_child_may_wait_for_its_next_batch_longer_than_a_text_may_take():
    subprocess.run([sys.executable, "-c", IDLE], cwd=ROOT, check=True, timeout=60)


def test_a_child_that_died_between_batches_is_replaced(start):
    process = start(LENGTH)
    assert ask(process, "one").outcomes[0].scores["length"] == ([3.0], [None])
    process._process.kill()
    process._process.wait()
    assert ask(process, "three").outcomes[0].scores["length"] == ([5.0], [None])


def test_close_ends_a_child_that_hangs():
    process = ScoringProcess(setup(LENGTH))
    process.submit([ScoringTask(text="HANG")])
    child = process._process.pid
    process.close()
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
