"""Finding, cutting and reading input."""

import gzip
import hashlib
import itertools
import json
import os
import threading

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from fsspec.implementations.local import LocalFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from phf_ray.corpus import cut as corpus_cut
from phf_ray.corpus import read, streams
from phf_ray.corpus.cells import rows_of
from phf_ray.corpus.columns import check_columns
from phf_ray.corpus.cut import Piece, _cut_lines, plan_shards, shard_bytes
from phf_ray.corpus.find import _input_file, find_files
from phf_ray.corpus.input_records import Segmented
from phf_ray.corpus.layout import document_id
from phf_ray.corpus.read import read_piece
from phf_ray.corpus.reader import list_parts
from phf_ray.corpus.sample import plan_sample
from phf_ray.corpus.splits import HIDDEN_FOLDERS
from phf_ray.corpus.writer import PartWriter, finish_corpus
from phf_ray.errors import ConfigError, DataError
from phf_ray.records import Document, Rejected, ScorerIdentity
from phf_ray.storage.data_set_names import hub_data_set
from phf_ray.storage.files import open_filesystem
from phf_ray.storage.listing import match_files


def read_all(*inputs, shard_bytes=1 << 30, limit=None, **options):
    files = find_files([str(source) for source in inputs]).files
    shards = plan_shards(files, shard_bytes=shard_bytes, limit=limit)
    return [record for shard in shards for piece in shard for record in read_piece(files[piece.file], piece, **options)]


def texts_of(records):
    return [record.text for record in records]


def write_lines(path, records):
    content = "".join(json.dumps(record) + "\n" for record in records).encode()
    if path.suffix == ".gz":
        content = gzip.compress(content)
    if path.suffix == ".zst":
        content = zstandard.ZstdCompressor().compress(content)
    path.write_bytes(content)
    return path


