"""The HTTP application over a tiny model and the PEP8 scorer in this process; no Ray, no socket."""

import asyncio
import gzip
import json
import logging
import re
import threading
from collections.abc import Callable
from urllib.parse import quote

import httpx
import pytest
from places import ROOT
from tiny_models import BAD, END_OF_TEXT, GOOD, tiny_gpt2, tiny_tokenizer

from phf_ray.checkpoint import CheckpointInfo, Control
from phf_ray.generation.engine import Engine, generate
from phf_ray.generation.requests import EngineSettings, GenerationRequest
from serve import errors
from serve.api import models as api_models
from serve.api.application import ERRORS, build_app
from serve.backends import Backend, Completed, ScoredJson
from serve.chat_schemas import TokenizeRequest
from serve.deployments import ScorerReplica
from serve.engines.local import LocalModel
from serve.engines.scorer import LocalScorer
from serve.errors import ApiError
from serve.keys import KeyRing
from serve.schemas import (
    MAX_BATCH,
    Choice,
    CompletionRequest,
    DeploymentHealth,
    DetokenizeRequest,
    HealthResponse,
    ScoresRequest,
    Usage,
)
from serve.settings import Limits, SamplingDefaults, ServedScorer

COMPLETIONS_SCOPE = {
    "type": "http",
    "method": "POST",
    "path": "/v1/completions",
    "query_string": b"",
    "headers": [(b"content-type", b"application/json")],
    "client": ("127.0.0.1", 1),
}


def engine_of(*, control: bool, seed: int, max_batch: int = 8) -> Engine:
    tokenizer = tiny_tokenizer(control=control)
    tokens = Control(good=GOOD, bad=BAD, policy="ban") if control else None
    return Engine(
        tiny_gpt2(tokenizer, seed=seed),
        tokenizer,
        info=CheckpointInfo(control=tokens, task="pep8", step=500),
        settings=EngineSettings(max_batch=max_batch),
    )


@pytest.fixture(scope="module")
def engines():
    return {"mle": engine_of(control=False, seed=1), "cond": engine_of(control=True, seed=2)}


@pytest.fixture(scope="module")
def models(engines):
    return {
        name: LocalModel(engine, defaults=SamplingDefaults(max_tokens=6), max_waiting=8)
        for name, engine in engines.items()
    }


@pytest.fixture(scope="module")
def scorers():
    return {"pep8": LocalScorer(ServedScorer(scorer={"class_name": "PEP8Scorer"}))}


@pytest.fixture
def call(models, scorers) -> Callable[..., httpx.Response]:
    return caller(models, scorers)


def app_of(models, scorers, *, keys=(), limits=None, healthy=True, access_log=False, **roles):
    async def health() -> HealthResponse:
        state = DeploymentHealth(status="HEALTHY" if healthy else "UNHEALTHY")
        return HealthResponse(status="ok" if healthy else "not_ready", deployments={"model-mle": state})

    return build_app(
        Backend(models, scorers, health, **roles),
        keys=KeyRing(frozenset(keys)),
        limits=limits or Limits(),
        access_log=access_log,
    )


def caller(models, scorers, *, peer="127.0.0.1", **options):
    """`call("/v1/models")` is GET, `call("/v1/scores", {...})` is POST; options as of `app_of`."""
    app = app_of(models, scorers, **options)

    def call(path, body=None, **options):
        async def send():
            transport = httpx.ASGITransport(app=app, client=(peer, 1234))
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                if body is None and "content" not in options:
                    return await client.get(path, **options)
                return (
                    await client.post(path, json=body, **options)
                    if body is not None
                    else await client.post(path, **options)
                )

        return asyncio.run(send())

    return call


def complete(call, **fields):
    response = call("/v1/completions", {"model": "mle", "prompt": "def", "seed": 1, **fields})
    assert response.status_code == 200, response.text
    return response.json()


def refused(response: httpx.Response, status: int) -> dict:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "Traceback" not in response.text
    return error


def test_completion_has_the_shape_of_openai(call):
    body = complete(call, max_tokens=5, ignore_eos=True, logprobs=2)
    assert body["object"] == "text_completion"
    assert body["model"] == "mle"
    assert body["id"].startswith("cmpl-")
    (choice,) = body["choices"]
    assert choice["index"] == 0
    assert choice["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == 5
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + 5
    assert {name: len(values) for name, values in choice["logprobs"].items()} == dict.fromkeys(
        ("tokens", "token_logprobs", "top_logprobs", "text_offset"), 5
    )


def test_http_gives_the_texts_of_the_engine(call, engines):
    body = complete(call, prompt=["def", "import"], n=2, max_tokens=9, seed=7, temperature=0.8, top_p=0.9)
    requests = [
        GenerationRequest(prompt=p, max_tokens=9, seed=7, choice=i, temperature=0.8, top_p=0.9)
        for i, p in enumerate(["def", "def", "import", "import"])
    ]
    model = engine_of(control=False, seed=1)
    assert [choice["text"] for choice in body["choices"]] == [c.text for c in generate(model, requests)]
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("prompt", "num_choices"),
    [("def", 1), (["def", "import"], 2), ([5, 6, 7], 1), ([[5, 6, 7], [8]], 2), (["def"], 1), ("", 1)],
)
def test_every_form_of_prompt_is_taken(call, prompt, num_choices):
    assert len(complete(call, prompt=prompt)["choices"]) == num_choices
    assert len(complete(call, prompt=prompt, n=3)["choices"]) == 3 * num_choices


def test_token_ids_are_taken_as_they_are(call, engines):
    strings = engines["mle"].strings
    ids, _ = strings.encode("def add")
    by_text, by_ids = complete(call, prompt="def add"), complete(call, prompt=ids)
    assert by_text["choices"] == by_ids["choices"]
    assert by_text["usage"] == by_ids["usage"]
    assert ids[0] == strings.eos_id


def test_what_lm_eval_sends_is_answered_in_its_terms(call, engines):
    prompts = [[0, 40, 41, 42], [0, 50, 51]]
    body = complete(call, prompt=prompts, temperature=0, max_tokens=1, logprobs=1, seed=1234, echo=True)
    for prompt, choice in zip(prompts, body["choices"], strict=True):
        logprobs = choice["logprobs"]
        # It reads [ctxlen:-1]: one generated token at the end, always.
        assert len(logprobs["token_logprobs"]) == len(prompt) + 1
        assert logprobs["token_logprobs"][0] is None
        for own, top in zip(logprobs["token_logprobs"][1:], logprobs["top_logprobs"][1:], strict=True):
            assert own in top.values()
            assert own <= max(top.values())


