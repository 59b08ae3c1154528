"""A real server on a real port, started by `jobs.serve` as a person would, and real clients."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from tiny_models import BAD, GOOD, write_checkpoint

from phf_ray.errors import ConfigError
from phf_ray.generation import GenerationRequest, generate, load_engine
from phf_ray.scorers import build_scorer
from serve.app import build

ROOT = Path(__file__).parents[2]
START_TIMEOUT_S = 180


class Server:
    """`python -m jobs.serve ...` as a subprocess."""

    def __init__(self, *arguments: str, **environment: str):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jobs.serve", *arguments],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "RAY_ADDRESS": "local", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.output: list[str] = []
        self.url: str | None = None
        self._ready = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()
        self._ready.wait(START_TIMEOUT_S)
        if self.url is None:
            self.process.kill()
            raise AssertionError(f"no server, exit code {self.process.wait()}:\n" + "".join(self.output))

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output.append(line)
            if line.startswith("ready: "):
                self.url = line.removeprefix("ready: ").strip()
                self._ready.set()
        self._ready.set()

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=90)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("a folder with spaces")
    return {
        "mle": write_checkpoint(folder / "mle", seed=1),
        "cond": write_checkpoint(folder / "cond", control="retag", seed=2),
    }


@pytest.fixture(scope="module")
def server(checkpoints) -> Iterator[Server]:
    models = [part for name, path in checkpoints.items() for part in ("--model", f"{name}={path}")]
    server = Server(*models, "--scorers", "pep8", "--port", "0")
    yield server
    assert server.stop() == 0, "".join(server.output)
    assert "stopped\n" in server.output


@pytest.fixture(scope="module")
def client(server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)


def texts(completion) -> list[str]:
    return [choice.text for choice in completion.choices]


def test_two_checkpoints_answer_by_name_with_the_texts_of_the_engine(client, checkpoints):
    prompts = ["def add", "", "import os\n", "def add"]
    for name, path in checkpoints.items():
        answer = client.completions.create(
            model=name, prompt=prompts, max_tokens=24, seed=11, temperature=0.7, top_p=0.9
        )
        requests = [
            GenerationRequest(prompt=prompt, max_tokens=24, seed=11, choice=i, temperature=0.7, top_p=0.9)
            for i, prompt in enumerate(prompts)
        ]
        assert texts(answer) == [completion.text for completion in generate(load_engine(path), requests)]
        assert len(set(texts(answer))) == 4
    assert {model.id for model in client.models.list()} == set(checkpoints)


def test_token_id_prompts_in_batches(client, checkpoints):
    strings = load_engine(checkpoints["mle"]).strings
    ids = [strings.encode(text)[0] for text in ("def add", "import")]
    by_ids = client.completions.create(model="mle", prompt=ids, seed=1, max_tokens=8)
    by_text = client.completions.create(model="mle", prompt=["def add", "import"], seed=1, max_tokens=8)
    assert texts(by_ids) == texts(by_text)
    assert by_ids.usage == by_text.usage


def test_same_seed_same_text_whatever_runs_beside_it(server):
    body = {"model": "mle", "prompt": "def", "seed": 42, "max_tokens": 40, "temperature": 1.0, "ignore_eos": True}

    async def crowd(num_clients):
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
            others = [
                http.post("/v1/completions", json={**body, "seed": i, "max_tokens": 10 + i, "prompt": "x" * (1 + i)})
                for i in range(num_clients)
            ]
            answers = await asyncio.gather(http.post("/v1/completions", json=body), *others)
            assert {answer.status_code for answer in answers} == {200}
            return answers[0].json()["choices"][0]["text"]

    assert len({asyncio.run(crowd(n)) for n in (0, 3, 17, 31)}) == 1


@pytest.mark.parametrize("control", ["good", "bad", "none"])
def test_control_tokens_are_chosen_by_suffix_and_never_visible(client, control):
    fields = {"prompt": ["def", "x ="], "max_tokens": 40, "seed": 3, "logprobs": 5, "n": 2}
    by_suffix = client.completions.create(model=f"cond:{control}", **fields)
    by_field = client.completions.create(model="cond", extra_body={"control": control}, **fields)
    assert texts(by_suffix) == texts(by_field)
    assert GOOD not in by_suffix.model_dump_json().replace("\\u003c", "<").split('"top_logprobs"')[0]
    for choice in by_suffix.choices:
        assert BAD not in choice.text
        assert not {GOOD, BAD} & set(choice.logprobs.tokens)
    plain = client.completions.create(model="cond:none", **fields)
    assert by_suffix.usage.prompt_tokens == plain.usage.prompt_tokens
    assert (texts(by_suffix) == texts(plain)) == (control == "none")


def test_openai_client_streams(client):
    fields = {"model": "cond", "prompt": "def", "max_tokens": 30, "seed": 9, "extra_body": {"ignore_eos": True}}
    plain = client.completions.create(**fields)
    pieces = list(client.completions.create(**fields, stream=True, stream_options={"include_usage": True}))
    assert "".join(piece.choices[0].text for piece in pieces if piece.choices) == plain.choices[0].text
    assert pieces[-1].usage == plain.usage
    assert len(pieces) > 5


def test_openai_client_gets_its_own_errors(client):
    with pytest.raises(openai.NotFoundError, match="served models: cond, mle"):
        client.completions.create(model="gpt-4", prompt="a")
    with pytest.raises(openai.BadRequestError, match="context is 96 tokens") as caught:
        client.completions.create(model="mle", prompt="a", max_tokens=1000)
    assert caught.value.param == "max_tokens"
    assert caught.value.request_id


def test_scores_over_http_are_those_of_the_scorer_bit_for_bit(server):
    folder = Path(json.__file__).parent
    sources = [path.read_text() for path in sorted(folder.glob("*.py"))] + ["", "x=1", "def f(:\n", "\u65e5 =1\n"]
    answer = httpx.post(f"{server.url}/v1/scores", json={"scorer": "pep8", "input": sources}, timeout=60).json()
    scorer = build_scorer({"class_name": "PEP8Scorer"})
    expected = scorer.score_all(sources)
    assert [(item["score"], item["error"]) for item in answer["data"]] == [(s.score, s.error) for s in expected]
    assert answer["scorer"] == json.loads(json.dumps(scorer.identity().to_json()))


def test_health_models_metrics_and_docs_answer(server):
    health = httpx.get(f"{server.url}/health").json()
    assert health["status"] == "ok"
    assert set(health["deployments"]) == {"ingress", "model-mle", "model-cond", "scorer-pep8"}
    assert httpx.get(f"{server.url}/v1/models/cond").json()["control"]["policy"] == "retag"
    assert "phf_http_requests_total" in httpx.get(f"{server.url}/metrics").text
    assert httpx.get(f"{server.url}/docs").status_code == 200


def test_request_id_of_the_client_comes_back_once(server):
    response = httpx.get(f"{server.url}/health", headers={"X-Request-ID": "mine"})
    assert [value for name, value in response.headers.multi_items() if name == "x-request-id"] == ["mine"]


def leave_early(server, body):
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=0.3) as response:
        next(response.iter_raw())
    raise httpx.ReadTimeout("left after the first piece")


def test_requests_of_gone_clients_leave_the_batch(server):
    # 400 sequences of 90 tokens keep the model busy far longer than the time-out of the clients that asked for them.
    body = {"model": "mle", "prompt": ["def"] * 400, "max_tokens": 90, "ignore_eos": True, "seed": 1}
    for stream in (False, True):
        with pytest.raises(httpx.ReadTimeout):
            leave_early(server, {**body, "stream": stream})
    started = time.monotonic()
    quick = {"model": "mle", "prompt": "def", "max_tokens": 2, "seed": 1}
    assert httpx.post(f"{server.url}/v1/completions", json=quick, timeout=60).status_code == 200
    in_queue = time.monotonic() - started
    started = time.monotonic()
    assert httpx.post(f"{server.url}/v1/completions", json=body, timeout=120).status_code == 200
    assert in_queue < (time.monotonic() - started) / 2


def test_a_crowd_is_answered_in_batches_and_overload_with_429(server):
    body = {"model": "mle", "prompt": ["def"] * 700, "max_tokens": 60, "ignore_eos": True, "seed": 1}

    async def crowd():
        async with httpx.AsyncClient(base_url=server.url, timeout=120) as http:
            return await asyncio.gather(*[http.post("/v1/completions", json=body) for _ in range(3)])

    answers = asyncio.run(crowd())
    assert {answer.status_code for answer in answers} == {200, 429}
    for answer in answers:
        if answer.status_code == 429:
            assert answer.json()["error"]["type"] == "rate_limit_error"
            assert int(answer.headers["retry-after"]) > 0


def test_application_has_one_deployment_per_model_and_scorer():
    models = [{"name": "mle", "path": "x", "replicas": {"min": 1, "max": 4}}, {"name": "cond", "path": "y"}]
    application = build({"models": models, "scorers": [{"scorer": {"class_name": "PEP8Scorer"}}]})
    ingress = application._bound_deployment
    _, bound_models, bound_scorers = ingress.init_args
    names = {app._bound_deployment.name for app in [*bound_models.values(), *bound_scorers.values()]}
    assert names == {"model-mle", "model-cond", "scorer-pep8"}
    assert bound_models["mle"]._bound_deployment._deployment_config.autoscaling_config.max_replicas == 4
    with pytest.raises(ConfigError, match="nothing to serve"):
        build({})


def test_port_in_use_is_one_clear_error_before_ray_starts(server, checkpoints):
    port = server.url.rpartition(":")[2]
    command = [sys.executable, "-m", "jobs.serve", "--model", f"mle={checkpoints['mle']}", "--port", port]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert re.fullmatch(
        rf"error: port {port} of 127.0.0.1 is in use; stop what runs there or give another --port\n", done.stderr
    )


def test_server_listens_on_loopback_only(server):
    port = int(server.url.rpartition(":")[2])
    with socket.socket() as probe:
        # 127.0.0.2 is this machine too, but not the address that was asked for.
        assert probe.connect_ex(("127.0.0.2", port)) != 0


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--model", "mle=nowhere"], "has no config.json"),
        (["--model", "nowhere"], "write NAME=DIR"),
        (["--scorers", "pep9"], "choose from pep8"),
        ([], "nothing to serve"),
        (["--scorers", "pep8", "--keys-file", "nowhere"], "can't be read"),
    ],
)
def test_what_cannot_be_served_is_said_before_anything_starts(arguments, match):
    command = [sys.executable, "-m", "jobs.serve", *arguments, "--port", "0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert match in done.stderr
    assert "Traceback" not in done.stderr
