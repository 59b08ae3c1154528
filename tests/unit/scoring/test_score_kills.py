"""Scoring is exactly once at whichever write it is killed (without Ray; with it, see cluster/test_score_faults)."""

import os
import signal
import sys

import pytest
from score_runs import PATIENCE_S, assert_is_the_uninterrupted_run, driver, request

from phf_ray.scoring.executor import InProcessScoring
from phf_ray.scoring.job import run_scoring

pytest_plugins = ("score_runs",)


def drive_until_a_write(folder: str, gate: str, output: str, number: int) -> None:
    """Dies at the `number`th time that a file of the output is created or renamed, just before it happens."""
    seen = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        created = (
            event == "open" and str(arguments[1]).startswith(("w", "x", "a")) and str(arguments[0]).startswith(output)
        )
        renamed = event == "os.rename" and str(arguments[1]).startswith(output)
        if created or renamed:
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    run_scoring(request(folder, gate=gate), output, executor=InProcessScoring())


# Every state that the disk can be in. In their order: plan (1, 2), parts with the rejects of one among them (3-13),
# manifest and card (14-17), the mark of success (18).
STATES = range(1, 19)
# Between the parts, and with all parts but no manifest: the two that differ most in what is left to do.
SAMPLED = (8, 14)
KILLS = [pytest.param(one, marks=() if one in SAMPLED else pytest.mark.faults) for one in STATES]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", KILLS)
def test_killed_just_before_any_write_it_goes_on_as_if_nothing_had_been(whole, sources, gate, tmp_path, number):
    gate.touch()
    output = tmp_path / "out"
    with driver(
        __name__, f"drive_until_a_write({str(sources)!r}, {str(gate)!r}, {str(output)!r}, {number})"
    ) as process:
        assert process.wait(timeout=PATIENCE_S) == -signal.SIGKILL, "all was written before that; lower the number"
    assert not (output / "_SUCCESS").exists()
    run_scoring(request(sources, gate=gate), str(output), executor=InProcessScoring())
    assert_is_the_uninterrupted_run(output, whole)


def test_a_part_that_was_written_but_not_renamed_is_not_part_of_the_corpus(whole, sources, gate, tmp_path):
    gate.touch()
    output = tmp_path / "out"
    run_scoring(request(sources, gate=gate), str(output), executor=InProcessScoring())
    # What the disk holds when a worker dies after its data is written, and before the rename that commits it.
    (output / "_tmp").mkdir()
    (output / "part-00003.parquet").rename(output / "_tmp" / "part-00003.parquet.0123")
    (output / "part-00004.parquet").unlink()
    (output / "_tmp" / "part-00004.parquet.4567").write_bytes(b"PAR1 torn")
    for name in ("_SUCCESS", "manifest.json", "README.md"):
        (output / name).unlink()
    run_scoring(request(sources, gate=gate), str(output), executor=InProcessScoring())
    assert_is_the_uninterrupted_run(output, whole)


def test_after_success_nothing_is_done_again(whole, sources, gate, tmp_path):
    # The gate is closed: scoring anything would wait for ever.
    output = tmp_path / "whole"
    stamps = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    run_scoring(request(sources, gate=gate), str(output), executor=InProcessScoring())
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == stamps