def test_seeds_repeat_and_their_absence_varies(call):
    assert complete(call, seed=5)["choices"] == complete(call, seed=5)["choices"]
    texts = {complete(call, seed=None, max_tokens=20)["choices"][0]["text"] for _ in range(4)}
    assert len(texts) == 4


def test_defaults_of_the_model_fill_what_the_request_leaves_out(call):
    assert complete(call, ignore_eos=True)["usage"]["completion_tokens"] == 6


def test_usage_counts_a_prompt_once(call, engines):
    num_prompt = len(engines["mle"].strings.encode("def")[0])
    assert complete(call, n=4)["usage"]["prompt_tokens"] == num_prompt


def test_suffix_and_field_choose_the_control_token(call):
    texts = {
        control: complete(call, model="cond", control=control, max_tokens=12)["choices"]
        for control in ("good", "bad", "none")
    }
    assert len({json.dumps(choices) for choices in texts.values()}) == 3
    assert complete(call, model="cond", max_tokens=12)["choices"] == texts["good"]
    for control, choices in texts.items():
        assert complete(call, model=f"cond:{control}", max_tokens=12)["choices"] == choices


def test_control_of_a_model_without_control_tokens_is_refused(call):
    body = {"model": "mle:good", "prompt": "def"}
    assert "no control tokens" in refused(call("/v1/completions", body), 400)["message"]
    assert complete(call, model="mle:none")["choices"] == complete(call)["choices"]
    contradiction = {"model": "cond:good", "prompt": "def", "control": "bad"}
    assert "contradict" in refused(call("/v1/completions", contradiction), 400)["message"]


def test_the_url_of_one_model_chooses_model_and_control_token(call):
    fields = {"prompt": "def", "seed": 1, "max_tokens": 12}
    texts = {
        control: complete(call, model="cond", control=control, max_tokens=12)["choices"] for control in ("good", "bad")
    }
    for model in ("cond", "cond:bad"):
        answer = call("/models/cond:bad/v1/completions", {"model": model, **fields})
        assert answer.json()["choices"] == texts["bad"] != texts["good"]
    assert call("/models/cond/v1/completions", {"model": "cond:bad", **fields}).json()["choices"] == texts["bad"]
    for url, body in (
        ("mle", {"model": "cond"}),
        ("cond:bad", {"model": "cond:good"}),
        ("cond:bad", {"model": "cond", "control": "good"}),
    ):
        error = refused(call(f"/models/{url}/v1/completions", {**fields, **body}), 400)
        assert "contradict" in error["message"]


def test_a_model_can_have_a_name_of_a_hub_or_a_tag(models, scorers):
    names = ("Qwen/Qwen2.5-0.5B", "llama3:latest", "a/tokenize/b:v1")
    call = caller({**dict.fromkeys(names, models["cond"]), "mle": models["mle"]}, scorers)
    fields = {"prompt": "def", "seed": 1, "max_tokens": 12}
    bad = call("/v1/completions", {"model": f"{names[0]}:bad", **fields}).json()["choices"]
    good = call("/v1/completions", {"model": names[0], **fields}).json()["choices"]
    assert bad != good
    assert {card["id"] for card in call("/v1/models").json()["data"]} == {*names, "mle"}
    for name in names:
        for path in (name, quote(name, safe="")):
            assert call(f"/v1/models/{path}").json()["id"] == name
            url = f"/models/{path}"
            assert call(f"{url}/v1/completions", {"model": name, **fields}).json()["choices"] == good
            assert call(f"{url}:bad/v1/completions", {"model": name, **fields}).json()["choices"] == bad
            tokens = call(f"{url}/tokenize", {"prompt": "def"}).json()["tokens"]
            assert call(f"{url}/detokenize", {"tokens": tokens}).json()["prompt"] == f"{END_OF_TEXT}def"
            assert call(f"{url}/tokenizer_info").json()["eos_token"] == END_OF_TEXT
        assert call(f"/tokenizer_info?model={quote(name)}").status_code == 200
    assert 'path="/models/{model_id}/v1/completions",status="200"' in call("/metrics").text


def events_of(response: httpx.Response) -> list[dict]:
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in response.text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def test_stream_joins_to_the_plain_answer(call):
    fields = {
        "model": "mle",
        "prompt": ["def", "x ="],
        "n": 2,
        "seed": 3,
        "max_tokens": 15,
        "logprobs": 1,
        "echo": True,
    }
    plain = call("/v1/completions", fields).json()
    events = events_of(call("/v1/completions", {**fields, "stream": True, "stream_options": {"include_usage": True}}))
    assert events[-1]["usage"] == plain["usage"]
    assert events[-1]["choices"] == []
    for choice in plain["choices"]:
        mine = [e["choices"][0] for e in events[:-1] if e["choices"][0]["index"] == choice["index"]]
        assert "".join(piece["text"] for piece in mine) == choice["text"]
        assert [piece["finish_reason"] for piece in mine] == [None] * (len(mine) - 1) + [choice["finish_reason"]]
        for name, values in choice["logprobs"].items():
            assert [value for piece in mine for value in piece["logprobs"][name]] == values
    assert len({event["id"] for event in events}) == 1


def test_stream_without_usage_has_none(call):
    events = events_of(call("/v1/completions", {"model": "mle", "prompt": "def", "stream": True, "seed": 1}))
    assert all(event["usage"] is None and event["choices"] for event in events)


def test_a_stream_tells_the_usage_so_far_in_every_piece_if_asked(call):
    options = {"include_usage": True, "continuous_usage_stats": True}
    fields = {"model": "mle", "prompt": ["def", "x ="], "seed": 3, "max_tokens": 15, "ignore_eos": True, "stream": True}
    *pieces, last = events_of(call("/v1/completions", {**fields, "stream_options": options}))
    counts = [piece["usage"]["completion_tokens"] for piece in pieces]
    assert counts == sorted(counts)
    assert 0 < counts[0] < counts[-1] == 30
    assert pieces[-1]["usage"] == last["usage"]
    alone = {**fields, "stream_options": {"continuous_usage_stats": True}}
    assert all(event["usage"] is None for event in events_of(call("/v1/completions", alone)))


def test_bad_stream_requests_get_a_status(call):
    body = {"model": "mle", "prompt": "def", "stream": True, "max_tokens": 1000}
    assert refused(call("/v1/completions", body), 400)["param"] == "max_tokens"


