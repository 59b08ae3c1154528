"""Input that nobody expects: odd cells, names and depths cost at most their own record, odd metadata not even that."""

import gzip
import json
import math
import string

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phf_ray.corpus import streams
from phf_ray.corpus.columns import check_columns
from phf_ray.corpus.cut import plan_shards
from phf_ray.corpus.find import find_files
from phf_ray.corpus.input_records import Segmented
from phf_ray.corpus.json_text import MAX_DEPTH, as_json, meta_json, parse_json
from phf_ray.corpus.layout import document_id
from phf_ray.corpus.read import read_piece
from phf_ray.corpus.reader import read_corpus
from phf_ray.errors import ConfigError, DataError
from phf_ray.records import Document, Rejected


def read_all(*inputs, shard_bytes=1 << 30, limit=None, **options):
    files = find_files([str(source) for source in inputs]).files
    shards = plan_shards(files, shard_bytes=shard_bytes, limit=limit)
    return [record for shard in shards for piece in shard for record in read_piece(files[piece.file], piece, **options)]


def strict(text):
    def refuse(constant):
        raise ValueError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def write_table(path, table):
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_stream(path, table.schema) as stream:
            stream.write_table(table)
    return path


def not_utf8(*cells):
    cells = pa.array(cells, pa.binary())
    return pa.StringArray.from_buffers(len(cells), cells.buffers()[1], cells.buffers()[2])


def raw(number, kind):
    return pa.array([number, number], pa.int32() if kind == pa.date32() else pa.int64()).view(kind)


ODD_CELLS = {
    "after the year 9999": (raw(2**62, pa.timestamp("us")), f"{2**62} (timestamp[us])"),
    "an unknown zone": (raw(5, pa.timestamp("us", "Mars/Olympus")), "5 (timestamp[us, tz=Mars/Olympus])"),
    "a date": (raw(2**31 - 1, pa.date32()), f"{2**31 - 1} (date32[day])"),
    "a long duration": (raw(2**62, pa.duration("s")), f"{2**62} (duration[s])"),
    "not UTF-8": (not_utf8(b"caf\xe9", b"x"), "caf\\xe9"),
    "in a list": (
        pa.ListArray.from_arrays([0, 1, 1], raw(2**62, pa.timestamp("us"))),
        [f"{2**62} (timestamp[us])"],
    ),
    "in a structure": (
        pa.StructArray.from_arrays([raw(2**62, pa.timestamp("us")), pa.array([1, 2])], names=["when", "n"]),
        {"when": f"{2**62} (timestamp[us])", "n": 1},
    ),
    "a structure with a name twice": (
        pa.StructArray.from_arrays([pa.array([1, 2]), pa.array([3, 4])], names=["x", "x"]),
        [["x", 1], ["x", 3]],
    ),
    "in a dictionary": (raw(2**62, pa.timestamp("us")).dictionary_encode(), f"{2**62} (timestamp[us])"),
    "nothing finite": (pa.array([float("nan"), float("-inf")]), "NaN"),
    "bytes": (pa.array([b"\xff", b"x"]), "b'\\xff'"),
}  # fmt: skip


@pytest.mark.parametrize("column", ["id", "meta", "metadata"])
@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@pytest.mark.parametrize(("cells", "kept"), ODD_CELLS.values(), ids=ODD_CELLS)
def test_an_odd_cell_of_metadata_costs_no_document(tmp_path, cells, kept, suffix, column):
    table = pa.table({"text": ["a", "b"], column: cells})
    first, second = read_all(write_table(tmp_path / f"a{suffix}", table))
    assert (first.text, second.text) == ("a", "b")
    assert strict(first.meta)[column] == kept
    strict(second.meta)


def test_an_odd_id_is_kept_as_its_raw_value_where_texts_are_lists(tmp_path):
    table = pa.table(
        {"texts": [["a"], ["b"]], "id": raw(2**62, pa.timestamp("us")), "meta": raw(5, pa.timestamp("us", "X"))}
    )
    first, _ = read_all(write_table(tmp_path / "a.parquet", table))
    assert (first.id, json.loads(first.meta)) == (f"{2**62} (timestamp[us])", "5 (timestamp[us, tz=X])")


