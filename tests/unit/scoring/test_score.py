"""The scoring job without Ray: what is scored, resumed, refused and stopped."""

import dataclasses
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import datasets
import pyarrow.parquet as pq
import pytest
import ray
from fsspec.implementations.memory import MemoryFile
from places import ROOT

from jobs import score_corpus as job
from phf_ray.config import PoolConfig, parse_config
from phf_ray.corpus import cut as corpus_cut
from phf_ray.corpus import streams
from phf_ray.corpus.output import CorpusFolder
from phf_ray.corpus.reader import list_parts, read_corpus, read_corpus_manifest
from phf_ray.corpus.segments import build_segmenter
from phf_ray.corpus.tables import read_rows
from phf_ray.errors import ConfigError, DataError, IncompleteError
from phf_ray.scorers.build import build_scorer
from phf_ray.scoring import on_ray
from phf_ray.scoring.estimate import estimate_scoring
from phf_ray.scoring.executor import InProcessScoring, ScoringPool
from phf_ray.scoring.job import run_scoring
from phf_ray.scoring.on_ray import RayScoring, ScoreShard, _through
from phf_ray.scoring.plan import prepare_output
from phf_ray.scoring.pools import scoring_pools
from phf_ray.scoring.request import ScoringRequest
from phf_ray.scoring.shard import ShardScorer
from phf_ray.storage.files import open_filesystem

LENGTH = {"class_name": "fakes:LengthScorer"}
WORDS = {"class_name": "fakes:WordScorer"}
PEP8 = {"class_name": "PEP8Scorer"}


def config(*scorers, **scoring):
    return parse_config({"scoring": {"scorers": list(scorers), "segmenter": "lines", **scoring}})


def request(*inputs, scorers=(LENGTH,), limit=None, text_column=None, shard_bytes=100, **scoring):
    return ScoringRequest(
        config(*scorers, **scoring),
        inputs=[str(path) for path in inputs],
        limit=limit,
        text_column=text_column,
        shard_bytes=shard_bytes,
    )


def write_files(folder, texts):
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text)
    return folder


def run(asked, output, **options):
    return run_scoring(asked, output, executor=InProcessScoring(), **options)


def parts_of(folder):
    return {path.name: path.read_bytes() for path in Path(folder).glob("part-*.parquet")}


@pytest.fixture
def sources(tmp_path):
    return write_files(tmp_path / "in", {f"{index}.py": f"line {index}\n" * (index + 1) for index in range(20)})


def test_a_folder_of_python_gets_the_scores_of_the_scorer(tmp_path):
    texts = {"a.py": "import os\nx=1\n", "b.py": "def f():\n    return 1\n", "c.py": "x = (\n", "d.py": ""}
    folder = write_files(tmp_path / "in", texts)
    (folder / "e.py").write_bytes(b"caf\xe9")
    seen = []
    asked = request(folder, scorers=[PEP8], shard_bytes=None)
    manifest = run(asked, str(tmp_path / "out"), progress=seen.append)
    documents = {json.loads(document.meta)["source"]: document for document in read_corpus(str(tmp_path / "out"))}
    assert sorted(documents) == ["a.py", "b.py", "c.py"]
    for name, document in documents.items():
        assert document.text == texts[name]
        scored = build_scorer(PEP8).score_segments(build_segmenter("lines")(texts[name]))
        assert document.scores == tuple(one.score for one in scored)
    assert manifest == read_corpus_manifest(str(tmp_path / "out"))
    assert (manifest.documents, manifest.segments, dict(manifest.rejected)) == (3, 5, {"empty": 1, "not_utf8": 1})
    assert manifest.scorer == build_scorer(PEP8).identity().to_json()
    assert manifest.scorer_stats().segment_histogram.quantile(1.0) > 0
    rejected = pq.read_table(tmp_path / "out" / "rejected").to_pylist()
    assert {(row["source"], row["reason"]) for row in rejected} == {("d.py", "empty"), ("e.py", "not_utf8")}
    assert (seen[-1].shards_done, seen[-1].shards, seen[-1].stats.documents) == (1, 1, 3)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "_SUCCESS",
        "manifest.json",
        "part-00000.parquet",
        "plan.json",
        "rejected",
    ]


def test_what_is_missing_is_done_and_what_is_done_is_not_touched(sources, tmp_path):
    out = tmp_path / "out"
    first = run(request(sources), str(out))
    whole = parts_of(out)
    assert len(whole) > 5
    assert run(request(sources), str(out)) == first
    (out / "_SUCCESS").unlink()
    (out / "part-00002.parquet").unlink()
    # A part that another job left under the same name is not taken for ours.
    write_files(tmp_path / "other", {"x.py": "x"})
    run(request(tmp_path / "other"), str(tmp_path / "other-out"))
    (out / "part-00004.parquet").write_bytes((tmp_path / "other-out" / "part-00000.parquet").read_bytes())
    stamp = (out / "part-00003.parquet").stat().st_mtime_ns
    done = []
    again = run(request(sources), str(out), progress=lambda progress: done.append(progress.shards_done))
    assert parts_of(out) == whole
    assert (out / "part-00003.parquet").stat().st_mtime_ns == stamp
    assert done == [len(whole) - 2, len(whole) - 1, len(whole)]
    assert again == first


