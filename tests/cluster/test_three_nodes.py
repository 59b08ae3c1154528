"""Each stage of the work on three Ray nodes, where it loses a node that works for it."""

import contextlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from judge_server import judge_server
from judging_files import comparisons, pair_rows, write_pool, write_rows
from killed_rounds import TWO, answers, assert_prompts_once, num_rounds, stored
from killed_runs import WEIGHT_TOLERANCE, difference_of_checkpoints, last_checkpoint
from machines import PATIENCE_S, Machines, job, module, python
from ranks import run_on_ranks
from rollout_runs import prepare_run, prepared, rollout_values, run_on_rank, write_prompts
from train_runs import arguments, losses, metrics, run_folder, write_inputs

from jobs.annotate import main as annotate
from phf_ray.config import parse_config
from phf_ray.corpus.reader import read_corpus, read_corpus_manifest
from phf_ray.feedback import read_feedback_manifest
from phf_ray.judging.ledger import Ledger
from phf_ray.judging.store import Store
from phf_ray.runs.directory import RunDirectory
from phf_ray.scoring.job import run_scoring
from phf_ray.scoring.on_ray import RayScoring
from phf_ray.scoring.request import ScoringRequest

pytestmark = pytest.mark.timeout(1500)

NUM_FILES = 10
NUM_SAMPLES = 2400
ROUNDS = 6
PAIRS, IN_FLIGHT = 1000, 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("three nodes")


@pytest.fixture(scope="module")
def machines(folder) -> Iterator[Machines]:
    one = Machines(shared=folder)
    try:
        yield one
    finally:
        one.shutdown()


def test_every_stage_survives_the_loss_of_a_node_that_works_for_it(machines, folder):
    scored = score_and_lose_a_node(machines, folder)
    run, task = train_and_lose_a_node(machines, folder, scored=scored)
    server = module("serve", "--model", f"conditional={run}", "--scorers", "pep8", "--port", 0)
    with job(machines, *server) as serving:
        url = serving.wait_for(lambda: next((line for line in serving.output.splitlines() if "ready: " in line), None))
        # Only this node may ask 127.0.0.1, which is another machine on every node; here all nodes are one machine.
        url = url.partition("ready: ")[2].strip().replace("127.0.0.1", "0.0.0.0")
        lose_a_node_of_the_service(machines, url)
        evaluate_and_lose_a_node(machines, folder, url=url, task=task)


# --- Score ------------------------------------------------------------------------------------------------------------


def write_sources(folder: Path) -> Path:
    """Lines with and without a violation; all files but the first two wait at the gate."""
    draw = np.random.default_rng(0)
    names = ["first", "second", "value", "result"]
    source = folder / "source"
    source.mkdir()
    for index in range(NUM_FILES):
        lines = [
            f"{draw.choice(names)} = {draw.choice(names)} + {draw.integers(10)}{draw.choice(['', ';'])}\n"
            # The two that do not wait are the largest, which are scored first.
            for _ in range(60 if index < 2 else 40)
        ]
        (source / f"{index}.py").write_text("".join(lines) + ("# GATE\n" if index >= 2 else "# open\n"))
    return source


def drive_scoring(folder: str) -> None:
    import ray

    ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False)
    held = {"class_name": "fakes:LengthScorer", "gate": f"{folder}/gate"}
    scorers = [{"class_name": "PEP8Scorer"}, held]
    pools = {"cpu": {"min": 2, "max": 2}}
    config = parse_config({"scoring": {"scorers": scorers, "segmenter": "lines", "pools": pools}})
    request = ScoringRequest(config, inputs=[f"{folder}/source"], shard_bytes=1)
    run_scoring(request, f"{folder}/scored", executor=RayScoring())


def score_and_lose_a_node(machines: Machines, folder: Path) -> Path:
    source, scored = write_sources(folder), folder / "scored"
    with job(machines, *python(__name__, f"drive_scoring({str(folder)!r})")) as scoring:
        # Two actors hold a shard each, and something is committed.
        scoring.wait_for(lambda: len(list(folder.glob("gate.waits.*"))) == 2 and any(scored.glob("part-*")))
        waiting = {int(path.suffix[1:]) for path in folder.glob("gate.waits.*")}
        actors = machines.actors("MapWorker")
        assert waiting <= actors.keys()
        machines.kill(actors[min(waiting)])
        (folder / "gate").touch()
        scoring.finish()
    documents = {json.loads(one.meta)["source"]: "".join(one.texts) for one in read_corpus(str(scored))}
    assert documents == {path.name: path.read_text() for path in source.iterdir()}
    assert read_corpus_manifest(str(scored)).documents == NUM_FILES
    return scored


