"""Which files of an input are read: splits, formats of Arrow, hidden folders, links, odd names."""

import json
from collections import Counter

import datasets
import fsspec
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phf_ray.corpus.cut import plan_shards
from phf_ray.corpus.find import find_files
from phf_ray.corpus.read import read_piece
from phf_ray.corpus.reader import list_parts
from phf_ray.corpus.splits import HIDDEN_FOLDERS
from phf_ray.errors import ConfigError
from phf_ray.storage.files import open_filesystem


def read_all(*inputs, shard_bytes=1 << 30, limit=None, **options):
    files = find_files([str(source) for source in inputs]).files
    shards = plan_shards(files, shard_bytes=shard_bytes, limit=limit)
    return [record for shard in shards for piece in shard for record in read_piece(files[piece.file], piece, **options)]


def texts_of(*inputs):
    return [record.text for record in read_all(*inputs)]


def write(path, text="x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"text": [text], "texts_": [[text]]}), path)
    else:
        path.write_text(json.dumps({"text": text}) + "\n" if path.suffix == ".jsonl" else text)
    return path


def save(folder, **splits):
    made = {name: datasets.Dataset.from_dict({"text": [text]}) for name, text in splits.items()}
    datasets.DatasetDict(made).save_to_disk(str(folder))


def names_of(files):
    return [file.path for file in files]


def test_a_split_is_a_word_of_a_path(tmp_path):
    save(tmp_path / "set", constrained="a", free="b")
    found = find_files([str(tmp_path / "set")])
    assert (texts_of(tmp_path / "set"), found.other_splits) == (["a", "b"], ())
    assert len(list_parts(str(tmp_path / "set"))) == 2
    save(tmp_path / "usual", train="a", test="b", validation="c")
    found = find_files([str(tmp_path / "usual")])
    assert texts_of(tmp_path / "usual") == ["a"]
    assert found.other_splits == ("test/data-00000-of-00001.arrow", "validation/data-00000-of-00001.arrow")
    assert len(list_parts(str(tmp_path / "usual"))) == 1


def test_a_split_is_a_word_of_the_path_below_the_data_set(tmp_path):
    save(tmp_path / "train_v2" / "set", train="a", test="b")
    assert texts_of(tmp_path) == ["a"]
    assert len(list_parts(str(tmp_path))) == 1
    for name in ("train", "test"):
        datasets.Dataset.from_dict({"text": [name]}).save_to_disk(str(tmp_path / "apart" / "my train" / name))
    assert texts_of(tmp_path / "apart") == ["train"]


@pytest.mark.parametrize(
    ("name", "is_taken"),
    [
        ("data/train-00000-of-00001.parquet", True),
        ("TRAIN.parquet", True),
        ("training_1.parquet", True),
        ("en/train2.parquet", True),
        ("constrained.parquet", False),
        ("trainer/0.parquet", False),
        ("pretrained/0.parquet", False),
    ],
)
def test_words_of_a_split_are_whole(tmp_path, name, is_taken):
    for path in (name, "test.parquet"):
        write(tmp_path / path)
    assert len(list_parts(str(tmp_path))) == (1 if is_taken else 2)


@pytest.fixture
def hub(monkeypatch):
    """A store that stands for the hub: what the URL of a data set means there."""
    store = fsspec.filesystem("memory")
    store.store.clear()
    store.pseudo_dirs[:] = [""]

    def put(path, content=b'{"text": "x"}\n'):
        store.pipe_file(f"/{path}", content)

    monkeypatch.setattr("phf_ray.corpus.find.is_hub_url", lambda path: path.startswith("memory://"))
    yield put
    store.store.clear()


def test_a_data_set_of_the_hub_with_train_in_its_name_is_read_by_its_splits(hub):
    for name in (
        "data/train.jsonl",
        "data/test.jsonl",
        "README.md",
        "script.py",
        "dataset_infos.json",
        ".gitattributes",
    ):
        hub(f"me/train-set/{name}")
    found = find_files(["memory://me/train-set"])
    assert names_of(found.files) == ["data/train.jsonl"]
    assert found.other_splits == ("data/test.jsonl",)
    assert found.ignored["cards and caches of data sets"] >= 2
    for name in ("data/constrained.jsonl", "data/free.jsonl", "notes.txt", "README.md"):
        hub(f"me/train-words/{name}")
    assert names_of(find_files(["memory://me/train-words"]).files) == [
        "data/constrained.jsonl",
        "data/free.jsonl",
        "notes.txt",
    ]
    hub("me/train-card/README.md")
    with pytest.raises(ConfigError, match="1 cards and caches of data sets"):
        find_files(["memory://me/train-card"])


def test_files_beside_a_saved_data_set_are_read_too(tmp_path):
    save(tmp_path / "set", train="a", test="b")
    write(tmp_path / "notes" / "c.txt", "c")
    assert sorted(texts_of(tmp_path)) == ["a", "c"]


def arrow_file(path, table, form):
    if form == "feather v1":
        pyarrow.feather.write_feather(table, path, version=1)
    elif form == "feather":
        pyarrow.feather.write_feather(table, path, compression="zstd")
    else:
        with {"stream": pa.ipc.new_stream, "file": pa.ipc.new_file}[form](path, table.schema) as writer:
            writer.write_table(table, max_chunksize=3)


@pytest.mark.filterwarnings("ignore:Feather V1:DeprecationWarning")
@pytest.mark.parametrize("suffix", [".arrow", ".feather"])
@pytest.mark.parametrize("form", ["stream", "file", "feather", "feather v1"])
def test_every_form_of_arrow_is_read_and_cut(tmp_path, form, suffix):
    texts = [f"text {number}" for number in range(10)]
    arrow_file(tmp_path / f"a{suffix}", pa.table({"n": range(10), "text": texts, "id": range(10)}), form)
    assert texts_of(tmp_path) == texts
    assert [record.text for record in read_all(tmp_path, shard_bytes=50, limit=7)] == texts[:7]
    assert len(list_parts(str(tmp_path))) == 1


def test_a_cut_off_arrow_file_is_one_rejection(tmp_path):
    for form in ("stream", "file"):
        arrow_file(tmp_path / "a.arrow", pa.table({"text": ["x" * 1000] * 20}), form)
        (tmp_path / "a.arrow").write_bytes((tmp_path / "a.arrow").read_bytes()[:-3000])
        assert read_all(tmp_path)[-1].reason == "unreadable"


def test_offsets_that_point_out_of_a_file_do_not_end_the_process(tmp_path):
    path = tmp_path / "a.arrow"
    arrow_file(path, pa.table({"text": ["abc", "def"]}), "stream")
    offsets = b"".join(number.to_bytes(4, "little") for number in (0, 3, 6))
    assert offsets in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(offsets, offsets[:4] + (1 << 30).to_bytes(4, "little") + offsets[8:]))
    assert [record.reason for record in read_all(path)] == ["unreadable"]


