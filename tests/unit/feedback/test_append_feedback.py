"""--append: new input joins a set. What is there stays byte for byte, and a repeat of it is a duplicate."""

import pytest
from feedback_files import bytes_of, hh_record, rejected_in, write_folder, write_lines
from published_feedback import ULTRAFEEDBACK

from jobs.prepare_feedback import main
from phf_ray.errors import ConfigError
from phf_ray.feedback import read_feedback, read_feedback_manifest
from phf_ray.feedback.job import prepare_feedback, run_feedback_here
from phf_ray.feedback.plan import FeedbackRequest


def append(output, *sources, runner=run_feedback_here, **settings):
    request = FeedbackRequest([str(source) for source in sources], shard_bytes=1, **settings)
    return prepare_feedback(request, str(output), append=True, runner=runner)


def parts_of(output):
    return {name: content for name, content in bytes_of(output).items() if "part-" in name}


@pytest.fixture
def first(tmp_path):
    return write_folder(tmp_path / "first", [hh_record(number) for number in (0, 1, 2, 3)], each=2)


@pytest.fixture
def second(tmp_path):
    return write_folder(tmp_path / "second", [hh_record(number) for number in (4, 1, 5, 4)], each=2)


@pytest.fixture
def output(tmp_path, first):
    append(tmp_path / "out", first)
    return tmp_path / "out"


def test_new_input_joins_and_what_is_there_stays(output, first, second, tmp_path):
    before = parts_of(output)
    (output / "report.json").write_text("{}")
    manifest = append(output, second)
    assert before.items() <= parts_of(output).items()
    assert (manifest.rows, manifest.num_parts) == (6, 4)
    assert [row.better for row in read_feedback(str(output))] == [f"Good {number}" for number in range(6)]
    # What an earlier file has, and what this input repeats.
    assert rejected_in(output) == [("0.jsonl", 1, "duplicate"), ("1.jsonl", 1, "duplicate")]
    # Figures of the smaller set say nothing about this one.
    assert not (output / "report.json").exists()
    # All at once, the set would be the same.
    prepare_feedback(FeedbackRequest([str(first), str(second)], shard_bytes=1), str(tmp_path / "once"))
    assert bytes_of(tmp_path / "once") == bytes_of(output)


def test_the_old_input_is_not_needed_and_not_read_again(output, first, second):
    for file in first.iterdir():
        file.unlink()
    read = []

    def runner(work, rows):
        read.extend((work.__name__, row["shard"]) for row in rows)
        return run_feedback_here(work, rows)

    assert append(output, second, runner=runner).rows == 6
    assert read == [("store_keys", 2), ("store_keys", 3), ("write_part", 2), ("write_part", 3)]
    assert append(output, second).rows == 6


def test_new_input_may_share_a_folder_with_the_old(tmp_path):
    for name in ("a", "b"):
        write_lines(tmp_path / "in" / f"{name}.jsonl", [hh_record(ord(name))])
    append(tmp_path / "out", tmp_path / "in" / "a.jsonl")
    assert append(tmp_path / "out", tmp_path / "in" / "b.jsonl").rows == 2
    assert append(tmp_path / "out", tmp_path / "in").rows == 2
    (tmp_path / "in" / "a.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"1 input file\(s\) are missing since the job began \(a.jsonl\)"):
        append(tmp_path / "out", tmp_path / "in")


def test_a_set_can_be_begun_with_append(tmp_path, first):
    assert append(tmp_path / "new", first).rows == 4


def test_killed_while_it_appends_it_goes_on(output, first, second, tmp_path):
    class Killed(BaseException):
        pass

    def runner(work, rows):
        for index, done in enumerate(run_feedback_here(work, rows)):
            if work.__name__ == "write_part" and index:
                raise Killed
            yield done

    with pytest.raises(Killed):
        append(output, second, runner=runner)
    assert not (output / "_SUCCESS").exists()
    append(output, second)
    prepare_feedback(FeedbackRequest([str(first), str(second)], shard_bytes=1), str(tmp_path / "once"))
    assert bytes_of(tmp_path / "once") == bytes_of(output)


@pytest.mark.parametrize(
    ("records", "settings", "message"),
    [
        ([ULTRAFEEDBACK], {}, r"0.jsonl is ultrafeedback \(comparisons .*this set is hh \(comp.*or give --format hh"),
        ([{"reply": "b"}], {}, "no format has the columns 'reply'"),
        ([hh_record(9)], {"limit": 1}, "--limit was None, is 1"),
        ([hh_record(9)], {"as_text": True}, "--as-text was False, is True"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_lost(output, tmp_path, records, settings, message):
    before = bytes_of(output)
    with pytest.raises(ConfigError, match=message):
        append(output, write_folder(tmp_path / "other", records), **settings)
    assert bytes_of(output) == before


def test_a_limit_counts_all_input_so_none_can_be_added(tmp_path, first, second):
    append(tmp_path / "limited", first, limit=3)
    with pytest.raises(ConfigError, match="--append and --limit can't be combined"):
        append(tmp_path / "limited", second, limit=3)


def test_without_append_new_input_is_refused_and_says_how(output, first, second, tmp_path):
    with pytest.raises(ConfigError, match=r"2 input file.* were added .*add --append to take them in"):
        prepare_feedback(FeedbackRequest([str(first), str(second)]), str(output))
    alone = tmp_path / "alone"
    write_lines(alone / "2.jsonl", [hh_record(7)])
    append(tmp_path / "other", alone)
    (alone / "2.jsonl").rename(alone / "3.jsonl")
    with pytest.raises(ConfigError, match=r"missing .*\(2.jsonl\); .*, or add --append if the new input is to join"):
        prepare_feedback(FeedbackRequest([str(alone)]), str(tmp_path / "other"))


def test_what_is_there_already_may_be_all_that_the_new_input_holds(output, tmp_path):
    manifest = append(output, write_folder(tmp_path / "again", [hh_record(number) for number in range(3)]))
    assert (manifest.rows, manifest.num_parts, manifest.stats.rejected) == (4, 3, {"duplicate": 3})


def test_the_command(output, second, capsys):
    words = ["--input", str(second), "--output", str(output)]
    with pytest.raises(ConfigError, match="give only one"):
        main([*words, "--append", "--restart"])
    assert main([*words, "--append"]) == 0
    assert "6 comparisons" in capsys.readouterr().out


def test_a_restart_forgets_the_keys_of_before(output, second):
    request = FeedbackRequest([str(second)], shard_bytes=1)
    manifest = prepare_feedback(request, str(output), restart=True)
    assert manifest.rows == 3
    assert len(list((output / "keys").iterdir())) == 2
    assert read_feedback_manifest(str(output)) == manifest
