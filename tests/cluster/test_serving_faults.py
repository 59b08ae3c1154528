"""What the server does when things break under it: replicas are killed, configurations change under load."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
import yaml
from places import ROOT
from server_process import Server, is_healthy
from tiny_models import write_checkpoint

from jobs.serve import free_port
from phf_ray.generation.engine import generate
from phf_ray.generation.load import load_engine
from phf_ray.generation.requests import GenerationRequest

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


async def stream(http, body):
    """Status and events of a stream, to its end."""
    async with http.stream("POST", "/v1/completions", json={**body, "stream": True}) as answer:
        return answer.status_code, [line async for line in answer.aiter_lines() if line]


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
            streamed = asyncio.create_task(stream(http, {**body, "prompt": ["def"] * 100}))
            await asyncio.sleep(0.5)
            assert not any(task.done() for task in running), "the replica must hold all of them when it is killed"
            os.kill(victim, signal.SIGKILL)
            return expected, await asyncio.gather(*running), await streamed

    expected, answers, (stream_status, events) = asyncio.run(scene())
    assert stream_status in (200, 503)
    if stream_status == 200:
        # A part may be with the client already, so it is not tried again; but it must not look complete.
        assert '"unavailable_error"' in events[-2]
        assert events[-1] == "data: [DONE]"
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
    # Where all were told to come back later, it may take a while until there is somebody to come back to.
    deadline = time.monotonic() + 240
    while True:
        answer = httpx.post(f"{server.url}/v1/completions", json={**body, "prompt": "def"}, timeout=120)
        if answer.status_code == 200:
            break
        assert answer.status_code == 503, answer.text
        assert time.monotonic() < deadline, "the replica was not replaced"
        time.sleep(0.5)
    (replacement,) = replica_pids(server, "model-mle")
    assert replacement != victim


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


START_CLUSTER = """
import signal, sys
import ray
ray.init(address="local", num_cpus=8, include_dashboard=True, dashboard_host="127.0.0.1",
         dashboard_port=int(sys.argv[1]), log_to_driver=False)
print("up", flush=True)
signal.pause()
"""


class Cluster:
    """A Ray with its REST interface; what it serves comes by `serve deploy`, as on a real one."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.dashboard = free_port("127.0.0.1")
        self.port = free_port("127.0.0.1")
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "RAY_AUTH_MODE": "token",
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", START_CLUSTER, str(self.dashboard)],
            env=self.environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "up\n"

    def apply(self, models: dict[str, Path], *class_names: str) -> None:
        args = {
            "models": [{"name": name, "path": str(path)} for name, path in models.items()],
            "scorers": [{"scorer": {"class_name": class_name}} for class_name in class_names],
        }
        application = {"name": "phf", "route_prefix": "/", "import_path": "serve.app:build", "args": args}
        file = self.folder / "serve.yaml"
        http_options = {"host": "127.0.0.1", "port": self.port}
        file.write_text(yaml.safe_dump({"http_options": http_options, "applications": [application]}))
        program = Path(sys.executable).with_name("serve")
        command = [str(program), "deploy", str(file), "--address", f"http://127.0.0.1:{self.dashboard}"]
        done = subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def cluster(tmp_path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path)
    yield cluster
    cluster.process.send_signal(signal.SIGTERM)
    cluster.process.wait(timeout=60)


class Load:
    """Clients that go on until they are told to stop, and what they were answered."""

    def __init__(self, url: str):
        self.url = url
        self.client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120)
        self.stop = asyncio.Event()
        self.answers: Counter[str] = Counter()
        self.texts: set[str] = set()
        self.lost: list[str] = []

    async def ask(self, kind: str, model: str) -> None:
        """One request; kept up until its answer is neither 429 nor 503, which ask for that."""
        while True:
            try:
                with contextlib.suppress(openai.NotFoundError):
                    await self._once(kind, model)
                    self.answers[f"{kind} {model}"] += 1
                    return
                self.answers[f"{model} not found"] += 1
                return
            except (openai.RateLimitError, openai.InternalServerError) as error:
                if error.status_code not in (429, 503):
                    self.lost.append(f"{kind} {model}: {error}")
                    return
                await asyncio.sleep(float(error.response.headers["retry-after"]))
            except openai.OpenAIError as error:
                self.lost.append(f"{kind} {model}: {error!r}")
                return

    async def _once(self, kind: str, model: str) -> None:
        if kind == "scores":
            body = {"scorer": model, "input": ["x=1\n"]}
            async with httpx.AsyncClient(base_url=self.url, timeout=120) as http:
                answer = await http.post("/v1/scores", json=body)
            assert answer.json()["data"][0]["score"] == 0.25
            return
        fields = {"model": model, "prompt": "def", "max_tokens": 60, "seed": 1, "extra_body": {"ignore_eos": True}}
        if kind == "stream":
            pieces = [piece async for piece in await self.client.completions.create(**fields, stream=True)]
            assert pieces[-1].choices[0].finish_reason == "length"
            text = "".join(piece.choices[0].text for piece in pieces)
        else:
            text = (await self.client.completions.create(**fields)).choices[0].text
        if model == "stays":
            self.texts.add(text)

    async def go_on(self, kind: str, model: str) -> None:
        while not self.stop.is_set():
            await self.ask(kind, model)


def text_of(path: Path) -> str:
    request = GenerationRequest(prompt="def", max_tokens=60, seed=1, ignore_eos=True)
    return generate(load_engine(path), [request])[0].text


async def answers(url: str, model: str) -> bool:
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        found = await http.get("/v1/models")
        return found.status_code == 200 and model in {card["id"] for card in found.json()["data"]}


def test_a_new_configuration_loses_no_request(cluster, tmp_path):
    old, new, other = (write_checkpoint(tmp_path / str(seed), seed=seed) for seed in (1, 2, 3))
    cluster.apply({"stays": old, "goes": other}, "PEP8Scorer")
    deadline = time.monotonic() + 240
    while not is_healthy(cluster.url) and time.monotonic() < deadline:
        time.sleep(0.5)

    async def scene() -> Load:
        load = Load(cluster.url)
        kinds = [("plain", "stays"), ("stream", "stays"), ("plain", "goes"), ("scores", "pep8")]
        clients = [asyncio.create_task(load.go_on(*kind)) for kind in kinds for _ in range(2)]
        while min(load.answers[f"{kind} {model}"] for kind, model in kinds) < 3 and not load.lost:
            await asyncio.sleep(0.1)
        # A checkpoint is replaced, a model removed, a model and a scorer added.
        await asyncio.to_thread(cluster.apply, {"stays": new, "comes": other}, "PEP8Scorer", "PIIScorer")
        replaced = text_of(new)
        while time.monotonic() < deadline + 240 and not (
            await answers(cluster.url, "comes") and replaced in load.texts and load.answers["goes not found"]
        ):
            await asyncio.sleep(0.2)
        await load.ask("plain", "comes")
        before = dict(load.answers)
        while not load.lost and any(load.answers[f"{k} {m}"] < before[f"{k} {m}"] + 3 for k, m in kinds if m != "goes"):
            await asyncio.sleep(0.1)
        load.stop.set()
        await asyncio.gather(*clients)
        return load

    load = asyncio.run(scene())
    assert load.lost == []
    assert load.texts == {text_of(old), text_of(new)}
    assert load.answers["plain comes"] == 1
    assert load.answers["goes not found"] >= 2