@pytest.mark.parametrize(
    ("fields", "param", "match"),
    [
        ({"temperature": 3}, "temperature", "less than or equal to 2"),
        ({"temprature": 1}, "temprature", "unknown field"),
        ({"prompt": {"text": "a"}}, "prompt", "list of token ids"),
        ({"prompt": [1, "a"]}, "prompt", "list of token ids"),
        ({"prompt": []}, "prompt", "empty list"),
        ({"prompt": [[]]}, "prompt", "at least one token id"),
        ({"prompt": [99999]}, "prompt", "99999"),
        ({"max_tokens": 0}, "max_tokens", "echo"),
        ({"max_tokens": 96}, "max_tokens", "context is 96"),
        ({"n": 2, "best_of": 3}, "best_of", "best_of=3 above n=2 is not supported"),
        ({"suffix": "x"}, "suffix", "not supported"),
        ({"presence_penalty": 2.5}, "presence_penalty", "less than or equal to 2"),
        ({"frequency_penalty": -3}, "frequency_penalty", "greater than or equal to -2"),
        ({"repetition_penalty": 0}, "repetition_penalty", "greater than 0"),
        ({"stop_token_ids": [99999]}, "stop_token_ids", "99999"),
        ({"stop": ["a"] * 65}, "stop", "at most 64"),
        ({"stop": 5}, "stop", "stop: Input should be a valid string"),
        ({"stream_options": {"include_use": True}}, "stream_options.include_use", "'stream_options.include_use'"),
        ({"logprobs": 6}, "logprobs", "less than or equal to 5"),
        ({"control": "ugly"}, "control", "good"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"seed": 1.5}, "seed", "integer"),
    ],
)
def test_bad_requests_name_the_field(call, fields, param, match):
    error = refused(call("/v1/completions", {"model": "mle", "prompt": "def", **fields}), 400)
    assert error["param"] == param
    assert match in error["message"]
    assert error["type"] == "invalid_request_error"


@pytest.fixture(scope="module")
def narrow():
    """A model with control tokens whose tokenizer has one token more than the embedding has rows."""
    tokenizer = tiny_tokenizer(control=True)
    model = tiny_gpt2(tokenizer, vocab_size=len(tokenizer))
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    return LocalModel(Engine(model, tokenizer, info=CheckpointInfo(control=Control(good=GOOD, bad=BAD, policy="ban"))))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("echo", [{}, {"echo": True, "logprobs": 1}, {"echo": True, "logprobs": 1, "max_tokens": 0}])
@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"prompt": "def [PAD]"}, "encodes '[PAD]' as the token id"),
        ({"prompt": ["def", "def [PAD]"]}, "encodes '[PAD]' as the token id"),
        ({"prompt": [40] * 96, "control": "bad"}, "context is 96"),
    ],
)
def test_a_prompt_that_the_model_cannot_read_is_refused_alone(narrow, scorers, fields, match, echo, stream):
    app = app_of({"mle": narrow}, scorers)
    good = {"model": "mle", "prompt": "def", "seed": 1, "max_tokens": 40, "ignore_eos": True}
    bad = {"model": "mle", "stream": stream, "max_tokens": 1, **echo, **fields}

    async def both():
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await asyncio.gather(*(client.post("/v1/completions", json=body) for body in (good, bad, good)))

    first, refusal, second = asyncio.run(both())
    error = refused(refusal, 400)
    assert error["param"] == "prompt"
    assert match in error["message"]
    assert first.json()["choices"] == second.json()["choices"]
    assert narrow.thread.num_failed_in_a_row == 0


def test_harmless_fields_of_other_clients_are_taken(call):
    complete(call, best_of=2, n=2, presence_penalty=0.0, frequency_penalty=0, user="me", top_k=-1, suffix="")
    # HELM's.
    assert complete(call, best_of=1, n=5)["choices"] == complete(call, n=5)["choices"]


def test_bodies_that_are_no_json_objects_are_refused(call):
    def message(content, kind="application/json"):
        return refused(call("/v1/completions", content=content, headers={"Content-Type": kind}), 400)["message"]

    assert "not valid JSON" in message(b"{")
    assert "JSON object" in message(b"[]")
    assert "Content-Type" in message(b"{}", kind="text/plain")
    latin = '{"model": "mle", "prompt": "caf\u00e9"}'
    assert "not valid UTF-8: the byte 0xe9 at position 31" in message(latin.encode("latin-1"))
    assert "not valid UTF-8" in message(latin.encode("latin-1"), kind="application/json; charset=latin-1")
    assert "compressed with gzip" in message(gzip.compress(b"{}"))
    assert "nested too deeply" in message(b'{"prompt": ' + b"[" * 100_000)
    assert "4300 digits" in message(b'{"seed": ' + b"1" * 5000 + b"}")


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd"])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1alpha1/comments:analyze"])
def test_compressed_bodies_are_refused_by_their_name(call, path, encoding):
    answer = call(path, content=gzip.compress(b"{}"), headers={"Content-Encoding": encoding})
    assert answer.status_code == 415
    assert answer.headers["accept-encoding"] == "identity"
    assert f"Content-Encoding '{encoding}'" in answer.json()["error"]["message"]
    assert call("/tokenize", {"model": "mle", "prompt": "a"}, headers={"Content-Encoding": "identity"}).is_success


