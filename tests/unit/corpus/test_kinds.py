"""How a file is read: by its name in any case, and by its first bytes if the name does not say."""

import bz2
import gzip
import json
import lzma

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sources import read_all, texts_of

from phf_ray.corpus import streams
from phf_ray.corpus.columns import check_columns
from phf_ray.corpus.find import find_files
from phf_ray.corpus.sample import plan_sample
from phf_ray.errors import ConfigError
from phf_ray.records import Document

MARK = "\ufeff"
COMPRESS = {
    "": lambda content: content,
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor().compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}
RECORDS = [{"text": f'a "quoted, [{index}]}}" \\ text\n', "meta": {"k": [index, {}]}} for index in range(50)]
TEXTS = [record["text"] for record in RECORDS]
BY_LINES = "".join(json.dumps(record) + "\n" for record in RECORDS)
LAYOUTS = {
    "lines": BY_LINES,
    "array": json.dumps(RECORDS),
    "printed": json.dumps(RECORDS, indent=2) + "\n",
    "array of lines": "[\n" + ",\n".join(map(json.dumps, RECORDS)) + "\n]",
    "objects": "\n".join(json.dumps(record, indent=2) for record in RECORDS),
}


def in_pieces(*inputs, **options):
    """Read input as it is read in pieces, and check that reading it whole gives the same."""
    whole = read_all(*inputs, **options)
    assert read_all(*inputs, shard_bytes=500, **options) == whole
    assert read_all(*inputs, shard_bytes=500, limit=30, **options) == whole[:30]
    return whole


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("mark", ["", MARK])
def test_json_may_be_lines_an_array_or_objects(tmp_path, monkeypatch, layout, compression, mark):
    monkeypatch.setattr(streams, "CHUNK_BYTES", 300)
    path = tmp_path / f"a.json{compression}"
    path.write_bytes(COMPRESS[compression]((mark + LAYOUTS[layout]).encode()))
    records = in_pieces(path)
    assert texts_of(records) == TEXTS
    assert json.loads(records[3].meta) == {"meta": {"k": [3, {}]}, "source": path.name, "record": 3}
    files = find_files([f"{tmp_path}/*.json*"]).files
    check_columns(files, text_column=None)
    with pytest.raises(ConfigError, match="set --text-column to one of 'text', 'meta'"):
        check_columns(files, text_column="body")
    assert next(plan_sample(files, num_records=5)).piece.offset == 0


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".jsonlines", ".json", ".jsonl.gz"])
def test_a_byte_order_mark_costs_no_record(tmp_path, suffix):
    """Also where files that begin with one were joined. In a text it is a character."""
    lines = [json.dumps({"text": text}, ensure_ascii=False) + "\r\n" for text in ("a", f"{MARK}b", "c")]
    content = (MARK + lines[0] + lines[1] + MARK + lines[2] + MARK).encode()
    for name, one in (("many", content), ("one", (MARK + lines[0]).encode()), ("short", (MARK + "{}").encode())):
        (tmp_path / f"{name}{suffix}").write_bytes(gzip.compress(one) if suffix.endswith("gz") else one)
    assert texts_of(in_pieces(tmp_path / f"many{suffix}")) == ["a", f"{MARK}b", "c"]
    assert texts_of(in_pieces(tmp_path / f"one{suffix}")) == ["a"]
    assert [record.reason for record in in_pieces(tmp_path / f"short{suffix}")] == ["no_text"]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_is_named(tmp_path, encoding):
    for name in ("a.jsonl", "a.txt"):
        (tmp_path / name).write_bytes(f'{MARK}{{"text": "x"}}\n'.encode(encoding))
        first = read_all(tmp_path / name)[0]
        assert (first.reason, "it is UTF-16: convert it" in first.detail) == ("not_utf8", True)


@pytest.mark.parametrize("given", ["", "/*"])
def test_the_case_of_a_suffix_does_not_matter(tmp_path, given):
    for name in ("A.JSONL", "B.Jsonl.GZ", "c.NDJSON"):
        content = b'{"text": "x"}\n'
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("GZ") else content)
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "D.PARQUET")
    (tmp_path / "E.TXT").write_text("x")
    (tmp_path / "F.PY").write_text("x")
    assert texts_of(in_pieces(f"{tmp_path}{given}")) == ["x"] * 6


@pytest.mark.parametrize("compression", COMPRESS)
def test_compressed_text_is_read_as_the_text(tmp_path, compression):
    for name in ("a.txt", "b.py", "c.md"):
        (tmp_path / f"{name}{compression}").write_bytes(COMPRESS[compression](f"text of {name}\n".encode()))
    assert texts_of(in_pieces(tmp_path)) == ["text of a.txt\n", "text of b.py\n", "text of c.md\n"]
    assert texts_of(in_pieces(tmp_path / f"c.md{compression}")) == ["text of c.md\n"]


