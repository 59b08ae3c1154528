"""A real server on a real port, started by `jobs.serve` as a person would, and real clients."""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
import yaml
from guide import write_scorer_of_the_guide
from places import ROOT
from server_process import START_TIMEOUT_S, Server, is_healthy
from tiny_adapters import write_adapter, write_base
from tiny_models import BAD, GOOD, write_checkpoint
from tiny_rewards import write_reward_model

from jobs.merge_adapter import main as merge_adapter
from jobs.serve import free_port
from phf_ray.checkpoint import Control
from phf_ray.generation.engine import generate
from phf_ray.generation.load import load_engine
from phf_ray.generation.requests import GenerationRequest
from phf_ray.scorers.build import build_scorer

# Two servers start for the first of the tests of a gateway: half a minute each, minutes on a crowded machine.
pytestmark = pytest.mark.timeout(2 * START_TIMEOUT_S + 120)
KEY = "right-key-of-the-gateway"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("a folder with spaces")
    return {
        "mle": write_checkpoint(folder / "mle", seed=1),
        "cond": write_checkpoint(folder / "cond", control="retag", seed=2),
    }


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Path:
    """As the original's checkpoints were released: control tokens in the tokenizer, and no phf.json."""
    return write_checkpoint(tmp_path_factory.mktemp("released") / "old", control="ban", seed=3, ours=False)


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory) -> Path:
    return write_reward_model(tmp_path_factory.mktemp("a reward model"))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    return write_adapter(folder / "adapter", base=write_base(folder / "base"))


@pytest.fixture(scope="module")
def server(checkpoints, released, reward_model, adapter, tmp_path_factory) -> Iterator[Server]:
    models = [part for name, path in checkpoints.items() for part in ("--model", f"{name}={path}")]
    models += ["--model", f"old={released}", "--control", f"old={GOOD},{BAD},ban", "--model", f"lora={adapter}"]
    folder = tmp_path_factory.mktemp("scorers")
    scorers = f"pep8,{write_scorer_of_the_guide(folder)},reward={reward_model}"
    path = os.pathsep.join([str(folder), os.environ["PYTHONPATH"]])
    models += ["--chat-template", "mle=plain", "--chat-template", "cond=coh"]
    server = Server(*models, "--scorers", scorers, "--port", "0", PYTHONPATH=path)
    yield server
    assert server.stop() == 0, "".join(server.output)
    assert "stopped\n" in server.output


@pytest.fixture(scope="module")
def client(server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)


def texts(completion) -> list[str]:
    return [choice.text for choice in completion.choices]


def test_a_reward_model_answers_as_a_scorer_and_as_openrlhf_asks(server, reward_model):
    scorer = build_scorer({"class_name": "RewardModelScorer", "path": str(reward_model), "device": "cpu"})
    answers = [("Name a fox.", "Reynard"), ("Name a dog.", "Rex")]
    wanted = [scored.score for scored in scorer.score_answers(answers)]
    prompts, texts = map(list, zip(*answers, strict=True))
    body = {"scorer": "reward", "input": texts, "prompts": prompts}
    data = httpx.post(f"{server.url}/v1/scores", json=body, timeout=60).json()["data"]
    assert [item["score"] for item in data] == pytest.approx(wanted, abs=1e-5)
    body = {"query": texts, "prompts": prompts, "joined": False}
    answer = httpx.post(f"{server.url}/get_reward", json=body, timeout=60).json()
    assert answer["rewards"] == pytest.approx([-score for score in wanted], abs=1e-5)
    assert answer["scores"] == answer["rewards"]
    query = ["Name a fox. Reynard", "x"]
    whole = httpx.post(f"{server.url}/get_reward", json={"query": query}, timeout=60).json()
    assert whole["rewards"] == pytest.approx([-scored.score for scored in scorer.score_all(query)], abs=1e-5)


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
    assert {model.id for model in client.models.list()} == {*checkpoints, "old", "lora"}


def test_an_adapter_answers_as_the_folder_that_it_is_merged_into(client, adapter, tmp_path):
    assert merge_adapter(["--checkpoint", str(adapter), "--output", str(tmp_path / "merged")]) == 0
    prompts = ["def add", "", "import os\n"]
    answer = client.completions.create(model="lora", prompt=prompts, max_tokens=24, temperature=0)
    requests = [GenerationRequest(prompt=prompt, max_tokens=24, temperature=0) for prompt in prompts]
    merged, base = (
        [completion.text for completion in generate(load_engine(folder), requests)]
        for folder in (tmp_path / "merged", adapter.parent / "base")
    )
    assert texts(answer) == merged
    assert all(ours != theirs for ours, theirs in zip(merged, base, strict=True))


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