HIDDEN = ("_temporary/0/a.jsonl", "_delta_log/a.jsonl", "x/_other/a.jsonl", ".git/a.jsonl")


@pytest.mark.parametrize("given", ["", "/**/*.jsonl", "/*/*.jsonl", "/*/*/*.jsonl"])
def test_folders_that_programs_keep_for_themselves_are_left_out_and_counted(tmp_path, given):
    for name in (*HIDDEN, "x/b.jsonl", "x/y/c.jsonl", "d.jsonl"):
        write(tmp_path / name)
    found = find_files([f"{tmp_path}{given}"])
    assert not any("_" in file.path or ".git" in file.path for file in found.files)
    assert found.files
    expected = {"": 4, "/**/*.jsonl": 4, "/*/*.jsonl": 3, "/*/*/*.jsonl": 4}[given]
    assert found.ignored[HIDDEN_FOLDERS] == expected


@pytest.mark.parametrize("given", ["", "/**/*.py"])
def test_a_python_package_is_source_code_whatever_its_name(tmp_path, given):
    for name in ("_vendor/__init__.py", "_vendor/a.py", "_vendor/_deep/b.py", "__pycache__/c.py", ".venv/__init__.py"):
        write(tmp_path / name, "x = 1\n")
    found = find_files([f"{tmp_path}{given}"])
    assert names_of(found.files) == ["_vendor/__init__.py", "_vendor/a.py"]
    assert found.ignored[HIDDEN_FOLDERS] == 3


def test_a_hidden_folder_that_is_asked_for_is_read(tmp_path):
    for name in (*HIDDEN, "_x.jsonl", "__init__.py"):
        write(tmp_path / name)
    assert names_of(find_files([f"{tmp_path}/_temporary"]).files) == ["0/a.jsonl"]
    assert names_of(find_files([f"{tmp_path}/_temporary/**/*.jsonl"]).files) == ["0/a.jsonl"]
    assert names_of(find_files([f"{tmp_path}/*/_oth*/*.jsonl"]).files) == ["x/_other/a.jsonl"]
    assert names_of(find_files([f"{tmp_path}/**/.git/*"]).files) == [".git/a.jsonl"]
    assert names_of(find_files([str(tmp_path)]).files) == ["__init__.py", "_x.jsonl"]


