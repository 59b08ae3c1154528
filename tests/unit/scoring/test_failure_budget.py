"""When too much of the input can't be read: judged as files, by bytes, and by the records known to be missing."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_score import PEP8, request, run, write_files

from jobs import score_corpus as job
from phf_ray.corpus.cut import Piece
from phf_ray.corpus.find import InputFile
from phf_ray.corpus.output import CorpusFolder
from phf_ray.corpus.plan import CorpusPlan
from phf_ray.corpus.reader import read_corpus, read_corpus_manifest
from phf_ray.corpus.stats import CorpusStats
from phf_ray.corpus.writer import PartWriter
from phf_ray.errors import ConfigError, IncompleteError
from phf_ray.records import Loss, Rejected
from phf_ray.scoring.progress import ProgressTracker

ROWS = 40


def write_tables(folder, number, *, rows=ROWS):
    folder.mkdir()
    for index in range(number):
        table = pa.table({"text": [f"{index} {row}" for row in range(rows)]})
        pq.write_table(table, folder / f"{index}.parquet", row_group_size=10)
    return folder


def cut_off(path, share=0.5):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def damage_a_page(path, row_group):
    """Overwrite the only column of a row group. The footer stays."""
    column = pq.read_metadata(path).row_group(row_group).column(0)
    content = bytearray(path.read_bytes())
    begin = column.dictionary_page_offset or column.data_page_offset
    content[begin : begin + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(content)


def test_tables_that_vanish_stop_the_job_though_they_are_few(tmp_path, capsys):
    folder = write_tables(tmp_path / "in", 5)
    for index in range(4):
        cut_off(folder / f"{index}.parquet")
    size = sum((folder / f"{index}.parquet").stat().st_size for index in range(4))
    out = tmp_path / "out"
    message = rf"4 of 5 input files could not be read to their end, {size:,} of [\d,]+ bytes are lost \(unreadable: 4\)"
    with pytest.raises(IncompleteError, match=message):
        run(request(folder, shard_bytes=None), str(out))
    assert not (out / "_SUCCESS").exists()
    manifest = run(request(folder, shard_bytes=None, max_failed_fraction=1.0), str(out))
    assert (manifest.documents, dict(manifest.rejected)) == (ROWS, {"unreadable": 4})
    stored = read_corpus_manifest(str(out)).stats.losses
    assert (len(stored.files), stored.num_bytes, stored.records) == (4, size, 4)
    assert job._facts(manifest)["lost"] == {"files": 4, "bytes": size, "records": 4}
    job._print_result(manifest, output=str(out))
    known = f"{size:,} bytes and 4 records are known to be missing"
    assert f"4 input files could not be read to their end: {known}" in capsys.readouterr().out


@pytest.mark.parametrize("shard_bytes", [None, 100])
def test_records_that_a_footer_promises_are_counted(tmp_path, shard_bytes):
    folder = write_tables(tmp_path / "in", 2)
    damage_a_page(folder / "1.parquet", row_group=3)
    asked = request(folder, shard_bytes=shard_bytes, max_failed_fraction=1.0)
    manifest = run(asked, str(tmp_path / "out"))
    losses = manifest.stats.losses
    assert manifest.documents == 2 * ROWS - losses.records
    assert 10 <= losses.records <= ROWS
    assert len(losses.files) == 1
    size = (folder / "1.parquet").stat().st_size
    assert losses.num_bytes == pytest.approx(size * losses.records / ROWS, abs=10)
    details = pq.read_table(tmp_path / "out" / "rejected")["detail"].to_pylist()
    assert sum(int(detail.split()[-4]) for detail in details) == losses.records
    assert all(detail.endswith(" records are missing") for detail in details)


def test_an_archive_that_was_cut_off_stops_the_job_and_bytes_after_one_do_not(tmp_path):
    folder = write_files(tmp_path / "in", {})
    lines = "".join(json.dumps({"text": f"text {index}"}) + "\n" for index in range(50))
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()) + b"\r\n<html>")
    manifest = run(request(folder, shard_bytes=None), str(tmp_path / "out"))
    assert (manifest.documents, dict(manifest.rejected)) == (50, {"trailing_bytes": 1})
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode())[:-9])
    with pytest.raises(IncompleteError, match="1 of 1 input files could not be read to their end"):
        run(request(folder, shard_bytes=None), str(tmp_path / "out"), restart=True)


def tracker_of(tmp_path, sizes, *, documents, rejected=(), limit=0.01):
    """A tracker of a job over files of these sizes, after its only shard."""
    files = tuple(InputFile(str(tmp_path), f"{index}.jsonl", "lines", size, "") for index, size in enumerate(sizes))
    shard = tuple(Piece(index, size) for index, size in enumerate(sizes))
    plan = CorpusPlan(key={}, identities=(), files=files, shards=(shard,))
    tracker = ProgressTracker(plan, CorpusFolder(str(tmp_path)), progress=None, max_failed_fraction=limit)
    stats = CorpusStats(documents=documents)
    for one in rejected:
        stats.rejected[one.reason] += 1
        if one.loss is not None:
            stats.losses.add(one.loss)
    tracker.stats.merge(CorpusStats.from_json(json.loads(json.dumps(stats.to_json()))))
    return tracker


def rest_of(file, num_bytes=0, records=1, reason="unreadable"):
    return Rejected("a", 0, reason, "", Loss(file, num_bytes, records))


def test_files_are_judged_as_files_each_once(tmp_path):
    lost = [rest_of(7), rest_of(7), rest_of(8)]
    tracker_of(tmp_path, [100] * 200, documents=5000, rejected=lost).judge(final=True)
    with pytest.raises(IncompleteError, match="3 of 200 input files"):
        tracker_of(tmp_path, [100] * 200, documents=5000, rejected=[*lost, rest_of(9)]).judge(final=False)


def test_files_are_judged_by_bytes(tmp_path):
    sizes = [100] * 999 + [10_000]
    tracker_of(tmp_path, sizes, documents=5000, rejected=[rest_of(0, 100)]).judge(final=True)
    with pytest.raises(IncompleteError, match=r"1 of 1000 input files .*, 10,000 of 109,900 bytes are lost"):
        tracker_of(tmp_path, sizes, documents=5000, rejected=[rest_of(999, 10_000)]).judge(final=False)
    stray = rest_of(None, 5000, 0, "trailing_bytes")
    with pytest.raises(IncompleteError, match=r"0 of 1000 input files .*, 5,000 of .* \(trailing_bytes: 1\)"):
        tracker_of(tmp_path, sizes, documents=5000, rejected=[stray]).judge(final=True)


def test_records_that_are_known_to_be_missing_are_judged_as_records(tmp_path):
    sizes = [100] * 999 + [10_000]
    tracker_of(tmp_path, sizes, documents=5000, rejected=[rest_of(0, 100, 50)]).judge(final=True)
    with pytest.raises(IncompleteError, match=r"60 of 5060 records could not be read \(unreadable: 60\)"):
        tracker_of(tmp_path, sizes, documents=5000, rejected=[rest_of(0, 100, 60)]).judge(final=True)
    # Notes of bytes after the data are no records.
    notes = [rest_of(None, 0, 0, "trailing_bytes")] * 500
    tracker_of(tmp_path, sizes, documents=500, rejected=notes).judge(final=True)


def test_losses_pass_through_parts_and_parts_of_older_versions_have_none(tmp_path):
    writer = PartWriter(f"{tmp_path}/p.parquet", rejects=f"{tmp_path}/r.parquet", scorers=["a"], footer={})
    writer.reject(rest_of(3, 10, 2))
    stats = writer.commit()
    assert CorpusStats.from_json(stats.to_json()) == stats
    assert stats.to_json()["losses"] == {"files": [3], "bytes": 10, "records": 2}
    assert "losses" not in CorpusStats().to_json()


def test_a_second_stage_keeps_the_losses_of_the_first(tmp_path):
    folder = write_tables(tmp_path / "in", 2)
    cut_off(folder / "0.parquet")
    words = {"class_name": "fakes:WordScorer"}
    scorers = [words, {"class_name": "fakes:LengthScorer"}]
    asked = request(folder, scorers=scorers, pools={"gpu": {"num_gpus": 0}}, max_failed_fraction=1.0)
    losses = run(asked, str(tmp_path / "out")).stats.losses
    assert (len(losses.files), losses.num_bytes) == (1, (folder / "0.parquet").stat().st_size)


SOURCES = {"a.py": "x = 1\n", "b.pyi": "x: int\n", "README.md": "# x\n", "requirements.txt": "x\n", "run": "x\n"}


def read_by(tmp_path, *inputs, scorers=(PEP8,)):
    return sorted(file.path for file in request(*inputs, scorers=scorers).find().files)


def test_pep8_takes_the_python_of_a_folder(tmp_path, caplog):
    caplog.set_level("INFO")
    folder = write_files(tmp_path / "in", SOURCES)
    python = ["a.py", "b.pyi"]
    assert read_by(tmp_path, folder) == python
    assert "1 .md" in caplog.text
    assert "1 .txt" in caplog.text
    for pattern in ("*", "**", "*.*", "[a-z]*"):
        assert set(read_by(tmp_path, f"{folder}/{pattern}")) <= set(python)
    # Other scorers judge prose, too. If one can't, its scores would be wrong.
    length = {"class_name": "fakes:LengthScorer"}
    assert read_by(tmp_path, folder, scorers=[length]) == sorted({*SOURCES} - {"run"})
    assert read_by(tmp_path, folder, scorers=[length, PEP8]) == python
    # What the user names is taken.
    assert read_by(tmp_path, f"{folder}/*.txt") == ["requirements.txt"]
    assert read_by(tmp_path, folder / "run") == ["run"]
    for name in ("a.py", "b.pyi"):
        (folder / name).unlink()
    with pytest.raises(
        ConfigError, match=r"only files of other kinds \(.*1 \.md.*\); give a folder with .*\.py, \.pyi"
    ):
        read_by(tmp_path, folder)


def test_files_of_a_plan_stay_what_they_were(tmp_path, monkeypatch):
    """A plan of an older version has the README, and read files in capitals as text."""
    folder = write_files(tmp_path / "in", {**SOURCES, "B.JSONL": '{"text": "y"}\n'})
    out = str(tmp_path / "out")
    with monkeypatch.context() as older:
        older.setattr("phf_ray.scorers.pep8.PEP8Scorer.text_suffixes", None)
        older.setattr("phf_ray.corpus.kinds.LINES", ())
        older.setitem(__import__("phf_ray.corpus.kinds").corpus.kinds.SUFFIXES, ".jsonl", "text")
        first = run(request(folder, scorers=[PEP8], shard_bytes=None), out)
    assert first.documents == 5
    assert run(request(folder, scorers=[PEP8], shard_bytes=None), out) == first
    write_files(folder, {"c.py": "y = 1\n", "NEWS.md": "# y\n"})
    with pytest.raises(ConfigError, match=r"1 input file\(s\) were added since the job began \(c\.py\)"):
        run(request(folder, scorers=[PEP8], shard_bytes=None), out)
    run(request(folder, scorers=[PEP8], shard_bytes=None), out, append=True)
    assert {json.loads(document.meta)["source"] for document in read_corpus(out)} == {
        "B.JSONL", "README.md", "a.py", "b.pyi", "c.py", "requirements.txt"
    }  # fmt: skip
