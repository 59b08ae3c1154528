"""How often a store is asked, and that what needs a round trip for each file asks for many at the same time."""

import io
import json
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from phf_ray.corpus import find, kinds
from phf_ray.corpus.cut import plan_shards
from phf_ray.corpus.find import find_files
from phf_ray.corpus.output import CorpusFolder
from phf_ray.corpus.writer import PartWriter, finish_corpus
from phf_ray.errors import DataError
from phf_ray.records import ScorerIdentity
from phf_ray.storage import listing
from phf_ray.storage.files import write_file

NUM_PARTS = 12
IDENTITY = ScorerIdentity(name="pep8", class_name="PEP8Scorer", unit="u", versions={}, settings={})


def table(rows: int) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": [f"text {row}" for row in range(rows)]}), buffer)
    return buffer.getvalue()


def together(monkeypatch, module, name: str) -> None:
    """Let calls of a function return only when four of them wait."""
    real, barrier = getattr(module, name), threading.Barrier(4, timeout=60)

    def waits(*arguments, **options):
        barrier.wait()
        return real(*arguments, **options)

    monkeypatch.setattr(module, name, waits)


# ------------------------------------------------------------------------------------------------------------ planning


def test_folders_of_one_depth_are_listed_at_the_same_time(tmp_path, monkeypatch):
    for folder in range(8):
        (tmp_path / f"{folder}").mkdir()
        (tmp_path / f"{folder}" / "a.py").write_text("x")
    entries = listing._entries
    barrier = threading.Barrier(4, timeout=60)

    def waits(filesystem, folder):
        if folder != str(tmp_path):
            barrier.wait()
        return entries(filesystem, folder)

    monkeypatch.setattr(listing, "_entries", waits)
    assert [file.path for file in find_files([str(tmp_path)]).files] == [f"{folder}/a.py" for folder in range(8)]


def test_files_whose_names_do_not_say_their_kind_are_looked_into_at_the_same_time(tmp_path, monkeypatch):
    for number in range(8):
        (tmp_path / f"wiki_{number}").write_text('{"text": "x"}\n' if number % 2 else "text")
    together(monkeypatch, kinds, "_begins_as_json")
    found = find_files([f"{tmp_path}/*"]).files
    assert [file.kind for file in found] == ["text", "lines"] * 4
    assert [file.path for file in found] == [f"wiki_{number}" for number in range(8)]


def test_inputs_are_searched_at_the_same_time_and_the_first_that_is_missing_is_named(tmp_path, monkeypatch):
    for number in range(4):
        (tmp_path / f"{number}.py").write_text("x")
    names = [f"{tmp_path}/{number}.py" for number in range(4)]
    together(monkeypatch, find, "is_glob")  # asked about what is neither a file nor a folder
    with pytest.raises(find.ConfigError, match=r"--input .*/0\.no does not exist"):
        find_files([name.replace(".py", ".no") for name in names])
    monkeypatch.undo()
    assert [file.name for file in find_files(names).files] == names


def test_cutting_a_table_takes_one_request(s3_requests):
    objects, requests = s3_requests
    for number in range(NUM_PARTS):
        objects[f"bucket/in/{number:02d}.parquet"] = table(100)
    files = find_files(["s3://bucket/in"]).files
    requests.clear()
    pieces = [piece for shard in plan_shards(files, shard_bytes=500) for piece in shard]
    assert sorted(requests) == [f"GET bucket/in/{number:02d}.parquet" for number in range(NUM_PARTS)]
    assert [(piece.file, piece.begin) for piece in pieces] == sorted((piece.file, piece.begin) for piece in pieces)
    assert {piece.file for piece in pieces} == {*range(NUM_PARTS)}
    assert len(pieces) > NUM_PARTS


