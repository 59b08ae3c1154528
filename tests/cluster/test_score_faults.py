"""Scoring on Ray is exactly once whatever is killed: driver, actor or node.

A document that says GATE keeps its scorer waiting until a file exists, so each test decides what has been committed and
what is held at the moment of the kill. Kills at every write, without Ray, are in unit/test_score_kills.
"""

import contextlib
import json
import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from score_runs import (
    NUM_FILES,
    PATIENCE_S,
    assert_is_the_uninterrupted_run,
    driver,
    files_of,
    request,
    wait_for,
)

from phf_ray.config import parse_config
from phf_ray.corpus.reader import read_corpus_manifest
from phf_ray.scoring.executor import InProcessScoring
from phf_ray.scoring.job import run_scoring
from phf_ray.scoring.on_ray import RayScoring
from phf_ray.scoring.request import ScoringRequest

pytest_plugins = ("score_runs",)

DELAY_S = 0.5


def noted(gate: Path, what: str) -> set[int]:
    """Processes that passed the gate, or wait at it."""
    return {int(path.suffix[1:]) for path in gate.parent.glob(f"{gate.name}.{what}.*")}


def is_halfway(output: Path) -> bool:
    """At least one shard is committed and another one is held, begun but not committed."""
    return any(output.glob("part-*")) and any(output.glob("_tmp/part-*"))


def is_planned(output: Path) -> bool:
    return (output / "plan.json").exists()


def committed(output: Path) -> dict[str, int]:
    """Parts, and when they were written."""
    return {path.name: path.stat().st_mtime_ns for path in output.glob("part-*")}


def drive_ray(folder: str, gate: str, output: str, address: str, delay_s: float) -> None:
    import ray

    ray.init(address=address, log_to_driver=False)
    run_scoring(request(folder, gate=gate, delay_s=delay_s), output, executor=RayScoring())


def drive_call(sources: Path, gate: Path, output: Path, *, address: str | None = None, delay_s: float = 0.0) -> str:
    """What a driver is to call; on the Ray that the tests share by default."""
    import ray

    address = address or ray.get_runtime_context().gcs_address
    return f"drive_ray({str(sources)!r}, {str(gate)!r}, {str(output)!r}, {address!r}, {delay_s})"


@pytest.mark.timeout(300)
def test_a_killed_driver_is_started_again(local_ray, whole, sources, gate, tmp_path):
    output = tmp_path / "out"
    with driver(__name__, drive_call(sources, gate, output)) as process:
        wait_for(lambda: is_halfway(output), "a committed and a held shard")
        process.send_signal(signal.SIGKILL)
    before = committed(output)
    assert 0 < len(before) < NUM_FILES
    assert not (output / "_SUCCESS").exists()
    gate.touch()
    run_scoring(request(sources, gate=gate), str(output), executor=RayScoring())
    assert_is_the_uninterrupted_run(output, whole)
    assert before.items() <= committed(output).items()


@pytest.mark.faults
@pytest.mark.timeout(400)
def test_one_job_whose_driver_is_killed_at_five_random_moments(local_ray, sources, gate, tmp_path):
    gate.touch()
    output, whole = tmp_path / "out", tmp_path / "whole"
    run_scoring(request(sources, gate=gate, delay_s=DELAY_S), str(whole), executor=InProcessScoring())
    seed = random.randrange(2**32)
    draw = random.Random(seed)
    for number in sorted(draw.sample(range(NUM_FILES - 2), 5)):
        before = committed(output)
        with driver(__name__, drive_call(sources, gate, output, delay_s=DELAY_S)) as process:
            wait_for(
                lambda number=number: is_planned(output) and len(committed(output)) >= number,
                f"{number} parts (seed {seed})",
            )
            time.sleep(draw.uniform(0, DELAY_S / 2))
            assert process.poll() is None, f"it was to be killed while it works (seed {seed})"
            process.send_signal(signal.SIGKILL)
        assert before.items() <= committed(output).items(), f"a part was lost or written again (seed {seed})"
    run_scoring(request(sources, gate=gate, delay_s=DELAY_S), str(output), executor=RayScoring())
    assert_is_the_uninterrupted_run(output, files_of(whole))


@pytest.mark.timeout(300)
def test_a_killed_actor_is_replaced(local_ray, whole, sources, gate, tmp_path):
    output = tmp_path / "out"
    victims: list[int] = []

    def kill_an_actor() -> None:
        # An actor takes one shard after the other: the one that passed is committed before it waits with the next.
        wait_for(
            lambda: is_halfway(output) and noted(gate, "passed") & noted(gate, "waits"),
            "an actor that committed a shard and holds another",
        )
        actor = min(noted(gate, "passed") & noted(gate, "waits"))
        os.kill(actor, signal.SIGKILL)
        victims.append(actor)
        gate.touch()

    killer = threading.Thread(target=kill_an_actor)
    killer.start()
    run_scoring(request(sources, gate=gate), str(output), executor=RayScoring())
    killer.join()
    assert len(victims) == 1
    assert_is_the_uninterrupted_run(output, whole)