def test_parts_of_no_shard_are_removed_and_not_counted(sources, tmp_path, caplog):
    out = tmp_path / "out"
    (sources / "latin.py").write_bytes(b"\xff")
    first = run(request(sources), str(out))
    (out / "_SUCCESS").unlink()
    (out / "part-00099.parquet").write_bytes((out / "part-00003.parquet").read_bytes())
    (rejected,) = (out / "rejected").iterdir()
    (out / "rejected" / "part-00099.parquet").write_bytes(rejected.read_bytes())
    assert run(request(sources), str(out)) == first
    assert list(out.rglob("part-00099*")) == []
    assert "part-00099.parquet belongs to none of the" in caplog.text


def test_changed_missing_and_added_input_is_named(sources, tmp_path):
    out = str(tmp_path / "out")
    run(request(sources), out)
    (sources / "new.py").write_text("new")
    with pytest.raises(ConfigError, match=r"1 input file\(s\) were added .*\(new\.py\); add --append"):
        run(request(sources), out)
    (sources / "3.py").unlink()
    (sources / "5.py").write_text("other")
    with pytest.raises(
        ConfigError, match=r"changed since the job began \(5\.py\); .*missing .*\(3\.py\); restore them"
    ):
        run(request(sources), out, append=True)
    manifest = run(request(sources), out, restart=True)
    assert manifest.documents == 20
    assert {json.loads(document.meta)["source"] for document in read_corpus(out)} == {
        path.name for path in sources.iterdir()
    }


@pytest.mark.parametrize("name", ["out", "out[1]"])
def test_a_restart_that_was_killed_is_started_again(sources, tmp_path, monkeypatch, name):
    out = tmp_path / name
    run(request(sources), str(out))
    (sources / "19.py").unlink()
    remove, left = CorpusFolder.remove, 0

    def killed(place, name):
        nonlocal left
        if not left:
            raise KeyboardInterrupt
        left -= 1
        remove(place, name)

    for removals in range(1, 60, 4):
        left = removals
        with monkeypatch.context() as patched:
            patched.setattr(CorpusFolder, "remove", killed)
            try:
                manifest = run(request(sources), str(out), restart=True)
            except KeyboardInterrupt:
                assert not (out / "_SUCCESS").exists()
                continue
        break
    assert removals > 8
    assert manifest.documents == 19
    assert {json.loads(document.meta)["source"] for document in read_corpus(str(out))} == {
        path.name for path in sources.iterdir()
    }


def test_append_adds_parts_and_keeps_the_others(sources, tmp_path):
    out = tmp_path / "out"
    run(request(sources), str(out))
    before = parts_of(out)
    (sources / "new.py").write_text("new\n")
    more = write_files(tmp_path / "more", {"x.py": "more\n"})
    manifest = run(request(sources, more), str(out), append=True)
    after = parts_of(out)
    assert {name: after[name] for name in before} == before
    assert manifest.documents == 22
    assert {document.text for document in read_corpus(str(out))} >= {"new\n", "more\n"}
    # The new folder alone is enough.
    (more / "y.py").write_text("yet more\n")
    assert run(request(more), str(out), append=True).documents == 23


CHOICES = """---
configs:
- config_name: en
  data_files: en/train.jsonl
- config_name: de
  data_files: de/train.jsonl
---
"""


@pytest.mark.parametrize("inputs", [("clone:en@train", "clone:de@train"), ("clone/a.jsonl", "clone/b.jsonl")])
def test_new_input_may_share_a_folder_with_what_was_scored_before(tmp_path, monkeypatch, inputs):
    monkeypatch.chdir(tmp_path)
    for name in ("clone/en/train", "clone/de/train", "clone/a", "clone/b"):
        Path(f"{name}.jsonl").parent.mkdir(parents=True, exist_ok=True)
        Path(f"{name}.jsonl").write_text(json.dumps({"text": f"{name}\n"}))
    Path("clone/README.md").write_text(CHOICES)
    run(request(inputs[0]), "out")
    assert run(request(inputs[1]), "out", append=True).documents == 2
    assert run(request(*inputs), "out").documents == 2


@pytest.mark.parametrize("place", ["", "*.py"])
def test_append_names_the_files_that_its_input_has_lost(sources, tmp_path, place):
    run(request(sources), str(tmp_path / "out"))
    (sources / "new.py").write_text("new\n")
    (sources / "3.py").unlink()
    with pytest.raises(ConfigError, match=r"1 input file\(s\) are missing since the job began \(3\.py\)"):
        run(request(sources / place), str(tmp_path / "out"), append=True)


def test_another_configuration_is_named_and_refused(sources, tmp_path):
    out = str(tmp_path / "out")
    run(request(sources), out)
    with pytest.raises(ConfigError, match=r"scoring\.segmenter was 'lines', is 'document'; .*--restart"):
        run(request(sources, segmenter="document"), out)
    with pytest.raises(ConfigError, match=r"scoring\.scorers was .*LengthScorer.*, is .*WordScorer"):
        run(request(sources, scorers=[WORDS]), out)
    with pytest.raises(ConfigError, match="--limit was None, is 3"):
        run(request(sources, limit=3), out)
    # What can't change a score may change.
    run(request(sources, pools={"cpu": {"max": 1}}, text_timeout_s=5), out)