@pytest.mark.parametrize("given", ["", "/**/*.jsonl"])
def test_hidden_folders_of_a_store_are_left_out_and_counted(given, s3):
    for name in (*HIDDEN, "x/b.jsonl"):
        s3[f"bucket/in/{name}"] = b'{"text": "x"}\n'
    found = find_files([f"s3://bucket/in{given}"])
    assert [file.path.split("/")[-1] for file in found.files] == ["b.jsonl"]
    assert found.ignored[HIDDEN_FOLDERS] == 4


def test_links_to_folders_are_followed_once(tmp_path):
    write(tmp_path / "else" / "a.txt", "a")
    write(tmp_path / "in" / "b" / "b.txt", "b")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "else")
    (tmp_path / "in" / "again").symlink_to(tmp_path / "else")
    (tmp_path / "in" / "b" / "loop").symlink_to("..")
    (tmp_path / "in" / "b2").symlink_to("b")
    (tmp_path / "else" / "back").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "nowhere").symlink_to("gone")
    assert names_of(find_files([str(tmp_path / "in")]).files) == ["again/a.txt", "b/b.txt"]
    assert names_of(find_files([f"{tmp_path}/in/**/*.txt"]).files) == ["again/a.txt", "b/b.txt"]
    assert names_of(find_files([f"{tmp_path}/in/l*/*.txt"]).files) == ["link/a.txt"]
    assert names_of(find_files([str(tmp_path / "in" / "link")]).files) == ["a.txt", "back/b/b.txt"]


ODD_NAMES = [
    "std::map.md", "file::a.md", "zip::a.md", "a#b.md", "100%25.md", "what?.md", "a*b.md", "[b].md", "new\nline.md",
    "\u202eabc.md", " a .md", "a\\b.md", "caf\xe9.md", "{a}.md", "a&b=c;.md", "~.md", "a:b.md", "hf:x.md",
]  # fmt: skip


@pytest.mark.parametrize("name", ODD_NAMES)
@pytest.mark.parametrize("folder", [False, True])
def test_files_of_any_name_are_read(tmp_path, monkeypatch, name, folder):
    (tmp_path / "other.md").write_text("other")
    path = tmp_path / (f"{name}/a.md" if folder else name)
    write(path, "text")
    monkeypatch.chdir(tmp_path)
    assert sorted(texts_of(tmp_path)) == ["other", "text"]
    assert texts_of(path) == ["text"]
    assert texts_of(path.parent / "*.md" if folder and not set("*?[") & set(name) else path) == ["text"]
    assert texts_of(f"./{path.relative_to(tmp_path)}") == ["text"]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("name", ODD_NAMES)
def test_tables_and_lines_of_any_name_are_read(tmp_path, name, suffix):
    write(tmp_path / f"{name}{suffix}", "text")
    assert texts_of(tmp_path) == ["text"]


def test_colons_in_a_key_mean_nothing_and_a_chain_of_urls_is_still_one(tmp_path, s3):
    filesystem, path = open_filesystem(f"simplecache::file://{tmp_path}/a.txt")
    assert (type(filesystem).__name__, path) == ("SimpleCacheFileSystem", f"{tmp_path}/a.txt")
    s3["bucket/in/std::map.md"] = b"text"
    assert texts_of("s3://bucket/in") == texts_of("s3://bucket/in/std::map.md") == ["text"]


@st.composite
def parquet_files(draw):
    """Draw texts, and the sizes of the row groups that hold them; some are empty."""
    texts = draw(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200), max_size=25))
    sizes, left = [], len(texts)
    while left:
        sizes.append(draw(st.integers(0, min(left, 4))))
        left -= sizes[-1]
        if len(sizes) > 60:
            sizes.append(left)
            left = 0
    return texts, [*sizes, *draw(st.lists(st.just(0), max_size=2))]


@settings(max_examples=60)
@given(st.lists(parquet_files(), min_size=1, max_size=3), st.integers(1, 2000), st.integers(1, 60))
def test_every_text_of_parquet_is_read_exactly_once(tmp_path_factory, files, shard_bytes, limit):
    folder = tmp_path_factory.mktemp("groups")
    numbered = [[f"{file}-{row} {text}" for row, text in enumerate(texts)] for file, (texts, _) in enumerate(files)]
    for number, (texts, (_, sizes)) in enumerate(zip(numbered, files, strict=True)):
        schema = pa.schema([("text", pa.string())])
        with pq.ParquetWriter(folder / f"{number}.parquet", schema) as writer:
            begin = 0
            for size in sizes:
                writer.write_table(pa.table({"text": texts[begin : begin + size]}, schema=schema))
                begin += size
    texts = [text for one in numbered for text in one]
    assert [record.text for record in read_all(folder, shard_bytes=shard_bytes)] == texts
    assert [record.text for record in read_all(folder, shard_bytes=shard_bytes, limit=limit)] == texts[:limit]
    assert max(Counter(texts).values(), default=1) == 1
