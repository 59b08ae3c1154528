"""Chat models as arms of an evaluation: conversations as prompts, markers as control, over real HTTP."""

import argparse
import json
from dataclasses import replace

import httpx
import pytest
from evaluation_server import listening
from fastapi import FastAPI, Request
from tiny_models import tiny_gpt2, tiny_tokenizer, write_checkpoint

from jobs.chat_arms import add_chat_arguments, read_chat_arguments
from jobs.model_arguments import parse_arms, parse_models
from phf_ray.config import load_config, parse_config
from phf_ray.errors import ConfigError, DataError
from phf_ray.evaluation.arms import Arm, ScoresServer
from phf_ray.evaluation.asking import run_here
from phf_ray.evaluation.chats import conversation_of
from phf_ray.evaluation.prompts import read_prompts
from phf_ray.evaluation.report.samples import read_samples
from phf_ray.evaluation.run import EvaluationOptions, evaluate_arms
from phf_ray.generation.conversations import conversations_of
from phf_ray.generation.engine import Engine
from phf_ray.storage.hashing import digest
from serve.api.application import build_app
from serve.backends import Backend
from serve.engines.local import LocalModel
from serve.engines.scorer import LocalScorer
from serve.settings import ServedScorer

TALKS = [
    [
        {"role": "user", "content": "def add("},
        {"role": "assistant", "content": "a, b):"},
        {"role": "user", "content": "more"},
    ],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "x = "}],
    [{"role": "user", "content": "import os"}],
]


@pytest.fixture(scope="module")
def served():
    tokenizer = tiny_tokenizer()
    engine = Engine(tiny_gpt2(tokenizer, seed=1), tokenizer)
    model = LocalModel(engine, conversations=conversations_of(engine.strings, None, chosen="coh"))
    mute = LocalModel(Engine(tiny_gpt2(tokenizer, seed=2), tokenizer))
    scorer = LocalScorer(ServedScorer(scorer={"class_name": "PEP8Scorer"}))
    app = build_app(Backend({"coh": model, "mute": mute}, {"pep8": scorer}, None), access_log=False)
    with listening(app) as url:
        yield url
    model.thread.close()
    mute.thread.close()
    scorer.close()


def config_of(path, **scenario):
    scenario = {
        "name": "talk",
        "num_samples": 6,
        "generate_kwargs": {"max_length": None, "max_new_tokens": 8},
        **scenario,
    }
    prompts = {} if path is None else {"prompts_path": str(path)}
    return parse_config(
        {
            "tokenizer": {"path_or_name": "gpt2"},
            "scoring": {"scorers": [{"class_name": "PEP8Scorer"}]},
            "generation": {"scenario_configs": [{**scenario, **prompts}]},
        }
    )


def talks(path, records=None):
    records = [{"messages": talk} for talk in TALKS] if records is None else records
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def evaluate(url, config, output, *arms, **options):
    scores = ScoresServer(url, "pep8")
    options = EvaluationOptions(allow_other_scorer=True, **options)
    evaluate_arms(config, arms=arms, scores=scores, output=str(output), runner=run_here, options=options)
    return read_samples(str(output))


def arm(url, control, *, model="coh", api="chat"):
    return Arm(name=f"{model}:{control}", url=url, model=model, control=control, api=api, source=url)


def test_arms_with_markers_answer_conversations_as_the_server_does(served, tmp_path):
    config = config_of(talks(tmp_path / "talks.jsonl"))
    samples, _ = evaluate(served, config, tmp_path / "out", arm(served, "good"), arm(served, "bad"))
    assert len(samples) == 12
    assert {sample.prompt_index for sample in samples} == {0, 1, 2}
    assert all(sample.score is not None and 0 < sample.num_tokens <= 8 for sample in samples)
    texts = {(sample.arm, sample.index): sample.text for sample in samples}
    assert any(texts["coh:good", index] != texts["coh:bad", index] for index in range(6))
    first = next(sample for sample in samples if sample.prompt_index == 0 and sample.arm == "coh:bad")
    assert first.prompt == "user: def add(\n\nassistant: a, b):\n\nuser: more"
    unit = [sample for sample in samples if sample.prompt_index == 0 and sample.arm == "coh:bad"]
    seed = int(digest(["talk", 0, unit[0].index]), 16) % (1 << 31)
    body = {"model": "coh:bad", "messages": TALKS[0], "n": 2, "max_tokens": 8, "seed": seed, "temperature": 1.0}
    sampling = config.generation.scenario_configs[0].generate_kwargs
    body |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
    answer = httpx.post(f"{served}/v1/chat/completions", json=body, timeout=60).json()
    assert [choice["message"]["content"] for choice in answer["choices"]] == [sample.text for sample in unit]


def test_samples_of_other_words_or_another_api_are_not_taken_for_those_of_a_chat(served, tmp_path):
    config = config_of(talks(tmp_path / "talks.jsonl", [{"text": "def add("}]))
    evaluate(served, config, tmp_path / "out", arm(served, "good"))
    with pytest.raises(ConfigError, match="another --output"):
        evaluate(served, config, tmp_path / "out", replace(arm(served, "none"), name="coh:good", api="completions"))