@pytest.mark.timeout(400)
def test_a_killed_node_loses_only_what_it_held(whole, sources, gate, tmp_path):
    from ray.cluster_utils import Cluster

    output = tmp_path / "out"
    # No actor fits on the head: one there could commit all that passes the gate, and the other nodes none.
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        nodes = [cluster.add_node(num_cpus=2) for _ in range(2)]
        with driver(__name__, drive_call(sources, gate, output, address=cluster.address)) as process:

            def victims() -> list[Any]:
                """Nodes whose actor committed a shard before the one that it holds."""
                both = noted(gate, "passed") & noted(gate, "waits")
                return [node for node in nodes if both & workers_of(node)]

            wait_for(lambda: is_halfway(output) and victims(), "a node that committed a shard and holds another")
            cluster.remove_node(victims()[0], allow_graceful=False)
            gate.touch()
            assert process.wait(timeout=PATIENCE_S * 2) == 0
    finally:
        cluster.shutdown()
    assert_is_the_uninterrupted_run(output, whole)


def workers_of(node) -> set[int]:
    """Processes that the raylet of a node of a local cluster started."""
    raylets = {info.process.pid for info in node.all_processes.get("raylet", [])}
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # "pid (name) state parent ...", where the name may hold spaces.
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            if parent in raylets:
                found.add(int(path.parent.name))
    return found


def drive_and_watch(folder: str, gate: str, output: str, samples: str) -> None:
    """CPU and GPU pools side by side; notes how many actors lived, and opens the gate once there are few again."""
    import ray
    from ray.util.state import list_actors

    ray.init(address="local", num_cpus=6, resources={"GPU_FAKE": 1}, log_to_driver=False)
    # Other clusters may run on this machine.
    address = ray.get_runtime_context().gcs_address
    seen: list[int] = []
    free_gpus: list[float] = []

    def watch() -> None:
        while not Path(output, "_SUCCESS").exists():
            alive = list_actors(address=address, filters=[("state", "=", "ALIVE")])
            seen.append(sum(actor.class_name.startswith("MapWorker") for actor in alive))
            free_gpus.append(ray.available_resources().get("GPU_FAKE", 0.0))
            # One actor of each pool is the minimum; the one on CPUs is held at the gate.
            if max(seen) > 2 and seen[-1] <= 2:
                Path(gate).touch()
            time.sleep(0.2)

    watcher = threading.Thread(target=watch)
    watcher.start()
    scorers = [{"class_name": "fakes:WordScorer"}, {"class_name": "fakes:LengthScorer", "gate": gate, "delay_s": 0.7}]
    pools = {
        "cpu": {"min": 1, "max": 4},
        "gpu": {"min": 1, "max": 1, "num_gpus": 0, "resources": {"GPU_FAKE": 1}},
    }
    scoring = {"scorers": scorers, "segmenter": "lines", "pools": pools, "text_timeout_s": 10 * PATIENCE_S}
    config = parse_config({"scoring": scoring})
    run_scoring(
        ScoringRequest(config, inputs=[folder], shard_bytes=1),
        output,
        executor=RayScoring(),
    )
    watcher.join()
    Path(samples).write_text(json.dumps({"actors": seen, "free_gpus": free_gpus}))


@pytest.mark.timeout(300)
def test_pools_grow_and_shrink_between_their_limits(tmp_path):
    folder, gate, output, samples = (tmp_path / name for name in ("in", "gate", "out", "samples.json"))
    folder.mkdir()
    # The largest shard goes first: it is held, the others pass.
    (folder / "held.py").write_text("GATE\n" + "x\n" * 1000)
    for index in range(24):
        (folder / f"{index}.py").write_text(f"document {index}\n")
    call = f"drive_and_watch({str(folder)!r}, {str(gate)!r}, {str(output)!r}, {str(samples)!r})"
    with driver(__name__, call) as process:
        assert process.wait(timeout=PATIENCE_S * 3) == 0
    seen = json.loads(samples.read_text())
    most = max(seen["actors"])
    assert 2 < most <= 5
    assert min(seen["actors"][seen["actors"].index(most) :]) <= 2
    assert min(seen["free_gpus"]) == 0.0
    manifest = read_corpus_manifest(str(output))
    assert (manifest.documents, [scorer["name"] for scorer in manifest.scorers]) == (25, ["words", "length"])
