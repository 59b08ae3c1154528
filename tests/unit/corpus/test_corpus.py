"""The scored corpus on disk."""

import json
import math
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phf_ray.corpus.layout import is_scored_corpus, part_name
from phf_ray.corpus.reader import list_parts, read_corpus, read_corpus_manifest
from phf_ray.corpus.stored import open_corpora
from phf_ray.corpus.tables import read_rows
from phf_ray.corpus.writer import PartWriter, finish_corpus
from phf_ray.errors import ConfigError, DataError, IncompleteError
from phf_ray.measures.histogram import Histogram
from phf_ray.records import Rejected, ScorerIdentity

PEP8 = ScorerIdentity("pep8", "PEP8Scorer", "violations per character", {"pycodestyle": "2.15.0"})
PII = ScorerIdentity("pii", "PIIScorer", "violations per character")


def write_part(folder, number, documents, *, rejected=(), scorers=("pep8",)):
    """`documents`: (id, texts, scores of the first scorer); further scorers have score 1 everywhere."""
    path = f"{folder}/{part_name(number)}"
    writer = PartWriter(
        path, rejects=f"{folder}/rejected/{part_name(number)}", scorers=scorers, footer={"shard": number}
    )
    for identifier, texts, scores in documents:
        errors = [None if score is not None else "timeout: nothing after 60 s" for score in scores]
        others = {name: ([1.0] * len(texts), [None] * len(texts)) for name in scorers[1:]}
        writer.add(identifier, texts, scores={scorers[0]: (scores, errors), **others}, meta='{"source": "a.py"}')
    for entry in rejected:
        writer.reject(entry)
    writer.commit()
    writer.abandon()
    return path


def finish(folder, scorers=(PEP8,), num_parts=1):
    shards = list(range(num_parts))
    return finish_corpus(
        str(folder), shards=shards, scorers=scorers, segmenter="lines", config={"a": 1}, input_fingerprint="f"
    )


def test_what_is_written_is_read_back_in_order_of_parts_and_rows(tmp_path):
    write_part(tmp_path, 1, [("c", ["x"], [1.0])])
    write_part(tmp_path, 0, [("a", ["if x:\n", "  y"], [0.0, 0.5]), ("b", ["z\n", "w"], [None, None])])
    finish(tmp_path, num_parts=2)
    first, second, third = read_corpus(str(tmp_path))
    assert [first.id, second.id, third.id] == ["a", "b", "c"]
    assert first.text == "if x:\n  y"
    assert (first.scores, first.errors, first.avg_score) == ((0.0, 0.5), (None, None), 0.25)
    assert second.scores == (None, None)
    assert second.errors == ("timeout: nothing after 60 s",) * 2
    assert second.avg_score is None


def test_columns_are_those_of_the_format(tmp_path):
    path = write_part(tmp_path, 0, [("a", ["x", "yz"], [None, 0.5])], scorers=("pep8", "pii"))
    schema = pq.read_schema(path)
    assert {name: str(schema.field(name).type) for name in schema.names} == {
        "id": "string",
        "texts": "list<element: string>",
        "scores": "list<element: double>",
        "avg_score": "double",
        "num_sents": "int64",
        "errors": "list<element: string>",
        "scores__pii": "list<element: double>",
        "avg_score__pii": "double",
        "errors__pii": "list<element: string>",
        "meta": "string",
    }
    (row,) = pq.read_table(path).to_pylist()
    assert (row["num_sents"], row["avg_score"], row["avg_score__pii"]) == (2, 0.5, 1.0)


def test_a_part_is_not_there_before_it_is_committed(tmp_path):
    writer = PartWriter(f"{tmp_path}/part-00000.parquet", rejects=f"{tmp_path}/rejected/r", scorers=["pep8"], footer={})
    writer.add("a", ["x"], scores={"pep8": ([0.0], [None])}, meta="{}")
    assert list(tmp_path.glob("part-*")) == []
    writer.abandon()
    assert [path.name for path in tmp_path.rglob("*")] == ["_tmp"]


def test_the_same_documents_make_the_same_bytes(tmp_path):
    documents = [("a", ["x", "y"], [0.25, None])]
    first = write_part(tmp_path / "1", 0, documents)
    second = write_part(tmp_path / "2", 0, documents)
    assert Path(first).read_bytes() == Path(second).read_bytes()


