"""Score, train, serve, evaluate on three Ray nodes; each stage loses a node that holds one of its workers."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from places import ROOT, TESTS
from train_runs import losses, metrics, write_inputs

from phf_ray.config import parse_config
from phf_ray.corpus.reader import read_corpus, read_corpus_manifest
from phf_ray.runs.directory import RunDirectory
from phf_ray.scoring.job import run_scoring
from phf_ray.scoring.on_ray import RayScoring
from phf_ray.scoring.request import ScoringRequest

pytestmark = pytest.mark.timeout(1500)

PATIENCE_S = 420
NUM_FILES = 10
NUM_SAMPLES = 2400

DRIVER = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
from cluster import test_three_nodes
test_three_nodes.{call}
"""


class Machines:
    """A head without CPUs and two nodes with two each; a lost node is replaced, as an autoscaler would."""

    def __init__(self, *, shared: Path) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 100 << 20}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self._nodes = [self._add(), self._add()]
        self.environment = {
            **os.environ,
            "RAY_ADDRESS": self._cluster.address,
            "PHF_SHARED_ROOTS": str(shared),
            "OMP_NUM_THREADS": "1",
        }
        # Asks the cluster's own table from a process of its own: this one may hold another Ray.
        command = self.python(f"answer_questions({self._cluster.address!r})")
        self._observer = subprocess.Popen(
            command,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def _add(self) -> Any:
        return self._cluster.add_node(num_cpus=2, object_store_memory=100 << 20)

    @staticmethod
    def python(call: str) -> list[str]:
        return [sys.executable, "-c", DRIVER.format(root=str(ROOT), tests=str(TESTS), call=call)]

    def actors(self, name: str) -> dict[int, str]:
        """Process -> node id of the living actors whose class name has `name` in it."""
        assert self._observer.stdin is not None
        assert self._observer.stdout is not None
        self._observer.stdin.write("\n")
        self._observer.stdin.flush()
        found = json.loads(self._observer.stdout.readline())
        return {pid: node for class_name, pid, node in found if name in class_name}

    def of_workers(self) -> set[str]:
        """Ids of the nodes that can be lost: all but the head."""
        return {node.node_id for node in self._nodes}

    def kill(self, node_id: str) -> None:
        """The node's raylet is killed, and its workers with it."""
        known = [node.node_id for node in self._nodes]
        assert node_id in known, f"{node_id} is not one of the nodes {known}"
        victim = self._nodes[known.index(node_id)]
        self._cluster.remove_node(victim, allow_graceful=False)
        self._nodes.remove(victim)
        self._nodes.append(self._add())

    def shutdown(self) -> None:
        self._observer.kill()
        self._observer.wait()
        self._cluster.shutdown()


def answer_questions(address: str) -> None:
    """One line of living actors for every line that comes in."""
    # Ray prints what it thinks of lost nodes on standard output.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import ray

    ray.init(address=address, log_to_driver=False)
    for _ in sys.stdin:
        table = ray._private.state.actors(actor_state_name="ALIVE").values()
        rows = [(one["ActorClassName"], one["Pid"], one["Address"]["NodeID"]) for one in table]
        answers.write(json.dumps(rows) + "\n")
        answers.flush()


class Job:
    """A process, its output and its end."""

    def __init__(self, command: list[str], *, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self._lines.extend(self.process.stdout)

    @property
    def output(self) -> str:
        return "".join(self._lines)

    def wait_for(self, condition: Callable[[], Any]) -> Any:
        """What the condition gives once it is true, while the job runs."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            found = condition()
            if found:
                return found
            assert self.process.poll() is None, self.output[-5000:]
            assert time.monotonic() < deadline, self.output[-5000:]
            time.sleep(0.05)

    def finish(self) -> None:
        try:
            code = self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            code = None
        if code is not None:
            self._reader.join(30)
        assert code == 0, f"exit code {code}\n{self.output[-5000:]}"

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(60)
        self.process.kill()
        self.process.wait()


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path


@pytest.fixture
def machines(folder) -> Iterator[Machines]:
    one = Machines(shared=folder)
    try:
        yield one
    finally:
        one.shutdown()


@contextlib.contextmanager
def job(machines: Machines, *command: str) -> Iterator[Job]:
    one = Job(list(command), environment=machines.environment)
    try:
        yield one
    finally:
        one.stop()


def module(name: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", f"jobs.{name}", *map(str, arguments)]


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
    with job(machines, *machines.python(f"drive_scoring({str(folder)!r})")) as scoring:
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
