"""Scoring is exactly once whatever is killed: driver, actor, node, or a worker between writing and committing.

A document that says GATE keeps its scorer waiting until a file exists, so each test decides what has been committed and
what is held at the moment of the kill.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from phf_ray import corpus
from phf_ray.config import parse_config
from phf_ray.corpus import read_corpus
from phf_ray.pipelines import score
from phf_ray.pipelines.score import InProcess, Request

ROOT = Path(__file__).parents[2]
NUM_FILES = 8
PATIENCE_S = 90

DRIVER = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
from cluster import test_score_faults as faults
faults.{call}
"""


def request(folder, *, gate) -> Request:
    scorer = {"class_name": "LengthScorer", "gate": str(gate)}
    scoring = {
        "scorers": [scorer],
        "segmenter": "lines",
        "pools": {"cpu": {"min": 2, "max": 2}},
        # On a busy machine a document may stand at the gate for longer than the minute that a text has by default.
        "text_timeout_s": 10 * PATIENCE_S,
    }
    return Request(
        parse_config({"scoring": scoring}), inputs=[str(folder)], shard_bytes=1, scorer_factory="fakes:build_scorer"
    )


@pytest.fixture
def sources(tmp_path) -> Path:
    """Each file is a shard; the third and all later ones wait at the gate."""
    folder = tmp_path / "in"
    folder.mkdir()
    for index in range(NUM_FILES):
        (folder / f"{index}.py").write_text(f"document {index}\n" * 3 + ("GATE\n" if index >= 2 else "PASS\n"))
    (folder / "broken.py").write_bytes(b"\xff")
    return folder


@pytest.fixture
def gate(tmp_path) -> Path:
    return tmp_path / "gate"


@pytest.fixture
def whole(sources, gate, tmp_path) -> dict[str, bytes]:
    """Every file of an uninterrupted run, without Ray."""
    gate.touch()
    score.run(request(sources, gate=gate), str(tmp_path / "whole"), executor=InProcess())
    gate.unlink()
    return files_of(tmp_path / "whole")


def files_of(output: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(output)): path.read_bytes()
        for path in output.rglob("*")
        if path.is_file() and path.name != "summary.json"
    }