@pytest.mark.parametrize("compression", COMPRESS)
def test_a_file_that_is_named_but_has_no_suffix_is_known_by_its_begin(tmp_path, compression):
    """As the archives of Reddit are: RC_2008-01.zst."""
    contents = {"RC_2008-01": BY_LINES, "array": LAYOUTS["array"], "prose": "{curly} prose", "config": "[a]\nb=c\n"}
    for name, content in contents.items():
        (tmp_path / f"{name}{compression}").write_bytes(COMPRESS[compression](content.encode()))
    assert texts_of(in_pieces(tmp_path / f"RC_2008-01{compression}")) == TEXTS
    assert texts_of(in_pieces(f"{tmp_path}/a*")) == TEXTS
    assert texts_of(in_pieces(f"{tmp_path}/[pc]*")) == ["[a]\nb=c\n", "{curly} prose"]


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("a.zip", "unpack it"),
        ("a.txt.ZIP", "unpack it"),
        ("a.tar.gz", "unpack it"),
        ("a.jsonl.lz4", "unpack it"),
        ("a.csv", "convert it to JSON lines or Parquet"),
        ("a.tsv.gz", "convert it to JSON lines or Parquet"),
        ("a.ipynb", "convert it with `jupyter nbconvert --to script`"),
        ("a.parquet.gz", r"unpack it to \.parquet"),
    ],
)
def test_what_is_no_text_is_named_and_not_scored_as_one(tmp_path, name, remedy):
    path = tmp_path / name
    path.write_bytes(gzip.compress(b"a,b\n") if name.endswith("gz") else b"a,b\n")
    with pytest.raises(ConfigError, match=remedy):
        find_files([str(path)])
    with pytest.raises(ConfigError, match=r"only files of other kinds \(1 \."):
        find_files([f"{tmp_path}/*"])
    with pytest.raises(ConfigError, match=r"only files of other kinds \(1 \."):
        find_files([str(tmp_path)])
    (tmp_path / "b.txt").write_text("x")
    assert [file.path for file in find_files([f"{tmp_path}/*"]).files] == ["b.txt"]
    assert find_files([f"{tmp_path}/*"]).ignored.total() == find_files([str(tmp_path)]).ignored.total() == 1


def test_json_in_a_folder_is_left_out_and_counted(tmp_path):
    """Projects are full of settings in JSON."""
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "package.json").write_text('{"name": "x"}')
    found = find_files([str(tmp_path)])
    assert ([file.path for file in found.files], found.ignored) == (["a.txt"], {".json": 1})


@pytest.mark.parametrize(
    "content", ["[", '[{"text": "a"}', '[{"text": "a"}, {"text": "b', '[{"text": "a"}, {"t', "{\n"]
)
def test_json_that_was_cut_off_is_unreadable_at_the_place_of_the_cut(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_text(content)
    *before, last = in_pieces(path)
    assert texts_of(before) == ["a"] * ("}" in content)
    assert (last.reason, last.record) == ("unreadable", len(before))
    assert "the file was cut off, or a bracket is missing" in last.detail


def test_bad_elements_of_an_array_cost_no_others(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "MAX_DOCUMENT_BYTES", 100)
    content = '[{"text": "a"}, {"text": }, 5, "b", [{"text": "c"}], {"text": "%s"}, {"body": 1}, {"text": "d"},]x'
    path = tmp_path / "a.json"
    path.write_text(content % ("y" * 200))
    records = in_pieces(path)
    assert [record.text if isinstance(record, Document) else record.reason for record in records] == [
        "a",
        "bad_json",
        "bad_json",
        "bad_json",
        "bad_json",
        "too_large",
        "no_text",
        "d",
        "bad_json",
    ]


texts = st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1, max_size=20)


@settings(max_examples=60)
@given(texts, st.sampled_from([None, 0, 2]), st.booleans(), st.integers(1, 300), st.data())
def test_every_text_of_an_array_is_read_once_however_its_chunks_fall(
    tmp_path_factory, texts, indent, ensure_ascii, shard_bytes, data
):
    path = tmp_path_factory.mktemp("array") / "a.json"
    records = [{"text": text, "more": data.draw(st.sampled_from([None, "\\", '"', [], {"a": [1]}]))} for text in texts]
    path.write_text(json.dumps(records, indent=indent, ensure_ascii=ensure_ascii), encoding="utf-8")
    chunk = streams.CHUNK_BYTES
    streams.CHUNK_BYTES = data.draw(st.integers(1, 100))
    try:
        assert texts_of(read_all(path)) == texts
        assert texts_of(read_all(path, shard_bytes=shard_bytes)) == texts
    finally:
        streams.CHUNK_BYTES = chunk