def test_a_text_that_has_no_python_value_is_rejected_alone(tmp_path):
    texts = pa.array([["a"], ["b", "c"]], pa.list_(pa.string()))
    broken = pa.ListArray.from_arrays(texts.offsets, not_utf8(b"a", b"b", b"\xff"))
    first, second = read_all(write_table(tmp_path / "a.parquet", pa.table({"texts": broken})))
    assert (first.texts, second.reason, second.record) == (("a",), "not_utf8", 1)
    dates = pa.table({"text": raw(2**62, pa.timestamp("us"))})
    for record in read_all(write_table(tmp_path / "b.parquet", dates)):
        assert (record.reason, "OverflowError" in record.detail) == ("not_text", True)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_columns_with_one_name_cost_what_they_hold(tmp_path, suffix):
    columns = [pa.array(["a"]), pa.array(["b"]), pa.array(["c"])]
    twice = pa.Table.from_arrays(columns, names=["text", "id", "id"])
    (record,) = read_all(write_table(tmp_path / f"a{suffix}", twice))
    assert record.text == "a"
    assert json.loads(record.meta)["id"] == "unreadable: 2 columns are named 'id'; rename all but one"
    (record,) = read_all(
        write_table(tmp_path / f"b{suffix}", pa.Table.from_arrays(columns, names=["text", "text", "id"]))
    )
    assert (record.reason, record.detail) == (
        "two_columns",
        "column 'text': 2 columns are named 'text'; rename all but one",
    )
    lists = pa.Table.from_arrays([pa.array([["a"]]), *columns[1:]], names=["texts", "id", "id"])
    (record,) = read_all(write_table(tmp_path / f"c{suffix}", lists))
    assert record.id == document_id(f"c{suffix}", 0, "a")


def test_a_name_of_a_column_that_is_not_utf8_is_a_rejection(tmp_path):
    path = write_table(tmp_path / "a.parquet", pa.table({"text": ["a"], "caption": ["b"]}).replace_schema_metadata())
    path.write_bytes(path.read_bytes().replace(b"caption", b"capti\xe9n"))
    assert [record.reason for record in read_all(path)] == ["unreadable"]


def nested(depth):
    return "[" * depth + "]" * depth


@pytest.mark.parametrize("depth", [90, 500, *range(940, 1000, 3), 5000, 100_000])
@pytest.mark.parametrize("text", ['"x"', '["x", "y"]'])
def test_metadata_nested_at_any_depth_costs_no_document(tmp_path, depth, text):
    (tmp_path / "a.jsonl").write_text(f'{{"text": {text}, "id": {nested(depth)}, "meta": {nested(depth)}}}\n')
    (record,) = read_all(tmp_path / "a.jsonl")
    assert not isinstance(record, Rejected), record
    meta = strict(record.meta)
    assert ("nested more than" in record.meta) == (depth > MAX_DEPTH)
    assert meta if isinstance(record, Segmented) else meta["source"] == "a.jsonl"


def test_json_that_is_too_deep_and_broken_is_rejected(tmp_path):
    for line in ("[" * 5000, '{"text": "x", "meta": ' + nested(5000) + "]", '{"text": "x", "meta": ' + nested(5000)):
        (tmp_path / "a.jsonl").write_text(line)
        (record,) = read_all(tmp_path / "a.jsonl")
        assert record.reason == "bad_json"


def test_depth_is_counted_outside_of_strings():
    text = '{"a": "[[\\"[[", "b": ' + nested(2000) + ', "c": "]}"}'
    assert {**parse_json(text), "b": 0} == {"a": '[["[[', "b": 0, "c": "]}"}