def test_a_scorer_of_another_version_is_refused(sources, tmp_path):
    out = tmp_path / "out"
    run(request(sources, scorers=[PEP8]), str(out))
    plan = json.loads((out / "plan.json").read_text())
    plan["identities"][0]["versions"]["pycodestyle"] = "2.0"
    (out / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(ConfigError, match=r"scorer pep8: versions was .*'2\.0'"):
        run(request(sources, scorers=[PEP8]), str(out))


def test_a_folder_with_other_things_is_not_written_into(sources, tmp_path):
    out = write_files(tmp_path / "out", {"precious.txt": "x"})
    for restart in (False, True):
        with pytest.raises(ConfigError, match="is not empty and has no plan of this job"):
            run(request(sources), str(out), restart=restart)
    assert [path.name for path in out.iterdir()] == ["precious.txt"]


def test_a_folder_with_the_plan_of_somebody_else_is_neither_written_into_nor_cleared(sources, tmp_path):
    texts = {"plan.json": '{"tasks": []}', "README.md": "precious", "summary.json": "{}", "part-1.parquet": "x"}
    out = write_files(tmp_path / "out", texts)
    for restart in (False, True):
        with pytest.raises(ConfigError, match="is not empty and has no plan of this job"):
            run(request(sources), str(out), restart=restart)
    assert {path.name: path.read_text() for path in out.iterdir()} == texts


def test_a_plan_that_is_torn_is_ours_where_there_are_parts(sources, tmp_path):
    out = tmp_path / "out"
    first = run(request(sources), str(out))
    (out / "plan.json").write_text((out / "plan.json").read_text()[:100])
    with pytest.raises(DataError, match=r"plan\.json can't be read: .*; start over with --restart"):
        run(request(sources), str(out))
    assert run(request(sources), str(out), restart=True) == first


@pytest.mark.parametrize("given", ["in", "in/**/*.parquet", "i*/**/README*", "in/scored/*"])
def test_an_output_that_would_be_read_as_input_is_refused(sources, tmp_path, given):
    with pytest.raises(ConfigError, match=r"--output .*in/scored lies in --input .*; give an output elsewhere"):
        run(request(tmp_path / given), str(sources / "scored"))
    assert not (sources / "scored").exists()


@pytest.mark.parametrize("given", ["in/*.py", "in/3.py", "in/**/*.py", "in/scored-before"])
def test_an_output_beside_the_input_is_not_refused(sources, tmp_path, given):
    write_files(sources / "scored-before", {"x.py": "x\n"})
    for _ in range(2):
        assert run(request(tmp_path / given), str(sources / "scored")).documents in (1, 20, 21)


def test_input_beside_the_manifest_of_somebody_else_is_scored(tmp_path):
    folder = write_files(tmp_path / "in", {"a.jsonl": '{"text": "x"}\n', "manifest.json": '{"name": "app"}'})
    assert run(request(folder), str(tmp_path / "out")).documents == 1


def test_a_job_that_has_only_a_plan_is_no_input_yet(sources, tmp_path):
    prepare_output(request(sources), CorpusFolder(str(tmp_path / "out")), append=False, restart=False)
    with pytest.raises(DataError, match="is not finished"):
        run(request(tmp_path / "out"), str(tmp_path / "second"))


def test_too_many_failures_stop_the_job_and_a_higher_limit_goes_on(tmp_path):
    texts = {f"{index}.py": "FAIL\n" if index % 2 else "fine\n" for index in range(10)}
    folder = write_files(tmp_path / "in", texts)
    out = tmp_path / "out"
    with pytest.raises(IncompleteError, match=r"length could not score 5 of 10 segments \(unlucky: 5\).*=0\.4"):
        run(request(folder, max_failed_fraction=0.4), str(out))
    assert not (out / "_SUCCESS").exists()
    assert not (out / "manifest.json").exists()
    with pytest.raises(DataError, match="is not finished"):
        list(read_corpus(str(out)))
    manifest = run(request(folder, max_failed_fraction=0.5), str(out))
    assert manifest.scorer_stats().failed == {"unlucky": 5}
    assert {document.scores for document in read_corpus(str(out))} == {(None,), (5.0,)}


def test_too_many_records_that_can_not_be_read_stop_the_job(tmp_path):
    folder = write_files(tmp_path / "in", {f"{index}.py": "fine\n" for index in range(8)})
    write_files(folder, {f"empty{index}.py": "" for index in range(40)})
    for index in range(11):
        (folder / f"latin{index}.py").write_bytes(b"\xff")
    out = tmp_path / "out"
    with pytest.raises(IncompleteError, match=r"11 of 19 records could not be read \(not_utf8: 11\).*=0\.01.*rejected"):
        run(request(folder), str(out))
    assert not (out / "_SUCCESS").exists()
    assert run(request(folder, max_failed_fraction=0.6), str(out)).documents == 8
    # A few are no reason to stop, unless there is little else.
    few = write_files(tmp_path / "few", {"0.py": "fine\n", "1.py": "fine\n"})
    (few / "latin.py").write_bytes(b"\xff")
    assert run(request(few), str(tmp_path / "few-out")).rejected == {"not_utf8": 1}
    (few / "1.py").unlink()
    (few / "latin2.py").write_bytes(b"\xff")
    with pytest.raises(IncompleteError, match="2 of 3 records"):
        run(request(few), str(tmp_path / "few-out"), restart=True)


def test_a_job_that_fails_much_stops_before_its_end(tmp_path):
    folder = write_files(tmp_path / "in", {f"{index}.py": "FAIL\n" * 400 for index in range(12)})
    out = tmp_path / "out"
    with pytest.raises(IncompleteError, match=r"stopped after 3 of 12 shards"):
        run(request(folder), str(out))


def test_a_text_that_hangs_is_cut_off_and_the_rest_is_scored(tmp_path):
    folder = write_files(tmp_path / "in", {"a.py": "a\n", "b.py": "x\nHANG\n", "c.py": "c\n"})
    manifest = run(request(folder, text_timeout_s=1, max_failed_fraction=0.5), str(tmp_path / "out"))
    assert manifest.scorer_stats().failed == {"timeout": 2}
    assert [document.scores for document in read_corpus(str(tmp_path / "out"))] == [(2.0,), (None, None), (2.0,)]


def test_input_without_any_document_is_an_error(tmp_path):
    folder = write_files(tmp_path / "in", {"a.py": "", "b.py": ""})
    with pytest.raises(DataError, match=r"no document could be read from the input \(empty: 2\)"):
        run(request(folder), str(tmp_path / "out"))
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ConfigError, match="no files"):
        run(request(tmp_path / "nothing"), str(tmp_path / "out2"))
    assert not (tmp_path / "out2").exists()


