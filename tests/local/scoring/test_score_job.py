"""The scoring job on one local Ray: the same as without it."""

import json
import os
import subprocess
import sys

import pytest
from guide import write_scorer_of_the_guide
from places import ROOT
from score_runs import files_of

from jobs import score_corpus as job
from jobs import thresholds
from phf_ray.config import parse_config
from phf_ray.corpus.reader import read_corpus, read_corpus_manifest
from phf_ray.errors import ConfigError, IncompleteError, PhfError
from phf_ray.scoring.executor import InProcessScoring
from phf_ray.scoring.job import run_scoring
from phf_ray.scoring.on_ray import RayScoring
from phf_ray.scoring.request import ScoringRequest


def request(folder, *, shard_bytes=100, **scoring):
    scorers = [{"class_name": "fakes:WordScorer"}, {"class_name": "fakes:LengthScorer"}]
    return ScoringRequest(
        parse_config({"scoring": {"scorers": scorers, "segmenter": "lines", **scoring}}),
        inputs=[str(folder)],
        shard_bytes=shard_bytes,
    )


def write_files(folder, texts):
    folder.mkdir()
    for name, text in texts.items():
        (folder / name).write_text(text)
    return folder


def test_two_pools_of_actors_give_what_one_process_gives(local_ray, tmp_path):
    texts = {f"{index}.py": f"line {index}\n" * (index + 1) for index in range(20)}
    folder = write_files(tmp_path / "in", {**texts, "empty.py": "", "fail.py": "FAIL\n", "long.py": "LONG\n"})
    # A GPU pool that asks for no GPU: two stages, on any machine.
    pools = {"cpu": {"num_cpus": 0.5, "max": 2}, "gpu": {"num_cpus": 0.5, "num_gpus": 0, "max": 1}}
    asked = request(folder, max_failed_fraction=0.5, pools=pools)
    alone = run_scoring(asked, str(tmp_path / "alone"), executor=InProcessScoring())
    seen = []
    on_ray = run_scoring(asked, str(tmp_path / "ray"), progress=seen.append, executor=RayScoring())
    assert on_ray == alone
    assert on_ray.documents == 22
    parts = {path.name: path.read_bytes() for path in (tmp_path / "ray").glob("part-*")}
    assert parts == {path.name: path.read_bytes() for path in (tmp_path / "alone").glob("part-*")}
    assert len(parts) > 5
    assert [progress.shards_done for progress in seen] == list(range(len(parts) + 1))
    assert seen[-1].eta_s == 0


def test_an_error_of_a_worker_arrives_as_it_was_raised(local_ray, tmp_path):
    folder = write_files(tmp_path / "in", {f"{index}.py": "FAIL\n" * 400 for index in range(12)})
    with pytest.raises(IncompleteError, match=r"stopped after \d+ of 12 shards"):
        run_scoring(request(folder, pools={"cpu": {"max": 1}}), str(tmp_path / "out"), executor=RayScoring())
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    moved = request(folder, shard_bytes=1 << 20)

    class Vanishing(RayScoring):
        def start(self, num_bytes):
            (folder / "3.py").unlink()

    with pytest.raises(PhfError, match=r"3\.py was removed after the job began"):
        run_scoring(moved, str(tmp_path / "out2"), executor=Vanishing())


def test_a_pool_that_this_ray_has_no_room_for_is_refused(local_ray, tmp_path):
    folder = write_files(tmp_path / "in", {"a.py": "x\n"})
    with pytest.raises(ConfigError, match=r"an actor asks for \{'CPU': 8\.0\}.*has only \{'CPU': 4\.0\}.*ask for less"):
        run_scoring(request(folder, pools={"cpu": {"num_cpus": 8}}), str(tmp_path / "out"), executor=RayScoring())


class StopsAfter:
    """An executor that is interrupted once it has scored that many shards."""

    def __init__(self, executor, *, shards):
        self._executor, self._shards = executor, shards

    def __getattr__(self, name):
        return getattr(self._executor, name)

    def score(self, pools, rows):
        rows = list(rows)[: self._shards]
        yield from self._executor.score(pools, rows)
        raise KeyboardInterrupt


