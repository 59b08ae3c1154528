"""A scoring job whose progress a test controls, and the files of an uninterrupted run, for tests that kill the job.

A document that says GATE makes its scorer wait until a file exists.
"""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import ROOT, SUPPORT, TESTS

from phf_ray.config import parse_config
from phf_ray.corpus.reader import read_corpus, read_corpus_manifest
from phf_ray.scoring.executor import InProcessScoring
from phf_ray.scoring.job import run_scoring
from phf_ray.scoring.request import ScoringRequest

NUM_FILES = 8
PATIENCE_S = 90

DRIVER = """
import sys
sys.path[:0] = {folders!r}
import {module}
{module}.{call}
"""


def request(folder, *, gate, delay_s: float = 0.0) -> ScoringRequest:
    scorer = {"class_name": "fakes:LengthScorer", "gate": str(gate), "delay_s": delay_s}
    scoring = {
        "scorers": [scorer],
        "segmenter": "lines",
        "pools": {"cpu": {"min": 2, "max": 2}},
        # On a busy machine a document may stand at the gate for longer than the minute that a text has by default.
        "text_timeout_s": 10 * PATIENCE_S,
    }
    return ScoringRequest(parse_config({"scoring": scoring}), inputs=[str(folder)], shard_bytes=1)


@pytest.fixture
def sources(tmp_path) -> Path:
    """Write files that are a shard each. The third and all later ones wait at the gate."""
    folder = tmp_path / "in"
    folder.mkdir()
    for index in range(NUM_FILES):
        (folder / f"{index}.py").write_text(f"document {index}\n" * 3 + ("GATE\n" if index >= 2 else "PASS\n"))
    (folder / "broken.py").write_bytes(b"\xff")
    return folder


@pytest.fixture
def gate(tmp_path) -> Path:
    return tmp_path / "gate"


@pytest.fixture
def whole(sources, gate, tmp_path) -> dict[str, bytes]:
    """Return every file of an uninterrupted run without Ray."""
    gate.touch()
    run_scoring(request(sources, gate=gate), str(tmp_path / "whole"), executor=InProcessScoring())
    gate.unlink()
    return files_of(tmp_path / "whole")


def files_of(output: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(output)): path.read_bytes()
        for path in output.rglob("*")
        if path.is_file() and path.name != "summary.json"
    }


def wait_for(condition, what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {PATIENCE_S} s for {what}"
        time.sleep(0.05)


def assert_is_the_uninterrupted_run(output: Path, whole: dict[str, bytes]) -> None:
    assert files_of(output) == whole
    sources = [json.loads(document.meta)["source"] for document in read_corpus(str(output))]
    assert sorted(sources) == [f"{index}.py" for index in range(NUM_FILES)]
    assert read_corpus_manifest(str(output)).rejected == {"not_utf8": 1}


@contextlib.contextmanager
def driver(module: str, call: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Start a separate process that calls a function of a test module."""
    folders = [str(folder) for folder in (ROOT, SUPPORT, TESTS / "unit" / "scoring", TESTS / "cluster")]
    code = DRIVER.format(folders=folders, module=module, call=call)
    # What it says is shown with a test that fails.
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
