"""What `phf train-rl --dry-run` says of tokens, calls, price and GPU hours."""

import json
import re

import pytest
from rollout_runs import prepared, rollout_config, write_prompts

from phf_ray.blocks.tokenizer import load_tokenizer
from phf_ray.errors import ConfigError
from phf_ray.models.shape import planned_shape
from phf_ray.rollouts import cost


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_prompts(tmp_path_factory.mktemp("cost"))


def said(folder, **changes):
    config = rollout_config(folder, **changes)
    shape = planned_shape(config.model, tokenizer=load_tokenizer(config.tokenizer))
    return "\n".join(cost.describe_cost(config, prepared(config, folder), shape=shape)), shape


def test_tokens_and_operations_are_those_of_three_passes_and_of_learning(folder, monkeypatch):
    monkeypatch.setattr(cost, "gpu_here", lambda: "NVIDIA H100 80GB HBM3")
    text, shape = said(folder)
    # 4 rounds of 12 answers; a backward pass costs twice a forward pass, and the reference reads every answer, too.
    (tokens,) = (
        int(one.replace(",", "")) for one in re.findall(r"^tokens       at most ([\d,]+) .* once$", text, re.M)
    )
    longest = prepared(rollout_config(folder), folder).plan.longest_row
    assert tokens == 48 * longest
    assert "17% to draw, 33% for log-probabilities, 50% to learn" in text
    total = 2 * tokens * shape.flops_per_token(longest)
    assert f"at most {total:.2g} operations" in text
    hours = total * (1 / 6 / 0.05 + 5 / 6 / 0.4) / 989e12 / 3600
    assert f"GPU hours    about {hours:.2g} of NVIDIA H100 80GB HBM3" in text


def test_without_a_reference_and_with_two_passes_over_a_round(folder):
    text, _ = said(folder, epochs=2, reports_kl=False, algorithm={"name": "rloo", "kl_coef": 0.0})
    assert "learned 2 times" in text
    assert "12% to draw, 12% for log-probabilities, 75% to learn" in text


def test_a_gpu_of_unknown_speed_has_no_hours(folder, monkeypatch):
    monkeypatch.setattr(cost, "gpu_here", lambda: "A card of 2031")
    assert "GPU hours" not in said(folder)[0]


def test_requests_of_a_server_of_rewards_are_counted_by_round(folder):
    text, _ = said(folder, reward={"url": {"url": "http://localhost:1/get_reward", "batch_size": 5}})
    assert "calls        url: at least 12 of http://localhost:1/get_reward" in text


def judged(tmp_path, **pool):
    rows = [{"instruction": f"Name {i} foxes.", "input": "", "output": "Reynard.", "generator": "x"} for i in range(7)]
    (tmp_path / "base.json").write_text(json.dumps(rows))
    annotator = {
        "name": "one",
        "judge": {"chat": {}},
        "prompt": "configs/annotators/prompts/guideline_1.txt",
        "parser": {"regex": {1: "a", 2: "b"}},
        "decoding": {"max_tokens": 250},
    }
    values = {"annotators": [annotator], "url": "http://localhost:1", "model": "judge"} | pool
    return {"annotators": {"pool": values, "reference": str(tmp_path / "base.json")}}


def test_calls_of_judges_have_their_price(folder, tmp_path):
    spec = judged(tmp_path, prices={"judge": {"input": 1000.0, "output": 2000.0}})
    for values in ({"reward": spec}, {"gold": spec}):
        text, _ = said(folder, **values)
        found = re.search(r"judge: about (\d+) of judges, ([\d,]+) tokens, price ([\d.]+);", text)
        assert found is not None, text
        calls, tokens, price = int(found[1]), int(found[2].replace(",", "")), float(found[3])
        assert calls == 48
        answered = 48 * 250
        assert tokens > answered + 48 * 100
        assert price == pytest.approx(((tokens - answered) * 1000 + answered * 2000) / 1e6, rel=1e-6)
    assert re.search(r"tokens, price unknown of .*judge", said(folder, reward=judged(tmp_path))[0])


def test_judges_of_this_process_cost_nothing(folder, tmp_path):
    spec = judged(tmp_path, annotators=[{"name": "l", "judge": {"rule": "longer"}}], url=None, model=None)
    assert "judge: about 0 of judges, 0 tokens, price 0.00" in said(folder, reward=spec)[0]


def test_a_judge_whose_key_is_missing_is_refused(folder, tmp_path, monkeypatch):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(ConfigError, match="JUDGE_KEY holds no key"):
        said(folder, reward=judged(tmp_path, key_env="JUDGE_KEY"))