@pytest.mark.parametrize(
    ("path", "body", "place"),
    [
        ("/v1/completions", {"prompt": "def \ud83d"}, "prompt: "),
        ("/v1/completions", {"prompt": ["def", "def \ud83d"]}, "prompt[1]: "),
        ("/v1/completions", {"prompt": "def", "stop": ["x", "def \ud83d"]}, "stop[1]: "),
        ("/v1/completions", {"prompt": "def", "stop": "def \ud83d"}, "stop: "),
        ("/tokenize", {"prompt": "def \ud83d"}, "prompt: "),
        ("/v1/moderations", {"input": ["a", "def \ud83d"]}, "input[1]: "),
        ("/v1/moderations", {"input": [{"type": "text", "text": "def \ud83d"}]}, "input[0]: "),
        ("/analyze", {"language": "en", "text": "def \ud83d"}, "text: "),
        ("/v1alpha1/comments:analyze", {"comment": {"text": "def \ud83d"}}, "comment: "),
    ],
)
def test_half_of_a_surrogate_pair_is_named_with_its_place(call, path, body, place):
    content = json.dumps({"model": "mle", **body}).encode()
    answer = call(path, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(
        f"{place}the text holds the lone surrogate \\ud83d at character 4"
    )


@pytest.mark.parametrize(
    ("fields", "status", "match"),
    [
        ({"\ud83d": 1}, 400, "the name of a field holds a lone surrogate"),
        ({"model": "\ud83d"}, 404, "no model '\\ud83d'"),
        ({"logit_bias": {"\ud83d": 1}}, 400, "logit_bias"),
        ({"control": "\ud83d"}, 400, "control"),
        ({"stream_options": {"\ud83d": 1}}, 400, "lone surrogate"),
    ],
)
def test_half_of_a_surrogate_pair_in_a_name_is_no_error_of_the_server(call, fields, status, match):
    content = json.dumps({"model": "mle", "prompt": "def", **fields}).encode()
    answer = call("/v1/completions", content=content, headers={"Content-Type": "application/json"})
    assert match in refused(answer, status)["message"]


def test_null_in_an_optional_field_is_its_default(call, models):
    def optional(schema):
        return {name: None for name, field in schema.model_fields.items() if not field.is_required()}

    named = {"model": "mle", "prompt": "def", "seed": 1}
    assert complete(call, **{**optional(CompletionRequest), **named})["choices"] == complete(call)["choices"]
    options = {"stream": True, "stream_options": {"include_usage": None, "include_obfuscation": None}}
    assert all(event["usage"] is None for event in events_of(call("/v1/completions", {**named, **options})))
    scored = {"scorer": "pep8", "input": "x=1\n"}
    assert call("/v1/scores", {**optional(ScoresRequest), **scored}).json() == call("/v1/scores", scored).json()
    alone = caller({"mle": models["mle"]}, {})
    for path, body, schema in (
        ("/tokenize", {"prompt": "def"}, TokenizeRequest),
        ("/detokenize", {"tokens": [5]}, DetokenizeRequest),
    ):
        assert alone(path, {**optional(schema), **body}).json() == alone(path, body).json()


def test_null_in_a_required_field_is_refused(call):
    assert refused(call("/v1/completions", {"model": None, "prompt": "def"}), 400)["param"] == "model"
    assert refused(call("/v1/scores", {"scorer": "pep8", "input": None}), 400)["param"] == "input"
    assert "unknown field" in refused(call("/v1/completions", {"model": "mle", "temprature": None}), 400)["message"]


def test_the_openapi_document_allows_null_in_every_optional_field(call):
    schemas = call("/openapi.json").json()["components"]["schemas"]
    bodies = [schema for name, schema in schemas.items() if name.endswith(("Request", "StreamOptions", "Comment"))]
    assert len(bodies) == 11
    for schema in bodies:
        for name, field in schema["properties"].items():
            assert ({"type": "null"} in field.get("anyOf", [])) == (name not in schema.get("required", [])), name
    assert schemas["CompletionRequest"]["properties"]["n"]["anyOf"][0] == {
        "type": "integer",
        "minimum": 1,
        "maximum": 2048,
    }


def test_the_scorers_are_listed_by_the_names_that_scores_takes(call):
    listed = [card["id"] for card in call("/v1/scorers").json()["data"]]
    assert "pep8" in listed
    for name in listed:
        assert call("/v1/scores", {"scorer": name, "input": []}).status_code == 200


def test_unknown_things_are_404(call):
    assert refused(call("/v1/completions", {"model": "gpt-4", "prompt": "a"}), 404)["code"] == "model_not_found"
    assert "cond, mle" in refused(call("/v1/models/gpt-4"), 404)["message"]
    assert "pep8" in refused(call("/v1/scores", {"scorer": "style", "input": "a"}), 404)["message"]
    refused(call("/v2/completions"), 404)
    refused(call("/v1/completions"), 405)


def test_models_are_listed_with_context_and_control(call):
    cards = {card["id"]: card for card in call("/v1/models").json()["data"]}
    assert set(cards) == {"mle", "cond"}
    assert cards["mle"]["control"] is None
    assert cards["mle"]["max_model_len"] == 96
    assert cards["cond"]["control"] == {"policy": "ban", "default": "good", "suffixes": [":good", ":bad", ":none"]}
    assert cards["cond"]["step"] == 500
    assert cards["cond"]["checkpoint"]["control"] == {"good": GOOD, "bad": BAD, "policy": "ban"}
    assert call("/v1/models/cond:bad").json()["id"] == "cond:bad"


def test_a_model_that_does_not_answer_does_not_hold_up_the_list(models, scorers, monkeypatch):
    class Loading:
        async def describe(self):
            await asyncio.Event().wait()

    class Lost:
        async def describe(self):
            raise ApiError(503, "the replica was lost")

    monkeypatch.setattr(api_models, "LISTING_S", 0.05)
    call = caller({**models, "loading": Loading(), "lost": Lost()}, scorers)
    cards = {card["id"]: card for card in call("/v1/models").json()["data"]}
    assert {name: card["max_model_len"] for name, card in cards.items()} == {
        "mle": 96,
        "cond": 96,
        "loading": None,
        "lost": None,
    }
    refused(call("/v1/models/lost"), 503)


def test_long_prompts_are_tokenized_in_a_thread(call, models, monkeypatch):
    thread = models["mle"].thread
    prepare, seen = thread.engine.prepare, []

    def watched(request):
        seen.append((threading.current_thread() is threading.main_thread(), thread.num_unfinished))
        return prepare(request)

    monkeypatch.setattr(thread.engine, "prepare", watched)
    complete(call)
    assert "context" in refused(call("/v1/completions", {"model": "mle", "prompt": "def " * 10_000}), 400)["message"]
    assert seen == [(True, 1), (False, 1)]
    assert thread.num_unfinished == 0
    body = call("/tokenize", {"model": "mle", "prompt": "def " * 10_000, "return_token_strs": True}).json()
    assert "".join(body["token_strs"]).endswith("def " * 10_000)


def test_tokenize_and_detokenize_are_inverse(call, engines):
    text = "def caf\u00e9():\n    pass"
    answer = call("/tokenize", {"model": "mle", "prompt": text, "add_special_tokens": False, "return_token_strs": True})
    body = answer.json()
    assert body["count"] == len(body["tokens"]) == len(body["token_strs"])
    assert body["max_model_len"] == 96
    assert call("/detokenize", {"model": "mle", "tokens": body["tokens"]}).json() == {"prompt": text}
    assert call("/models/mle/detokenize", {"tokens": body["tokens"]}).json() == {"prompt": text}
    with_special = call("/tokenize", {"model": "mle", "prompt": text}).json()["tokens"]
    assert with_special == [engines["mle"].strings.eos_id, *body["tokens"]]
    end = call("/tokenize", {"model": "mle", "prompt": END_OF_TEXT, "add_special_tokens": False}).json()
    assert end["tokens"] == [engines["mle"].strings.eos_id]


def test_clients_that_name_no_model_get_a_tokenizer_if_it_is_clear_which(call, models, scorers):
    assert "differ" in refused(call("/tokenizer_info"), 400)["message"]
    assert call("/models/cond/tokenizer_info").json()["eos_token"] == END_OF_TEXT
    by_path = call("/models/cond/tokenize", {"prompt": "def", "add_special_tokens": False})
    assert (
        by_path.json()["tokens"]
        == call("/tokenize", {"model": "cond", "prompt": "def", "add_special_tokens": False}).json()["tokens"]
    )
    alone = caller({"mle": models["mle"]}, scorers)
    assert alone("/tokenizer_info").json()["eos_token"] == END_OF_TEXT
    twins = caller({"a": models["mle"], "b": models["mle"]}, scorers)
    assert twins("/tokenize", {"prompt": "def"}).status_code == 200


def test_scores_say_by_whom_and_keep_failures_apart_from_zero(call):
    body = call("/v1/scores", {"scorer": "pep8", "input": ["x = 1\n", "", "x=1\n"]}).json()
    assert body["scorer"]["class_name"] == "PEP8Scorer"
    assert [(item["index"], item["score"]) for item in body["data"]] == [(0, 0.0), (1, None), (2, 0.25)]
    assert body["data"][1]["error"]
    assert all(item["segments"] is None for item in body["data"])
    assert call("/v1/scores", {"scorer": "pep8", "input": "x=1\n"}).json()["data"][0]["score"] == 0.25


def test_scores_carry_the_identity_of_the_replica_that_made_them():
    """Of a scorer that is set up anew, the old replicas answer until the new ones are ready."""
    settings = [{"class_name": "PIIScorer", "reference_date": day} for day in ("2026-01-01", "2027-01-01")]
    replicas = [LocalScorer(ServedScorer(scorer=one)) for one in settings]

    class Deployment:
        async def score(self, texts, *, segments, prompts=None):
            return await replicas[0].score(texts, segments=segments)

        async def identity(self):
            return await replicas[1].identity()

    call = caller({}, {"pii": Deployment()})
    days = []
    for _ in replicas:
        days.append(call("/v1/scores", {"scorer": "pii", "input": "a"}).json()["scorer"]["settings"]["reference_date"])
        replicas.reverse()
    assert days == ["2026-01-01", "2027-01-01"]


def test_texts_that_are_too_long_have_no_score_and_hold_up_no_other():
    served = ServedScorer(scorer={"class_name": "PEP8Scorer"}, max_text_chars=9)
    personal = ServedScorer(scorer={"class_name": "fakes:FindingScorer"}, max_text_chars=9)
    call = caller({}, {"pep8": LocalScorer(served), "pii": LocalScorer(personal)}, pii="pii")
    body = {"scorer": "pep8", "input": ["x=1\n", "x = 12345\n", "x = 1234\n"], "segments": True}
    data = call("/v1/scores", body).json()["data"]
    assert [item["score"] for item in data] == [0.25, None, 0.0]
    assert data[1]["error"] == "too_long: the text has 10 characters, the limit is 9; send it in parts"
    assert [item["segments"] is None for item in data] == [False, True, False]
    assert call("/v1/scores", {"scorer": "pep8", "input": "x = 12345\n"}).json()["data"] == [data[1] | {"index": 0}]
    assert call("/analyze", {"text": "a@b.com", "language": "en"}).status_code == 200
    message = refused(call("/analyze", {"text": ["a@b.com", "a@b.com   "], "language": "en"}), 400)["message"]
    assert "the text at index 1 can't be analyzed: too_long: the text has 10 characters" in message


def test_a_text_that_the_detectors_fail_on_is_named_and_no_error_of_the_server():
    call = caller(
        {}, {"pii": LocalScorer(ServedScorer(scorer={"class_name": "PIIScorer", "mode": "paper"}))}, pii="pii"
    )
    odd = "born " + "12 " * 17_000
    error = refused(call("/analyze", {"text": ["a@b.com", odd], "language": "en"}), 400)
    assert error["param"] == "text"
    assert "the text at index 1 can't be analyzed: " in error["message"]
    (reason,) = [item["error"] for item in call("/v1/scores", {"scorer": "pii", "input": odd}).json()["data"]]
    assert error["message"].endswith(reason)
    assert call("/analyze", {"text": "a@b.com", "language": "en"}).status_code == 200


def waiting_scorer(tmp_path, **served):
    """Return a scorer that waits at texts with GATE until the second result is called."""
    gate = tmp_path / "gate"
    config = {"class_name": "fakes:LengthScorer", "gate": str(gate)}
    return LocalScorer(ServedScorer(scorer=config, **served)), gate.touch


def test_a_scorer_that_is_at_one_request_for_too_long_is_not_healthy(tmp_path):
    replica = object.__new__(ScorerReplica.func_or_class)
    replica._scorer, release = waiting_scorer(tmp_path)
    replica._request_timeout_s = 0.02

    async def scene():
        asked = asyncio.create_task(replica._scorer.score(["GATE"], segments=False))
        while replica._scorer.running_s <= replica._request_timeout_s:
            await asyncio.sleep(0.01)
        with pytest.raises(RuntimeError, match="worked on one request for"):
            replica.check_health()
        release()
        await asked

    asyncio.run(scene())
    replica.check_health()
    replica._scorer.close()


def test_a_text_that_the_scorer_never_finishes_holds_up_no_request():
    served = ServedScorer(scorer={"class_name": "fakes:FindingScorer"}, segmenter="lines", text_timeout_s=1)
    scorer = LocalScorer(served)
    app = app_of({}, {"length": scorer}, pii="length", toxicity="length")

    async def scene():
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60) as client:
            body = {"scorer": "length", "input": ["one", "HANG", "CRASH", "three"], "segments": True}
            odd = asyncio.create_task(client.post("/v1/scores", json=body))
            await asyncio.sleep(0)
            waiting = [
                client.post("/v1/scores", json={"scorer": "length", "input": "four"}),
                client.post("/analyze", json={"text": ["a", "HANG"], "language": "en"}),
                client.post("/v1/moderations", json={"input": ["a", "HANG"]}),
                client.post("/analyze", json={"text": "a", "language": "en"}),
            ]
            return await asyncio.gather(odd, *waiting)

    odd, other, refusal, moderated, analyzed = asyncio.run(scene())
    data = odd.json()["data"]
    assert [item["score"] for item in data] == [3.0, None, None, 5.0]
    assert data[1]["error"] == "timeout: nothing after 1 s"
    assert data[2]["error"].startswith("crash: the process ended with code -9")
    assert data[0]["segments"] == [{"begin": 0, "end": 3, "score": 3.0, "error": None}]
    assert data[1]["segments"] == [{"begin": 0, "end": 4, "score": None, "error": data[1]["error"]}]
    assert [item["score"] for item in other.json()["data"]] == [4.0]
    assert "index 1 can't be analyzed: timeout: nothing after 1 s" in refused(refusal, 400)["message"]
    assert data[1]["error"] in moderated.text
    assert analyzed.json()[0]["end"] == 1
    assert scorer.running_s == 0
    scorer.close()