def expected_of_released(path: Path) -> dict[str, str]:
    engine = load_engine(path, control=Control(good=GOOD, bad=BAD, policy="ban"))
    requests = [GenerationRequest(prompt="def", max_tokens=30, seed=5, control=c) for c in ("good", "bad", "none")]
    completions = generate(engine, requests)
    return dict(zip(("good", "bad", "none"), (completion.text for completion in completions), strict=True))


def test_released_checkpoints_get_their_control_tokens_from_flags(client, released):
    expected = expected_of_released(released)
    assert len(set(expected.values())) == 3
    for model, control in (("old", "good"), ("old:good", "good"), ("old:bad", "bad"), ("old:none", "none")):
        answer = client.completions.create(model=model, prompt="def", max_tokens=30, seed=5)
        assert texts(answer) == [expected[control]]
    assert client.models.retrieve("old").model_extra["control"]["policy"] == "ban"


def test_openai_client_streams(client):
    fields = {"model": "cond", "prompt": "def", "max_tokens": 30, "seed": 9, "extra_body": {"ignore_eos": True}}
    plain = client.completions.create(**fields)
    pieces = list(client.completions.create(**fields, stream=True, stream_options={"include_usage": True}))
    assert "".join(piece.choices[0].text for piece in pieces if piece.choices) == plain.choices[0].text
    assert pieces[-1].usage == plain.usage
    assert len(pieces) > 5


@pytest.mark.parametrize("field", ["stop", "logit_bias", "min_tokens", "top_k", "n"])
def test_openai_client_gets_from_each_field_what_the_engine_makes_of_it(client, checkpoints, field):
    engine = load_engine(checkpoints["mle"])
    base = {"prompt": "def", "max_tokens": 40, "seed": 3}

    def expected(*, n=1, **fields):
        return generate(engine, [GenerationRequest(**base, **fields, choice=i) for i in range(n)])

    (plain,) = expected()
    ends_at_once = {"logit_bias": {engine.strings.eos_id: 100.0}}
    fields = {
        "stop": {"stop": (plain.text[5:8],)},
        "logit_bias": {"logit_bias": {plain.token_ids[0]: -100.0}},
        "min_tokens": {"min_tokens": 7, **ends_at_once},
        "top_k": {"top_k": 1},
        "n": {"n": 3},
    }[field]
    own = {"extra_body": {field: fields[field]}} if field in ("min_tokens", "top_k") else {}
    rest = {name: value for name, value in fields.items() if name not in own.get("extra_body", ())}
    answer = client.completions.create(model="mle", **base, **rest, **own)
    completions = expected(**fields)
    assert texts(answer) == [completion.text for completion in completions]
    assert [choice.finish_reason for choice in answer.choices] == [one.finish_reason for one in completions]
    assert answer.usage.completion_tokens == sum(one.num_completion_tokens for one in completions)
    without = {name: value for name, value in fields.items() if name != field}
    assert texts(answer) != [completion.text for completion in expected(**without)]


def test_openai_client_streams_the_logprobs_of_the_engine(client, checkpoints):
    fields = {"prompt": "def", "max_tokens": 12, "seed": 3, "logprobs": 2}
    (expected,) = generate(load_engine(checkpoints["mle"]), [GenerationRequest(**fields)])
    pieces = [piece.choices[0].logprobs for piece in client.completions.create(model="mle", stream=True, **fields)]
    assert len(pieces) > 5
    for name, values in (
        ("tokens", [one.token for one in expected.logprobs]),
        ("text_offset", [one.text_offset for one in expected.logprobs]),
        ("token_logprobs", pytest.approx([one.logprob for one in expected.logprobs], abs=1e-4)),
        ("top_logprobs", [pytest.approx(one.top, abs=1e-4) for one in expected.logprobs]),
    ):
        assert [value for piece in pieces for value in getattr(piece, name)] == values


MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "def add("}]},
]