def test_a_number_with_more_digits_than_python_converts_costs_no_document(tmp_path):
    (tmp_path / "a.jsonl").write_text(f'{{"text": "x", "id": {"9" * 5000}}}\n')
    (record,) = read_all(tmp_path / "a.jsonl")
    assert strict(record.meta)["id"] == "9" * 5000


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ('{"k": 1}', '{"k": 1}'),
        ('{ "k":1.0}', '{ "k":1.0}'),
        ('{"k": NaN, "l": [-Infinity]}', '{"k": "NaN", "l": ["-Infinity"]}'),
        ("no JSON", '"no JSON"'),
        ("", "{}"),
        ('"\\ud83d\\ude00"', '"\\ud83d\\ude00"'),
        ('"\\ud83d"', '"\\\\ud83d"'),
        ("1e999", '"Infinity"'),
    ],
)
def test_metadata_that_is_text_already_stays_unless_a_strict_parser_would_refuse_it(tmp_path, stored, expected):
    assert as_json(stored) == expected
    (tmp_path / "a.jsonl").write_text(json.dumps({"texts": ["x"], "meta": stored}) + "\n")
    (record,) = read_all(tmp_path / "a.jsonl")
    assert record.meta == expected
    strict(record.meta)


def test_values_that_json_lacks_become_text(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"text": "x", "meta": {"a": NaN, "b": [Infinity, -Infinity, 1e999]}, "id": NaN}\n'
    )
    (record,) = read_all(tmp_path / "a.jsonl")
    assert strict(record.meta)["meta"] == {"a": "NaN", "b": ["Infinity", "-Infinity", "Infinity"]}
    assert strict(record.meta)["id"] == "NaN"


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(string.printable, max_size=3), inner, max_size=3)
    ),
    max_leaves=20,
)


@settings(max_examples=200)
@given(values)
def test_metadata_is_json_that_strict_parsers_read(value):
    text = meta_json(value)
    assert text.isascii()
    json.dumps(strict(text), ensure_ascii=False).encode()
    assert as_json(text) == text


def test_reused_scores_that_do_not_fit_the_segments_are_a_rejection(tmp_path):
    table = {
        "texts": [["a", "b"], ["c"], ["d"]],
        "scores": [[0.0], [1.0], None],
        "errors": [[None, None], [None], None],
    }
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    first, second, third = read_all(tmp_path, reuse={"length": ("scores", "errors")})
    assert (first.reason, second.texts, third.reason) == ("bad_scores", ("c",), "bad_scores")


