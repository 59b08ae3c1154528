"""What the server does when things break under it: replicas are killed, configurations change under load."""

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import httpx
import pytest
from tiny_models import write_checkpoint

sys.path.insert(0, str(Path(__file__).parents[1] / "local"))
from test_serving import Server

pytestmark = pytest.mark.timeout(600)


def processes_below(root: int) -> dict[int, str]:
    """Command line of every process that descends from `root`."""
    parents, names = {}, {}
    for folder in Path("/proc").iterdir():
        try:
            # The name in parentheses may hold anything; the parent is the second field after it.
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            names[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
        except (ValueError, OSError):
            continue

    def is_below(pid: int) -> bool:
        while pid in parents and pid != root:
            pid = parents[pid]
        return pid == root

    return {pid: name for pid, name in names.items() if pid != root and is_below(pid)}


def replica_pids(server: Server, deployment: str) -> list[int]:
    wanted = f"ray::ServeReplica:phf:{deployment}"
    return [pid for pid, name in processes_below(server.process.pid).items() if name.startswith(wanted)]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    server = Server("--model", f"mle={write_checkpoint(folder / 'mle')}", "--scorers", "pep8", "--port", "0")
    yield server
    assert server.stop() == 0


async def post(http, body):
    started = time.monotonic()
    answer = await http.post("/v1/completions", json=body)
    return answer, time.monotonic() - started


def test_a_killed_replica_is_replaced_and_its_requests_are_answered(server):
    body = {"model": "mle", "prompt": ["def"] * 150, "max_tokens": 90, "ignore_eos": True}
    (victim,) = replica_pids(server, "model-mle")

    async def scene():
        async with httpx.AsyncClient(base_url=server.url, timeout=240) as http:
            expected = [(await post(http, {**body, "seed": seed}))[0].json()["choices"] for seed in range(6)]
            running = [asyncio.create_task(post(http, {**body, "seed": seed})) for seed in range(6)]
            await asyncio.sleep(0.5)
            assert not any(task.done() for task in running), "the replica must hold all of them when it is killed"
            os.kill(victim, signal.SIGKILL)
            return expected, await asyncio.gather(*running)

    expected, answers = asyncio.run(scene())
    statuses = [answer.status_code for answer, _ in answers]
    assert set(statuses) <= {200, 503}, [answer.text[:200] for answer, _ in answers]
    assert max(seconds for _, seconds in answers) < 200
    for choices, (answer, _) in zip(expected, answers, strict=True):
        if answer.status_code == 200:
            # A retry is the same request: also the same text.
            assert answer.json()["choices"] == choices
        else:
            assert answer.json()["error"]["type"] == "unavailable_error"
            assert int(answer.headers["retry-after"]) > 0
    (replacement,) = replica_pids(server, "model-mle")
    assert replacement != victim
    answer = httpx.post(f"{server.url}/v1/completions", json={**body, "prompt": "def"}, timeout=120)
    assert answer.status_code == 200


def test_scores_survive_the_loss_of_a_scorer(server):
    (victim,) = replica_pids(server, "scorer-pep8")
    os.kill(victim, signal.SIGKILL)
    answer = httpx.post(f"{server.url}/v1/scores", json={"scorer": "pep8", "input": "x=1\n"}, timeout=120)
    assert answer.status_code in (200, 503)
    if answer.status_code == 200:
        assert answer.json()["data"][0]["score"] == 0.25


def test_health_names_a_deployment_that_is_down(server):
    def states():
        answer = httpx.get(f"{server.url}/health", timeout=30)
        return answer.status_code, answer.json()["deployments"]["scorer-pep8"]

    deadline = time.monotonic() + 120
    while states()[0] != 200 and time.monotonic() < deadline:
        time.sleep(0.5)
    (victim,) = replica_pids(server, "scorer-pep8")
    os.kill(victim, signal.SIGKILL)
    seen = set()
    while 503 not in seen and time.monotonic() < deadline:
        seen.add(states()[0])
        time.sleep(0.1)
    assert 503 in seen
    while states()[0] != 200 and time.monotonic() < deadline:
        time.sleep(0.5)
    assert states()[0] == 200