def test_openai_client_chats(client, server):
    fields = {"model": "mle", "messages": MESSAGES, "max_completion_tokens": 20, "seed": 5}
    answer = client.chat.completions.create(**fields, n=2, logprobs=True, top_logprobs=2)
    body = {"model": "mle", "messages": MESSAGES}
    ids = httpx.post(f"{server.url}/tokenize", json=body, timeout=60).json()["tokens"]
    expected = client.completions.create(model="mle", prompt=ids, max_tokens=20, seed=5, n=2)
    assert [choice.message.content for choice in answer.choices] == texts(expected)
    assert answer.usage.total_tokens == expected.usage.total_tokens
    assert {len(one.top_logprobs) for one in answer.choices[0].logprobs.content} == {2}
    # What is said is sent back as it came.
    talk = [*MESSAGES, answer.choices[0].message, {"role": "user", "content": "More."}]
    assert client.chat.completions.create(**{**fields, "messages": talk}).choices[0].message.content
    good, bad = (
        client.chat.completions.create(**{**fields, "model": f"cond:{control}"}) for control in ("good", "bad")
    )
    assert good.choices[0].message.content != bad.choices[0].message.content
    with pytest.raises(openai.BadRequestError, match="tools is not supported"):
        client.chat.completions.create(**fields, tools=[{"type": "function", "function": {"name": "f"}}])
    with pytest.raises(openai.BadRequestError, match="no chat template; start the server with --chat-template"):
        client.chat.completions.create(**{**fields, "model": "old"})


def test_chats_at_once_stream_what_each_gets_alone(client, server):
    fields = {"model": "mle", "messages": MESSAGES, "max_tokens": 24, "extra_body": {"ignore_eos": True}}
    alone = [client.chat.completions.create(**fields, seed=seed).choices[0].message.content for seed in range(6)]

    async def crowd():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120) as http:

            async def one(seed):
                options = {"include_usage": True}
                stream = await http.chat.completions.create(**fields, seed=seed, stream=True, stream_options=options)
                *pieces, last = [piece async for piece in stream]
                assert (last.choices, last.usage.completion_tokens) == ([], 24)
                assert pieces[0].choices[0].delta.role == "assistant"
                assert pieces[-1].choices[0].finish_reason == "length"
                return "".join(piece.choices[0].delta.content or "" for piece in pieces)

            return await asyncio.gather(*map(one, range(6)))

    assert asyncio.run(crowd()) == alone
    assert len(set(alone)) == 6


def test_openai_client_gets_its_own_errors(client):
    with pytest.raises(openai.NotFoundError, match="served models: cond, lora, mle, old"):
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


def test_a_scorer_from_outside_the_package_is_served_under_its_own_name(server):
    answer = httpx.post(f"{server.url}/v1/scores", json={"scorer": "shouting", "input": ["LOUD", "Loud"]}, timeout=60)
    assert [item["score"] for item in answer.json()["data"]] == [1.0, 0.25]
    assert answer.json()["scorer"]["class_name"] == "my_scorers:ShoutingScorer"
    assert answer.json()["scorer"]["versions"]["my_scorers"].startswith("sha256:")


def test_health_models_metrics_and_docs_answer(server):
    health = httpx.get(f"{server.url}/health").json()
    assert health["status"] == "ok"
    models, scorers = ("mle", "cond", "old", "lora"), ("pep8", "shouting", "reward")
    names = {"ingress", *(f"model-{name}" for name in models), *(f"scorer-{name}" for name in scorers)}
    assert set(health["deployments"]) == names
    assert httpx.get(f"{server.url}/v1/models/cond").json()["control"]["policy"] == "retag"
    assert "phf_http_requests_total" in httpx.get(f"{server.url}/metrics").text
    assert httpx.get(f"{server.url}/docs").status_code == 200


def raw_answer(server: Server, request: str) -> str:
    """Send the request as it is and return all that comes back."""
    url = httpx.URL(server.url)
    with socket.create_connection((url.host, url.port), timeout=60) as connection:
        connection.sendall(request.encode())
        return b"".join(iter(lambda: connection.recv(65536), b"")).decode()