def test_a_folder_is_read_in_order_of_paths(tmp_path):
    for name in ("b.py", "a/z.py", "a/b.py", "c.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    assert texts_of(read_all(tmp_path)) == ["a/b.py", "a/z.py", "b.py", "c.txt"]


def test_other_kinds_of_files_are_left_out_and_counted(tmp_path):
    (tmp_path / "a.py").write_text("x")
    (tmp_path / "b.so").write_text("x")
    (tmp_path / ".hidden.py").write_text("x")
    cache = tmp_path / "__pycache__"
    cache.mkdir()
    (cache / "c.py").write_text("x")
    found = find_files([str(tmp_path)])
    assert [file.path for file in found.files] == ["a.py"]
    assert found.ignored == {".so": 1, "hidden files": 1, HIDDEN_FOLDERS: 1}
    # A glob says what is wanted: any suffix is text.
    assert [file.path for file in find_files([f"{tmp_path}/*.so"]).files] == ["b.so"]


def refuse_to_list(monkeypatch, name):
    listed = LocalFileSystem.ls

    def ls(filesystem, path, detail=False, **options):
        if f"/{name}" in path:
            raise PermissionError(13, "Permission denied", path)
        return listed(filesystem, path, detail=detail, **options)

    monkeypatch.setattr(LocalFileSystem, "ls", ls)


@pytest.mark.parametrize("given", ["", "/**/*.parquet", "/a/*/*.parquet", "/?/b*/*.parquet"])
def test_a_folder_that_can_not_be_listed_is_named_and_not_left_out(tmp_path, monkeypatch, given):
    for folder in ("a/bad", "a/good"):
        (tmp_path / folder).mkdir(parents=True)
        pq.write_table(pa.table({"texts": [["x"]], "scores": [[0.0]]}), tmp_path / folder / "x.parquet")
    refuse_to_list(monkeypatch, "bad")
    for find in (lambda path: find_files([path]), list_parts):
        with pytest.raises(DataError, match=rf"{tmp_path}/a/bad can't be listed: PermissionError.*; make it readable"):
            find(f"{tmp_path}{given}")


def test_folders_that_are_not_taken_need_not_be_listed(tmp_path, monkeypatch):
    for folder in ("good", ".bad", "good/.bad"):
        (tmp_path / folder).mkdir()
        pq.write_table(pa.table({"texts": [["x"]], "scores": [[0.0]]}), tmp_path / folder / "x.parquet")
    refuse_to_list(monkeypatch, ".bad")
    assert [file.path for file in find_files([str(tmp_path)]).files] == ["good/x.parquet"]
    assert list_parts(str(tmp_path)) == [f"{tmp_path}/good/x.parquet"]
    # Nothing in it could match.
    assert [file.path for file in find_files([f"{tmp_path}/g*/*"]).files] == ["good/x.parquet"]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.py", ["a.py", "b.py"]),
        ("?.py", ["a.py", "b.py"]),
        ("[b-z].py", ["b.py"]),
        ("*/*.py", ["x/c.py"]),
        ("**/*.py", ["a.py", "b.py", "x/c.py", "x/y/d.py", "x/y/z/e.py"]),
        ("x/**/*.py", ["x/c.py", "x/y/d.py", "x/y/z/e.py"]),
        ("x/**/z/*.py", ["x/y/z/e.py"]),
        ("*/y/**", ["x/y/d.py", "x/y/z/e.py"]),
        ("*/y/*", ["x/y/d.py"]),
        ("*", ["a.py", "b.py"]),
        ("nothing/*", []),
    ],
)
def test_a_glob_finds_what_that_of_fsspec_finds(tmp_path, pattern, names):
    for name in ("a.py", "b.py", "x/c.py", "x/y/d.py", "x/y/z/e.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    filesystem, path = open_filesystem(f"{tmp_path}/{pattern}")
    found = match_files(filesystem, path)
    assert sorted(found) == [f"{tmp_path}/{name}" for name in names]
    known = filesystem.glob(path, detail=True)
    assert found == {name: entry for name, entry in known.items() if entry["type"] == "file"}


def test_links_to_files_are_taken_and_known_by_what_they_lead_to(tmp_path):
    """As the cache of the Hugging Face hub has them: a snapshot is a folder of links."""
    blob = write_lines(tmp_path / "blob", [{"text": "x"}])
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    link = snapshot / "train.jsonl"
    link.symlink_to("../blob")
    (snapshot / "folder.txt").symlink_to(tmp_path)
    inputs = [str(snapshot), f"{snapshot}/*", str(link)]
    before = [find_files([source]).files for source in inputs]
    assert before[0] == before[1] == before[2]
    assert [(file.path, file.kind, file.size) for file in before[0]] == [
        ("train.jsonl", "lines", len('{"text": "x"}\n'))
    ]
    assert texts_of(read_all(snapshot)) == ["x"]
    os.utime(blob, ns=(0, blob.stat().st_mtime_ns + 1_000_000_000))
    for source, (file,) in zip(inputs, before, strict=True):
        (changed,) = find_files([source]).files
        assert changed.stamp != file.stamp


def test_a_link_that_leads_nowhere_is_left_out_and_counted(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "gone.txt").symlink_to("nowhere")
    (tmp_path / "loop.txt").symlink_to("loop.txt")
    (tmp_path / "below.txt").symlink_to("a.txt/b.txt")
    (tmp_path / "gone.so").symlink_to("nowhere")
    for source, others in ((str(tmp_path), {".so": 1}), (f"{tmp_path}/*.txt", {})):
        found = find_files([source])
        assert [file.path for file in found.files] == ["a.txt"]
        assert found.ignored == {"dangling links": 3, **others}
    assert texts_of(read_all(tmp_path)) == ["x"]
    (tmp_path / "a.txt").unlink()
    with pytest.raises(ConfigError, match=r"only files of other kinds \(3 dangling links, 1 \.so\)"):
        find_files([str(tmp_path)])


def test_an_id_is_the_hash_of_relative_path_record_and_content(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.py").write_text("x = 1\n")
    (document,) = read_all(tmp_path)
    assert document.id == hashlib.blake2b(b"sub/a.py\x000\x00x = 1\n", digest_size=16).hexdigest()
    assert json.loads(document.meta) == {"source": "sub/a.py"}
    # The same tree elsewhere gives the same ids; a glob has the folder before its first star as root.
    (by_glob,) = read_all(f"{tmp_path}/**/*.py")
    (by_file,) = read_all(tmp_path / "sub" / "a.py")
    assert by_glob.id == document.id
    assert by_file.id != document.id


def test_a_file_named_twice_is_read_once(tmp_path):
    (tmp_path / "a.py").write_text("x")
    assert len(find_files([str(tmp_path), f"{tmp_path}/*.py", str(tmp_path / "a.py")]).files) == 1


def test_a_name_of_two_parts_that_is_no_path_is_a_data_set_of_the_hub(tmp_path, monkeypatch):
    assert hub_data_set("someone/pii-chunk").place == "someone/pii-chunk"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "x").mkdir(parents=True)
    for path in ("data/x", "data", "/data/x", "a/b/c", "s3://a/b", "../x", "a/*.py", "a/b-?.py", "a/[bc].py"):
        assert hub_data_set(path) is None
    with pytest.raises(ConfigError, match="does not exist"):
        find_files(["no/such-thing"])


def test_a_file_of_the_hub_is_known_by_its_hash():
    store, _ = open_filesystem("memory://")
    info = {"name": "/a/b.txt", "size": 3, "type": "file", "blob_id": "0123", "last_commit": None}
    assert _input_file(store, "/a", info, "text").stamp == "0123"


def test_missing_and_useless_input_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="does not exist; give a folder"):
        find_files([str(tmp_path / "nowhere")])
    with pytest.raises(ConfigError, match="no files; give a folder with"):
        find_files([str(tmp_path)])
    (tmp_path / "b.so").write_text("x")
    with pytest.raises(ConfigError, match=r"only files of other kinds \(1 \.so\)"):
        find_files([str(tmp_path)])


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"caf\xe9", "not_utf8"), (b"", "empty"), (b"\xed\xa0\x80", "not_utf8")],
)
def test_a_text_file_that_is_no_text_is_rejected(tmp_path, content, reason):
    (tmp_path / "a.py").write_bytes(content)
    (record,) = read_all(tmp_path)
    assert (record.source, record.record, record.reason) == ("a.py", 0, reason)