# --- Train ------------------------------------------------------------------------------------------------------------


def train_and_lose_a_node(machines: Machines, folder: Path, *, scored: Path) -> tuple[Path, Path]:
    # Two CPUs each: one worker fills a node.
    task = write_inputs(
        folder / "inputs",
        conditional=True,
        num_tokens=30_000,
        save_steps=10,
        num_workers=2,
        resources_per_worker={"CPU": 2},
    )
    command = module("train_lm", "--task", task, "--run-name", "conditional", "--storage-path", folder / "runs")
    run = folder / "runs" / "conditional"
    overrides = (f"dataset.datasets=['{scored}']", "dataset.held_out_fraction=0")
    with job(machines, *command, "--override", *overrides) as training:
        training.wait_for(lambda: RunDirectory(run).latest_checkpoint())
        workers = machines.actors("RayTrainWorker")
        assert len(set(workers.values())) == 2, f"the workers are not on two nodes: {workers}"
        writer = json.loads((run / "owner.json").read_text())["pid"]
        machines.kill(workers[writer])
        training.finish()
        assert "the workers died and were restarted; they continue from step-" in training.output
    assert json.loads((run / "summary.json").read_text())["status"] == "finished"
    steps = [row["train/global_step"] for row in metrics(run) if "train/loss" in row]
    assert steps == list(range(1, max(losses(run)) + 1)), "a step is missing or was written twice"
    return run, task


# --- Serve ------------------------------------------------------------------------------------------------------------


def lose_a_node_of_the_service(machines: Machines, url: str) -> None:
    body = {"model": "conditional", "prompt": "first =", "max_tokens": 12, "seed": 7, "n": 4}
    before = httpx.post(f"{url}/v1/completions", json=body, timeout=60).json()["choices"]
    (replica,) = machines.actors("ServeReplica:phf:model-conditional").items()
    machines.kill(replica[1])
    deadline = time.monotonic() + PATIENCE_S
    while True:
        assert time.monotonic() < deadline, "the service did not come back"
        with contextlib.suppress(httpx.TransportError):
            answer = httpx.post(f"{url}/v1/completions", json=body, timeout=60)
            if answer.status_code == 200:
                break
            if is_ours(answer):
                assert answer.status_code == 503, answer.text
            else:
                # Serve's proxy, which has no application yet or has lost its replica.
                assert answer.status_code in (404, 500, 503), answer.text
        time.sleep(0.2)
    assert answer.json()["choices"] == before
    (again,) = machines.actors("ServeReplica:phf:model-conditional").items()
    assert again[1] != replica[1]


def is_ours(answer: httpx.Response) -> bool:
    """Whether the application said it, in the shape of its errors, and not Serve's proxy."""
    with contextlib.suppress(ValueError):
        body = answer.json()
        return isinstance(body, dict) and "error" in body
    return False


# --- Evaluate ---------------------------------------------------------------------------------------------------------


def evaluate_and_lose_a_node(machines: Machines, folder: Path, *, url: str, task: Path) -> None:
    values = yaml.safe_load(task.read_text())
    scenario = {"name": "unconditional", "num_samples": NUM_SAMPLES, "generate_kwargs": {"max_length": 20}}
    values["generation"] = {"scenario_configs": [scenario]}
    task.write_text(yaml.safe_dump(values))
    output = folder / "report"
    command = module("evaluate_lm", "--task", task, "--model", f"conditional={url}", "--scores-url", url)
    arms = ("--arm", "conditional:good", "conditional:bad", "--max-clients", "4")
    with job(machines, *command, *arms, "--output", str(output)) as evaluation:
        evaluation.wait_for(lambda: any((output / "drawn").glob("*.json")))
        # They take no CPU, so some may be on the head.
        nodes = evaluation.wait_for(lambda: set(machines.actors("MapWorker").values()) & machines.of_workers())
        # Where there is a choice, one that does not answer the requests as well: that loss is the stage before.
        serving = set(machines.actors("ServeReplica:phf:model-conditional").values())
        machines.kill(min(nodes - serving or nodes))
        assert evaluation.process.poll() is None, "it was through before the node was lost; ask for more samples"
        evaluation.finish()
    rows = pq.read_table(output / "samples.parquet").to_pylist()
    assert Counter(row["arm"] for row in rows) == {"conditional:good": NUM_SAMPLES, "conditional:bad": NUM_SAMPLES}
    assert len({(row["arm"], row["seed"], row["index"]) for row in rows}) == 2 * NUM_SAMPLES
    assert not [row for row in rows if row["score"] is None and row["error"] is None]