def test_scorers_on_two_pools_give_what_one_pool_gives(sources, tmp_path):
    (sources / "empty.py").write_text("")
    (sources / "long.py").write_text("LONG words\nand more\n")
    cpu = run(request(sources, scorers=[WORDS, LENGTH]), str(tmp_path / "one"))
    # A GPU pool that asks for no GPU: two stages, on any machine.
    pools = {"gpu": {"num_gpus": 0}}
    both = run(request(sources, scorers=[WORDS, LENGTH], pools=pools), str(tmp_path / "two"))
    assert both == cpu
    assert both.scorer_stats("words").truncated == 1
    assert not (tmp_path / "two" / "_tmp").exists()
    rows = [row for part in list_parts(str(tmp_path / "two")) for row in read_rows(part)]
    assert rows == [row for part in list_parts(str(tmp_path / "one")) for row in read_rows(part)]
    assert rows[3]["scores"] == [2.0] * len(rows[3]["texts"])
    assert rows[3]["scores__length"] == [float(len(text)) for text in rows[3]["texts"]]


def test_a_second_stage_keeps_the_rejects_of_the_first(sources, tmp_path):
    (sources / "empty.py").write_text("")
    asked = request(sources, scorers=[WORDS, LENGTH], pools={"gpu": {"num_gpus": 0}})
    assert run(asked, str(tmp_path / "out")).rejected == {"empty": 1}
    assert pq.read_table(tmp_path / "out" / "rejected")["source"].to_pylist() == ["empty.py"]


class Growing(InProcessScoring):
    """A cluster without a GPU that may get one."""

    def has(self, pool):
        return False

    def may_grow(self):
        return True

    def score(self, pools, rows):
        self.pools = pools
        yield from super().score(pools, rows)


def test_a_gpu_pool_that_is_asked_for_is_waited_for(sources, tmp_path, caplog):
    caplog.set_level("INFO")
    cluster = Growing()
    run_scoring(request(sources, scorers=[WORDS], pools={"gpu": {"max": 2}}), str(tmp_path / "out"), executor=cluster)
    assert [(pool.config.max, pool.config.num_gpus) for pool in cluster.pools] == [(2, 1.0)]
    assert "on CPUs" not in caplog.text


@pytest.mark.parametrize(
    ("executor", "pools", "level"),
    [(Growing(), {}, "INFO"), (InProcessScoring(), {}, "INFO"), (InProcessScoring(), {"gpu": {"max": 2}}, "WARNING")],
    ids=["not asked for", "on one machine", "asked for in vain"],
)
def test_a_model_that_runs_on_cpus_is_told_of(sources, tmp_path, caplog, executor, pools, level):
    caplog.set_level("INFO")
    asked = request(sources, scorers=[LENGTH, WORDS], pools=pools)
    run_scoring(asked, str(tmp_path / "out"), executor=executor)
    (told,) = [record for record in caplog.records if "on CPUs" in record.getMessage()]
    assert told.levelname == level
    assert told.getMessage().startswith("words: on CPUs, because nothing here has {'CPU': 1.0, 'GPU': 1.0}")
    assert "set scoring.pools.gpu" in told.getMessage()


def fake_cluster(monkeypatch, *, address, nodes, is_own=True, **resources):
    """`is_own`: whether this process started the Ray that it uses."""
    monkeypatch.setattr(ray._private.worker, "_global_node", SimpleNamespace(is_head=lambda: is_own))
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True}] * nodes)
    monkeypatch.setattr(ray, "cluster_resources", lambda: dict(resources))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)


