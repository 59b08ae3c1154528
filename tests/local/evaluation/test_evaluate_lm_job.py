"""jobs.evaluate_lm against the server that it starts itself."""

import json
import socket

import pytest
from evaluation_server import IDENTITY, Server
from tiny_adapters import write_adapter, write_base
from tiny_models import write_checkpoint

from jobs import evaluate_lm
from jobs.merge_adapter import main as merge_adapter
from phf_ray.errors import ConfigError
from phf_ray.evaluation.report.figures import recompute
from phf_ray.evaluation.report.samples import read_samples

TASK = """
scoring: {segmenter: lines, scorers: [{class_name: PEP8Scorer}]}
generation:
  batch_size: 32
  metrics_configs: [{class_name: NGramStats, n: 2}, {class_name: Compilability}]
  scenario_configs:
    - {name: unconditional, num_samples: 20, generate_kwargs: {max_length: 24, min_length: 4, top_p: 0.9}}
    - name: functions
      num_samples: 12
      prompts_path: PROMPTS
      use_prompt_for_scoring: true
      generate_kwargs: {max_length: 40, temperature: 0.7}
"""


@pytest.mark.timeout(400)
def test_directories_are_served_sampled_scored_and_compared(local_ray, tmp_path, capsys):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("def f(a):", "def g(b):", "class C:")))
    task = tmp_path / "task.yml"
    task.write_text(TASK.replace("PROMPTS", json.dumps(str(prompts))))
    write_checkpoint(tmp_path / "mle")
    write_checkpoint(tmp_path / "conditional", control="retag", seed=1)
    write_checkpoint(tmp_path / "bare", ours=False, seed=2)
    arms = ["mle", "conditional:good", "conditional:bad", "bare"]
    command = ["--task", str(task), "--arm", *arms, "--seeds", "0,1", "--max-clients", "1", "--model"]
    command += [str(tmp_path / name) for name in ("mle", "conditional", "bare")]
    command += ["--reference", "mle", "--reference-cache", str(tmp_path / "reference")]
    command += ["--override", "kl_gpt3_callback.num_samples=20", "kl_gpt3_callback.max_tokens=8"]
    assert evaluate_lm.main([*command, "--output", str(tmp_path / "first")]) == 0
    first = json.loads((tmp_path / "first" / "report.json").read_text())
    assert json.loads(json.dumps(recompute(str(tmp_path / "first")))) == first
    rows = {(row["scenario"], row["arm"]): row for row in first["table"]}
    assert {key: row["num_samples"] for key, row in rows.items()} == {
        (scenario, arm): count for scenario, count in (("unconditional", 40), ("functions", 24)) for arm in arms
    }
    # 24 positions, less the end-of-text token and, where there is one, the control token.
    assert rows["unconditional", "mle"]["length_tokens"] <= 23
    assert rows["unconditional", "conditional:good"]["length_tokens"] <= 22
    assert rows["unconditional", "conditional:good"]["score"] != rows["unconditional", "conditional:bad"]["score"]
    assert abs(rows["unconditional", "mle"]["kl_per_byte"]) < 1e-4 < rows["unconditional", "bare"]["kl_per_byte"]
    assert first["scorer"]["class_name"] == "PEP8Scorer"
    assert "conditional:bad" in capsys.readouterr().out


@pytest.mark.timeout(400)
def test_an_adapter_is_evaluated_as_the_folder_that_it_is_merged_into(local_ray, tmp_path):
    base = write_base(tmp_path / "base")
    write_adapter(tmp_path / "lora", base=base)
    assert merge_adapter(["--checkpoint", str(tmp_path / "lora"), "--output", str(tmp_path / "merged")]) == 0
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("def f(a):", "def g(b):", "class C:")))
    task = tmp_path / "task.yml"
    task.write_text(TASK.replace("PROMPTS", json.dumps(str(prompts))).replace("temperature: 0.7", "temperature: 0"))
    command = ["--task", str(task), "--max-clients", "1", "--output", str(tmp_path / "out"), "--model"]
    assert evaluate_lm.main([*command, *(str(tmp_path / name) for name in ("lora", "merged", "base"))]) == 0
    drawn = {name: [] for name in ("lora", "merged", "base")}
    for sample in read_samples(str(tmp_path / "out"))[0]:
        if sample.scenario == "functions":
            drawn[sample.arm].append((sample.prompt, sample.text))
    assert len(drawn["lora"]) == 12
    assert sorted(drawn["lora"]) == sorted(drawn["merged"]) != sorted(drawn["base"])