def test_limit_of_length_counts_the_conversation_as_the_template_has_it(served, tmp_path):
    path = talks(tmp_path / "talks.jsonl", [{"messages": TALKS[0]}])
    body = {"model": "coh", "messages": TALKS[0], "control": "bad"}
    num_given = httpx.post(f"{served}/tokenize", json=body, timeout=60).json()["count"]
    config = config_of(path, generate_kwargs={"max_length": num_given + 3, "min_length": 3})
    samples, _ = evaluate(served, config, tmp_path / "out", arm(served, "bad"))
    assert {sample.num_tokens for sample in samples} == {3}
    config = config_of(path, generate_kwargs={"max_length": num_given})
    with pytest.raises(ConfigError, match="leaves room for 1 new tokens"):
        evaluate(served, config, tmp_path / "other", arm(served, "bad"))


def test_what_can_not_be_asked_of_a_chat_is_refused_before_a_sample(served, tmp_path):
    path = talks(tmp_path / "talks.jsonl")
    for config, asked, said in (
        (config_of(None), arm(served, "good"), "scenario talk has no prompts_path, and a chat answers something"),
        (config_of(path), arm(served, None, model="mute"), "no chat template"),
        (config_of(path, prefix="<|good|>"), arm(served, "good"), "has a prefix, which goes before texts"),
    ):
        with pytest.raises(ConfigError, match=said):
            evaluate(served, config, tmp_path / "out", asked)
    with pytest.raises(DataError, match=r"talks.jsonl:1: a conversation, which only --api chat can ask"):
        read_prompts(str(path))


def test_a_record_becomes_the_conversation_up_to_the_answer():
    asked = TALKS[0][:1]
    for record in (
        {"messages": TALKS[0][:2]},
        {"prompt": asked},
        {"text": "def add("},
        {"prompt": {"text": "def add("}},
    ):
        assert conversation_of(record, where="f:1") == asked
    for record, said in (
        ({"messages": []}, "f:1: no conversation; write"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "f:1: the role 'tool' is none of system"),
        ({"messages": [{"role": "user", "content": None}]}, "is no message with a text"),
        ({"messages": TALKS[0][1:2]}, "no message before an answer"),
        (["x"], "no conversation"),
    ):
        with pytest.raises(DataError, match=said):
            conversation_of(record, where="f:1")


def test_a_server_that_knows_only_openais_fields_is_asked_in_its_words(served, tmp_path):
    asked = []
    app = FastAPI()

    @app.get("/v1/models")
    async def list_models():
        return {"data": [{"id": "gpt", "owned_by": "openai"}]}

    @app.post("/v1/chat/completions")
    async def chat(request: Request):
        body = await request.json()
        asked.append(body)
        refused = body["messages"] == TALKS[1]
        message = {"content": None, "refusal": "No."} if refused else {"content": "x = 1"}
        return {"choices": [{"index": number, "message": message} for number in range(body["n"])]}

    config = config_of(talks(tmp_path / "talks.jsonl", [{"messages": TALKS[0]}]))
    with listening(app) as url:
        gpt = Arm(name="gpt", url=url, model="gpt", api="chat", source=url)
        evaluate_arms(
            config,
            arms=[gpt],
            scores=ScoresServer(served, "pep8"),
            output=str(tmp_path / "out"),
            runner=run_here,
            options=EvaluationOptions(allow_other_scorer=True),
        )
    fields = {"model", "n", "temperature", "top_p", "seed", "messages", "max_tokens", "logprobs"}
    assert all(set(body) == fields and body["messages"] == TALKS[0] for body in asked)
    samples, _ = read_samples(str(tmp_path / "out"))
    assert {(sample.text, sample.num_tokens) for sample in samples} == {("x = 1", None)}


def read(models, *words):
    parser = argparse.ArgumentParser()
    add_chat_arguments(parser)
    arguments = parser.parse_args(words)
    arguments.reference = arguments.reference_samples = None
    return read_chat_arguments(arguments, load_config("dialogue"), models)


def test_templates_of_directories_are_chosen_and_checked_before_ray(tmp_path):
    write_checkpoint(tmp_path / "mle")
    models = parse_models([f"mle={tmp_path / 'mle'}", "far=http://host:8000"])
    templates, marked = read(models, "--api", "chat", "--chat-template", "mle=coh")
    assert (templates, marked) == ({"mle": "coh"}, {"mle", "far"})
    assert parse_arms(["mle:bad", "mle", "far"], models, marked=marked) == [
        ("mle", "bad"),
        ("mle", "good"),
        ("far", None),
    ]
    templates, marked = read(models, "--api", "chat", "--chat-template", "hh")
    with pytest.raises(ConfigError, match="has no control tokens"):
        parse_arms(["mle:bad"], models, marked=marked)
    for words, said in (
        (("--api", "chat"), "mle has no chat template: .*; choose one with --chat-template"),
        (("--chat-template", "coh"), "give --api chat with it"),
        (("--api", "chat", "--chat-template", "cho"), "template cho does not exist"),
        (("--api", "chat", "--chat-template", "old=coh"), "no --model is named 'old'; they are mle, far"),
        (("--api", "chat", "--chat-template", "coh", "--chat-template", "hh"), "all models already have coh"),
        (("--api", "chat", "--chat-template", "far=coh"), "the server of far has its own template"),
    ):
        with pytest.raises(ConfigError, match=said):
            read(models, *words)
    own = tmp_path / "a=b.jinja"
    own.write_text("{{ messages[0].content }}")
    assert read(models, "--api", "chat", "--chat-template", str(own))[0] == {"mle": str(own), "far": str(own)}