@pytest.mark.parametrize("text", ["x", "\0", "a\r\nb\rc\n", "\f\u2028\x85", "\ufeffx", "\u6f22\U0001f600"])
def test_text_is_kept_to_the_character(tmp_path, text):
    (tmp_path / "a.txt").write_bytes(text.encode())
    assert texts_of(read_all(tmp_path)) == [text]


def test_a_giant_document_is_rejected_and_its_neighbours_are_not(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "MAX_DOCUMENT_BYTES", 100)
    write_lines(tmp_path / "a.jsonl", [{"text": "a"}, {"text": "b" * 3_000_000}, {"text": "c"}])
    (tmp_path / "b.txt").write_text("d" * 101)
    first, second, third, fourth = read_all(tmp_path)
    assert (first.text, third.text) == ("a", "c")
    assert (second.reason, second.record, fourth.reason) == ("too_large", 1, "too_large")


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_json_lines_with_bad_ones_among_them(tmp_path, suffix):
    good = [json.dumps({"text": f"t{index}", "id": index, "meta": {"k": 1}}) for index in range(2)]
    lines = [good[0], "{", '"text"', json.dumps({"text": "\ud800"}), "", json.dumps({"body": "x"}), good[1]]
    lines += [json.dumps({"text": 5}), json.dumps({"text": ""}), "[" * 100_000]
    content = "\n".join(lines).encode() + b'\n{"text": "\xff"}'
    path = tmp_path / f"a{suffix}"
    if suffix.endswith("gz"):
        content = gzip.compress(content)
    if suffix.endswith("zst"):
        content = zstandard.ZstdCompressor().compress(content)
    path.write_bytes(content)
    records = read_all(path)
    assert [record.text if isinstance(record, Document) else (record.record, record.reason) for record in records] == [
        "t0",
        (1, "bad_json"),
        (2, "bad_json"),
        (3, "lone_surrogate"),
        (5, "no_text"),
        "t1",
        (7, "not_text"),
        (8, "empty"),
        (9, "bad_json"),
        (10, "not_utf8"),
    ]
    assert json.loads(records[0].meta) == {"id": 0, "meta": {"k": 1}, "source": f"a{suffix}", "record": 0}


def test_a_damaged_archive_gives_what_can_be_read_and_one_reject(tmp_path):
    path = write_lines(tmp_path / "a.jsonl.gz", [{"text": os.urandom(500).hex()} for _ in range(300)])
    whole = texts_of(read_all(path))
    path.write_bytes(path.read_bytes()[:-20_000])
    *before, last = read_all(path)
    assert texts_of(before) == whole[: len(before)]
    assert len(before) > 10
    assert (last.reason, last.record) == ("unreadable", len(before))


