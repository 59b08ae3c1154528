"""A feedback corpus on disk: its files, its rows, what is left out, and what is refused."""

import gzip
import json
from collections import Counter

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feedback_files import bytes_of, hh_record, rejected_in, write_folder, write_lines

from jobs.prepare_feedback import main
from phf_ray.corpus.layout import is_scored_corpus
from phf_ray.errors import ConfigError, DataError
from phf_ray.feedback import is_feedback_corpus, read_feedback, read_feedback_manifest
from phf_ray.feedback.job import prepare_feedback, run_feedback_here
from phf_ray.feedback.plan import FeedbackRequest
from phf_ray.generation.chat.prompts import ChatPrompt, InstructionPrompt, Message


def prepare(tmp_path, source, *, name="out", restart=False, **settings):
    output = tmp_path / name
    manifest = prepare_feedback(FeedbackRequest([str(source)], **settings), str(output), restart=restart)
    return output, manifest


def test_a_corpus_of_comparisons(tmp_path):
    source = write_folder(tmp_path / "in", [hh_record(number) for number in range(30)], each=10)
    output, manifest = prepare(tmp_path, source, shard_bytes=1)
    assert manifest.num_parts == 3
    assert (manifest.kind, manifest.format, manifest.form.prompts, manifest.rows) == (
        "comparisons",
        "hh",
        "messages",
        30,
    )
    assert manifest == read_feedback_manifest(str(output))
    rows = list(read_feedback(str(output)))
    assert [row.prompt for row in rows] == [
        ChatPrompt((Message("user", f"Question {number}"),)) for number in range(30)
    ]
    assert [(row.better, row.worse) for row in rows] == [(f"Good {number}", f"Bad {number}") for number in range(30)]
    assert manifest.stats.preferences == Counter(row.verdict for row in rows)
    assert set(manifest.stats.preferences) == {"first", "second"}
    assert {path.name for path in output.iterdir()} - {f"part-{part:05d}.parquet" for part in range(3)} == {
        "plan.json", "manifest.json", "README.md", "keys", "_SUCCESS",
    }  # fmt: skip


def test_datasets_reads_it_without_the_rejected_records(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    source = write_lines(tmp_path / "hh.jsonl", [hh_record(1), hh_record(1), hh_record(2)])
    output, _ = prepare(tmp_path, source)
    data = datasets.load_dataset(str(output), split="train", cache_dir=str(tmp_path / "cache"))
    assert data.column_names == ["id", "messages", "output_1", "output_2", "preference", "annotator", "meta"]
    assert data["messages"][1] == [{"role": "user", "content": "Question 2"}]
    assert data.num_rows == 2


def test_it_is_told_from_a_scored_corpus(tmp_path):
    output, _ = prepare(tmp_path, write_lines(tmp_path / "hh.jsonl", [hh_record(1)]))
    assert is_feedback_corpus(str(output))
    assert not is_scored_corpus(str(output))
    (output / "manifest.json").unlink()  # only begun
    assert is_feedback_corpus(str(output))
    assert not is_scored_corpus(str(output))
    assert not is_feedback_corpus(str(tmp_path))


def test_of_equal_records_in_any_shards_the_first_is_kept(tmp_path):
    numbers = [0, 1, 0, 2, 1, 3, 0]
    records = [{**hh_record(number), "index": index} for index, number in enumerate(numbers)]
    source = write_folder(tmp_path / "in", records)
    for shard_bytes, num_parts in ((1, 3), (None, 1)):
        output, manifest = prepare(tmp_path, source, name=f"out-{shard_bytes}", shard_bytes=shard_bytes)
        assert manifest.num_parts == num_parts
        assert [json.loads(row.meta)["index"] for row in read_feedback(str(output))] == [0, 1, 3, 5]
        assert rejected_in(output) == [(f"{index // 3}.jsonl", index % 3, "duplicate") for index in (2, 4, 6)]
        assert manifest.stats.rejected == {"duplicate": 3}


def test_rejected_records_are_named_and_counted(tmp_path):
    good = {"prompt": "a", "chosen": "b", "rejected": "c"}
    lines = [
        json.dumps(good),
        "{torn",
        json.dumps({**good, "rejected": "b"}),
        json.dumps({**good, "rejected": ""}),
        json.dumps({"prompt": "a", "completion": "b"}),
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    output, manifest = prepare(tmp_path, tmp_path / "in.jsonl")
    assert rejected_in(output) == [
        ("in.jsonl", 1, "bad_json"), ("in.jsonl", 2, "equal_answers"), ("in.jsonl", 3, "empty_answer"),
        ("in.jsonl", 4, "other_form"),
    ]  # fmt: skip
    assert manifest.rows + manifest.stats.rejected.total() == len(lines)


def test_arrays_tables_and_compressed_lines_are_read_alike(tmp_path):
    records = [
        {"instruction": f"Do {number}", "input": "it" * number, "output_1": "a", "output_2": "b", "preference": 2}
        for number in range(5)
    ]
    (tmp_path / "a.json").write_text(json.dumps(records, indent=1))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, records)).encode()))
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "c.parquet")
    found = []
    for name in ("a.json", "b.jsonl.gz", "c.parquet"):
        output, manifest = prepare(tmp_path, tmp_path / name, name=f"out-{name}")
        assert manifest.form.schema.names[1:4] == ["prompt", "instruction", "input"]
        found.append([(row.prompt, row.preference) for row in read_feedback(str(output))])
    assert found[0] == found[1] == found[2]
    assert found[0][2] == (InstructionPrompt("Do 2", "itit"), 2.0)
    assert pq.read_table(tmp_path / "out-a.json" / "part-00000.parquet")["prompt"].to_pylist()[:2] == [
        "Do 0",
        "Do 1\n\nit",
    ]