@pytest.mark.parametrize(
    ("address", "nodes", "cpus", "most"),
    [
        (None, 1, 4, 2),
        ("local", 1, 4, 2),
        # Workers that start from zero: a head, with or without CPUs of its own.
        ("10.0.0.1:6379", 1, 0, 20),
        ("10.0.0.1:6379", 1, 4, 20),
        (None, 1, 0, 20),
        (None, 3, 12, 20),
    ],
)
def test_only_a_ray_on_this_machine_alone_limits_the_number_of_actors(monkeypatch, address, nodes, cpus, most):
    # A Ray that a job starts has CPUs.
    fake_cluster(monkeypatch, address=address, nodes=nodes, is_own=cpus > 0, **({"CPU": cpus} if cpus else {}))

    class Data:
        def iter_rows(self):
            return iter(())

    limits = []
    monkeypatch.setattr(ray.data, "from_items", lambda *arguments, **options: Data())
    monkeypatch.setattr(on_ray, "_through", lambda data, pool, *, most: limits.append(most) or data)
    pool = ScoringPool(stage=None, config=config().scoring.pools.cpu)
    assert list(RayScoring().score([pool], [{}] * 20)) == []
    assert limits == [most]


def begin_on_ray(monkeypatch, **pool):
    """Up to where Ray would be asked for actors."""
    monkeypatch.setattr(ray.data, "from_items", lambda *arguments, **options: SimpleNamespace(iter_rows=list))
    monkeypatch.setattr(on_ray, "_through", lambda data, pool, *, most: data)
    assert list(RayScoring().score([ScoringPool(stage=None, config=PoolConfig(**pool))], [{}])) == []


@pytest.mark.parametrize("asked", [{"num_cpus": 8}, {"resources": {"tpu": 1}}])
def test_actors_that_can_never_fit_are_refused_at_once(monkeypatch, asked):
    fake_cluster(monkeypatch, address=None, nodes=1, CPU=4.0)
    with pytest.raises(
        ConfigError,
        match=r"scoring\.pools\.cpu: an actor asks for \{'CPU': .*has only \{'CPU': 4\.0.*ask for less.*RAY_ADDRESS",
    ):
        begin_on_ray(monkeypatch, **asked)
    begin_on_ray(monkeypatch, num_cpus=4)


@pytest.mark.parametrize(
    "cluster",
    [
        # As a submitted job sees the head of a cluster whose workers start from zero, on Kubernetes or elsewhere.
        {"address": "10.0.0.1:6379", "nodes": 1, "is_own": False},
        {"address": "auto", "nodes": 1, "is_own": False},
        {"address": None, "nodes": 3, "is_own": False},
        # A program on the head that called ray.init(address="auto").
        {"address": None, "nodes": 1, "is_own": False},
        # Nodes that joined the Ray of this process.
        {"address": None, "nodes": 2, "is_own": True},
    ],
)
def test_on_a_cluster_that_may_grow_actors_are_waited_for(monkeypatch, caplog, cluster):
    fake_cluster(monkeypatch, CPU=4.0, **cluster)
    begin_on_ray(monkeypatch, num_cpus=8)
    assert "waiting for nodes with {'CPU': 8.0}" in caplog.text


@pytest.mark.parametrize(("num_gpus", "device"), [(0, "cpu"), (0.5, "auto")])
def test_an_actor_that_asks_for_no_gpu_scores_on_a_cpu(sources, tmp_path, monkeypatch, num_gpus, device):
    """Ray hides none from it; one that its machine has is lent to others."""
    classifier = {"class_name": "SequenceClassifierScorer", "device": "auto"}
    asked = request(sources, scorers=[LENGTH, WORDS], pools={"gpu": {"num_gpus": num_gpus}})
    place = CorpusFolder(str(tmp_path / "out"))
    plan = prepare_output(asked, place, append=False, restart=False)
    pool = scoring_pools(asked, plan, output=place.name(), has_gpus=True)[1]
    setup = dataclasses.replace(pool.stage.setup, scorers=(classifier, WORDS))
    pool = dataclasses.replace(pool, stage=dataclasses.replace(pool.stage, setup=setup))
    given = []
    cpu = {} if num_gpus else {"device": "cpu"}

    class Data:
        def map(self, actor, **options):
            given.append(options)

    _through(Data(), pool, most=1)
    ((stage,),) = [options["fn_constructor_args"] for options in given]
    assert stage.setup.scorers == ({**classifier, "device": device}, {**WORDS, **cpu})


class Shown:
    """A gauge of Ray as a driver sets it."""

    made: ClassVar[dict[str, list[float]]] = {}

    def __init__(self, name, description):
        self._values = self.made.setdefault(name, [])

    def set(self, value):
        if value is not None:
            self._values.append(value)


def test_the_driver_tells_ray_how_far_it_is(sources, tmp_path, monkeypatch):
    class Local(RayScoring):
        has = InProcessScoring.has
        score = InProcessScoring.score

    monkeypatch.setattr("phf_ray.scoring.on_ray.MetricGauge", Shown)
    monkeypatch.setattr(Shown, "made", {})
    shards = run_scoring(request(sources), str(tmp_path / "out"), executor=Local()).num_parts
    assert shards > 5
    assert Shown.made["phf_shards"] == [shards] * (shards + 1)
    assert Shown.made["phf_shards_done"] == list(range(shards + 1))
    eta = Shown.made["phf_eta_seconds"]
    assert (len(eta), eta[-1]) == (shards, 0)
    assert min(eta[:-1]) > 0