def test_a_table_that_changed_or_went_since_it_was_listed_is_read_or_named(s3_requests):
    objects, _ = s3_requests
    for name in ("changed", "gone"):
        objects[f"bucket/in/{name}.parquet"] = table(100)
    files = find_files(["s3://bucket/in"]).files
    objects["bucket/in/changed.parquet"] = table(700)
    pieces = [piece for shard in plan_shards(files[:1], shard_bytes=500) for piece in shard]
    assert pieces[-1].end == 700
    del objects["bucket/in/gone.parquet"]
    with pytest.raises(DataError, match=r"gone\.parquet was removed after the job began"):
        list(plan_shards(files, shard_bytes=500))


def test_uncompressed_files_that_will_be_needed_are_cut_at_the_same_time(tmp_path, monkeypatch):
    from phf_ray.corpus import cut

    for number in range(8):
        lines = (json.dumps({"text": f"{number} {line}"}) for line in range(100))
        (tmp_path / f"{number}.jsonl").write_text("\n".join(lines) + "\n")
    files = find_files([str(tmp_path)]).files
    alone = list(plan_shards(files, shard_bytes=500, max_bytes=4 * files[0].size))
    together(monkeypatch, cut, "open_lines")
    assert list(plan_shards(files, shard_bytes=500, max_bytes=4 * files[0].size)) == alone
    assert {piece.file for shard in alone for piece in shard} == {0, 1, 2, 3}


# ---------------------------------------------------------------------------------------------------- parts and the end


def write_parts(folder: str) -> list[str]:
    for shard in range(NUM_PARTS):
        writer = PartWriter(
            f"{folder}/part-{shard:05d}.parquet", rejects=None, scorers=["pep8"], footer={"shard": str(shard)}
        )
        writer.add(str(shard), ["x" * shard], scores={"pep8": ([shard / 3], [None])}, meta="{}")
        writer.commit()
    return [str(shard) for shard in range(NUM_PARTS)]


def test_what_is_small_is_written_by_one_request(s3_requests):
    objects, requests = s3_requests
    write_file("s3://bucket/out/plan.json", b"{}")
    write_parts("s3://bucket/out")
    names = [f"bucket/out/part-{shard:05d}.parquet" for shard in range(NUM_PARTS)]
    assert requests == [f"PUT {name}" for name in ["bucket/out/plan.json", *names]]
    assert [*objects] == ["bucket/out/plan.json", *names]


def test_a_resumed_job_reads_each_part_by_one_request(s3_requests):
    _, requests = s3_requests
    write_parts("s3://bucket/out")
    place = CorpusFolder("s3://bucket/out")
    requests.clear()
    committed = place.committed(NUM_PARTS - 1)
    assert [*committed] == [*range(NUM_PARTS - 1)]
    few = len(requests)
    assert few <= 3
    footers = list(place.footers(committed))
    assert [(shard, footer["shard"]) for shard, footer in footers] == [(n, str(n)) for n in range(NUM_PARTS - 1)]
    assert sorted(requests[few:]) == [f"GET bucket/out/part-{shard:05d}.parquet" for shard in range(NUM_PARTS - 1)]


def test_a_job_ends_with_one_request_for_each_part_and_what_a_disk_gives(s3_requests, tmp_path):
    _, requests = s3_requests
    settings = {"scorers": [IDENTITY], "segmenter": "lines", "config": {}, "input_fingerprint": ""}
    manifests = []
    for folder in (str(tmp_path / "out"), "s3://bucket/out"):
        shards = write_parts(folder)
        requests.clear()
        manifests.append(finish_corpus(folder, shards=shards, **settings))
    assert manifests[0] == manifests[1]
    of_parts = [one for one in requests if "/part-" in one]
    assert sorted(of_parts) == [f"GET bucket/out/part-{shard:05d}.parquet" for shard in range(NUM_PARTS)]
    assert len(requests) - NUM_PARTS <= 12


def test_a_part_that_is_not_there_is_found_missing_by_one_request(s3_requests):
    _, requests = s3_requests
    assert CorpusFolder("s3://bucket/out").footer_of(0, digest="x") is None
    assert requests == ["HEAD bucket/out/part-00000.parquet"]