@pytest.mark.parametrize(("to", "column"), [("kto", "label"), ("reward-conditioning", "control"), ("sft", None)])
def test_a_feedback_corpus_is_input_of_another(tmp_path, to, column):
    pairs = [{"instruction": "a", "output_1": "x", "output_2": f"y{number}", "preference": 1} for number in range(3)]
    pairs.append({**pairs[0], "preference": 1.5})
    first, _ = prepare(tmp_path, write_folder(tmp_path / "in", pairs, each=2), name="pairs", shard_bytes=1)
    output, manifest = prepare(tmp_path, first, to=to)
    rows = list(read_feedback(str(output)))
    assert (manifest.kind, manifest.to, manifest.form.prompts) == ("examples", to, "instruction")
    expected = [("x", True, "good"), ("y0", False, "bad")] if column else [("x", None, None)]
    assert [row.completion for row in rows][: len(expected)] == [one[0] for one in expected]
    if column:
        values = [getattr(row, column) for row in rows]
        assert values[:2] == ([True, False] if column == "label" else ["good", "bad"])
        assert dict(manifest.stats.marks) == (
            {"label_true": 3, "label_false": 3} if column == "label" else {"control_good": 3, "control_bad": 3}
        )
        assert manifest.stats.rejected == {"tie": 1}
    else:
        assert manifest.stats.rejected == {"tie": 1, "duplicate": 2}
    assert json.loads(rows[0].meta)["meta"]["source"] == "0.jsonl"


@pytest.mark.parametrize(
    ("records", "settings", "message"),
    [
        (
            [{"question": "a", "reply": "b"}],
            {},
            r"in.jsonl: no format has the columns 'question', 'reply'; .*hh: chosen",
        ),
        ([{"prompt": "a", "completion": "b"}], {"format": "hh"}, r"--format hh does not have .*'prompt', 'completion'"),
        ([{"prompt": "a", "completion": "b"}], {"to": "kto"}, r"--to kto makes examples of comparisons, and the input"),
        ([{"prompt": "a", "completion": "b"}], {"as_text": True}, r"--as-text keeps dialogues .* format trl"),
        ([], {}, r"has no records \(1 files were looked into\)"),
        ([hh_record(1)], {"limit": 0}, "--limit 0 reads nothing"),
        ([hh_record(1)], {"format": "csv"}, "--format csv is unknown; give one of auto, fields, plain"),
        ([hh_record(1)], {"pairs": "some"}, "--pairs some is unknown; give one of all, best"),
        ([hh_record(1)], {"to": "dpo"}, "--to dpo is unknown; give one of sft"),
    ],
)
def test_what_can_not_be_prepared_is_refused_and_nothing_is_written(tmp_path, records, settings, message):
    source = write_lines(tmp_path / "in.jsonl", records)
    with pytest.raises(ConfigError, match=message):
        prepare(tmp_path, source, **settings)
    assert not (tmp_path / "out").exists()


def test_text_files_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(ConfigError, match=r"a.txt is text; give JSON"):
        prepare(tmp_path, tmp_path / "a.txt")


def test_files_of_two_formats_are_refused(tmp_path):
    write_lines(tmp_path / "in" / "a.jsonl", [hh_record(1)])
    write_lines(tmp_path / "in" / "b.jsonl", [{"instruction": "a", "output": "b"}])
    with pytest.raises(ConfigError, match=r"a.jsonl is hh \(comparisons with columns id, messages.*b.jsonl is alpaca"):
        prepare(tmp_path, tmp_path / "in")


