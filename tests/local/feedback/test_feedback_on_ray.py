"""On Ray: the same files as in one process, and errors that mean the same."""

import itertools

import pytest
from feedback_files import bytes_of, die_once, hh_record, write_folder

from jobs import prepare_feedback as job
from phf_ray.errors import DataError
from phf_ray.feedback import on_ray
from phf_ray.feedback.job import prepare_feedback, run_feedback_here
from phf_ray.feedback.on_ray import run_feedback_on_ray
from phf_ray.feedback.plan import FeedbackRequest

pytestmark = pytest.mark.usefixtures("local_ray")


def test_on_ray_and_in_process_the_files_are_the_same(tmp_path):
    source = write_folder(tmp_path / "in", [hh_record(number % 9) for number in range(20)])
    request = FeedbackRequest([str(source)], shard_bytes=1)
    prepare_feedback(request, str(tmp_path / "here"))
    prepare_feedback(request, str(tmp_path / "ray"), runner=run_feedback_on_ray)
    assert bytes_of(tmp_path / "here") == bytes_of(tmp_path / "ray")


def test_workers_that_are_killed_leave_the_same_files(tmp_path):
    source = write_folder(tmp_path / "in", [hh_record(number % 9) for number in range(12)])
    request = FeedbackRequest([str(source)], shard_bytes=1)
    prepare_feedback(request, str(tmp_path / "whole"))
    marks = tmp_path / "marks"
    marks.mkdir()

    def runner(work, rows):
        def dying(row):
            return die_once(str(marks), work, row)

        return run_feedback_on_ray(dying, rows)

    prepare_feedback(request, str(tmp_path / "out"), runner=runner)
    assert len(list(marks.iterdir())) == 2 * 4
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")


def test_a_job_that_ends_in_the_middle_goes_on_with_the_missing_shards(tmp_path):
    source = write_folder(tmp_path / "in", [hh_record(number % 9) for number in range(20)])
    request = FeedbackRequest([str(source)], shard_bytes=1)
    prepare_feedback(request, str(tmp_path / "whole"))
    output = tmp_path / "out"

    def runner(work, rows):
        if work.__name__ == "store_keys":
            return run_feedback_on_ray(work, rows)
        return itertools.chain(run_feedback_on_ray(work, rows[:3]), map(int, ["the job ends here"]))

    with pytest.raises(ValueError, match="the job ends here"):
        prepare_feedback(request, str(output), runner=runner)
    stamps = {path: path.stat().st_mtime_ns for path in output.glob("part-*")}
    assert len(stamps) == 3
    prepare_feedback(request, str(output), runner=run_feedback_on_ray)
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert bytes_of(output) == bytes_of(tmp_path / "whole")


def test_the_command_takes_much_input_to_ray(tmp_path, monkeypatch):
    source = write_folder(tmp_path / "in", [hh_record(number) for number in range(6)])
    prepare_feedback(FeedbackRequest([str(source)]), str(tmp_path / "here"))
    monkeypatch.setattr(job, "_BYTES_HERE", 0)
    used = []
    monkeypatch.setattr(
        on_ray, "run_feedback_on_ray", lambda work, rows: used.append(1) or run_feedback_here(work, rows)
    )
    assert job.main(["--input", str(source), "--output", str(tmp_path / "out")]) == 0
    assert len(used) == 2
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "here")


def test_the_error_of_a_task_is_the_job_s_own(tmp_path):
    source = write_folder(tmp_path / "in", [hh_record(number) for number in range(6)])

    def runner(work, rows):
        (source / "1.jsonl").unlink(missing_ok=True)
        return run_feedback_on_ray(work, rows)

    with pytest.raises(DataError, match=r"1.jsonl was removed after the job began"):
        prepare_feedback(FeedbackRequest([str(source)], shard_bytes=1), str(tmp_path / "out"), runner=runner)
