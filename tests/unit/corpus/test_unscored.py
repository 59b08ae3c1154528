"""Data sets without scores: which ones they are, what is read of them, and who refuses them."""

import gzip
import json
import os

import datasets
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import zstandard

from phf_ray.config import parse_config
from phf_ray.corpus import streams, unscored
from phf_ray.corpus.data_sets import check_data_sets, has_scores, open_data_sets, read_data_set
from phf_ray.corpus.layout import document_id
from phf_ray.errors import ConfigError, DataError
from phf_ray.records import NEVER_SCORED
from phf_ray.storage import hashing

RWR = {"objective": {"name": "RWR"}}


def configured(**dataset):
    return parse_config({"dataset": dataset})


def texts_of(path, **dataset):
    """Texts of a data set, in order; fails if a record is rejected."""
    rejected = []
    documents = list(read_data_set(configured(**dataset), str(path), reject=rejected.append))
    assert rejected == []
    assert all((one.scores, one.errors) == ((None,), (NEVER_SCORED,)) for one in documents)
    return [one.text for one in documents]


@pytest.fixture
def folder(tmp_path):
    """Text, compressed JSON lines and a table."""
    folder = tmp_path / "texts"
    (folder / "deeper").mkdir(parents=True)
    (folder / "a.txt").write_text("One.\r\n\n  Two.\n")
    lines = [json.dumps({"text": text, "n": 1}) for text in ("Three.", "Four.")]
    (folder / "b.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress("\n".join(lines).encode()))
    pq.write_table(pa.table({"content": ["Five.", "Six."]}), folder / "deeper" / "c.parquet")
    return folder


def test_text_lines_and_tables_are_documents_with_the_ids_that_scoring_gives(folder):
    assert texts_of(folder) == ["One.\r\n\n  Two.\n", "Three.", "Four.", "Five.", "Six."]
    documents = read_data_set(configured(), str(folder), reject=pytest.fail)
    assert next(documents).id == document_id("a.txt", 0, "One.\r\n\n  Two.\n")


def test_a_line_of_a_text_file_is_a_document_where_the_user_says_so(folder):
    assert texts_of(folder, text_unit="line") == ["One.", "  Two.", "Three.", "Four.", "Five.", "Six."]


def test_a_glob_a_file_and_what_datasets_saved_are_data_sets(folder, tmp_path):
    assert texts_of(folder / "*.txt") == texts_of(folder / "a.txt") == ["One.\r\n\n  Two.\n"]
    splits = {name: datasets.Dataset.from_dict({"text": [name]}) for name in ("train", "test")}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")
    assert texts_of(tmp_path / "saved") == ["train"]


def test_the_user_can_name_the_column_and_a_missing_one_is_refused_with_those_there_are(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"body": "x", "title": "y"}\n')
    assert texts_of(tmp_path, text_column="body") == ["x"]
    with pytest.raises(ConfigError, match=r"set dataset\.text_column to one of 'body', 'title'"):
        texts_of(tmp_path)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_parts_of_a_long_file_hold_every_line_once(tmp_path, monkeypatch, suffix):
    lines = [f"line {number}" for number in range(400)]
    content = "\n\n".join(lines).encode()
    (tmp_path / f"long.txt{suffix}").write_bytes(gzip.compress(content) if suffix else content)
    monkeypatch.setattr("phf_ray.corpus.streams.CHUNK_BYTES", 512)
    monkeypatch.setattr(unscored, "_PART_BYTES", 1024)
    [corpus] = open_data_sets(configured(text_unit="line"), [str(tmp_path)])
    documents = [one for part in corpus.parts for one in part.documents(pytest.fail)]
    assert [one.text for one in documents] == lines
    assert len(corpus.parts) > 2
    assert len({one.id for one in documents}) == 400
    assert len({part.label for part in corpus.parts}) == len(corpus.parts)


def test_a_text_that_is_cut_off_gives_its_whole_lines_and_a_reason(tmp_path):
    content = gzip.compress(
        "\n".join(f"line {number} {hashing.json_fingerprint(number)}" for number in range(999)).encode()
    )
    (tmp_path / "cut.txt.gz").write_bytes(content[: len(content) // 2])
    rejected = []
    documents = list(read_data_set(configured(text_unit="line"), str(tmp_path), reject=rejected.append))
    assert [one.text for one in documents] == [
        f"line {number} {hashing.json_fingerprint(number)}" for number in range(len(documents))
    ]
    assert len(documents) > 100
    assert [one.reason for one in rejected] == ["unreadable"]


def test_where_a_data_set_was_cut_is_remembered_until_a_file_changes(folder, tmp_path, monkeypatch):
    memory, calls, real = str(tmp_path / "memory"), [], unscored.plan_shards
    monkeypatch.setattr(unscored, "plan_shards", lambda *args, **kwargs: calls.append(1) or real(*args, **kwargs))
    opened = [open_data_sets(configured(), [str(folder)], memory=memory, remembers=True) for _ in range(2)]
    assert opened[0] == opened[1]
    assert len(calls) == 1
    (folder / "a.txt").write_text("Other.")
    [changed] = open_data_sets(configured(), [str(folder)], memory=memory, remembers=True)
    assert len(calls) == 2
    assert changed.manifest.fingerprint != opened[0][0].manifest.fingerprint


def test_no_file_is_planned_behind_those_that_hold_the_tokens_of_the_run(tmp_path):
    for number in range(4):
        (tmp_path / f"{number}.txt").write_text("word " * 200)

    def opened(**training):
        return open_data_sets(parse_config({"training": training}), [str(tmp_path)])[0]

    def names(corpus):
        return [file.path for part in corpus.parts for file, _ in part.pieces]

    assert names(opened(num_tokens=150)) == ["0.txt", "1.txt"]
    assert names(opened(num_tokens=10_000)) == [f"{number}.txt" for number in range(4)]
    # Runs that read all of it share their blocks.
    fingerprints = [opened(num_tokens=number).manifest.fingerprint for number in (150, 10_000, 20_000)]
    assert fingerprints[0] != fingerprints[1] == fingerprints[2]


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet", "arrow"])
@pytest.mark.parametrize("is_cut", [False, True])
def test_the_text_alone_counts_as_text_of_the_run(tmp_path, monkeypatch, suffix, is_cut):
    """Other columns used to count, so that a run read a small part of the data again and again."""
    for number in range(4):
        rows = [{"text": f"{number}-{row:03} " + "word " * 19, "html": os.urandom(1500).hex()} for row in range(40)]
        path, table = tmp_path / f"{number}.{suffix}", pa.Table.from_pylist(rows)
        if suffix == "jsonl":
            path.write_text("\n".join(map(json.dumps, rows)))
        elif suffix == "json":
            path.write_text(json.dumps(rows))
        elif suffix == "parquet":
            pq.write_table(table, path)
        else:
            pyarrow.feather.write_feather(table, path, compression="uncompressed")
    if is_cut:
        monkeypatch.setattr(unscored, "_PART_BYTES", 10_000)
        monkeypatch.setattr(streams, "CHUNK_BYTES", 1000)
    [corpus] = open_data_sets(parse_config({"training": {"num_tokens": 1000}}), [str(tmp_path / f"*.{suffix}")])
    texts = [one.text for part in corpus.parts for one in part.documents(pytest.fail)]
    # The lengths of texts in tables count as text.
    assert 0.85 * 8000 <= sum(map(len, texts)) < 12_000
    [again] = open_data_sets(parse_config({"training": {"num_tokens": 1000}}), [str(tmp_path / f"*.{suffix}")])
    assert (again.parts, again.manifest.fingerprint) == (corpus.parts, corpus.manifest.fingerprint)


def test_a_data_set_has_scores_if_its_tables_say_so_or_a_job_wrote_it(tmp_path):
    columns = {"scored": {"texts": [["a"]], "scores": [[0.5]]}, "cut": {"texts": [["a"]]}, "rated": {"scores": [[0.5]]}}
    for name, table in columns.items():
        (tmp_path / name).mkdir()
        pq.write_table(pa.table(table), tmp_path / name / "train.parquet")
    assert [has_scores(str(tmp_path / name)) for name in columns] == [True, False, False]
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "plan.json").write_text('{"identities": [], "shards": []}')
    with pytest.raises(DataError, match="is not finished"):
        open_data_sets(configured(), [str(tmp_path / "begun")])


@pytest.mark.parametrize(
    ("values", "named"),
    [
        *(({"objective": {"name": name}}, f"objective.name: {name} ") for name in ("Unlikelihood", "RWR")),
        ({"objective": {"name": "AWR", "fixed_value": 0.0}}, "objective.name: AWR "),
        ({"objective": {"name": "MLE", "mask_above": {"quantile": 0.5}}}, "objective.mask_above "),
        ({"dataset": {"filter_threshold": 0.0}}, "dataset.filter_threshold "),
        (
            {
                "dataset": {"conditional_training_config": {}, "filter_threshold": 1.0},
                "tokenizer": {"special_tokens": ["<|aligned|>", "<|misaligned|>"]},
            },
            "dataset.conditional_training_config and dataset.filter_threshold ",
        ),
    ],
)
def test_who_reads_scores_refuses_text_without_them_by_name_and_says_how_to_score_it(folder, values, named):
    with pytest.raises(ConfigError) as caught:
        check_data_sets(parse_config(values), [str(folder)])
    assert f"data set {folder} has no scores, which {named}need" in str(caught.value)
    assert f"phf score-corpus --task TASK --input {folder} --output DIR" in str(caught.value)


def test_what_does_not_exist_is_said_to_be_missing_and_not_to_lack_scores(tmp_path):
    with pytest.raises(ConfigError, match=r"data set .*/nowhere does not exist"):
        check_data_sets(parse_config(RWR), [str(tmp_path / "nowhere")])
