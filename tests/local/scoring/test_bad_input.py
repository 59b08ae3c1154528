"""What a user can get wrong on a command line: one clear line, a non-zero exit, nothing that looks finished."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from places import ROOT

from jobs import evaluate_lm, score_corpus
from phf_ray.errors import ConfigError

TASK = str(ROOT / "configs" / "demo" / "pretrain.yml")


def job(name, *arguments):
    """Exit code and what was printed; no traceback may be among it."""
    command = [sys.executable, "-m", f"jobs.{name}", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ}, capture_output=True, text=True, timeout=110)
    output = done.stdout + done.stderr
    assert "Traceback" not in output, output
    return done.returncode, output


def test_an_empty_corpus_is_refused_and_leaves_nothing_finished(tmp_path):
    (tmp_path / "empty").mkdir()
    code, output = job("score_corpus", "--task", TASK, "--input", tmp_path / "empty", "--output", tmp_path / "out")
    assert code != 0
    assert str(tmp_path / "empty") in output
    assert not (tmp_path / "out" / "_SUCCESS").exists()


def test_bad_files_are_counted_and_named_and_good_ones_scored(local_ray, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "good.py").write_text("x = 1\n")
    (source / "one_character.py").write_text("x")
    (source / "empty.py").write_text("")
    (source / "latin.py").write_bytes(b"# caf\xe9\n")
    output_folder = tmp_path / "out"
    assert score_corpus.main(["--task", TASK, "--input", str(source), "--output", str(output_folder)]) == 0
    rejected = [
        row for path in (output_folder / "rejected").glob("*.parquet") for row in pq.read_table(path).to_pylist()
    ]
    assert {(Path(row["source"]).name, row["reason"]) for row in rejected} == {
        ("empty.py", "empty"),
        ("latin.py", "not_utf8"),
    }
    rows = [row for path in output_folder.glob("part-*.parquet") for row in pq.read_table(path).to_pylist()]
    by_text = {"".join(row["texts"]): row["scores"] for row in rows}
    assert by_text == {"x = 1\n": [0.0], "x": [1.0]}  # W292: no newline at the end, one violation on one character
    summary = json.loads((output_folder / "summary.json").read_text())
    assert "2" in json.dumps(summary)


def test_training_refuses_before_ray_starts(tmp_path):
    code, output = job("train_lm", "--task", TASK, "--run-name", "r", "--storage-path", tmp_path / "runs")
    assert code == 2
    assert "dataset.datasets is empty" in output
    assert not (tmp_path / "runs").exists()


def test_a_missing_checkpoint_can_not_be_evaluated(tmp_path):
    with pytest.raises(ConfigError, match="no such directory"):
        evaluate_lm.main(["--task", TASK, "--model", str(tmp_path / "nowhere"), "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
