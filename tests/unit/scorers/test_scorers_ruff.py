import importlib.metadata
import importlib.util

import pytest

from phf_ray.errors import ConfigError, DataError
from phf_ray.records import Scored
from phf_ray.scorers import ruff as ruff_module
from phf_ray.scorers.build import build_scorer, scorer_class, scorer_settings
from phf_ray.scorers.process import ScoringProcess
from phf_ray.scorers.tasks import ScoringSetup, ScoringTask

CONFIG = {"class_name": "RuffScorer"}
SCORER = build_scorer(CONFIG)
PEP8 = build_scorer({"class_name": "PEP8Scorer"})


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("x = 1\n", 0),
        ("x=1\n", 1),
        ("import os, sys\nx = 1 \n", 2),
        ("x = 1\r\ny=2\rz=3\r\n", 2),
        (f"x = '{'a' * 80}'\n", 1),
        ("i=i+1\n", 1),  # E226 is off, as with pycodestyle
        ("def f(a: int=1):\n    return a\n", 2),
        ("a = 1\n\n\n\n\ndef f():\n  return 1", 3),
    ],
)
def test_counts_the_violations_that_pycodestyle_counts(text, count):
    assert SCORER.score_all([text]) == PEP8.score_all([text]) == [Scored(count / len(text))]


def test_texts_of_one_call_do_not_change_each_other():
    texts = [f"x{'=' if index % 3 else ' = '}{index}\n" for index in range(25)] + ["def f(:\n", "", "y=1\n"]
    alone = [SCORER.score_all([text])[0] for text in texts]
    assert SCORER.score_all(texts) == alone
    assert SCORER.score_all(texts[::-1]) == alone[::-1]
    assert SCORER.score_all([]) == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty: the text has no characters"),
        ("x = 1\ndef f(:\n", "SyntaxError: Expected a parameter or the end of the parameter list, line 2; "),
        ("x = 'open\n", "SyntaxError: "),
        ("x = 1\x00\n", "SyntaxError: "),
        ("'\ud800'", "UnicodeEncodeError: the text has a lone surrogate"),
    ],
)
def test_a_text_that_can_not_be_judged_has_a_reason_and_no_score(text, reason):
    (scored,) = SCORER.score_all([text])
    assert scored.score is None
    assert scored.error.startswith(reason)


def test_comments_hide_nothing():
    assert SCORER.score_texts(["# ruff: noqa\nx=1  # noqa\n"]) == [1 / 25]


def test_settings_of_ruff_are_not_read(tmp_path, monkeypatch):
    # The folder of temporary files lies below a configuration, an ignored folder and one that ruff leaves out.
    (tmp_path / "ruff.toml").write_text("line-length = 300\nlint.ignore = ['E', 'W']\n")
    (tmp_path / ".gitignore").write_text("*\n")
    (tmp_path / ".git").mkdir()
    inner = tmp_path / "node_modules" / "build"
    inner.mkdir(parents=True)
    monkeypatch.setattr("tempfile.tempdir", str(inner))
    monkeypatch.setenv("RUFF_OUTPUT_FORMAT", "json")
    monkeypatch.setenv("RUFF_OUTPUT_FILE", str(tmp_path / "report"))
    assert SCORER.score_texts(["x=1\n"]) == [1 / 4]
    assert list(inner.iterdir()) == []


def test_the_version_of_ruff_is_part_of_the_identity():
    identity = SCORER.identity()
    assert (identity.name, identity.class_name, identity.unit) == ("ruff", "RuffScorer", "violations per character")
    assert identity.versions == {"ruff": importlib.metadata.version("ruff"), "RuffScorer": "1"}


@pytest.mark.parametrize("is_installed", [False, True])
def test_without_the_ruff_that_it_reads_the_error_gives_the_command(monkeypatch, is_installed):
    if is_installed:
        monkeypatch.setattr(ruff_module, "version", lambda _: "0.99.1")
    else:
        monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    message = r"needs ruff.*pip install 'phf-ray\[ruff\]'"
    with pytest.raises(ConfigError, match=message):
        build_scorer(CONFIG)
    with pytest.raises(ConfigError, match=message):
        scorer_class("RuffScorer").described(scorer_settings(CONFIG))


def test_a_ruff_that_fails_is_an_error_that_says_what_it_said(tmp_path):
    program = tmp_path / "ruff"
    program.write_text("#!/bin/sh\necho out of memory >&2\nexit 3\n")
    program.chmod(0o755)
    scorer = build_scorer(CONFIG)
    scorer._program = str(program)
    with pytest.raises(DataError, match="ruff ended with code 3 on 2 texts: out of memory"):
        scorer.score_all(["x\n", "y\n"])


def test_a_scoring_process_scores_documents_together():
    process = ScoringProcess(ScoringSetup((CONFIG,), segmenter="document", text_timeout_s=60))
    try:
        process.submit([ScoringTask(text=text) for text in ("x=1\n", "def f(:\n", "x = 1\n")])
        outcomes = process.collect().outcomes
    finally:
        process.close()
    assert [outcome.scores["ruff"][0] for outcome in outcomes] == [[0.25], [None], [0.0]]