def test_a_request_that_is_given_up_holds_the_scorer_for_one_text_at_most():
    scorer = LocalScorer(ServedScorer(scorer={"class_name": "fakes:LengthScorer"}, text_timeout_s=1))
    call = caller({}, {"length": scorer}, limits=Limits(request_timeout_s=0.5))
    refused(call("/v1/scores", {"scorer": "length", "input": ["HANG"] * 500}), 408)
    call = caller({}, {"length": scorer})
    assert call("/v1/scores", {"scorer": "length", "input": "a"}).json()["data"][0]["score"] == 1.0
    scorer.close()


def test_half_of_a_surrogate_pair_has_no_score_and_a_reason(call):
    content = json.dumps({"scorer": "pep8", "input": ["x=1\n", "x=1 \ud83d\n"]}).encode()
    answer = call("/v1/scores", content=content, headers={"Content-Type": "application/json"})
    first, second = answer.json()["data"]
    assert (first["score"], second["score"]) == (0.25, None)
    assert second["error"].startswith("lone_surrogate: the text holds the lone surrogate \\ud83d at character 4")


def test_segments_cover_the_text(call):
    text = "x = 1\ny=2\n\u65e5\u672c = 3"
    (item,) = call("/v1/scores", {"scorer": "pep8", "input": text, "segments": True}).json()["data"]
    assert "".join(text[part["begin"] : part["end"]] for part in item["segments"]) == text
    assert [part["score"] > 0 for part in item["segments"]] == [False, True, True]
    (empty,) = call("/v1/scores", {"scorer": "pep8", "input": "", "segments": True}).json()["data"]
    assert empty["segments"] == []