def test_a_table_that_is_none_is_rejected(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"not a table")
    assert [(record.source, record.reason) for record in read_all(tmp_path)] == [("a.parquet", "unreadable")]


def test_a_file_that_vanished_stops_the_job_instead_of_being_rejected(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"text": "x"}])
    (file,) = find_files([str(path)]).files
    path.unlink()
    with pytest.raises(DataError, match="was removed after the job began"):
        list(read_piece(file, Piece(0, 1)))


def test_parquet_with_a_cell_that_is_not_utf8(tmp_path):
    cells = pa.array([b"a", b"\xff", b"c"], pa.binary())
    cells = pa.StringArray.from_buffers(3, cells.buffers()[1], cells.buffers()[2])
    pq.write_table(pa.table({"content": cells, "other": [1, 2, 3]}), tmp_path / "a.parquet")
    first, second, third = read_all(tmp_path)
    assert (first.text, second.reason, second.record, third.text) == ("a", "not_utf8", 1, "c")


GIANT = {
    "string": (pa.string(), ["small", "x" * 101, "\u00e9" * 51, None, "y" * 100]),
    "large string": (pa.large_string(), ["x" * 101, "small", "y" * 100, "x" * 102]),
    "dictionary": (pa.dictionary(pa.int8(), pa.string()), ["small", "x" * 101, None, "small", "y" * 100]),
    "strings": (pa.list_(pa.string()), [["a", "b"], None, ["x" * 51, "x" * 50], [], ["y" * 50, "y" * 50], ["x" * 101]]),
}


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@pytest.mark.parametrize(("kind", "cells"), GIANT.values(), ids=GIANT)
def test_a_giant_cell_is_rejected_before_it_becomes_a_string(tmp_path, monkeypatch, kind, cells, suffix):
    path = tmp_path / f"a{suffix}"
    table = pa.table({"text": pa.array(cells, kind), "id": [str(row) for row in range(len(cells))]})
    if suffix == ".parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_stream(path, table.schema) as stream:
            stream.write_table(table)
    made = []

    def watched(batch):
        for row in rows_of(batch):
            made.append(row["text"])
            yield row

    monkeypatch.setattr(read, "rows_of", watched)
    monkeypatch.setattr(streams, "MAX_DOCUMENT_BYTES", 100)
    records = read_all(path)
    sizes = [len("".join(cell or "").encode()) for cell in cells]
    assert [getattr(record, "reason", None) == "too_large" for record in records] == [size > 100 for size in sizes]
    assert made == [cell for cell, size in zip(cells, sizes, strict=True) if size <= 100]
    assert [json.loads(record.meta)["record"] for record in records if not isinstance(record, Rejected)] == [
        row for row, size in enumerate(sizes) if 0 < size <= 100
    ]


def test_the_column_of_text_can_be_named(tmp_path):
    write_lines(tmp_path / "a.jsonl", [{"body": "x", "text": "y"}])
    assert texts_of(read_all(tmp_path)) == ["y"]
    assert texts_of(read_all(tmp_path, text_column="body")) == ["x"]
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "b.parquet")
    files = find_files([str(tmp_path / "b.parquet")]).files
    check_columns(files, text_column="body")
    with pytest.raises(ConfigError, match="set --text-column to one of 'body'"):
        check_columns(files, text_column=None)


def test_a_saved_data_set_is_read(tmp_path):
    saved = datasets.Dataset.from_dict({"text": [f"t{index}" for index in range(50)]})
    saved.save_to_disk(str(tmp_path / "set"), num_shards=3)
    assert texts_of(read_all(tmp_path / "set")) == [f"t{index}" for index in range(50)]
    assert texts_of(read_all(tmp_path / "set", shard_bytes=100, limit=20)) == [f"t{index}" for index in range(20)]


def test_segments_of_a_data_set_are_kept_and_scores_of_an_equal_scorer_reused(tmp_path):
    table = {"texts": [["a\n", "b"], []], "scores": [[0.0, 1.0], []], "errors": [[None, None], []], "id": ["i", "j"]}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    first, second = read_all(tmp_path, reuse={"length": ("scores", "errors")})
    assert isinstance(first, Segmented)
    assert (first.id, first.texts) == ("i", ("a\n", "b"))
    assert first.scores == {"length": ([0.0, 1.0], [None, None])}
    assert second.reason == "empty"


