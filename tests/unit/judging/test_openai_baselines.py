"""Answers of a reference model behind a real HTTP server: what it is asked, and that a second run asks nothing."""

import json
import re

import pytest
from judge_server import judge_server

from jobs import openai_baselines
from phf_ray.errors import ConfigError, DataError, IncompleteError
from phf_ray.http.client import RefusedError
from phf_ray.judging.board.reference_models import style_of

PROMPTS = [
    {"instruction": "Name a colour.", "input": "", "dataset": "vicuna", "datasplit": "eval"},
    {"instruction": "Say it in {input} words.", "input": "{instruction} \u00e9", "dataset": "koala"},
    {"instruction": "Why?"},
]


@pytest.fixture
def server():
    with judge_server() as started:
        started.answer = lambda body: f" answer {len(json.dumps(body))} "
        yield started


@pytest.fixture
def run(tmp_path, server):
    (tmp_path / "eval.json").write_text(json.dumps(PROMPTS))

    def run(*words, model="gpt-3.5-turbo-0301"):
        output = tmp_path / "out.json"
        arguments = ["--url", server.url, "--model", model, "--prompts", str(tmp_path / "eval.json"),
                     "--output", str(output), "--patience", "5", *words]  # fmt: skip
        assert openai_baselines.main(arguments) == 0
        return json.loads(output.read_text()) if output.exists() else None

    return run


def test_rows_are_those_of_alpaca_farm(run):
    rows = run()
    assert [list(row) for row in rows] == [["instruction", "input", "output", "generator", "dataset", "datasplit"]] * 3
    assert [(row["dataset"], row["datasplit"]) for row in rows] == [("vicuna", "eval"), ("koala", None), (None, None)]
    assert {row["generator"] for row in rows} == {"gpt-3.5-turbo-0301"}
    assert all(re.fullmatch(r"answer \d+", row["output"]) for row in rows)


def test_a_chat_model_is_asked_as_alpaca_farm_asked(run, server):
    run()
    bodies = sorted(server.asked, key=lambda body: json.dumps(body["messages"]))
    for body in bodies:
        assert (body["model"], body["temperature"], body["max_tokens"]) == ("gpt-3.5-turbo-0301", 0.7, 300)
        assert [message["role"] for message in body["messages"]] == ["system", "user"]
        assert "at most 1000 characters" in body["messages"][0]["content"]
        assert body["messages"][1]["content"].endswith("### Response:")
    (odd,) = (body for body in bodies if "### Input:" in body["messages"][1]["content"])
    assert (
        "### Instruction:\nSay it in {input} words.\n\n### Input:\n{instruction} \u00e9"
        in odd["messages"][1]["content"]
    )


def test_davinci_completes_the_text_of_the_prompt(run, server):
    run(model="text-davinci-003")
    assert all(body["prompt"].endswith("### Response:") and "messages" not in body for body in server.asked)


def test_models_have_the_lengths_that_alpaca_farm_asked_for():
    assert style_of("text-davinci-001").style == "completion"
    assert [style_of(name).max_characters for name in ("gpt-4-0314", "gpt-3.5-turbo-0301", "mine")] == [500, 1000, 1000]


def test_the_second_run_asks_nothing_and_writes_the_same(run, server):
    first = run()
    assert len(server.asked) == 3
    assert run() == first
    assert len(server.asked) == 3
    run("--temperature", "0")
    assert len(server.asked) == 6, "another setting is another question"


def test_a_run_that_was_ended_asks_only_what_is_missing(run, server):
    server.script = lambda body, count: (401, {}, {"error": {"message": "no"}}) if "Why" in json.dumps(body) else None
    with pytest.raises(RefusedError, match="401"):
        run("--max-in-flight", "1")
    answered = len(server.asked) - 1
    assert answered == 2
    server.script = lambda body, count: None
    assert len(run("--max-in-flight", "1")) == 3
    assert len(server.asked) == 4


def test_a_refused_prompt_is_left_out_and_told(run, server, tmp_path):
    server.script = lambda body, count: (400, {}, {"error": {"message": "no"}}) if "Why" in json.dumps(body) else None
    with pytest.raises(IncompleteError, match=r"1 of 3 prompts have no answer .*refused x 1; the first: refused: .*no"):
        run()
    assert len(json.loads((tmp_path / "out.json").read_text())) == 2


def test_a_budget_is_kept(run, server):
    with pytest.raises(IncompleteError, match="budget"):
        run("--budget", "600 tokens", "--max-in-flight", "1")
    assert len(server.asked) < 3
    assert len(run("--budget", "6000 tokens")) == 3


def test_a_dry_run_asks_nothing(run, server, capsys):
    assert run("--dry-run") is None
    assert "3 prompts for gpt-3.5-turbo-0301" in capsys.readouterr().out
    assert server.asked == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--max-tokens", "0"], "--max-tokens 0 is below 1"),
        (["--temperature", "nan"], "--temperature nan is below 0"),
        (["--limit", "0"], "--limit 0 is below 1"),
        (["--budget", "5"], "--budget 5 is money; give --price"),
        (["--style", "completion", "--max-characters", "9"], "belongs to chat models"),
        (["--prompts", "/nowhere.json"], "--prompts /nowhere.json does not exist"),
    ],
)
def test_bad_options_ask_nothing(run, server, words, told):
    with pytest.raises(ConfigError, match=re.escape(told)):
        run(*words)
    assert server.asked == []


def test_prompts_without_instruction_are_refused(run, tmp_path, server):
    (tmp_path / "eval.json").write_text(json.dumps([{"instruction": "a"}, {"input": "b"}]))
    with pytest.raises(DataError, match=r"eval.json, record 1 has no instruction"):
        run()
    assert server.asked == []