@pytest.mark.parametrize("begins_on_ray", [False, True])
def test_what_was_begun_in_a_process_is_finished_on_ray_and_the_other_way_round(local_ray, tmp_path, begins_on_ray):
    folder = write_files(tmp_path / "in", {f"{index}.py": f"line {index}\n" * (index + 1) for index in range(6)})
    asked, whole, out = request(folder, shard_bytes=30), tmp_path / "whole", tmp_path / "out"
    run_scoring(asked, str(whole), executor=InProcessScoring())
    executors = [RayScoring(), InProcessScoring()] if begins_on_ray else [InProcessScoring(), RayScoring()]
    with pytest.raises(KeyboardInterrupt):
        run_scoring(asked, str(out), executor=StopsAfter(executors[0], shards=2))
    begun = {path.name: path.stat().st_mtime_ns for path in out.glob("part-*.parquet")}
    assert len(begun) == 2
    assert not (out / "_SUCCESS").exists()
    run_scoring(asked, str(out), executor=executors[1])
    assert files_of(out) == files_of(whole)
    assert {name: (out / name).stat().st_mtime_ns for name in begun} == begun


DRIVER = """
import sys

import ray

from jobs import cli, score_corpus

address, modules, *arguments = sys.argv[1:]
sys.path.insert(0, modules)
runtime_env = {"py_modules": [modules + "/my_scorers.py"], **(cli.runtime_env_for(sys.executable) or {})}
ray.init(address=address, log_to_driver=False, runtime_env=runtime_env)
score_corpus.main(arguments)
"""


def test_workers_get_a_scorer_from_outside_the_package_by_the_runtime_environment(local_ray, tmp_path):
    import ray

    class_name = write_scorer_of_the_guide(tmp_path / "modules")
    folder = write_files(tmp_path / "in", {"a.txt": "LOUD\nLoud\nno\n", "b.txt": "loud\n"})
    task = tmp_path / "task.yml"
    task.write_text(json.dumps({"scoring": {"scorers": [{"class_name": class_name}], "segmenter": "lines"}}))
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    paths = ("--task", task, "--input", folder, "--output", tmp_path / "out", "--override")
    command = (sys.executable, script, ray.get_runtime_context().gcs_address, tmp_path / "modules")
    # Only this driver has the folder of the module in its path: this Ray runs already.
    done = subprocess.run(
        [*command, *paths, "scoring.max_failed_fraction=0.5"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ["PYTHONPATH"]])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert {document.scores for document in read_corpus(str(tmp_path / "out"))} == {(1.0, 0.25, None), (0.0,)}
    manifest = read_corpus_manifest(str(tmp_path / "out"))
    assert manifest.scorer["class_name"] == class_name


def test_the_job_writes_a_summary_and_thresholds_are_told(local_ray, tmp_path, capsys):
    sources = write_files(tmp_path / "in", {f"{index}.py": f"x = {index}\n" * (index + 1) for index in range(20)})
    task = str(ROOT / "configs" / "pep8" / "pretrain.yml")
    (sources / "bad.py").write_text("x=1\n")
    (sources / "empty.py").write_text("")
    out = tmp_path / "out"
    assert job.main(["--task", task, "--input", str(sources), "--output", str(out)]) == 0
    assert "1 records rejected: empty" in capsys.readouterr().out
    summary = json.loads((out / "summary.json").read_text())
    assert not (out / "_tmp").exists()
    assert (summary["status"], summary["documents"], summary["rejected"]) == ("complete", 21, {"empty": 1})
    assert thresholds.main(["--corpus", str(out), "--quantile", "0.5", "1"]) == 0
    printed = capsys.readouterr().out
    stats = read_corpus_manifest(str(out)).scorer_stats()
    assert f"segments quantile 0.5: threshold {stats.segment_histogram.quantile(0.5):.6g};" in printed
    assert (
        f"documents quantile 1: threshold {stats.document_histogram.quantile(1.0):.6g}; 100.0% at or below" in printed
    )
    (sources / "0.py").unlink()
    with pytest.raises(ConfigError, match="missing"):
        job.main(["--task", task, "--input", str(sources), "--output", str(out)])
    assert json.loads((out / "summary.json").read_text())["status"] == "failed"