def test_a_taken_port_is_refused_before_anything_starts(local_ray, tmp_path):
    write_checkpoint(tmp_path / "mle")
    task = tmp_path / "task.yml"
    task.write_text(TASK.replace("PROMPTS", "none.jsonl"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = ["--task", str(task), "--model", str(tmp_path / "mle"), "--output", str(tmp_path / "out")]
        with pytest.raises(ConfigError, match=f"port {port} .*in use"):
            evaluate_lm.main([*command, "--port", str(port)])
    assert not (tmp_path / "out").exists()


def test_nothing_is_asked_for_kl_before_the_scorer_and_the_output_are_known_to_be_right(local_ray, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"text": "def f(a):"}) + "\n")
    task = tmp_path / "task.yml"
    task.write_text(TASK.replace("PROMPTS", json.dumps(str(prompts))))
    server = Server()
    server.models["mle"] = {"checkpoint": {"scorer": IDENTITY | {"class_name": "PIIScorer"}}}
    command = ["--task", str(task), "--model", f"mle={server.url}", "--scores-url", server.url, "--reference", "mle"]
    try:
        with pytest.raises(ConfigError, match="mle was trained on another scorer"):
            evaluate_lm.main([*command, "--output", str(tmp_path / "out")])
        assert not (tmp_path / "out").exists()
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "plan.json").write_text(
            json.dumps({"arms": "others", "scorer": {}, "scenarios": {}, "requests": ""})
        )
        with pytest.raises(ConfigError, match="holds an evaluation with other"):
            evaluate_lm.main([*command, "--output", str(tmp_path / "out"), "--allow-other-scorer"])
        assert server.completions == []
    finally:
        server.stop()


def test_a_kl_that_can_not_be_measured_costs_no_report(local_ray, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"text": "def f(a):"}) + "\n")
    task = tmp_path / "task.yml"
    task.write_text(TASK.replace("PROMPTS", json.dumps(str(prompts))))
    server = Server()
    command = ["--task", str(task), "--model", f"mle={server.url}", "--scores-url", server.url, "--num-samples", "6"]
    try:
        assert evaluate_lm.main([*command, "--output", str(tmp_path / "out")]) == 0
        before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
        assert "report.json" in before
        for more in (["--output", str(tmp_path / "out"), "--restart"], ["--output", str(tmp_path / "new")]):
            with pytest.raises(ConfigError, match="KL needs a server with `echo` and `logprobs`"):
                evaluate_lm.main([*command, "--reference", "mle", *more])
        assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
        assert not (tmp_path / "new").exists()
    finally:
        server.stop()


def test_models_and_scores_of_servers_elsewhere_are_used_with_the_users_key(local_ray, tmp_path, monkeypatch):
    monkeypatch.setenv("PHF_API_KEY", "sesame")
    # Goes to OpenAI alone.
    monkeypatch.setenv("OPENAI_API_KEY", "for OpenAI")
    monkeypatch.setenv("OPENAI_ORG_ID", "ours")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"text": "def f(a):"}) + "\n")
    task = tmp_path / "task.yml"
    task.write_text(TASK.replace("PROMPTS", json.dumps(str(prompts))))
    server = Server()
    try:
        command = ["--task", str(task), "--output", str(tmp_path / "out"), "--scores-url", server.url]
        command += ["--num-samples", "6", "--model", f"mle={server.url}/v1", f"conditional={server.url}"]
        assert evaluate_lm.main([*command, "--arm", "mle", "conditional:bad"]) == 0
    finally:
        server.stop()
    assert server.keys == {"Bearer sesame"}
    assert {(body["model"], body.get("control")) for body in server.completions} == {
        ("mle", None),
        ("conditional", "bad"),
    }
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [row["num_samples"] for row in report["table"]] == [6, 6, 6, 6]