def test_the_manifest_adds_up_the_parts(tmp_path):
    gone = Rejected("b.py", 0, "not_utf8", "byte 3")
    write_part(tmp_path, 0, [("a", ["xx", "y"], [0.0, None])], rejected=[gone], scorers=("pep8", "pii"))
    write_part(tmp_path, 1, [("c", ["z"], [0.5])], rejected=[gone], scorers=("pep8", "pii"))
    finish(tmp_path, scorers=(PEP8, PII), num_parts=2)
    manifest = read_corpus_manifest(str(tmp_path))
    assert (manifest.documents, manifest.segments, manifest.characters, manifest.num_parts) == (2, 3, 4, 2)
    assert manifest.rejected == {"not_utf8": 2}
    assert manifest.scorer_stats().failed == {"timeout": 1}
    assert manifest.scorer == PEP8.to_json()
    assert [scorer["name"] for scorer in manifest.scorers] == ["pep8", "pii"]
    assert manifest.scorer_stats().segment_histogram.quantile(0.5) == 0.0
    assert manifest.scorer_stats("pii").segment_histogram.quantile(0.5) == 1.0
    assert manifest.scorer_stats("pii").segment_histogram.count == 3
    assert pq.read_table(tmp_path / "rejected" / "part-00000.parquet").to_pylist() == [
        {"source": "b.py", "record": 0, "reason": "not_utf8", "detail": "byte 3"}
    ]
    with pytest.raises(ConfigError, match="it has pep8, pii"):
        manifest.scorer_stats("toxicity")


def test_the_fingerprint_is_of_content(tmp_path):
    def fingerprint(name, document):
        write_part(tmp_path / name, 0, [document])
        return finish(tmp_path / name).fingerprint

    same = fingerprint("1", ("a", ["x", "y"], [0.0, 0.5]))
    assert fingerprint("2", ("a", ["x", "y"], [0.0, 0.5])) == same
    others = [("b", ["x", "y"], [0.0, 0.5]), ("a", ["xy", ""], [0.0, 0.5]), ("a", ["x", "y"], [0.0, None])]
    assert len({same, *(fingerprint(f"o{index}", other) for index, other in enumerate(others))}) == 4


def test_datasets_reads_the_folder_without_the_rejects(tmp_path):
    write_part(tmp_path, 0, [("a", ["x"], [0.5])], rejected=[Rejected("b.py", 0, "empty", "")])
    finish(tmp_path)
    by_card = datasets.load_dataset(str(tmp_path), cache_dir=str(tmp_path / "cache"))
    assert by_card["train"][0]["texts"] == ["x"]
    assert by_card.num_rows == {"train": 1}
    by_files = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "part-*.parquet"), cache_dir=str(tmp_path / "cache")
    )
    assert by_files["train"]["scores"][0] == [0.5]