def test_records_that_all_fail_are_an_error_with_the_reasons(tmp_path):
    source = write_lines(tmp_path / "in.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "b"}] * 3)
    with pytest.raises(DataError, match=r"none of the 3 records .*equal_answers: 3.*in.jsonl, record 0"):
        prepare(tmp_path, source)


def test_one_odd_record_at_the_beginning_decides_nothing(tmp_path):
    odd = {"chosen": "", "rejected": "nothing"}
    output, manifest = prepare(tmp_path, write_lines(tmp_path / "in.jsonl", [odd, *map(hh_record, range(3))]))
    assert (manifest.format, manifest.rows) == ("hh", 3)
    assert rejected_in(output) == [("in.jsonl", 0, "no_prompt")]


def test_another_configuration_or_input_is_refused_and_restart_begins_again(tmp_path):
    source = write_lines(tmp_path / "in" / "a.jsonl", [hh_record(1)])
    output, _ = prepare(tmp_path, source.parent)
    before = bytes_of(output)
    with pytest.raises(ConfigError, match="--as-text was False, is True; give another --output, or --restart"):
        prepare(tmp_path, source.parent, as_text=True)
    write_lines(tmp_path / "in" / "b.jsonl", [hh_record(2)])
    with pytest.raises(ConfigError, match=r"1 input file\(s\) were added since the job began \(b.jsonl\)"):
        prepare(tmp_path, source.parent)
    write_lines(source, [hh_record(3), hh_record(4)])
    (tmp_path / "in" / "b.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"1 input file\(s\) changed since the job began \(a.jsonl\)"):
        prepare(tmp_path, source.parent)
    assert bytes_of(output) == before
    _, manifest = prepare(tmp_path, source.parent, as_text=True, restart=True)
    assert (manifest.rows, manifest.form.prompts) == (2, "text")


def test_files_of_others_are_left_alone(tmp_path):
    source = write_lines(tmp_path / "in.jsonl", [hh_record(1)])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "plan.json").write_text('{"identities": [], "shards": []}')  # a scored corpus
    with pytest.raises(ConfigError, match="is not empty and has no plan of this job"):
        prepare(tmp_path, source, restart=True)
    with pytest.raises(ConfigError, match="would be read as input"):
        prepare(tmp_path, tmp_path, name="out2")


def test_an_unfinished_corpus_is_not_read(tmp_path):
    output, _ = prepare(tmp_path, write_lines(tmp_path / "in.jsonl", [hh_record(1)]))
    (output / "part-00001.parquet").write_bytes((output / "part-00000.parquet").read_bytes())
    with pytest.raises(DataError, match=r"has 2 parts, but its manifest.json says 1"):
        list(read_feedback(str(output)))
    (output / "_SUCCESS").unlink()
    with pytest.raises(DataError, match="is not finished"):
        read_feedback_manifest(str(output))
    prepare(tmp_path, tmp_path / "in.jsonl")  # the foreign part is removed
    assert len(list(read_feedback(str(output)))) == 1


def test_memory_does_not_grow_with_a_shard(tmp_path):
    """Rows are written in groups, none of which holds all of a shard."""
    source = write_lines(tmp_path / "in.jsonl", [hh_record(number) for number in range(2500)])
    output, _ = prepare(tmp_path, source, shard_bytes=1 << 30)
    assert pq.ParquetFile(output / "part-00000.parquet").num_row_groups == 3


def test_the_limit_counts_records_of_the_input(tmp_path):
    source = write_lines(tmp_path / "in.jsonl", [hh_record(0), hh_record(0), hh_record(1), hh_record(2)])
    _, manifest = prepare(tmp_path, source, limit=3)
    assert (manifest.rows, manifest.stats.rejected) == (2, {"duplicate": 1})


def test_the_command_says_what_it_took(tmp_path, capsys):
    source = write_lines(tmp_path / "in.jsonl", [hh_record(0), hh_record(0), hh_record(1)])
    words = ["--input", str(source), "--output", str(tmp_path / "out")]
    assert main([*words, "--dry-run"]) == 0
    assert "format hh (comparisons with columns id, messages, output_1" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "2 comparisons with columns" in said
    assert "1 records rejected: duplicate (listed in " in said


def test_results_may_come_in_any_order(tmp_path):
    """As on Ray: the same files as one shard after the other."""
    source = write_folder(tmp_path / "in", [hh_record(number % 7) for number in range(12)])

    def backwards(work, rows):
        return run_feedback_here(work, list(reversed(rows)))

    request = FeedbackRequest([str(source)], shard_bytes=1)
    prepare_feedback(request, str(tmp_path / "a"))
    prepare_feedback(request, str(tmp_path / "b"), runner=backwards)
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")
    assert "part-00003.parquet" in bytes_of(tmp_path / "a")


def test_in_an_object_store_as_on_a_disk(tmp_path, s3):
    records = [hh_record(number % 4) for number in range(6)]
    source = write_folder(tmp_path / "in", records)
    for index, path in enumerate(sorted(source.iterdir())):
        s3[f"bucket/in/{index}.jsonl"] = path.read_bytes()
    request = FeedbackRequest(["s3://bucket/in"], shard_bytes=1)
    manifest = prepare_feedback(request, "s3://bucket/out")
    assert {name for name in s3 if "/_tmp/" in name} == set()
    assert {"bucket/out/_SUCCESS", "bucket/out/part-00001.parquet"} <= {*s3}
    rows = list(read_feedback("s3://bucket/out"))
    assert len(rows) == manifest.rows == 4
    _, on_disk = prepare(tmp_path, source, shard_bytes=1)
    assert on_disk.fingerprint == manifest.fingerprint
    assert prepare_feedback(request, "s3://bucket/out") == manifest
