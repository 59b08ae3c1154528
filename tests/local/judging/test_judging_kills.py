"""Four workers on one cache, killed at random: no question is asked more often than the kills make necessary."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ask_judge import ask_all, asker_of, question
from judge_server import JudgeServer, judge_server
from places import ROOT

from phf_ray.judging.ledger import Ledger
from phf_ray.judging.question import Answer
from phf_ray.judging.store import Store

WORKERS, QUESTIONS = 4, 3000


def worker(server: JudgeServer, cache: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, ROOT / "tests/support/ask_judge.py", server.url, str(cache), "0", str(QUESTIONS)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL)


def campaign(tmp_path: Path, *, kills: int, seed: int) -> dict[str, int]:
    drawn = random.Random(seed)
    with judge_server(delay_s=0.5) as server:
        workers = [worker(server, tmp_path / "cache") for _ in range(WORKERS)]
        done = 0
        while done < kills and len(server.counts) < QUESTIONS:
            time.sleep(drawn.uniform(0.1, 1.5))
            place = drawn.randrange(WORKERS)
            if server.in_flight and workers[place].poll() is None:
                workers[place].kill()
                workers[place].wait()
                workers[place] = worker(server, tmp_path / "cache")
                done += 1
        for one in workers:
            assert one.wait(timeout=200) == 0
        store = Store(tmp_path / "cache")
        answers = ask_all(asker_of(store, server.url), [question(number) for number in range(QUESTIONS)])
        counts = Ledger(store).count()
        store.close()
        assert all(isinstance(answer, Answer) for answer in answers)
        return {
            "kills": done,
            "calls": server.counts.total(),
            "distinct": len(server.counts),
            "lost": counts.get("lost", 0),
            "settled": counts["settled"],
        }


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_twenty_random_kills(tmp_path, capsys):
    found = campaign(tmp_path, kills=20, seed=1)
    with capsys.disabled():
        sys.stdout.write(f"\n{found}\n")
    assert found["kills"] == 20
    assert found["distinct"] == found["settled"] == QUESTIONS
    assert QUESTIONS < found["calls"] <= QUESTIONS + found["lost"]
    assert found["lost"] <= 20 * 64, "no more than what was in flight"