def test_an_unfinished_corpus_is_refused(tmp_path):
    write_part(tmp_path, 0, [("a", ["x"], [0.5])])
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(DataError, match=r"run its jobs\.score_corpus command again"):
        list_parts(str(tmp_path))
    with pytest.raises(DataError, match=r"jobs\.score_corpus"):
        list_parts(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("name", ["manifest.json", "plan.json"])
@pytest.mark.parametrize("content", [b'{"name": "app", "version": 2}', b'["a"]', b"no JSON", b"", b"[" * 100_000])
def test_a_manifest_or_plan_of_somebody_else_makes_no_scored_corpus(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert not is_scored_corpus(str(tmp_path))
    pq.write_table(pa.table({"texts": [["a"]], "scores": [[0.5]]}), tmp_path / "x.parquet")
    assert not is_scored_corpus(str(tmp_path))
    assert list_parts(str(tmp_path)) == [str(tmp_path / "x.parquet")]
    assert open_corpora([str(tmp_path)])[0].manifest.documents == 1
    with pytest.raises(DataError, match=r"has no manifest\.json of jobs\.score_corpus"):
        read_corpus_manifest(str(tmp_path))


def test_ours_is_known_by_its_content_and_where_that_is_damaged_by_its_parts(tmp_path):
    path = write_part(tmp_path, 0, [("a", ["x"], [0.5])])
    finish(tmp_path)
    whole = (tmp_path / "manifest.json").read_bytes()
    for content in (whole, whole[: len(whole) // 2], b"", b"{}"):
        (tmp_path / "manifest.json").write_bytes(content)
        assert is_scored_corpus(str(tmp_path))
        if content != whole:
            with pytest.raises(DataError, match=r"manifest\.json is not a manifest of a scored corpus.*score it again"):
                read_corpus_manifest(str(tmp_path))
    (tmp_path / "manifest.json").write_bytes(whole)
    Path(path).unlink()
    assert is_scored_corpus(str(tmp_path))


def test_a_part_that_is_another_s_or_torn_is_not_merged(tmp_path):
    path = Path(write_part(tmp_path, 1, [("a", ["x"], [0.5])]))
    for content in (path.read_bytes(), path.read_bytes()[:-9]):
        (tmp_path / "part-00000.parquet").write_bytes(content)
        with pytest.raises(IncompleteError, match=r"part-00000\.parquet is damaged or from another job"):
            finish(tmp_path)
        assert not (tmp_path / "_SUCCESS").exists()


def test_a_finished_corpus_with_a_part_too_many_or_too_few_is_refused(tmp_path):
    path = Path(write_part(tmp_path, 0, [("a", ["x"], [0.5])]))
    finish(tmp_path)
    (tmp_path / "part-00099.parquet").write_bytes(path.read_bytes())
    with pytest.raises(DataError, match=r"has 2 parts, but its manifest\.json says 1"):
        list(read_corpus(str(tmp_path)))
    for part in tmp_path.glob("part-*"):
        part.unlink()
    with pytest.raises(DataError, match=r"has 0 parts, but its manifest\.json says 1"):
        list_parts(str(tmp_path))


def test_parts_come_by_number(tmp_path):
    for number in (99999, 100000, 2):
        write_part(tmp_path, number, [("a", ["x"], [0.5])])
    assert [path.rsplit("-")[-1] for path in list_parts(str(tmp_path))] == [
        "00002.parquet",
        "99999.parquet",
        "100000.parquet",
    ]


def test_a_published_data_set_is_read_as_it_is(tmp_path):
    rows = {
        "texts": [["Hi. ", "You."], ["x"]],
        "meta": [{"pile_set_name": "Web"}, {"pile_set_name": "Books"}],
        "scores": [[0.25, math.nan], [0.75]],
        "avg_score": [0.25, 0.75],
        "num_sents": [2, 1],
    }
    folder = tmp_path / "data"
    folder.mkdir()
    pq.write_table(pa.table(rows), folder / "train-00000-of-00001.parquet")
    first, second = read_corpus(str(tmp_path))
    assert (first.text, first.scores) == ("Hi. You.", (0.25, None))
    assert first.errors[0] is None
    assert "no score" in first.errors[1]
    assert json.loads(first.meta) == {"pile_set_name": "Web"}
    assert first.id != second.id
    manifest = open_corpora([str(tmp_path)])[0].manifest
    assert (manifest.documents, manifest.segments, manifest.scorer) == (2, 3, {})
    assert manifest.scorer_stats().document_histogram.quantile(1.0) == 0.75


def test_a_published_data_set_with_lines_has_no_meta(tmp_path):
    rows = {"texts": [["a\n", "b"]], "org_text": ["a\nb"], "scores": [[0.0, 1.0]], "avg_score": [0.5], "num_lines": [2]}
    pq.write_table(pa.table(rows), tmp_path / "x.parquet")
    (document,) = read_corpus(str(tmp_path / "x.parquet"))
    assert (document.texts, document.scores, document.meta) == (("a\n", "b"), (0.0, 1.0), "{}")


def test_a_data_set_saved_to_disk_is_read(tmp_path):
    saved = datasets.Dataset.from_dict({"texts": [["a", "b"]], "scores": [[0.0, 1.0]]})
    datasets.DatasetDict({"train": saved, "test": saved}).save_to_disk(str(tmp_path / "set"))
    assert [document.scores for document in read_corpus(str(tmp_path / "set"))] == [(0.0, 1.0)]


def test_a_table_without_scores_says_what_is_missing(tmp_path):
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"columns: text.*jobs\.score_corpus"):
        list(read_corpus(str(tmp_path)))


def test_rows_of_a_range_come_from_any_row_group(tmp_path):
    pq.write_table(pa.table({"n": list(range(1000))}), tmp_path / "x.parquet", row_group_size=100)
    rows = read_rows(str(tmp_path / "x.parquet"), begin=150, end=730)
    assert [row["n"] for row in rows] == list(range(150, 730))


scores_lists = st.lists(st.floats(-1e6, 1e6).map(lambda x: 0.0 if abs(x) < 1e-200 else x), min_size=1, max_size=50)


@given(scores_lists, st.floats(0, 1))
def test_a_quantile_is_at_most_one_percent_above_the_exact_one_and_never_below(scores, fraction):
    histogram = Histogram()
    histogram.add(np.array(scores))
    rank = max(1, math.ceil(fraction * len(scores) - 1e-9))
    exact = sorted(scores)[rank - 1]
    found = histogram.quantile(fraction)
    assert exact - 1e-9 * abs(exact) <= found <= exact + 0.0101 * abs(exact)


@given(scores_lists, st.integers(0, 50))
def test_histograms_of_parts_add_up_to_that_of_the_whole(scores, cut):
    whole, left, right = Histogram(), Histogram(), Histogram()
    whole.add(np.array(scores))
    left.add(np.array(scores[:cut]))
    right.add(np.array(scores[cut:]))
    merged = Histogram.from_json(json.loads(json.dumps(left.to_json())))
    merged.merge(right)
    assert merged.zero == whole.zero
    assert {i: count for i, (count, _) in merged.positive.items()} == {i: c for i, (c, _) in whole.positive.items()}
    assert {i: count for i, (count, _) in merged.negative.items()} == {i: c for i, (c, _) in whole.negative.items()}
    assert merged.mean == pytest.approx(np.mean(scores), rel=1e-9, abs=1e-6)
    assert (merged.min, merged.max, merged.count) == (min(scores), max(scores), len(scores))


def test_zero_is_not_rounded_and_sides_have_exact_means():
    histogram = Histogram()
    histogram.add(np.array([0.0, 0.0, 0.0, 0.1, 0.3]))
    assert histogram.quantile(0.6) == 0.0
    assert histogram.quantile(1.0) == 0.3
    below, above = histogram.split(histogram.quantile(0.5))
    assert (below.count, below.mean, above.count) == (3, 0.0, 2)
    assert above.mean == pytest.approx(0.2)
    everything, nothing = histogram.split(histogram.quantile(1.0))
    assert (everything.count, nothing.count, nothing.mean) == (5, 0, None)


def test_a_corpus_without_scores_has_no_quantile(tmp_path):
    write_part(tmp_path, 0, [("a", ["x"], [None])])
    with pytest.raises(DataError, match=r"manifest\.json"):
        finish(tmp_path).scorer_stats().segment_histogram.quantile(0.5)
    with pytest.raises(ConfigError, match="between 0 and 1"):
        Histogram().quantile(50)


def test_an_object_store_gets_whole_files_only():
    folder = "memory://corpus-test"
    write_part(folder, 0, [("a", ["x"], [0.5])])
    finish(folder)
    assert [document.id for document in read_corpus(folder)] == ["a"]
    assert read_corpus_manifest(folder).documents == 1


def test_rejects_of_an_earlier_try_do_not_outlive_it(tmp_path):
    rejects = tmp_path / "rejected" / "part-00000.parquet"
    write_part(tmp_path, 0, [("a", ["x"], [0.5])], rejected=[Rejected("b.py", 0, "unreadable", "PermissionError")])
    assert rejects.exists()
    # A second stage has none of its own.
    writer = PartWriter(f"{tmp_path}/part-00000.parquet", rejects=None, scorers=["pep8"], footer={})
    writer.commit()
    assert rejects.exists()
    write_part(tmp_path, 0, [("a", ["x"], [0.5]), ("b", ["y"], [0.0])])
    assert not rejects.exists()
