"""Data sets without a manifest: read once, several files at once, and remembered until a file changes."""

import json
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from phf_ray.corpus import stored
from phf_ray.corpus.stored import open_corpora
from phf_ray.errors import DataError


@pytest.fixture
def published(tmp_path):
    """Two data sets as published with the original code, of two files each."""
    for name in ("a", "b"):
        for part in range(2):
            rows = {"texts": [["x" * (part + 1), "y."], ["z"]], "scores": [[0.25, None], [part / 2]]}
            (tmp_path / name).mkdir(exist_ok=True)
            pq.write_table(pa.table(rows), tmp_path / name / f"train-{part}.parquet")
    return [str(tmp_path / "a"), str(tmp_path / "b")]


@pytest.fixture
def read_files(monkeypatch):
    """The files that are read, in order of their end."""
    real, files = stored.read_part, []

    def read_part(path):
        yield from real(path)
        files.append(path)

    monkeypatch.setattr(stored, "read_part", read_part)
    return files


def test_statistics_are_read_once_and_remembered_until_a_file_changes(published, tmp_path, read_files):
    memory = str(tmp_path / "memory")
    first = open_corpora(published, memory=memory, remembers=True)
    assert len(read_files) == 4
    assert open_corpora(published, memory=memory) == first
    assert len(read_files) == 4
    assert [corpus.manifest.documents for corpus in first] == [4, 4]
    assert first[0].manifest.scorer_stats().failed == {"unknown": 2}
    assert [part.size for part in first[0].parts] == [
        Path(f"{published[0]}/train-{part}.parquet").stat().st_size for part in range(2)
    ]
    rows = pa.table({"texts": [["other"]], "scores": [[0.75]]})
    pq.write_table(rows, f"{published[0]}/train-1.parquet")
    changed = open_corpora(published, memory=memory, remembers=True)
    assert len(read_files) == 6
    assert changed[0].manifest.documents == 3
    assert changed[0].manifest.fingerprint != first[0].manifest.fingerprint


def test_without_leave_to_remember_nothing_is_written(published, tmp_path, read_files):
    for _ in range(2):
        open_corpora(published, memory=str(tmp_path / "memory"))
    assert len(read_files) == 8
    assert not (tmp_path / "memory").exists()


def test_damaged_statistics_are_read_again(published, tmp_path, read_files, caplog):
    memory = tmp_path / "memory"
    first = open_corpora(published[:1], memory=str(memory), remembers=True)
    [file] = memory.iterdir()
    for content in ("{", json.dumps({"stats": 1}), "[]"):
        file.write_text(content)
        assert open_corpora(published[:1], memory=str(memory), remembers=True) == first
        assert f"{file} can't be read" in caplog.text
        caplog.clear()


def test_files_of_one_and_of_several_data_sets_are_read_at_the_same_time(published, monkeypatch):
    real = stored.read_part
    together = threading.Barrier(4, timeout=60)

    def read_part(path):
        together.wait()
        yield from real(path)

    monkeypatch.setattr(stored, "read_part", read_part)
    assert [corpus.manifest.documents for corpus in open_corpora(published)] == [4, 4]


def test_the_fingerprint_does_not_depend_on_the_order_in_which_files_are_read(published):
    # The figure of the version that read one file after the other: blocks and runs of that version stay valid.
    expected = "1db7faf4329aa2d05331abb05f3ab7e5"
    assert [corpus.manifest.fingerprint for corpus in open_corpora(published)] == [expected, expected]


def test_a_broken_link_among_the_parts_is_named(published, tmp_path):
    Path(f"{published[0]}/train-2.parquet").symlink_to(tmp_path / "gone")
    with pytest.raises(DataError, match=r"train-2\.parquet.*link to a file that does not exist"):
        open_corpora(published)