def test_a_data_set_with_odd_metadata_is_a_corpus(tmp_path):
    odd = {"date": raw(2**62, pa.timestamp("us")), "id": raw(5, pa.timestamp("us", "X"))}
    pq.write_table(pa.table({"texts": [["a"], ["b"]], "scores": [[0.0], [1.0]], **odd}), tmp_path / "a.parquet")
    assert [(document.id, document.scores) for document in read_corpus(str(tmp_path))] == [
        ("5 (timestamp[us, tz=X])", (0.0,)),
        ("5 (timestamp[us, tz=X])", (1.0,)),
    ]
    broken = pa.table({"texts": pa.ListArray.from_arrays([0, 1], not_utf8(b"\xff")), "scores": [[0.0]]})
    pq.write_table(broken, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet, row 0: column 'texts' can't be read: byte 0"):
        list(read_corpus(str(tmp_path)))


NUMBERS = [
    *(pa.int8(), pa.uint64(), pa.float16(), pa.float64(), pa.bool_(), pa.binary(3), pa.decimal128(30, 3)),
    *(pa.date32(), pa.date64(), pa.time32("s"), pa.time64("ns"), pa.duration("s"), pa.duration("ns")),
    *(pa.timestamp("s"), pa.timestamp("ns"), pa.month_day_nano_interval()),
    *(pa.timestamp("us", zone) for zone in ("Europe/Berlin", "Mars/Olympus", "+99:99")),
]
ROWS = 3


@st.composite
def cells(draw, depth=2):
    """Draw an array of ROWS values of any type, made of random bytes, as a program with other limits may write it."""
    kind = draw(
        st.sampled_from(["number", "string", "null", "dictionary", "list", "map", "structure"][: 7 if depth else 3])
    )
    if kind == "number":
        data = pa.py_buffer(draw(st.binary(min_size=16 * ROWS, max_size=16 * ROWS)))
        return pa.Array.from_buffers(draw(st.sampled_from(NUMBERS)), ROWS, [None, data])
    if kind == "string":
        items = draw(st.lists(st.none() | st.binary(max_size=4), min_size=ROWS, max_size=ROWS))
        array = pa.array(items, pa.binary())
        return pa.StringArray.from_buffers(ROWS, array.buffers()[1], array.buffers()[2], array.buffers()[0])
    if kind == "null":
        return pa.nulls(ROWS)
    inner = draw(cells(depth=depth - 1))
    if kind == "dictionary":
        return pa.DictionaryArray.from_arrays(pa.array([2, 0, 0], pa.int8()), inner)
    offsets = pa.array([0, 1, 1, ROWS], pa.int32())
    if kind == "list":
        return pa.ListArray.from_arrays(offsets, inner)
    if kind == "map":
        return pa.MapArray.from_arrays(offsets, pa.array(["a", "a", "b"]), inner)
    return pa.StructArray.from_arrays([inner, draw(cells(depth=0))], names=draw(st.sampled_from(["ab", "aa"])))


@st.composite
def tables(draw):
    names = draw(
        st.lists(
            st.sampled_from(["id", "meta", "metadata", "text", "texts", "content", "x", ""]), min_size=1, max_size=4
        )
    )
    return pa.Table.from_arrays([draw(cells()) for _ in names], names=names)


def written(path, table):
    """Whether this format holds such a table."""
    try:
        write_table(path, table)
    except (pa.ArrowException, OSError):
        return False
    return True


@settings(max_examples=80)
@given(tables(), st.sampled_from([".parquet", ".arrow"]), st.booleans())
def test_no_table_raises_and_metadata_costs_no_text(tmp_path_factory, table, suffix, has_text):
    path = tmp_path_factory.mktemp("fuzz") / f"a{suffix}"
    if has_text:
        metadata = [index for index, name in enumerate(table.schema.names) if name not in ("text", "texts", "content")]
        columns = [pa.array(["a", "b", "c"]), *(table.column(index) for index in metadata)]
        table = pa.Table.from_arrays(columns, names=["text", *(table.schema.names[index] for index in metadata)])
    if not written(path, table):
        return
    records = read_all(path)
    if has_text and not (records and getattr(records[0], "reason", "") == "unreadable"):
        assert [record.text for record in records] == ["a", "b", "c"]
    for record in records:
        if isinstance(record, Rejected):
            assert record.reason
        else:
            strict(record.meta)
            f"{record.id}{record.meta}".encode()


@settings(max_examples=80)
@given(tables(), st.sampled_from([".parquet", ".arrow"]), st.data())
def test_no_damaged_table_raises(tmp_path_factory, table, suffix, data):
    path = tmp_path_factory.mktemp("damage") / f"a{suffix}"
    if not written(path, table.append_column("text", pa.array(["a", "b", "c"]))):
        return
    content = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=5)):
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(1, len(content)))] if data.draw(st.booleans()) else content)
    for record in read_all(path):
        assert isinstance(record, Document | Segmented) or record.reason


rows = st.dictionaries(st.sampled_from(["text", "texts", "content", "id", "meta"]), values)
deep = st.integers(1, 3000).map(lambda depth: b'{"text": "a", "meta": ' + b'{"a": [' * depth + b"]}" * depth + b"}")
json_lines = st.lists(
    st.binary(max_size=20) | (values | rows).map(lambda row: json.dumps(row).encode()) | deep, max_size=8
)


@settings(max_examples=80)
@given(json_lines, st.sampled_from(["utf-8", "utf-16", "latin-1"]))
def test_no_line_raises(tmp_path_factory, lines, encoding):
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    content = b"\n".join(lines)
    path.write_bytes(content if encoding == "utf-8" else content.decode("latin-1").encode(encoding))
    for record in read_all(path):
        if isinstance(record, Rejected):
            assert record.reason
        else:
            strict(record.meta)
            f"{record.id}{record.meta}".encode()


