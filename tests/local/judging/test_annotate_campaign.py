"""`phf annotate` as a user runs it, killed at random moments against a server that counts: driver, and Ray's actors.

FAULTS_SEED=N draws the moments of an earlier campaign again. `-o log_cli=true` shows where the kills hit.
"""

import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from judge_server import JudgeServer, judge_server
from judging_files import comparisons, pair_rows, write_pool, write_rows
from places import ROOT

from jobs.annotate import main
from phf_ray.feedback import read_feedback_manifest
from phf_ray.judging.ledger import Ledger
from phf_ray.judging.store import Store

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]

PAIRS, KILLS, IN_FLIGHT = 2500, 20, 16
DRIVER, ASKS, JUDGES = "driver", "AskingActor", "JudgeShards"
SEED = int(os.environ.get("FAULTS_SEED") or random.randrange(2**32))
log = logging.getLogger(__name__)


class Campaign:
    """One job that is started again whenever its driver was killed."""

    def __init__(self, folder: Path, server: JudgeServer, *, ray_address: str | None):
        pool = write_pool(folder, judge=f"max_in_flight: {IN_FLIGHT}, price: {{input: 1.0, output: 2.0}}")
        pairs = write_rows(folder / "pairs.json", pair_rows(PAIRS))
        self.folder, self.server, self._ray_address = folder, server, ray_address
        self.arguments = ["--pairs", pairs, "--annotators", pool, "--url", server.url]
        self.arguments += ["--cache", str(folder / "cache"), "--output", str(folder / "killed")]
        self.hits: Counter[str] = Counter()

    def go(self, draw: random.Random, kinds: Sequence[str]) -> None:
        """Kill as often as there are kinds, and leave the job alone to its end."""
        job = self._started()
        for kind in kinds:
            self._wait_for_questions(job)
            time.sleep(draw.uniform(0.1, 2.5))
            if job.poll() is None and kind != DRIVER:
                self.hits[kind] += _kill_actor(kind)
                continue
            if job.poll() is None:
                job.kill()
                self.hits[DRIVER] += 1
            job.wait()
            job = self._started()
        assert job.wait(timeout=900) == 0, self.output()

    def output(self) -> str:
        return (self.folder / "log.txt").read_text(encoding="utf-8")[-4000:]

    def _started(self) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        environment.pop("RAY_ADDRESS", None)
        here = ["--in-process"]
        if self._ray_address is not None:
            environment["RAY_ADDRESS"], here = self._ray_address, ["--max-actors", "2"]
        with (self.folder / "log.txt").open("ab") as file:
            command = [sys.executable, "-m", "jobs.annotate", *self.arguments, *here]
            return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)

    def _wait_for_questions(self, job: subprocess.Popen[bytes]) -> None:
        """Wait until questions are asked by this start."""
        begin = self.server.counts.total()
        for _ in range(6000):
            if self.server.counts.total() > begin:
                return
            assert job.poll() is None or len(self.server.counts) < PAIRS, "all is asked, and kills are left: more pairs"
            assert job.poll() is None, self.output()
            time.sleep(0.1)
        pytest.fail(f"nothing was asked for ten minutes: {self.output()}")


def _kill_actor(name: str) -> int:
    """Kill the process of an actor of this class. Return whether one was there."""
    for pid in _children_of(_raylet()):
        try:
            title = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:  # it has just ended
            continue
        if title.startswith(b"ray::") and name.encode() in title:
            os.kill(pid, signal.SIGKILL)
            return 1
    return 0


def _raylet() -> int:
    """The process that starts the workers of this test's own cluster. Other clusters may be on this machine."""
    import ray

    [raylet] = ray._private.worker._global_node.all_processes["raylet"]
    return int(raylet.process.pid)


def _children_of(parent: int) -> list[int]:
    listed = Path(f"/proc/{parent}/task/{parent}/children").read_text(encoding="ascii").split()
    return [int(pid) for pid in listed]


def assert_as_if_nothing_had_happened(campaign: Campaign, *, seconds: float) -> None:
    folder, server = campaign.folder, campaign.server
    store = Store(folder / "cache")
    states = Ledger(store).count()
    store.close()
    kills, calls, lost = campaign.hits.total(), server.counts.total(), states.get("lost", 0) + states.get("sent", 0)
    log.warning(
        "seed %d: %s in %.0f s; %d calls for %d questions, %d lost",
        SEED, dict(campaign.hits), seconds, calls, len(server.counts), lost,
    )  # fmt: skip
    assert len(server.counts) == states["settled"] == PAIRS
    assert PAIRS < calls <= PAIRS + lost, "no question is asked again but those that were under way"
    assert lost <= kills * IN_FLIGHT
    main([*campaign.arguments, "--in-process"])
    assert server.counts.total() == calls, "what is done asks nothing"
    server.delay_s = 0
    undisturbed = [folder / "whole" if one == str(folder / "killed") else one for one in campaign.arguments]
    undisturbed[undisturbed.index("--cache") + 1] = folder / "another"
    main([*map(str, undisturbed), "--in-process"])
    assert comparisons(folder / "killed") == comparisons(folder / "whole")
    fingerprints = {read_feedback_manifest(str(folder / name)).fingerprint for name in ("killed", "whole")}
    assert len(fingerprints) == 1


def test_a_driver_that_is_killed_twenty_times(tmp_path, monkeypatch):
    monkeypatch.delenv("PHF_API_KEY", raising=False)
    with judge_server(delay_s=0.5) as server:
        campaign, begin = Campaign(tmp_path, server, ray_address=None), time.monotonic()
        campaign.go(random.Random(f"{SEED} here"), [DRIVER] * KILLS)
        assert campaign.hits == {DRIVER: KILLS}
        assert_as_if_nothing_had_happened(campaign, seconds=time.monotonic() - begin)


def test_a_driver_and_its_actors_that_are_killed_twenty_times(tmp_path, monkeypatch, local_ray):
    import ray

    monkeypatch.delenv("PHF_API_KEY", raising=False)
    draw = random.Random(f"{SEED} Ray")
    kinds = ([DRIVER, ASKS, JUDGES, ASKS, JUDGES] * KILLS)[:KILLS]
    draw.shuffle(kinds)
    with judge_server(delay_s=0.5) as server:
        address = ray.get_runtime_context().gcs_address
        campaign, begin = Campaign(tmp_path, server, ray_address=address), time.monotonic()
        campaign.go(draw, kinds)
        assert campaign.hits[DRIVER] == kinds.count(DRIVER)
        assert campaign.hits[ASKS] >= 1
        assert campaign.hits[JUDGES] >= 1
        assert_as_if_nothing_had_happened(campaign, seconds=time.monotonic() - begin)