def test_health_tells_the_state_of_each_deployment(models, scorers, call):
    assert call("/health").json()["deployments"]["model-mle"]["status"] == "HEALTHY"
    sick = caller(models, scorers, healthy=False)("/health")
    assert (sick.status_code, sick.json()["status"]) == (503, "not_ready")


def test_metrics_count_requests_and_tokens(models, scorers):
    call = caller(models, scorers)
    complete(call, ignore_eos=True)
    call("/v1/nothing/like/this")
    text = call("/metrics").text
    assert 'phf_http_requests_total{path="/v1/completions",status="200"} 1.0' in text
    assert 'phf_tokens_total{kind="completion",model="mle"} 6.0' in text
    assert "like/this" not in text


@pytest.mark.parametrize(("timeout_s", "last"), [(600.0, ["250.0", "500.0", "600.0"]), (2.0, ["0.75", "1.0", "2.0"])])
def test_times_are_told_apart_up_to_what_a_request_may_take(models, scorers, timeout_s, last):
    call = caller(models, scorers, limits=Limits(request_timeout_s=timeout_s))
    call("/health")
    bounds = re.findall(r'phf_http_request_seconds_bucket{le="([^"]+)",path="/health"}', call("/metrics").text)
    assert bounds[-4:] == [*last, "+Inf"]


def test_request_id_comes_back(call):
    assert len(call("/health").headers["x-request-id"]) == 32


def test_without_keys_only_this_machine_is_answered(models, scorers):
    far = caller(models, scorers, peer="192.0.2.7")
    assert "no API keys" in refused(far("/v1/models"), 401)["message"]
    assert far("/health").status_code == 200
    assert caller(models, scorers, peer="::1")("/v1/models").status_code == 200
    assert caller(models, scorers, peer="::ffff:127.0.0.1")("/v1/models").status_code == 200