def test_a_probe_by_head_gets_no_body(server):
    answer = raw_answer(server, "HEAD /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert answer.startswith("HTTP/1.1 200")
    assert answer.endswith("\r\n\r\n")
    assert httpx.post(f"{server.url}/health").headers["allow"] == "GET, HEAD"


def test_a_proxy_on_this_machine_is_recognized_without_x_forwarded_for(server):
    assert httpx.get(f"{server.url}/v1/models", headers={"X-Real-IP": "203.0.113.9"}).status_code == 401
    # As nginx sends on, if its configuration says nothing but `proxy_pass`.
    as_nginx = raw_answer(server, "GET /v1/models HTTP/1.0\r\nHost: 127.0.0.1:8000\r\nConnection: close\r\n\r\n")
    assert " 401 " in as_nginx.splitlines()[0]
    assert "came through a proxy (HTTP/1.0)" in as_nginx
    assert any("Behind a reverse proxy or a tunnel" in line for line in server.output)


def test_the_server_says_what_each_model_asks_for(server):
    assert re.search(r"mle: [\d.]+ CPUs, [\d.]+ GPUs", "".join(server.output))


def test_the_nodes_of_ray_have_the_metrics_of_the_server(server):
    """Without a key, and with times up to what a request may take."""
    httpx.get(f"{server.url}/v1/models").raise_for_status()
    deadline = time.monotonic() + 90
    tags = r'\{[^}]*deployment="ingress"[^}]*path="/v1/models"'
    while re.search(rf"^ray_phf_http_requests_total{tags}", text := metrics_text(server), re.MULTILINE) is None:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    lines = [line for line in text.splitlines() if re.match(rf"ray_phf_http_request_seconds_bucket{tags}", line)]
    assert {"0.005", "10.0", "600.0", "+Inf"} <= set(re.findall(r'le="([^"]+)"', "\n".join(lines)))


def test_request_id_of_the_client_comes_back_once(server):
    response = httpx.get(f"{server.url}/health", headers={"X-Request-ID": "mine"})
    assert [value for name, value in response.headers.multi_items() if name == "x-request-id"] == ["mine"]


def leave_early(server, body, *, after_s):
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=after_s) as response:
        next(response.iter_raw())
    raise httpx.ReadTimeout("left after the first piece")


def metrics_text(server: Server) -> str:
    """What Ray's own endpoint has."""
    (line,) = [line for line in server.output if line.startswith("metrics of the replicas: ")]
    # The first answer of a node can take its agent a while.
    return httpx.get(line.partition(": ")[2].strip(), timeout=60).text


def ray_metrics(server: Server, model: str) -> dict[str, float]:
    """What the replicas of a model counted; by outcome too, where that is a tag."""
    found: dict[str, float] = {}
    for name, tags, value in re.findall(r"^ray_(phf_\w+)\{(.*)\} (\S+)$", metrics_text(server), re.MULTILINE):
        if f'deployment="model-{model}"' in tags:
            outcome = re.search(r'outcome="(\w+)"', tags)
            for key in (name, f"{name} {outcome[1]}") if outcome is not None else (name,):
                found[key] = found.get(key, 0.0) + float(value)
    return found


def counted(server: Server, model: str, *, name: str, at_least: float, patience_s: float = 90.0) -> dict[str, float]:
    """The metrics once a counter has come so far: they leave the replica with a delay."""
    deadline = time.monotonic() + patience_s
    while (found := ray_metrics(server, model)).get(name, 0.0) < at_least and time.monotonic() < deadline:
        time.sleep(0.5)
    return found


def test_thirty_two_clients_share_their_steps_and_ray_counts_them(server):
    async def crowd():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120) as http:

            async def client(number):
                for turn in range(3):
                    seed = 100 * number + turn
                    fields = {"max_tokens": 64, "seed": seed, "extra_body": {"ignore_eos": True}}
                    answer = await http.completions.create(model="old", prompt="def", **fields)
                    assert answer.usage.completion_tokens == 64

            await asyncio.gather(*map(client, range(32)))

    begun = ray_metrics(server, "old")
    asyncio.run(crowd())
    num_advanced = 3 * 32 * 64
    name = "phf_engine_sequence_steps_total"
    ended = counted(server, "old", name=name, at_least=begun.get(name, 0.0) + num_advanced)
    num_steps = ended["phf_engine_steps_total"] - begun.get("phf_engine_steps_total", 0.0)
    assert ended[name] - begun.get(name, 0.0) >= num_advanced
    # Near 32 if the clients are quick. On a busy machine they are not, but one at a time would be 1.
    assert (ended[name] - begun.get(name, 0.0)) / num_steps > 2
    assert ended["phf_model_requests_total"] >= 96
    assert ended["phf_model_tokens_total"] >= num_advanced
    assert "phf_model_unfinished" in ended