def wait_for(condition, what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {PATIENCE_S} s for {what}"
        time.sleep(0.05)


def noted(gate: Path, what: str) -> set[int]:
    """Processes that passed the gate, or wait at it."""
    return {int(path.suffix[1:]) for path in gate.parent.glob(f"{gate.name}.{what}.*")}


def is_halfway(output: Path) -> bool:
    """At least one shard is committed and another one is held, begun but not committed."""
    return any(output.glob("part-*")) and any(output.glob("_tmp/part-*"))


def assert_is_the_uninterrupted_run(output: Path, whole: dict[str, bytes]) -> None:
    assert files_of(output) == whole
    sources = [json.loads(document.meta)["source"] for document in read_corpus(str(output))]
    assert sorted(sources) == [f"{index}.py" for index in range(NUM_FILES)]
    assert corpus.read_manifest(str(output)).rejected == {"not_utf8": 1}


def drive_ray(folder: str, gate: str, output: str, address: str) -> None:
    import ray

    if address == "local":
        ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    else:
        ray.init(address=address, log_to_driver=False)
    score.run(request(folder, gate=gate), output)


def drive_until_a_write(folder: str, gate: str, output: str, number: int) -> None:
    """Dies at the `number`th time that a file of the output is created or renamed, just before it happens."""
    seen = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        created = (
            event == "open" and str(arguments[1]).startswith(("w", "x", "a")) and str(arguments[0]).startswith(output)
        )
        renamed = event == "os.rename" and str(arguments[1]).startswith(output)
        if created or renamed:
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    score.run(request(folder, gate=gate), output, executor=InProcess())


@contextlib.contextmanager
def driver(call: str) -> Iterator["subprocess.Popen[bytes]"]:
    code = DRIVER.format(root=str(ROOT), tests=str(ROOT / "tests"), call=call)
    # What it says is shown with a test that fails.
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.timeout(300)
def test_a_killed_driver_is_started_again(local_ray, whole, sources, gate, tmp_path):
    output = tmp_path / "out"
    with driver(f"drive_ray({str(sources)!r}, {str(gate)!r}, {str(output)!r}, 'local')") as process:
        wait_for(lambda: is_halfway(output), "a committed and a held shard")
        process.send_signal(signal.SIGKILL)
    committed = {path.name: path.stat().st_mtime_ns for path in output.glob("part-*")}
    assert 0 < len(committed) < len(list(sources.iterdir()))
    assert not (output / "_SUCCESS").exists()
    gate.touch()
    score.run(request(sources, gate=gate), str(output))
    assert_is_the_uninterrupted_run(output, whole)
    assert {name: (output / name).stat().st_mtime_ns for name in committed} == committed


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
    score.run(request(sources, gate=gate), str(output))
    killer.join()
    assert len(victims) == 1
    assert_is_the_uninterrupted_run(output, whole)


# Every state that the disk can be in. In their order: plan (1, 2), parts with the rejects of one among them (3-13),
# manifest and card (14-17), the mark of success (18).
@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", range(1, 19))
def test_killed_just_before_any_write_it_goes_on_as_if_nothing_had_been(whole, sources, gate, tmp_path, number):
    gate.touch()
    output = tmp_path / "out"
    with driver(f"drive_until_a_write({str(sources)!r}, {str(gate)!r}, {str(output)!r}, {number})") as process:
        assert process.wait(timeout=PATIENCE_S) == -signal.SIGKILL, "all was written before that; lower the number"
    assert not (output / "_SUCCESS").exists()
    score.run(request(sources, gate=gate), str(output), executor=InProcess())
    assert_is_the_uninterrupted_run(output, whole)


def test_a_part_that_was_written_but_not_renamed_is_not_part_of_the_corpus(whole, sources, gate, tmp_path):
    gate.touch()
    output = tmp_path / "out"
    score.run(request(sources, gate=gate), str(output), executor=InProcess())
    # What the disk holds when a worker dies after its data is written, and before the rename that commits it.
    (output / "_tmp").mkdir()
    (output / "part-00003.parquet").rename(output / "_tmp" / "part-00003.parquet.0123")
    (output / "part-00004.parquet").unlink()
    (output / "_tmp" / "part-00004.parquet.4567").write_bytes(b"PAR1 torn")
    for name in ("_SUCCESS", "manifest.json", "README.md"):
        (output / name).unlink()
    score.run(request(sources, gate=gate), str(output), executor=InProcess())
    assert_is_the_uninterrupted_run(output, whole)


def test_after_success_nothing_is_done_again(whole, sources, gate, tmp_path):
    # The gate is closed: scoring anything would wait for ever.
    output = tmp_path / "whole"
    stamps = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    score.run(request(sources, gate=gate), str(output), executor=InProcess())
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == stamps


@pytest.mark.timeout(400)
def test_a_killed_node_loses_only_what_it_held(whole, sources, gate, tmp_path):
    from ray.cluster_utils import Cluster

    output = tmp_path / "out"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        call = f"drive_ray({str(sources)!r}, {str(gate)!r}, {str(output)!r}, {cluster.address!r})"
        with driver(call) as process:

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
    scorers = [{"class_name": "WordScorer"}, {"class_name": "LengthScorer", "gate": gate, "delay_s": 0.7}]
    pools = {
        "cpu": {"min": 1, "max": 4},
        "gpu": {"min": 1, "max": 1, "num_gpus": 0, "resources": {"GPU_FAKE": 1}},
    }
    scoring = {"scorers": scorers, "segmenter": "lines", "pools": pools, "text_timeout_s": 10 * PATIENCE_S}
    config = parse_config({"scoring": scoring})
    score.run(Request(config, inputs=[folder], shard_bytes=1, scorer_factory="fakes:build_scorer"), output)
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
    with driver(call) as process:
        assert process.wait(timeout=PATIENCE_S * 3) == 0
    seen = json.loads(samples.read_text())
    most = max(seen["actors"])
    assert 2 < most <= 5
    assert min(seen["actors"][seen["actors"].index(most) :]) <= 2
    assert min(seen["free_gpus"]) == 0.0
    manifest = corpus.read_manifest(str(output))
    assert (manifest.documents, [scorer["name"] for scorer in manifest.scorers]) == (25, ["words", "length"])