def test_what_is_left_is_that_of_the_shards_that_are_not_done(sources, tmp_path):
    out = tmp_path / "out"
    run(request(sources), str(out))
    sizes = [sum(piece[1] for piece in shard) for shard in json.loads((out / "plan.json").read_text())["shards"]]
    for name in ("_SUCCESS", "part-00001.parquet", "part-00003.parquet"):
        (out / name).unlink()
    seen = []
    run(request(sources), str(out), progress=seen.append)
    first, second = sorted((sizes[1], sizes[3]), reverse=True)
    assert [progress.bytes_left for progress in seen] == [first + second, second, 0]
    assert [progress.bytes_here for progress in seen] == [0, first, first + second]


def test_a_shard_that_is_committed_is_not_scored_again(tmp_path):
    folder = write_files(tmp_path / "in", {"a.py": "a b\n"})
    asked = request(folder, scorers=[WORDS, LENGTH], pools={"gpu": {"num_gpus": 0}})
    place = CorpusFolder(str(tmp_path / "out"))
    plan = prepare_output(asked, place, append=False, restart=False)
    first, last = (ShardScorer(pool.stage) for pool in scoring_pools(asked, plan, output=place.name(), has_gpus=True))
    between = first(plan.row(0))
    once = last(between)
    stamp = (tmp_path / "out" / "part-00000.parquet").stat().st_mtime_ns
    assert last(between) == once
    assert (tmp_path / "out" / "part-00000.parquet").stat().st_mtime_ns == stamp
    assert last(first(plan.row(0))) == once
    assert not any((tmp_path / "out" / "_tmp").iterdir())
    first.close()
    last.close()


def test_a_torn_part_is_written_anew(sources, tmp_path):
    out = tmp_path / "out"
    run(request(sources), str(out))
    whole = parts_of(out)
    (out / "_SUCCESS").unlink()
    (out / "part-00003.parquet").write_bytes(whole["part-00003.parquet"][:-9])
    (out / "part-00004.parquet").write_bytes(b"")
    run(request(sources), str(out))
    assert parts_of(out) == whole


def test_a_scorer_is_added_without_asking_the_others_again(sources, tmp_path):
    run(request(sources), str(tmp_path / "first"))
    mark_scores(tmp_path / "first")
    manifest = run(request(tmp_path / "first", scorers=[LENGTH, WORDS]), str(tmp_path / "second"))
    rows = [row for part in list_parts(str(tmp_path / "second")) for row in read_rows(part)]
    assert {value for row in rows for value in row["scores"]} == {42.0}
    assert {value for row in rows for value in row["scores__words"]} == {2.0}
    assert {row["id"] for row in rows} == {document.id for document in read_corpus(str(tmp_path / "first"))}
    assert [scorer["name"] for scorer in manifest.scorers] == ["length", "words"]
    # The same name with other settings is another scorer.
    renamed = {"class_name": "fakes:WordScorer", "name": "length"}
    run(request(tmp_path / "first", scorers=[renamed]), str(tmp_path / "third"))
    assert {value for document in read_corpus(str(tmp_path / "third")) for value in document.scores} == {2.0}


def mark_scores(folder):
    """Scores that no scorer would give show who is asked."""
    for path in folder.glob("part-*.parquet"):
        table = pq.read_table(path)
        marked = [[42.0] * len(scores) for scores in table["scores"].to_pylist()]
        index = table.schema.names.index("scores")
        footer = pq.read_metadata(path).metadata
        table = table.set_column(index, table.schema.field(index), [marked])
        pq.write_table(table.replace_schema_metadata({b"phf_ray": footer[b"phf_ray"]}), path)


# A GPU pool that asks for no GPU: two stages, on any machine.
@pytest.mark.parametrize("pools", [{}, {"gpu": {"num_gpus": 0}}], ids=["one stage", "two stages"])
def test_scores_that_are_kept_are_not_computed_again_and_keep_their_count_of_cut_texts(sources, tmp_path, pools):
    (sources / "3.py").write_text("LONG words\nand LONG\n")
    (sources / "9.py").write_text("LONG\n" * 9)
    first = run(request(sources, scorers=[WORDS]), str(tmp_path / "first"))
    assert first.scorer_stats().truncated == 11
    mark_scores(tmp_path / "first")
    asked = request(tmp_path / "first", scorers=[LENGTH, WORDS], shard_bytes=30, pools=pools)
    second = run(asked, str(tmp_path / "second"))
    assert second.scorer_stats("words").truncated == 11
    assert second.num_parts > first.num_parts
    rows = [row for part in list_parts(str(tmp_path / "second")) for row in read_rows(part)]
    assert {value for row in rows for value in row["scores__words"]} == {42.0}
    assert [row["scores"] for row in rows] == [[float(len(text)) for text in row["texts"]] for row in rows]
    # Nothing is left to ask: only the order of the columns changes.
    third = run(
        request(tmp_path / "second", scorers=[WORDS, LENGTH], pools=pools, shard_bytes=None), str(tmp_path / "third")
    )
    assert (third.scorer_stats().truncated, third.scorer["name"]) == (11, "words")
    assert {value for document in read_corpus(str(tmp_path / "third")) for value in document.scores} == {42.0}