def test_requests_of_gone_clients_leave_the_batch(server):
    # 1,000 sequences of 90 tokens keep the model busy far longer than the time-out of the clients that asked for them.
    body = {"model": "mle", "prompt": ["def"] * 1000, "max_tokens": 90, "ignore_eos": True, "seed": 1}
    name = "phf_model_requests_total left"
    found = 0.0
    for stream in (False, True):
        before = found
        # On a busy machine, one that leaves soon may be gone before the replica has the request.
        for after_s in (1.5, 6.0, 24.0):
            with pytest.raises(httpx.ReadTimeout):
                leave_early(server, {**body, "stream": stream}, after_s=after_s)
            # The replica counts a request as left only if its caller went away before it was done.
            found = counted(server, "mle", name=name, at_least=before + 1, patience_s=20 * after_s).get(name, 0.0)
            if found > before:
                break
        assert found > before
    quick = {"model": "mle", "prompt": "def", "max_tokens": 2, "seed": 1}
    assert httpx.post(f"{server.url}/v1/completions", json=quick, timeout=60).status_code == 200


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


@pytest.fixture(scope="module")
def gateway_port() -> int:
    return free_port("127.0.0.1")


@pytest.fixture(scope="module")
def gateway(gateway_port, gateway_process) -> str:
    return f"http://127.0.0.1:{gateway_port}"


@pytest.fixture(scope="module")
def gateway_process(
    server, gateway_port, checkpoints, released, tmp_path_factory
) -> "Iterator[subprocess.Popen[bytes]]":
    """`serve run` with one file: a model that `server` runs, one of its own, a scorer, and API keys."""
    port = gateway_port
    upstream = {"url": f"{server.url}/v1", "model": "cond:none"}
    gone = {"url": "http://127.0.0.1:1/v1"}
    control = {"good": GOOD, "bad": BAD, "policy": "ban"}
    args = {
        "models": [
            {"name": "far", "path": str(checkpoints["cond"]), "upstream": upstream, "max_waiting": 100},
            {"name": "gone", "path": str(checkpoints["mle"]), "upstream": gone},
            {"name": "old", "path": str(released), "control": control},
        ],
        "scorers": [{"scorer": {"class_name": "PEP8Scorer"}}],
    }
    application = {"name": "phf", "route_prefix": "/", "import_path": "serve.app:build", "args": args}
    path = tmp_path_factory.mktemp("gateway") / "serve.yaml"
    http_options = {"host": "127.0.0.1", "port": port}
    path.write_text(yaml.safe_dump({"http_options": http_options, "applications": [application]}))
    own = {"OMP_NUM_THREADS": "1", "RAY_ADDRESS": "local", "PHF_API_KEYS": KEY}
    program = Path(sys.executable).with_name("serve")
    with (
        (path.parent / "log").open("w+") as log,
        subprocess.Popen(
            [str(program), "run", str(path)], cwd=ROOT, env={**os.environ, **own}, stdout=log, stderr=log
        ) as process,
    ):
        try:
            deadline = time.monotonic() + START_TIMEOUT_S
            while not is_healthy(f"http://127.0.0.1:{port}"):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise AssertionError(f"serve run did not start:\n{log.read()}")
                time.sleep(0.3)
            yield process
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=90)
            except subprocess.TimeoutExpired:
                # Leaving the block would wait without end.
                process.kill()
                raise


@pytest.fixture(scope="module")
def far(gateway) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{gateway}/v1", api_key=KEY, max_retries=0, timeout=60)


@pytest.mark.parametrize("control", ["good", "bad", "none"])
def test_an_upstream_model_says_what_the_model_would_say_here(far, client, control):
    fields = {"prompt": "def", "max_tokens": 40, "seed": 3, "logprobs": 2, "n": 3}
    there = far.completions.create(model=f"far:{control}", **fields)
    here = client.completions.create(model=f"cond:{control}", extra_body={"control_policy": "ban"}, **fields)
    assert texts(there) == texts(here)
    assert there.usage == here.usage
    for ours, theirs in zip(here.choices, there.choices, strict=True):
        assert theirs.logprobs.tokens == ours.logprobs.tokens
        assert theirs.logprobs.text_offset == ours.logprobs.text_offset
        assert theirs.logprobs.token_logprobs == pytest.approx(ours.logprobs.token_logprobs, abs=1e-4)
        assert not {GOOD, BAD} & set(theirs.logprobs.tokens)
        assert GOOD not in theirs.text