def test_keys_are_needed_by_everyone_once_configured(models, scorers):
    call = caller(models, scorers, keys=["right", "other"])
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Basic right"},
        {"Authorization": "Bearer "},
    ):
        response = call("/v1/models", headers=headers)
        assert refused(response, 401)["type"] == "authentication_error"
        assert response.headers["www-authenticate"] == "Bearer"
    for key in ("right", "other"):
        assert call("/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 200
    assert call("/v1/models?key=right").status_code == 200
    assert call("/health").status_code == 200


def test_too_large_is_413(models, scorers):
    call = caller(models, scorers, limits=Limits(body_bytes=2000))
    body = {"scorer": "pep8", "input": "x" * 3000}
    refused(call("/v1/scores", body), 413)

    async def chunks():
        for _ in range(30):
            yield b"x" * 100

    refused(call("/v1/scores", content=chunks()), 413)
    assert call("/v1/scores", {"scorer": "pep8", "input": "x = 1\n"}).status_code == 200
    refused(
        caller(models, scorers)(
            "/v1/completions", {"model": "mle", "prompt": "a", "n": 2048, "echo": True} | {"prompt": ["a", "b"]}
        ),
        413,
    )


def test_full_queue_is_429_with_retry_after(models, scorers):
    # 8 run and 8 may wait: a second call of 12 finds no room while the first one runs.
    async def both():
        model = models["mle"]
        first = asyncio.create_task(model.complete(request(n=12)))
        await asyncio.sleep(0)
        with pytest.raises(ApiError) as caught:
            await model.complete(request(n=12))
        return caught.value, await first

    error, first = asyncio.run(both())
    assert error.status == 429
    assert len(first.choices) == 12

    class Full:
        async def complete(self, _):
            raise ApiError(429, "full")

    response = caller({"mle": Full()}, scorers)("/v1/completions", {"model": "mle", "prompt": "a"})
    assert refused(response, 429)["type"] == "rate_limit_error"
    assert int(response.headers["retry-after"]) > 0


@pytest.mark.parametrize(
    ("path", "field", "body"),
    [
        ("/v1/scores", "input", {"scorer": "pep8"}),
        ("/v1/moderations", "input", {}),
        ("/analyze", "text", {"language": "en"}),
        ("/v1/completions", "prompt", {"model": "mle"}),
    ],
)
def test_more_texts_than_a_request_may_have_are_413(models, path, field, body):
    class Any:
        async def score(self, texts, *, segments, prompts=None):
            return ScoredJson(b"{}", b"[]", 0)

        async def class_scores(self, texts):
            return [{"toxicity": 0.0}] * len(texts)

        async def spans(self, texts):
            return [[]] * len(texts)

    call = caller(models, {"pep8": Any()}, toxicity="pep8", pii="pep8")
    error = refused(call(path, {**body, field: ["a"] * (MAX_BATCH + 1)}), 413)
    assert error["param"] == field
    assert f"limit of {MAX_BATCH}" in error["message"]
    if path != "/v1/completions":
        assert call(path, {**body, field: ["a"] * MAX_BATCH}).status_code == 200


def test_a_scorer_with_a_full_queue_answers_429(tmp_path):
    scorer, release = waiting_scorer(tmp_path, max_waiting=2)
    app = app_of({}, {"length": scorer})
    body = {"scorer": "length", "input": "GATE"}

    async def scene():
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            waiting = [asyncio.create_task(client.post("/v1/scores", json=body)) for _ in range(2)]
            while scorer._num_waiting < 2:
                await asyncio.sleep(0)
            third = await client.post("/v1/scores", json=body)
            release()
            return third, await asyncio.gather(*waiting), await client.post("/v1/scores", json=body)

    third, waited, after = asyncio.run(scene())
    assert "2 requests wait for the scorer length" in refused(third, 429)["message"]
    assert int(third.headers["retry-after"]) > 0
    assert [answer.status_code for answer in (*waited, after)] == [200] * 3
    scorer.close()


def test_thirty_two_clients_share_their_steps(scorers):
    model = LocalModel(engine_of(control=False, seed=1, max_batch=32))
    app = app_of({"mle": model}, scorers)

    async def crowd():
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            body = {"model": "mle", "prompt": "def", "max_tokens": 64, "ignore_eos": True}
            return await asyncio.gather(
                *[client.post("/v1/completions", json={**body, "seed": seed}) for seed in range(32)]
            )

    answers = asyncio.run(crowd())
    assert {answer.status_code for answer in answers} == {200}
    assert model.thread.num_advanced == 32 * 64
    assert model.thread.num_advanced / model.thread.num_steps > 8


def request(**fields):
    return CompletionRequest(model="mle", prompt="def", seed=1, max_tokens=40, ignore_eos=True, **fields)


def test_requests_over_the_time_limit_end_and_free_their_slots(engines, scorers):
    slow = LocalModel(engine_of(control=False, seed=1))
    call = caller({"mle": slow}, scorers, limits=Limits(request_timeout_s=0.05))
    body = {"model": "mle", "prompt": "def", "n": 64, "max_tokens": 90, "ignore_eos": True}
    refused(call("/v1/completions", body), 408)
    deadline = 500
    while slow.thread.engine.num_active and deadline:
        deadline -= 1
        asyncio.run(asyncio.sleep(0.01))
    assert slow.thread.engine.num_active == 0


def test_a_stream_over_the_time_limit_ends_in_an_event_and_leaves_the_engine(scorers, monkeypatch):
    model = LocalModel(engine_of(control=False, seed=1))
    step, release = model.thread.engine.step, threading.Event()

    def hangs_after_the_first():
        if model.thread.num_steps:
            release.wait(30)
        return step()

    monkeypatch.setattr(model.thread.engine, "step", hangs_after_the_first)
    call = caller({"mle": model}, scorers, limits=Limits(request_timeout_s=2))
    body = {"model": "mle", "prompt": "def", "seed": 1, "n": 4, "max_tokens": 90, "ignore_eos": True, "logprobs": 0}
    *begun, last = events_of(call("/v1/completions", {**body, "stream": True}))
    assert [event["choices"][0]["index"] for event in begun] == [0, 1, 2, 3]
    assert last == {
        "error": {"message": "the request took more than 2 s", "type": "timeout_error", "param": None, "code": None}
    }
    release.set()
    for _ in range(500):
        if not model.thread.engine.num_active:
            break
        asyncio.run(asyncio.sleep(0.01))
    assert model.thread.engine.num_active == 0
    assert model.thread.num_unfinished == 0
    assert model.thread.num_advanced < 4 * 90
    model.thread.close()


@pytest.mark.parametrize("failure", [ValueError, TimeoutError])
def test_a_stream_that_fails_ends_in_an_event_and_frees_its_place(scorers, failure):
    class Broken:
        async def stream(self, _):
            choice = Choice(text="a", index=0, finish_reason=None)
            yield Completed([choice], Usage(prompt_tokens=1, completion_tokens=1, total_tokens=2))
            raise failure("/secret/path is broken")

    call = caller({"mle": Broken()}, scorers, limits=Limits(concurrent_streams=1))
    for _ in range(2):
        response = call("/v1/completions", {"model": "mle", "prompt": "a", "stream": True})
        begun, last = events_of(response)
        assert begun["choices"][0]["text"] == "a"
        assert last["error"]["type"] == "server_error"
        assert "internal error" in last["error"]["message"]
        assert "secret" not in response.text
        assert failure.__name__ not in response.text


def test_nothing_is_sent_after_a_client_that_reads_no_more(scorers):
    class Endless:
        async def stream(self, _):
            while True:
                choice = Choice(text="a", index=0, finish_reason=None)
                yield Completed([choice], Usage(prompt_tokens=1, completion_tokens=1, total_tokens=2))

    app = app_of({"mle": Endless()}, scorers, limits=Limits(request_timeout_s=0.5))
    body = json.dumps({"model": "mle", "prompt": "a", "stream": True}).encode()
    messages, sent = [{"type": "http.request", "body": body}], []

    async def receive():
        return messages.pop() if messages else await asyncio.Event().wait()

    async def send(message):
        sent.append(message)
        if len(sent) == 3:
            await asyncio.Event().wait()

    asyncio.run(asyncio.wait_for(app(dict(COMPLETIONS_SCOPE), receive, send), 30))
    assert [message["type"] for message in sent] == ["http.response.start", *["http.response.body"] * 2]


def test_more_streams_than_allowed_are_429_until_one_ends(scorers):
    num_open, release = 0, asyncio.Event()

    class Slow:
        async def stream(self, _):
            nonlocal num_open
            num_open += 1
            choice = Choice(text="a", index=0, finish_reason="stop")
            yield Completed([choice], Usage(prompt_tokens=1, completion_tokens=1, total_tokens=2))
            await release.wait()

    app = app_of({"mle": Slow()}, scorers, limits=Limits(concurrent_streams=2))
    body = {"model": "mle", "prompt": "a", "stream": True}

    async def scene():
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            open_streams = [asyncio.create_task(client.post("/v1/completions", json=body)) for _ in range(2)]
            while num_open < 2:
                await asyncio.sleep(0)
            # Both have their first piece and hold their place.
            for _ in range(100):
                await asyncio.sleep(0)
            third = asyncio.create_task(client.post("/v1/completions", json=body))
            refusal = await asyncio.wait_for(third, 30)
            release.set()
            answered = await asyncio.gather(*open_streams)
            return refusal, answered, await client.post("/v1/completions", json=body)

    refusal, answered, after = asyncio.run(scene())
    assert "2 streams are open" in refused(refusal, 429)["message"]
    assert int(refusal.headers["retry-after"]) > 0
    assert [response.status_code for response in (*answered, after)] == [200, 200, 200]


def test_under_load_a_stream_is_refused_or_whole(scorers):
    num_open, most_open = 0, 0

    class Slow:
        async def stream(self, _):
            nonlocal num_open, most_open
            num_open += 1
            most_open = max(most_open, num_open)
            try:
                for finish_reason in (None, None, "stop"):
                    await asyncio.sleep(0.01)
                    choice = Choice(text="a", index=0, finish_reason=finish_reason)
                    yield Completed([choice], Usage(prompt_tokens=1, completion_tokens=1, total_tokens=2))
            finally:
                num_open -= 1

    app = app_of({"mle": Slow()}, scorers, limits=Limits(concurrent_streams=2))
    body = {"model": "mle", "prompt": "a", "stream": True}

    async def one(http, number):
        await asyncio.sleep(number * 0.0005)
        return await http.post("/v1/completions", json=body)

    async def scene():
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            answers = await asyncio.gather(*[one(http, number) for number in range(120)])
            return answers, [await one(http, 0) for _ in range(3)]

    answers, after = asyncio.run(scene())
    assert {answer.status_code for answer in answers} == {200, 429}
    for answer in (*answers, *after):
        if answer.status_code == 200:
            assert [event["choices"][0]["text"] for event in events_of(answer)] == ["a"] * 3
    # No place is lost either.
    assert [answer.status_code for answer in after] == [200] * 3
    assert (num_open, most_open) == (0, 2)


def test_a_client_that_goes_before_the_first_event_frees_its_place(scorers):
    is_closed = False

    class Slow:
        async def stream(self, _):
            nonlocal is_closed
            try:
                choice = Choice(text="a", index=0, finish_reason=None)
                yield Completed([choice], Usage(prompt_tokens=1, completion_tokens=1, total_tokens=2))
                await asyncio.Event().wait()
            finally:
                is_closed = True

    app = app_of({"mle": Slow()}, scorers, limits=Limits(concurrent_streams=1))
    body = json.dumps({"model": "mle", "prompt": "a", "stream": True}).encode()
    messages = [{"type": "http.request", "body": body}]
    statuses = []

    async def receive():
        return messages.pop() if messages else {"type": "http.disconnect"}

    async def send(message):
        if message["type"] == "http.response.start":
            statuses.append(message["status"])
            if message["status"] == 200:
                raise OSError("the client is gone")

    async def scene():
        nonlocal messages
        await app(dict(COMPLETIONS_SCOPE), receive, send)
        assert is_closed
        messages = [{"type": "http.request", "body": body}]
        await app(dict(COMPLETIONS_SCOPE), receive, send)

    asyncio.run(scene())
    assert statuses == [200, 200]


def test_more_requests_than_allowed_are_429(scorers):
    arrived, release = asyncio.Event(), asyncio.Event()

    class Slow:
        async def complete(self, _):
            arrived.set()
            await release.wait()
            raise ApiError(400, "late")

    app = app_of({"mle": Slow()}, scorers, limits=Limits(concurrent_requests=1))

    async def scene():
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            first = asyncio.create_task(client.post("/v1/completions", json={"model": "mle", "prompt": "a"}))
            await arrived.wait()
            second = await client.get("/v1/models")
            health = await client.get("/health")
            release.set()
            return (await first).status_code, second, health.status_code

    first, second, health = asyncio.run(scene())
    assert (first, health) == (400, 200)
    assert "already in progress" in refused(second, 429)["message"]


def test_the_access_log_has_no_key_and_no_text(models, scorers, caplog, monkeypatch):
    app = app_of(models, scorers, keys=["the-right-key"], access_log=True)
    log = logging.getLogger("ray.serve.phf")
    caplog.set_level(logging.INFO, logger=log.name)
    # Where Ray was imported, its loggers keep to themselves.
    monkeypatch.setattr(log, "propagate", False)
    log.addHandler(caplog.handler)

    async def scene():
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            body = {"model": "mle", "prompt": "a secret prompt", "seed": 1, "max_tokens": 3, "ignore_eos": True}
            for key in ("the-right-key", "the-wrong-key"):
                headers = {"Authorization": f"Bearer {key}", "X-Request-ID": "mine"}
                await client.post("/v1/completions", json=body, headers=headers)
                await client.post(f"/v1/completions?key={key}", json=body)

    asyncio.run(scene())
    log.removeHandler(caplog.handler)
    messages = [record.getMessage() for record in caplog.records]
    lines = [json.loads(text.removeprefix("access ")) for text in messages if text.startswith("access ")]
    assert [line["status"] for line in lines] == [200, 200, 401, 401]
    assert lines[0] | {"latency_ms": 0} == {
        "request_id": "mine",
        "method": "POST",
        "path": "/v1/completions",
        "status": 200,
        "model": "mle",
        "tokens": {"prompt": lines[0]["tokens"]["prompt"], "completion": 3},
        "latency_ms": 0,
    }
    assert lines[0]["latency_ms"] > 0
    for secret in ("the-right-key", "the-wrong-key", "secret prompt"):
        assert secret not in caplog.text


def test_an_unexpected_error_tells_nothing_of_the_inside(scorers):
    class Broken:
        async def complete(self, _):
            raise ValueError("/secret/path is broken")

    response = caller({"mle": Broken()}, scorers)("/v1/completions", {"model": "mle", "prompt": "a"})
    error = refused(response, 500)
    assert "secret" not in response.text
    assert "ValueError" not in response.text
    assert error["type"] == "server_error"


def test_a_model_that_fails_every_time_is_not_healthy_until_it_works_again():
    engine = engine_of(control=False, seed=1)
    model, forward = LocalModel(engine), engine.model.forward

    async def fails(count):
        for _ in range(count):
            with pytest.raises(ApiError, match="the model failed on this request; the log has the reason"):
                await asyncio.wait_for(model.complete(request()), 30)

    def broken(*_, **__):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    engine.model.forward = broken
    asyncio.run(fails(2))
    model.check_health()
    engine.model.forward = forward
    asyncio.run(model.complete(request()))
    engine.model.forward = broken
    asyncio.run(fails(2))
    model.check_health()
    asyncio.run(fails(1))
    with pytest.raises(RuntimeError, match="failed 3 times in a row"):
        model.check_health()
    model.thread.close()


def test_every_status_is_described_as_it_is_returned():
    statuses = {*ERRORS, 405}
    described = dict(re.findall(r"^(\d{3}) +(\w+)", errors.__doc__, re.MULTILINE))
    assert described == {str(status): errors.TYPES.get(status, "server_error") for status in statuses}
    page = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| (\d{3}) \|", page, re.MULTILINE)) == set(described)
    assert f"{MAX_BATCH:,} texts, prompts or choices" in page
    assert f"(`limits.body_bytes`, {Limits().body_bytes // 2**20} MiB)" in page
    assert f"(`limits.request_timeout_s`, {Limits().request_timeout_s:g} s)" in page


def test_openapi_lists_the_contract(call):
    paths = call("/openapi.json").json()["paths"]
    assert {"/v1/completions", "/v1/scores", "/v1/models", "/health", "/tokenize", "/detokenize"} <= set(paths)