def test_datasets_loads_what_the_job_wrote_by_its_data_card_and_by_its_files(sources, tmp_path):
    (sources / "empty.py").write_text("")
    run(request(sources, scorers=[LENGTH, WORDS]), str(tmp_path / "out"))
    cache = str(tmp_path / "cache")
    files = str(tmp_path / "out" / "part-*.parquet")
    by_card = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=cache)
    by_files = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=cache)
    rows = [row for part in list_parts(str(tmp_path / "out")) for row in read_rows(part)]
    assert list(by_card) == list(by_files) == rows
    assert len(rows) == 20
    assert {"id", "texts", "scores", "avg_score", "num_sents", "errors", "meta", "scores__words"} <= set(rows[0])


def test_compressed_lines_are_cut_and_limited(tmp_path):
    lines = [json.dumps({"body": f"text {index}"}) for index in range(200)]
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    asked = request(tmp_path / "a.jsonl.gz", text_column="body", limit=150, shard_bytes=1000)
    manifest = run(asked, str(tmp_path / "out"))
    texts = [document.text for document in read_corpus(str(tmp_path / "out"))]
    assert texts == [f"text {index}" for index in range(150)]
    assert manifest.documents == 150
    estimate = estimate_scoring(asked, documents=10)
    assert 5 <= estimate.documents <= 20
    assert estimate.cpu_hours > 0


def write_many(path):
    path.write_text("".join(json.dumps({"text": f"text {index}"}) + "\n" for index in range(3000)))
    return path


def test_neither_an_estimate_nor_a_preview_reads_the_input_through(tmp_path, monkeypatch, capsys):
    lines = write_many(tmp_path / "a.jsonl")

    def cut(*arguments):
        raise AssertionError("it is read through")

    monkeypatch.setattr(corpus_cut, "_cut", cut)
    asked = request(lines, shard_bytes=1000)
    estimate = estimate_scoring(asked, documents=20)
    assert (estimate.documents, estimate.total_bytes) == (20, lines.stat().st_size)
    assert estimate.sample_bytes == sum(len(f"text {index}") for index in range(20))
    limited = estimate_scoring(dataclasses.replace(asked, limit=10), documents=20)
    assert (limited.documents, limited.total_bytes) == (10, 60)
    task = ROOT / "configs" / "pep8" / "pretrain.yml"
    arguments = ["--task", str(task), "--input", str(lines), "--output", str(tmp_path / "out"), "--dry-run"]
    assert job.main([*arguments, "--shard-mb", "0.01"]) == 0
    assert f"1 files, about 0.1 MB of text, about {-(-lines.stat().st_size // 10_000)} parts" in capsys.readouterr().out
    assert job.main([*arguments, "--limit", "7"]) == 0
    assert "of which the first 7 records are scored" in capsys.readouterr().out
    lines.write_text("")
    with pytest.raises(ConfigError, match="holds no records"):
        job.main(arguments)


def test_an_estimate_is_of_cpus_also_where_there_is_a_gpu(tmp_path, monkeypatch):
    class StopError(Exception):
        pass

    def started(setup):
        raise StopError(setup)

    monkeypatch.setattr("phf_ray.scoring.estimate.ScoringProcess", started)
    asked = request(write_many(tmp_path / "a.jsonl"), scorers=[{"class_name": "DetoxifyToxicityScorer"}, PEP8])
    with pytest.raises(StopError) as stopped:
        estimate_scoring(asked)
    (setup,) = stopped.value.args
    assert setup.scorers == ({"class_name": "DetoxifyToxicityScorer", "device": "cpu"}, PEP8)
    assert setup.num_threads == 1


