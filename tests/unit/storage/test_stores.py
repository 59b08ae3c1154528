"""Object stores without a driver of fsspec, through all that fsspec is asked for."""

import fsspec
import pytest

from phf_ray.corpus.find import find_files, would_read
from phf_ray.corpus.layout import is_scored_corpus
from phf_ray.corpus.reader import list_parts, read_corpus_manifest
from phf_ray.corpus.writer import PartWriter
from phf_ray.errors import ConfigError, DataError
from phf_ray.storage.files import full_name, open_filesystem, write_file

pytestmark = pytest.mark.skipif(
    fsspec.get_filesystem_class("s3").__module__ != "phf_ray.storage.object_stores", reason="s3fs is installed"
)


@pytest.mark.parametrize("name", ["a b", "100%25", "what?", "x#1", "caf\xe9"])
def test_a_key_is_taken_as_it_is(name, s3):
    filesystem, inner = open_filesystem(f"s3://bucket/{name}/f.txt")
    filesystem.pipe_file(inner, b"content")
    assert s3 == {f"bucket/{name}/f.txt": b"content"}
    assert filesystem.ls(f"bucket/{name}", detail=False) == [f"bucket/{name}/f.txt"]
    with fsspec.open(full_name(filesystem, inner), "rb") as file:
        assert file.read() == b"content"


def test_what_is_not_committed_is_not_there(s3):
    writer = PartWriter("s3://bucket/out/part-00000.parquet", rejects="s3://bucket/r", scorers=["pep8"], footer={})
    writer.add("a", ["x"], scores={"pep8": ([0.0], [None])}, meta="{}")
    assert s3 == {}
    writer.commit()
    assert "bucket/out/part-00000.parquet" in s3


def test_reports_are_written_there_too(s3):
    write_file("s3://bucket/report/report.json", b"{}")
    assert s3["bucket/report/report.json"] == b"{}"


def test_a_bucket_is_opened_once(s3):
    assert open_filesystem("s3://bucket/a")[0] is open_filesystem("s3://bucket/b")[0]
    assert open_filesystem("s3://other/a")[0] is not open_filesystem("s3://bucket/a")[0]


@pytest.mark.parametrize("name", ["a.jsonl", "folder", "folder/*.jsonl"])
def test_a_store_that_refuses_is_not_taken_for_an_empty_one(s3_that_refuses, name):
    path = f"s3://bucket/{name}"
    refused = r"can't be accessed: .*ACCESS_DENIED.*; check .* its credentials, its endpoint and the network"
    with pytest.raises(DataError, match=rf"--input s3://bucket/.* {refused}"):
        would_read(path, "/somewhere", names=["README.md"])
    with pytest.raises(DataError, match=rf"--input s3://bucket/.* {refused}"):
        find_files([path])
    for read in (list_parts, read_corpus_manifest, is_scored_corpus):
        with pytest.raises(DataError, match=rf"^s3://bucket/.* {refused}"):
            read(path)


def test_what_is_not_there_is_neither_file_nor_folder(s3):
    s3["bucket/folder/a.txt"] = b"x"
    filesystem, _ = open_filesystem("s3://bucket")
    names = ["bucket/folder/a.txt", "bucket/folder", "bucket/nowhere"]
    assert [filesystem.isfile(name) for name in names] == [True, False, False]
    assert [filesystem.isdir(name) for name in names] == [False, True, False]


def test_options_in_a_url_are_refused():
    with pytest.raises(ConfigError, match="set AWS_ENDPOINT_URL"):
        open_filesystem("s3://bucket/out?endpoint_override=localhost:9000")


def test_a_store_without_a_driver_is_refused_by_its_name():
    with pytest.raises(ConfigError, match="adlfs"):
        open_filesystem("abfs://container/x")
