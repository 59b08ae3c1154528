"""Twenty kills of a run of rounds at random moments: of the driver, of a worker, of a node; with 2, 1 and 2 workers.

While the number of workers is the same, nothing shows: what is stored is equal to the last byte to a run that nothing
happened to. With changed numbers, the sums of gradients differ in their last bits. So the end is compared with a run
that learns the same stored rounds undisturbed, and a round that another number of workers draws again with the
first drawing.
"""

import contextlib
import json
import logging
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from killed_rounds import ONE, STEPS_PER_ROUND, TWO, answers, assert_prompts_once, stored
from killed_runs import WEIGHT_TOLERANCE, Job, kill_worker, largest_difference, last_checkpoint, tensor_files
from rollout_runs import rollout_values, write_prompts
from train_runs import arguments, run_folder

from phf_ray.runs.directory import RunDirectory

pytestmark = [pytest.mark.faults, pytest.mark.timeout(5400)]

T = TypeVar("T")
log = logging.getLogger(__name__)

ROUNDS = 20
PHASES = ((7, TWO), (6, ONE), (7, TWO))
"""Kills, and the number of workers until then. The last one of a phase is the driver's."""
KINDS = ("driver", "worker", "node", "worker, then driver")
FILES_PER_ROUND = 4
PATIENCE_S = 900
INCOMPLETE = 5
"""Exit code of a command that says: run me again."""


def started(start: Callable[[], T]) -> T:
    """Ray gives a node 30 s to start, and a busy machine can take longer. So there are several tries."""
    for tries_left in reversed(range(6)):
        try:
            return start()
        except Exception as error:
            if "timed out during startup" not in str(error) or not tries_left:
                raise
    raise AssertionError


class Nodes:
    """A head without CPUs and two nodes; a lost node is replaced, as an autoscaler would."""

    def __init__(self, shared: Path) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 100 << 20}
        self._cluster = started(lambda: Cluster(initialize_head=True, head_node_args=head))
        self._nodes = [self._add(), self._add()]
        self.environment = {**os.environ, "RAY_ADDRESS": self._cluster.address, "PHF_SHARED_ROOTS": str(shared)}

    def _add(self):
        return started(lambda: self._cluster.add_node(num_cpus=2, object_store_memory=100 << 20))

    def kill(self, node_id: str) -> None:
        """Kill the node's raylet, and its workers with it."""
        known = {node.node_id: node for node in self._nodes}
        # It may be the node of an earlier start, lost already.
        victim = known.get(node_id) or self._nodes[0]
        self._cluster.remove_node(victim, allow_graceful=False)
        self._nodes.remove(victim)
        self._nodes.append(self._add())

    def shutdown(self) -> None:
        self._cluster.shutdown()