def run_job(*arguments, factory=None):
    return subprocess.run(
        [sys.executable, "-m", "jobs.score_corpus", *map(str, arguments)],
        cwd=ROOT,
        env={key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"},
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_the_command_tells_its_plan_and_writes_nothing(sources, tmp_path):
    task = ROOT / "configs" / "pep8" / "pretrain.yml"
    done = run_job("--task", task, "--input", sources, "--output", tmp_path / "out", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "20 files" in done.stdout
    assert "violations per character; pycodestyle" in done.stdout
    assert not (tmp_path / "out").exists()
    done = run_job("--task", task, "--input", sources, "--output", tmp_path / "out", "--estimate")
    assert "CPU hours" in done.stdout, done.stderr
    assert not (tmp_path / "out").exists()


def test_the_command_refuses_bad_input_with_one_line_and_leaves_no_output(tmp_path):
    task = ROOT / "configs" / "pep8" / "pretrain.yml"
    done = run_job("--task", task, "--input", tmp_path / "nowhere", "--output", tmp_path / "out")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith(f"error: --input {tmp_path}/nowhere does not exist")
    done = run_job("--task", task, "--input", tmp_path, "--output", tmp_path / "out", "--append", "--restart")
    assert done.returncode == 2
    assert not (tmp_path / "out").exists()


def test_odd_ids_and_names_end_no_job(tmp_path):
    folder = write_files(tmp_path / "in", {os.fsdecode(b"caf\xe9.py"): "x\n", "b.py": "y\n"})
    rows = [{"id": 5, "texts": ["a"]}, {"texts": ["a"], "meta": "\ud800"}]
    (folder / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    manifest = run(request(folder), str(tmp_path / "out"))
    assert (manifest.documents, dict(manifest.rejected)) == (4, {})
    assert "5" in {document.id for document in read_corpus(str(tmp_path / "out"))}


def test_dates_are_judged_from_the_configured_day(tmp_path):
    asked = request(tmp_path, scorers=[{"class_name": "PIIScorer"}, PEP8], reference_date="2060-01-01")
    assert asked.key()["scoring.scorers"] == [{"class_name": "PIIScorer", "reference_date": "2060-01-01"}, PEP8]
    assert asked.setup().scorers == tuple(asked.key()["scoring.scorers"])


@pytest.mark.parametrize("root", ["memory://score", "s3://bucket/a b"])
def test_input_and_output_may_lie_on_an_object_store(root, s3):
    store, inner = open_filesystem(root)
    for index in range(6):
        store.pipe_file(f"{inner}/in/{index}.txt", f"text {index}\n".encode() * 20)
    store.pipe_file(f"{inner}/in/empty.txt", b"")
    first = run(request(f"{root}/in"), f"{root}/out")
    assert (first.documents, dict(first.rejected)) == (6, {"empty": 1})
    assert sum(1 for _ in read_corpus(f"{root}/out")) == 6
    parts = {name: store.cat_file(name) for name in store.glob(f"{inner}/out/part-*")}
    assert len(parts) > 3
    store.rm_file(sorted(parts)[1])
    store.rm_file(f"{inner}/out/_SUCCESS")
    assert run(request(f"{root}/in"), f"{root}/out") == first
    assert {name: store.cat_file(name) for name in store.glob(f"{inner}/out/part-*")} == parts
    store.pipe_file(f"{inner}/in/0.txt", b"other")
    with pytest.raises(ConfigError, match=r"changed since the job began \(0\.txt\)"):
        run(request(f"{root}/in"), f"{root}/out")
    again = run(request(f"{root}/in/[0-2].txt"), f"{root}/out", restart=True)
    assert (again.documents, store.exists(f"{inner}/out/rejected")) == (3, False)
    assert sum(1 for _ in read_corpus(f"{root}/out")) == 3


@pytest.mark.parametrize("limit", [None, 900])
def test_a_store_that_fails_for_a_moment_leaves_no_plan_of_half_the_input(monkeypatch, limit):
    store, _ = open_filesystem("memory://")
    lines = [json.dumps({"text": f"text {index}"}) for index in range(1000)]
    store.pipe_file("/moment/in/a.jsonl", "\n".join(lines).encode())
    asked = request("memory://moment/in", shard_bytes=1000, limit=limit)
    monkeypatch.setattr(streams, "CHUNK_BYTES", 1000)
    filled, reads = MemoryFile.readinto, []

    def readinto(file, buffer):
        reads.append(len(buffer))
        if len(reads) == 5:
            raise OSError("Connection reset by peer")
        return filled(file, buffer)

    monkeypatch.setattr(MemoryFile, "readinto", readinto, raising=False)
    with pytest.raises(DataError, match=r"a\.jsonl: OSError: Connection reset by peer; run the same command again"):
        run(asked, f"memory://moment/out-{limit}")
    assert len(reads) == 5
    assert not store.exists(f"/moment/out-{limit}/plan.json")
    assert run(asked, f"memory://moment/out-{limit}").documents == (limit or 1000)


def test_an_output_on_a_store_that_refuses_is_an_error_of_ours(sources, s3_that_refuses):
    with pytest.raises(DataError, match=r"--output s3://bucket/out can't be accessed: .*ACCESS_DENIED.*credentials"):
        run(request(sources), "s3://bucket/out")


class Tally:
    """Counts as a counter of Ray does."""

    def __init__(self):
        self.total = 0

    def inc(self, value):
        self.total += value


def test_an_actor_tells_ray_what_it_counted_once(tmp_path):
    texts = {f"{index}.py": "x = 1\n" * 5000 + "FAIL\n" for index in range(6)}
    folder = write_files(tmp_path / "in", {**texts, "empty.py": ""})
    asked = request(folder, shard_bytes=1 << 20)
    place = CorpusFolder(str(tmp_path / "out"))
    plan = prepare_output(asked, place, append=False, restart=False)
    (pool,) = scoring_pools(asked, plan, output=place.name(), has_gpus=False)
    actor = ScoreShard(pool.stage)
    actor._counters = {name: Tally() for name in actor._counters}
    for shard in range(len(plan.shards)):
        actor(plan.row(shard))
    actor.close()
    assert {name: tally.total for name, tally in actor._counters.items()} == {
        "documents": 6,
        "segments": 6 * 5001,
        "characters": 6 * (5000 * 6 + 5),
        "failed_segments": 6,
        "rejected_records": 1,
    }