def test_ids_may_be_numbers_and_lone_surrogates_in_metadata_are_escaped(tmp_path):
    texts = {"texts": ["a"]}
    lines = [{"id": 5, **texts}, {"id": 0, **texts}, {"id": "\ud800", **texts}, {"meta": "\ud800", **texts}, texts]
    records = read_all(write_lines(tmp_path / "a.jsonl", lines))
    assert [record.id for record in records[:3]] == ["5", "0", "\\ud800"]
    assert [len(record.id) for record in records[3:]] == [32, 32]
    assert json.loads(records[3].meta) == "\\ud800"


def test_a_file_whose_name_is_not_utf8_is_read(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    (tmp_path / f"{name}.py").write_text("x = 1\n")
    (tmp_path / f"{name}.txt").write_bytes(b"\xff")
    document, rejected = read_all(tmp_path)
    assert json.loads(document.meta) == {"source": "caf\\udce9.py"}
    assert document.id == document_id("caf\\udce9.py", 0, "x = 1\n")
    assert (rejected.source, rejected.reason) == ("caf\\udce9.txt", "not_utf8")


def test_a_scored_corpus_is_an_input(tmp_path):
    writer = PartWriter(
        f"{tmp_path}/part-00000.parquet", rejects=f"{tmp_path}/rejected/r.parquet", scorers=["a"], footer={"shard": "s"}
    )
    writer.add("i", ["x"], scores={"a": ([0.0], [None])}, meta='{"k": 1}')
    writer.reject(Rejected("s", 0, "empty", ""))
    writer.commit()
    identity = ScorerIdentity("a", "A", "u")
    finish_corpus(str(tmp_path), shards=["s"], scorers=[identity], segmenter="lines", config={}, input_fingerprint="")
    (record,) = read_all(tmp_path)
    assert (record.id, record.texts, record.meta) == ("i", ("x",), '{"k": 1}')


records = st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1, max_size=30)


@settings(max_examples=40)
@given(records, st.integers(1, 400), st.sampled_from([".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"]), st.data())
def test_however_a_file_is_cut_its_records_are_the_same(tmp_path_factory, texts, shard_bytes, suffix, data):
    path = tmp_path_factory.mktemp("cut") / f"a{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.table({"text": texts}), path, row_group_size=4)
    else:
        write_lines(path, [{"text": text} for text in texts])
    whole = read_all(path)
    assert texts_of(whole) == texts
    chunk = streams.CHUNK_BYTES
    streams.CHUNK_BYTES = data.draw(st.integers(1, 200))
    try:
        assert read_all(path, shard_bytes=shard_bytes) == whole
        limit = data.draw(st.integers(1, 30))
        assert read_all(path, shard_bytes=shard_bytes, limit=limit) == whole[:limit]
    finally:
        streams.CHUNK_BYTES = chunk


def test_small_files_are_grouped_and_large_ones_cut(tmp_path):
    for index in range(10):
        (tmp_path / f"small{index}.txt").write_text("x" * 100)
    write_lines(tmp_path / "z.jsonl", [{"text": "y" * 80} for _ in range(30_000)])
    files = find_files([str(tmp_path)]).files
    shards = list(plan_shards(files, shard_bytes=1_000_000))
    assert [piece.file for piece in shards[0]][:10] == list(range(10))
    # 30,000 lines of 93 bytes are 2.8 MB; cuts fall at the first line after each MB.
    assert len(shards) == 3
    assert all(sum(piece.num_bytes for piece in shard) < 2_100_000 for shard in shards)