line = st.sampled_from([b"", b" ", b"\t\r", b"\x0c"]) | st.integers(0, 99).map(
    lambda number: b'{"text": "%d"}' % number
)
files_of_lines = st.lists(st.lists(line, max_size=15), min_size=1, max_size=3)
suffixes = st.sampled_from([".jsonl", ".jsonl.gz"])


@settings(max_examples=100)
@given(files_of_lines, st.integers(1, 20), st.integers(1, 200), st.booleans(), suffixes)
def test_a_limit_counts_records_and_not_blank_lines(tmp_path_factory, files, limit, shard_bytes, ends, suffix):
    folder = tmp_path_factory.mktemp("blank")
    for number, lines in enumerate(files):
        content = b"\n".join(lines) + b"\n" * ends
        (folder / f"{number}{suffix}").write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    chunk = streams.CHUNK_BYTES
    streams.CHUNK_BYTES = 7
    try:
        whole = read_all(folder)
        assert read_all(folder, limit=limit, shard_bytes=shard_bytes) == whole[:limit]
    finally:
        streams.CHUNK_BYTES = chunk
    assert len(whole) == sum(bool(line.strip()) for lines in files for line in lines)


def found_columns(folder, **options):
    return check_columns(find_files([str(folder)]).files, **{"text_column": None, **options})


def write_lines(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_one_record_without_text_decides_nothing_about_the_others(tmp_path):
    write_lines(
        tmp_path / "a.jsonl", {"id": 1}, *[{"id": 2}] * 5000, {"text": "x"}, {"texts": None, "text": "y"}, {"body": "z"}
    )
    found_columns(tmp_path)
    assert [getattr(record, "text", None) or record.reason for record in read_all(tmp_path)][-4:] == [
        "no_text",
        "x",
        "y",
        "no_text",
    ]
    found_columns(tmp_path, text_column="body")
    assert [getattr(record, "text", None) or record.reason for record in read_all(tmp_path, text_column="body")][
        -1
    ] == "z"


def test_one_file_without_text_decides_nothing_about_the_others(tmp_path):
    write_lines(tmp_path / "a.jsonl", {"id": 1})
    (tmp_path / "b.jsonl").write_text("")
    pq.write_table(pa.table({"n": [1]}), tmp_path / "c.parquet")
    with pytest.raises(
        ConfigError, match=r"no column 'texts' or .* in .*a\.jsonl, .*; set --text-column to one of 'id', 'n'"
    ):
        found_columns(tmp_path)
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "d.parquet")
    found_columns(tmp_path)
    with pytest.raises(ConfigError, match="no column 'body' in"):
        found_columns(tmp_path, text_column="body")
    write_lines(tmp_path / "e.jsonl", {"body": "x"})
    found_columns(tmp_path, text_column="body")


def test_columns_are_kept_on_request_and_otherwise_named(tmp_path):
    rows = [{"text": "x", "id": 1, "url": "u", "source": "wiki", "n": math.nan}, {"text": "y", "lang": "de"}]
    write_lines(tmp_path / "a.jsonl", *rows)
    pq.write_table(pa.table({"texts": [["z"]], "url": ["v"], "meta": ['{"url": "w", "k": 1}']}), tmp_path / "b.parquet")
    assert found_columns(tmp_path) == ("url", "source", "n")
    assert found_columns(tmp_path, keep=("url", "lang")) == ("source", "n")
    first, second, third = read_all(tmp_path, keep=("url", "source", "n", "lang"))
    assert strict(first.meta) == {
        "id": 1, "url": "u", "source_column": "wiki", "n": "NaN", "source": "a.jsonl", "record": 0
    }  # fmt: skip
    assert strict(second.meta) == {"lang": "de", "source": "a.jsonl", "record": 1}
    assert strict(third.meta) == {"url": "w", "k": 1}
    with pytest.raises(
        ConfigError, match=r"--keep-columns urll: not in the records looked at, which have the columns 'text'"
    ):
        found_columns(tmp_path, keep=("url", "urll"))