def test_control_tokens_differ_through_the_upstream(far):
    answers = {
        c: far.completions.create(model="far", prompt="def", max_tokens=40, seed=3, extra_body={"control": c})
        for c in ("good", "bad", "none")
    }
    assert len({texts(answer)[0] for answer in answers.values()}) == 3
    assert texts(far.completions.create(model="far", prompt="def", max_tokens=40, seed=3)) == texts(answers["good"])
    card = far.models.retrieve("far").model_extra
    assert (card["control"]["policy"], card["max_model_len"]) == ("ban", 96)


def test_echoed_logprobs_through_the_upstream_are_those_of_here(far, client):
    fields = {"prompt": ["def add(", "import os"], "max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True}
    for control in ("good", "none"):
        there = far.completions.create(model=f"far:{control}", **fields)
        here = client.completions.create(model=f"cond:{control}", extra_body={"control_policy": "ban"}, **fields)
        assert texts(there) == texts(here)
        for ours, theirs in zip(here.choices, there.choices, strict=True):
            assert theirs.logprobs.tokens == ours.logprobs.tokens
            assert theirs.logprobs.text_offset == ours.logprobs.text_offset
            assert theirs.logprobs.token_logprobs[1:] == pytest.approx(ours.logprobs.token_logprobs[1:], abs=1e-4)


def test_streams_pass_through_the_upstream(far):
    fields = {"model": "far", "prompt": ["def", "x ="], "max_tokens": 30, "seed": 9, "extra_body": {"ignore_eos": True}}
    plain = far.completions.create(**fields)
    pieces = list(far.completions.create(**fields, stream=True, stream_options={"include_usage": True}))
    for choice in plain.choices:
        mine = [piece.choices[0] for piece in pieces if piece.choices and piece.choices[0].index == choice.index]
        assert "".join(piece.text for piece in mine) == choice.text
        assert mine[-1].finish_reason == choice.finish_reason
        assert len(mine) > 5
    assert pieces[-1].usage == plain.usage


def test_keys_and_limits_are_those_of_the_gateway(gateway, far):
    stranger = openai.OpenAI(base_url=f"{gateway}/v1", api_key="wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError, match="no valid API key"):
        stranger.completions.create(model="far", prompt="def")
    with pytest.raises(openai.BadRequestError, match="context is 96 tokens"):
        far.completions.create(model="far", prompt="def", max_tokens=96)
    with pytest.raises(openai.BadRequestError, match="can't retag"):
        far.completions.create(model="far", prompt="def", extra_body={"control_policy": "retag"})
    with pytest.raises(openai.InternalServerError, match="can't be reached") as caught:
        far.completions.create(model="gone", prompt="def")
    assert caught.value.status_code == 503
    assert int(caught.value.response.headers["retry-after"]) > 0


def session_folder(root: int) -> Path:
    """Where the Ray below a process keeps its logs."""
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == root:
                found = re.search(r"/[^\0]*/session_[0-9][^/\0]*", (folder / "cmdline").read_text())
                if found is not None:
                    return Path(found[0])
    raise AssertionError("no process of Ray below the server")


def test_keys_and_prompts_are_in_no_log_of_the_server(gateway, gateway_process):
    logs = session_folder(gateway_process.pid) / "logs"
    body = {"model": "old", "prompt": "a prompt that nobody else sees", "max_tokens": 2}
    for number, url in enumerate((f"{gateway}/v1/completions?key={KEY}", f"{gateway}/v1/completions")):
        headers = {"Authorization": f"Bearer {KEY}", "X-Request-ID": f"seen-in-the-log-{number}"}
        assert httpx.post(url, json=body, headers=headers, timeout=60).status_code == 200

    def found(word: str) -> list[Path]:
        return [path for path in logs.rglob("*") if path.is_file() and word.encode() in path.read_bytes()]

    deadline = time.monotonic() + 90
    while not found("seen-in-the-log-1") and time.monotonic() < deadline:
        time.sleep(0.2)
    assert found("seen-in-the-log-1")
    assert found(KEY) == []
    assert found("that nobody else sees") == []


def test_released_checkpoints_get_their_control_tokens_from_the_serve_file(far, released):
    expected = expected_of_released(released)
    for control, text in expected.items():
        assert texts(far.completions.create(model=f"old:{control}", prompt="def", max_tokens=30, seed=5)) == [text]