class Campaign:
    """One run, and the command that works on it."""

    def __init__(self, task: Path, nodes: Nodes, *, draw: random.Random, name: str):
        self._task, self._nodes, self._draw, self._name = task, nodes, draw, name
        self.run = run_folder(task, name)
        self._job: Job | None = None
        self.num_starts = 0
        self.killed: Counter[str] = Counter()

    def go_on(self, workers: str) -> None:
        """Start the command unless it runs. A command that lost the process that supervises its workers says so."""
        if self._job is not None and self._job.exit_code() is not None:
            assert self._job.exit_code() == INCOMPLETE, self._job.output()
            self._job = None
        if self._job is None:
            self._job = start(self._task, self._nodes, workers, name=self._name)
            self.num_starts += 1

    def wait_until_files(self, least: int, workers: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while len(list((self.run / "rollouts").glob("round-*/[!.]*"))) < least:
            self.go_on(workers)
            assert self._job is not None
            assert time.monotonic() < deadline, self._job.output()
            time.sleep(0.05)

    def wait(self, seconds: float, workers: str) -> None:
        self.go_on(workers)
        time.sleep(seconds)

    def kill(self, kind: str) -> None:
        self.killed[kind] += 1
        # A worker may be ending, or not be there yet.
        if kind == "node":
            self._nodes.kill(self._owner().get("node", ""))
        elif kind.startswith("worker"):
            with contextlib.suppress(OSError, IndexError, AssertionError):
                kill_worker(self.run, rank=self._draw.randrange(2))
        if kind.endswith("driver"):
            time.sleep(self._draw.uniform(0, 1))
            self.stop()

    def stop(self) -> None:
        if self._job is not None:
            self._job.kill()
            self._job = None

    def finish(self, workers: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        self.go_on(workers)
        while self._job is not None and self._job.exit_code() != 0:
            assert time.monotonic() < deadline, self._job.output()
            self.go_on(workers)
            time.sleep(0.5)

    def _owner(self) -> dict:
        with contextlib.suppress(OSError, ValueError, IndexError):
            workers = json.loads((self.run / "owner.json").read_text())["workers"]
            return workers[self._draw.randrange(len(workers))]
        return {}


def start(task: Path, nodes: Nodes, workers: str, *, name: str) -> Job:
    overrides = (workers, "training.max_failures=-1")
    return Job(arguments(task, *overrides, name=name), job="train_rl", environment=nodes.environment)


@pytest.fixture
def task(tmp_path) -> Path:
    folder = write_prompts(tmp_path)
    path = folder / "alpaca" / "task.yml"
    path.parent.mkdir()
    path.write_text(yaml.safe_dump(rollout_values(folder, rounds=ROUNDS)), encoding="utf-8")
    return path


@pytest.fixture
def nodes(tmp_path) -> Iterator[Nodes]:
    one = Nodes(tmp_path)
    try:
        yield one
    finally:
        one.shutdown()


def test_twenty_kills_at_random_moments(task, nodes):
    """FAULTS_SEED=N draws the same moments and kinds again."""
    seed = int(os.environ.get("FAULTS_SEED") or random.randrange(2**32))
    log.info("FAULTS_SEED=%d", seed)
    begin = time.monotonic()
    start(task, nodes, TWO, name="undisturbed").ends_with(0)
    log.info("undisturbed: %.0f s", time.monotonic() - begin)
    whole = run_folder(task, "undisturbed")

    draw = random.Random(seed)
    campaign = Campaign(task, nodes, draw=draw, name="campaign")
    run = campaign.run
    try:
        kept = under_kills(campaign, draw=draw, whole=whole)
        campaign.finish(TWO)
    finally:
        campaign.stop()
    log.info("%s, %d starts, %.0f s", dict(campaign.killed), campaign.num_starts, time.monotonic() - begin)

    assert kept.items() <= stored(run).items()
    assert_prompts_once(run, num_rounds=ROUNDS)
    same = sum(a == b for a, b in zip(answers(run), answers(whole), strict=True))
    log.info("%d of %d rounds have the answers of the undisturbed run", same, ROUNDS)
    assert_learned_as_undisturbed(run, task, nodes)
    assert_drawn_again_alike(run, task, nodes)
    log.info("in all %.0f s", time.monotonic() - begin)


def under_kills(campaign: Campaign, *, draw: random.Random, whole: Path) -> dict[str, bytes]:
    """Kill the run twenty times. Return the files of its rounds, none of which a kill has changed."""
    run, kept = campaign.run, {}
    total = sum(number for number, _ in PHASES)
    moments = iter(sorted(draw.sample(range(1, FILES_PER_ROUND * (ROUNDS - 1)), total)))
    for phase, (number, workers) in enumerate(PHASES):
        for left in reversed(range(number)):
            moment = next(moments)
            if draw.random() < 0.25:
                # Whatever it is doing: it may be starting, or loading a checkpoint.
                campaign.wait(draw.uniform(0, 20), workers)
            else:
                campaign.wait_until_files(moment, workers)
                campaign.wait(draw.uniform(0, 0.5), workers)
            kind = "driver" if left == 0 else draw.choice(KINDS)
            log.info(
                "kill %d: %s, with %s, %d files", sum(campaign.killed.values()) + 1, kind, workers, len(stored(run))
            )
            campaign.kill(kind)
            now = stored(run)
            assert kept.items() <= now.items(), "a stored file of a round was changed"
            kept = now
        if phase == 0:
            assert kept.items() <= stored(whole).items(), "with equal numbers of workers, every byte is the same"
            assert_equal_checkpoints(run, whole)
            log.info("%d files and %d checkpoints are equal", len(kept), len(RunDirectory(run).complete_checkpoints()))
    return kept


def assert_equal_checkpoints(run: Path, whole: Path) -> None:
    checkpoints = RunDirectory(run).complete_checkpoints()
    assert checkpoints, "the kills of the first phase came before anything was learned"
    for checkpoint in checkpoints:
        other = whole / "checkpoints" / checkpoint.name
        assert tensor_files(checkpoint) == tensor_files(other)
        for file in tensor_files(other):
            assert (checkpoint / file).read_bytes() == (other / file).read_bytes(), (checkpoint.name, file)


def assert_learned_as_undisturbed(run: Path, task: Path, nodes: Nodes) -> None:
    """Over the same stored rounds, the weights at the end are those of a run that nothing happened to."""
    replayed = run_folder(task, "replayed")
    shutil.copytree(run / "rollouts", replayed / "rollouts")
    start(task, nodes, TWO, name="replayed").ends_with(0)
    assert stored(replayed) == stored(run)
    difference = largest_difference(run, replayed)
    log.info("largest difference of a weight to the same rounds undisturbed: %.3g", difference)
    assert difference <= WEIGHT_TOLERANCE


def assert_drawn_again_alike(run: Path, task: Path, nodes: Nodes) -> None:
    """One worker draws the last round again from the weights that two workers stored."""
    again, last = run_folder(task, "again"), ROUNDS - 1
    shutil.copytree(run, again)
    (again / "summary.json").unlink()
    shutil.rmtree(again / "rollouts" / f"round-{last:05d}")
    for checkpoint in RunDirectory(again).complete_checkpoints():
        if int(checkpoint.name.rpartition("-")[2]) > last * STEPS_PER_ROUND:
            shutil.rmtree(checkpoint)
    start(task, nodes, ONE, name="again").ends_with(0)
    assert answers(again) == answers(run)
    found, wanted = (
        pq.read_table(each / "rollouts" / f"round-{last:05d}" / "logprobs.parquet")["policy"].to_pylist()
        for each in (again, run)
    )
    difference = max(np.abs(np.subtract(a, b)).max() for a, b in zip(found, wanted, strict=True))
    log.info("largest difference of a log-probability drawn again: %.3g", difference)
    assert difference <= 1e-5
    assert_prompts_once(again, num_rounds=ROUNDS)
    assert largest_difference(again, run) <= WEIGHT_TOLERANCE
    assert last_checkpoint(again).name == last_checkpoint(run).name
