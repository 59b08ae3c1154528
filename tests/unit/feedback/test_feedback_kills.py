"""A feedback corpus is the same at whichever write its job is killed, and nothing is done twice after success."""

import os
import shutil
import signal
import subprocess
import sys

import pytest
from feedback_files import bytes_of, hh_record, write_folder
from places import ROOT, SUPPORT

from phf_ray.feedback.job import prepare_feedback
from phf_ray.feedback.plan import FeedbackRequest


class Killed(BaseException):
    """Ends a job as a kill does, but that its `finally` blocks run."""


_armed: dict[str, int] = {}


def _hook(event, arguments):
    if not _armed or event not in ("open", "os.rename"):
        return
    file, mode = (arguments[0], str(arguments[1])) if event == "open" else (arguments[1], "w")
    if str(file).startswith(_armed["output"]) and mode.startswith(("w", "x", "a")):
        _armed["left"] -= 1
        if not _armed["left"]:
            raise _armed["killer"]()


sys.addaudithook(_hook)


def _die():
    os.kill(os.getpid(), signal.SIGKILL)


def request_of(source):
    return FeedbackRequest([str(source)], shard_bytes=1)


def run_until_a_write(source, output, number, killer=Killed, *, append=False):
    _armed.update(output=str(output), left=number, killer=killer)
    try:
        prepare_feedback(request_of(source), str(output), append=append)
    finally:
        _armed.clear()


@pytest.fixture
def source(tmp_path):
    """Three shards, with a duplicate across the border of two, and a record that is rejected."""
    records = [hh_record(number) for number in (0, 1, 2, 0, 3, 4, 1, 5)]
    return write_folder(tmp_path / "in", [*records, {"chosen": "", "rejected": ""}])


@pytest.fixture
def whole(source, tmp_path):
    prepare_feedback(request_of(source), str(tmp_path / "whole"))
    return bytes_of(tmp_path / "whole")


def test_stopped_just_before_any_write_it_goes_on_as_if_nothing_had_been(source, whole, tmp_path):
    assert sum(name.startswith("part-") for name in whole) >= 3
    number = 0
    while True:
        number += 1
        output = tmp_path / f"out-{number}"
        try:
            run_until_a_write(source, output, number)
        except Killed:
            assert not (output / "_SUCCESS").exists()
            prepare_feedback(request_of(source), str(output))
            assert bytes_of(output) == whole, f"stopped before write {number}"
        else:
            break
    # Plan, keys of each shard, rejects, parts, manifest, card, mark: less would mean that writes are not seen.
    assert number > 18


def test_stopped_just_before_any_write_while_it_takes_in_more_it_goes_on(source, whole, tmp_path):
    prepare_feedback(request_of(source / "0.jsonl"), str(tmp_path / "begun"))
    number = 0
    while True:
        number += 1
        output = tmp_path / f"out-{number}"
        shutil.copytree(tmp_path / "begun", output)
        try:
            run_until_a_write(source, output, number, append=True)
        except Killed:
            prepare_feedback(request_of(source), str(output), append=True)
            assert bytes_of(output) == whole, f"stopped before write {number}"
        else:
            break
    assert number > 12


@pytest.mark.timeout(120)
def test_killed_between_parts_it_goes_on_as_if_nothing_had_been(source, whole, tmp_path):
    output = tmp_path / "out"
    number = 14
    code = (
        f"import sys; sys.path[:0] = {[str(ROOT), str(SUPPORT), str(ROOT / 'tests/unit/feedback')]!r}\n"
        "import test_feedback_kills as kills\n"
        f"kills.run_until_a_write({str(source)!r}, {str(output)!r}, {number}, kills._die)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=100).returncode == -signal.SIGKILL
    assert list(output.glob("part-*"))
    assert not (output / "_SUCCESS").exists()
    prepare_feedback(request_of(source), str(output))
    assert bytes_of(output) == whole


def test_a_torn_or_foreign_part_is_written_again(source, whole, tmp_path):
    output = tmp_path / "whole"
    (output / "_SUCCESS").unlink()
    (output / "part-00001.parquet").write_bytes(b"PAR1 torn")
    (output / "part-00002.parquet").write_bytes((output / "part-00000.parquet").read_bytes())
    prepare_feedback(request_of(source), str(output))
    assert bytes_of(output) == whole


def test_after_success_nothing_is_done_again(source, whole, tmp_path):
    output = tmp_path / "whole"
    stamps = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    prepare_feedback(request_of(source), str(output))
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == stamps