# --- Rounds -----------------------------------------------------------------------------------------------------------


def test_a_run_of_rounds_that_loses_a_node_ends_as_an_undisturbed_one(machines, folder):
    write_prompts(folder)
    values = rollout_values(folder, rounds=ROUNDS)
    # Two CPUs each: one worker fills a node.
    values["training"] |= {"num_workers": 2, "resources_per_worker": {"CPU": 2}}
    task = folder / "alpaca" / "task.yml"
    task.parent.mkdir()
    task.write_text(yaml.safe_dump(values), encoding="utf-8")
    run = run_folder(task, "rounds")
    with job(machines, *module("train_rl", *arguments(task, TWO, name="rounds"))) as learning:
        learning.wait_for(lambda: num_rounds(run) >= 2 and RunDirectory(run).latest_checkpoint())
        before = stored(run)
        workers = machines.actors("RayTrainWorker")
        assert len(set(workers.values())) == 2, f"the workers are not on two nodes: {workers}"
        machines.kill(workers[json.loads((run / "owner.json").read_text())["pid"]])
        learning.finish()
        assert "the workers died and were restarted; they continue from step-" in learning.output
    assert before.items() <= stored(run).items()
    assert_prompts_once(run, num_rounds=ROUNDS)

    whole = folder / "undisturbed"
    config = parse_config(values)
    plan = prepared(config, folder)
    prepare_run(config, whole, plan)
    run_on_ranks(partial(run_on_rank, config, whole, plan), world_size=2, directory=folder)
    assert answers(run) == answers(whole)
    mine, other = last_checkpoint(run), RunDirectory(whole).latest_checkpoint()
    assert mine.name == other.name
    # The ranks here have one thread, and the workers there two, which sum in another order.
    assert difference_of_checkpoints(mine, other) <= WEIGHT_TOLERANCE


# --- Annotate ---------------------------------------------------------------------------------------------------------


def test_judging_that_loses_a_node_asks_nothing_again_and_has_the_same_comparisons(machines, folder, monkeypatch):
    monkeypatch.delenv("PHF_API_KEY", raising=False)
    pool = Path(write_pool(folder, judge=f"max_in_flight: {IN_FLIGHT}, price: {{input: 1.0, output: 2.0}}"))
    # Beside a judge that computes, actors take a CPU, and the head has none.
    pool.write_text(pool.read_text() + "  - {name: longer, judge: {rule: longer}}\n")
    given = ["--pairs", write_rows(folder / "pairs.json", pair_rows(PAIRS)), "--annotators", str(pool)]
    output, cache = folder / "judged", folder / "cache"
    with judge_server(delay_s=0.3) as server:
        # As for the service above.
        given += ["--url", server.url.replace("127.0.0.1", "0.0.0.0")]
        command = module("annotate", *given, "--cache", cache, "--output", output, "--max-actors", "2")
        with job(machines, *command) as judging:
            judging.wait_for(lambda: len(server.counts) > 3 * IN_FLIGHT and any(output.rglob("part-*.parquet")))
            node = judging.wait_for(lambda: next(iter(machines.actors("JudgeShards").values()), None))
            machines.kill(node)
            assert judging.process.poll() is None, "it was through before the node was lost; ask for more pairs"
            server.delay_s = 0.0
            judging.finish()
        asked = Counter(server.counts)
        store = Store(cache)
        states = Ledger(store).count()
        store.close()
        assert states["settled"] == len(asked)
        assert asked.total() == sum(states.values())
        assert asked.total() - len(asked) <= states.get("lost", 0) <= IN_FLIGHT
        server.counts.clear()
        whole = [*given, "--cache", str(folder / "another"), "--output", str(folder / "whole"), "--in-process"]
        assert annotate(whole) == 0
        assert server.counts.keys() == asked.keys()
    assert comparisons(output) == comparisons(folder / "whole")
    fingerprints = {read_feedback_manifest(str(one)).fingerprint for one in (output, folder / "whole")}
    assert len(fingerprints) == 1