def test_large_files_are_cut_side_by_side(tmp_path, monkeypatch):
    for number in range(3):
        write_lines(tmp_path / f"{number}.jsonl", [{"text": "a"}] * 100 * (number + 1))
    monkeypatch.setattr(streams, "CHUNK_BYTES", 100)
    files = find_files([str(tmp_path)]).files
    expected = [piece for index, file in enumerate(files) for piece in _cut_lines(file, 500, index)]
    cut, meeting = _cut_lines, threading.Barrier(3)

    def cut_in_company(*arguments):
        meeting.wait(timeout=30)
        return cut(*arguments)

    monkeypatch.setattr(corpus_cut, "_cut_lines", cut_in_company)
    assert [piece for shard in plan_shards(files, shard_bytes=500) for piece in shard] == expected
    assert len(expected) > 6


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_compressed_file_has_a_bounded_number_of_pieces(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(streams, "CHUNK_BYTES", 1000)
    records = [{"text": hashlib.sha256(str(index).encode()).hexdigest()} for index in range(4000)]
    files = find_files([str(write_lines(tmp_path / f"a.jsonl{suffix}", records))]).files
    assert 16 <= len(list(plan_shards(files, shard_bytes=1000))) <= 64
    assert len(texts_of(read_all(tmp_path, shard_bytes=1000))) == 4000


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_no_file_is_read_after_enough_bytes(tmp_path, monkeypatch, suffix):
    records = [{"text": f"text number {number}"} for number in range(1000)]
    for name in ("a", "b", "c"):
        write_lines(tmp_path / f"{name}{suffix}", records)
    files, opened = find_files([str(tmp_path)]).files, []
    monkeypatch.setattr(corpus_cut, "open_lines", lambda name: opened.append(name) or streams.open_lines(name))
    pieces = [piece for shard in plan_shards(files, shard_bytes=1000, max_bytes=20_000) for piece in shard]
    assert opened == [files[0].name]
    assert {piece.file for piece in pieces} == {0}
    assert sum(piece.num_bytes for piece in pieces) >= 20_000


@pytest.mark.parametrize(
    ("total", "shard"), [(1, 512 << 10), (64 << 20, 2 << 20), (1 << 30, 16 << 20), (1 << 40, 64 << 20)]
)
def test_a_plan_has_enough_shards_for_small_corpora_and_not_too_many_for_large(total, shard):
    assert shard_bytes(total) == shard


def test_a_damaged_archive_that_is_cut_loses_no_more(tmp_path):
    path = write_lines(tmp_path / "a.jsonl.gz", [{"text": os.urandom(500).hex()} for _ in range(300)])
    path.write_bytes(path.read_bytes()[:-20_000])
    assert read_all(path, shard_bytes=1000) == read_all(path)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_sample_is_spread_over_a_large_file_and_takes_its_share_of_records(tmp_path, monkeypatch, suffix):
    records = [{"text": f"{index} {'x' * 100}"} for index in range(400)]
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), tmp_path / "a.parquet", row_group_size=50, compression="none")
    else:
        write_lines(tmp_path / "a.jsonl", records)
    write_lines(tmp_path / "b.jsonl", [{"text": f"{1000 + index}"} for index in range(5)])
    monkeypatch.setattr(streams, "CHUNK_BYTES", 100)
    files = find_files([str(tmp_path)]).files
    found = [
        int(record.text.split()[0])
        for sample in plan_sample(files, num_records=40)
        for record in itertools.islice(read_piece(files[sample.piece.file], sample.piece), sample.num_records)
    ]
    assert len(found) == len(set(found))
    assert 35 <= len(found) <= 80
    assert [sum(begin <= index < begin + 100 for index in found) >= 5 for begin in (0, 100, 200, 300)] == [True] * 4
    assert 1 <= sum(index >= 1000 for index in found) <= 5


def test_a_sample_leaves_an_unreadable_file_to_be_rejected(tmp_path, monkeypatch):
    """As scoring does, also where the file is large enough to be looked into."""
    write_lines(tmp_path / "a.jsonl", [{"text": "x" * 100}] * 10)
    write_lines(tmp_path / "b.jsonl", [{"text": "y"}])
    monkeypatch.setattr(streams, "CHUNK_BYTES", 100)
    files = find_files([str(tmp_path)]).files
    opened = LocalFileSystem.open

    def refused(filesystem, path, *arguments, **options):
        if path.endswith("a.jsonl"):
            raise PermissionError(13, "Permission denied", path)
        return opened(filesystem, path, *arguments, **options)

    monkeypatch.setattr(LocalFileSystem, "open", refused)
    samples = list(plan_sample(files, num_records=10))
    records = [record for sample in samples for record in read_piece(files[sample.piece.file], sample.piece)]
    assert [getattr(record, "reason", None) for record in records] == ["unreadable", None]


def test_a_small_file_of_lines_is_sampled_from_its_begin_and_once(tmp_path):
    write_lines(tmp_path / "a.jsonl", [{"text": str(index)} for index in range(5)])
    files = find_files([str(tmp_path)]).files
    (sample,) = plan_sample(files, num_records=1000)
    assert texts_of(read_piece(files[0], sample.piece)) == ["0", "1", "2", "3", "4"]
