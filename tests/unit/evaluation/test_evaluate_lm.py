"""Arguments of jobs.evaluate_lm, and jobs.make_prompts."""

import argparse
import gzip
import hashlib
import importlib
import json
import re
from collections import Counter
from pathlib import Path

import pytest
import zstandard

from jobs import cli, evaluate_lm, make_prompts
from jobs.model_arguments import add_model_arguments, models_from, parse_arms, parse_models
from phf_ray.checkpoint import CheckpointInfo, Control, fingerprint, write_info
from phf_ray.config import load_config, parse_config
from phf_ray.errors import ConfigError, DataError
from phf_ray.evaluation.arms import Arm
from phf_ray.evaluation.kl import ask_drawn
from phf_ray.evaluation.kl.ask_drawn import Drawing
from phf_ray.evaluation.kl.drawn import DrawnText
from phf_ray.evaluation.kl.sample_file import write_reference_samples
from phf_ray.evaluation.plan import plan_evaluation
from phf_ray.evaluation.prompts import Problem, read_problems, read_prompts
from phf_ray.evaluation.released import released_models
from phf_ray.evaluation.run import EvaluationOptions
from phf_ray.runs.directory import RunDirectory
from phf_ray.scorers.build import scorer_name


def write_model(directory, *, control=False):
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text("{}")
    tokens = Control(good="<|good|>", bad="<|bad|>", policy="ban") if control else None
    write_info(directory, CheckpointInfo(control=tokens, bits_per_byte={"none": 1.25}))
    return directory


@pytest.fixture
def models(tmp_path):
    write_model(tmp_path / "mle")
    write_model(tmp_path / "cond", control=True)
    return parse_models([str(tmp_path / "mle"), f"conditional={tmp_path / 'cond'}", "far=http://host:8000"])


def test_a_model_is_called_by_its_directory_unless_named(models, tmp_path):
    assert list(models) == ["mle", "conditional", "far"]
    assert models["conditional"].directory == tmp_path / "cond"
    assert models["mle"].info.bits_per_byte == {"none": 1.25}
    assert models["far"].directory is None


@pytest.mark.parametrize(
    "name", ["Qwen/Qwen2.5-0.5B", "llama3:latest", "meta-llama/Llama-3.1-8B:free", "ft:gpt-3.5-turbo:me::7p4", "a@v+1"]
)
def test_a_name_can_be_one_of_a_hub_or_of_another_server(tmp_path, name):
    far, near = f"{name}=http://host:8000/v1?a=b", f"{name}={write_model(tmp_path / 'here', control=True)}"
    [model] = parse_models([far]).values()
    assert (model.name, model.source, model.directory) == (name, "http://host:8000/v1?a=b", None)
    assert parse_arms([name, f"{name}:bad"], {name: model}) == [(name, None), (name, "bad")]
    assert evaluate_lm.arm_of(model, None, base_url="").model == name
    [model] = parse_models([near]).values()
    assert (model.name, model.directory) == (name, tmp_path / "here")
    assert parse_arms([], {name: model}) == [(name, "good")]
    assert parse_arms([f"{name}:none"], {name: model}) == [(name, "none")]
    with pytest.raises(ConfigError, match=f"write {re.escape(name)}:good, {re.escape(name)}:bad"):
        parse_arms([f"{name}:great"], {name: model})


def models_of(*words):
    parser = argparse.ArgumentParser()
    add_model_arguments(parser)
    return models_from(parser.parse_args(words))


def test_models_without_a_description_get_their_control_tokens_by_hand(tmp_path):
    for name in ("plain", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    write_model(tmp_path / "cond", control=True)
    folders = [str(tmp_path / name) for name in ("plain", "old", "cond")]
    for_all = models_of("--model", *folders, "--control", "<a>,<b>")
    assert for_all["plain"].info.control == for_all["old"].info.control == Control(good="<a>", bad="<b>", policy="ban")
    assert for_all["cond"].info.control.good == "<|good|>"
    one = models_of("--model", *folders, "--control", "old=<a>,<b>,retag")
    assert one["plain"].info is None
    assert one["old"].info.control == Control(good="<a>", bad="<b>", policy="retag")
    for control, said in [
        ("cond=<a>,<b>", "says itself which control tokens it has"),
        ("other=<a>,<b>", "no model is called other"),
        ("<a>", "write GOOD,BAD"),
        ("<a>,<b>,keep", "a policy"),
    ]:
        with pytest.raises(ConfigError, match=said):
            models_of("--model", *folders, "--control", control)
    with pytest.raises(ConfigError, match="give --model DIR, or --released TASK"):
        models_of()


def test_the_published_models_of_a_task_come_by_its_name(tmp_path, monkeypatch):
    asked = []

    def find_checkpoint(path, *, option):
        asked.append(path)
        return tmp_path

    monkeypatch.setattr("phf_ray.evaluation.models.find_checkpoint", find_checkpoint)
    models = models_of("--released", "toxicity")
    assert list(models) == ["mle", "filtering", "conditional", "ul", "awr", "rwr"]
    assert asked[:3] == ["tomekkorbak/goofy_pasteur", "tomekkorbak/amazing_shannon", "tomekkorbak/hungry_saha"]
    assert [name for name, model in models.items() if model.info is not None] == ["conditional"]
    assert models["conditional"].info.control == Control(good="<|aligned|>", bad="<|misaligned|>", policy="ban")
    ids = [model_id for task in ("toxicity", "pii", "pep8") for model_id in released_models(task).ids.values()]
    assert len(set(ids)) == 18
    with pytest.raises(ConfigError, match=r"--released code: .* of toxicity, pii, pep8"):
        models_of("--released", "code")


def test_a_name_on_a_server_can_end_like_a_choice_of_control():
    models = parse_models(["cond:bad=http://host:8000"])
    assert parse_arms([], models) == [("cond:bad", None)]


def test_a_directory_with_an_equals_sign_is_no_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("runs/lr=0.1", "0.1", "a:b=0.1"):
        write_model(tmp_path / folder)
    for text, name in (("runs/lr=0.1", "lr-0.1"), ("a:b=0.1", "a-b-0.1"), ("hub/x=0.1", "hub/x"), ("lr=0.1", "lr")):
        assert list(parse_models([text])) == [name]
    assert parse_models(["lr=0.1"])["lr"].directory == Path("0.1")
    with pytest.raises(ConfigError, match=r"runs/lr=0\.2: no such directory"):
        parse_models(["runs/lr=0.2"])


def test_of_a_run_the_newest_complete_checkpoint_is_taken_and_its_losses_shown(tmp_path):
    run = RunDirectory(tmp_path / "a run" / "with spaces")
    for step in (10, 20):
        run.commit_checkpoint(step, write_model, keep=None)
    write_model(run.checkpoints / "step-00000030")  # without the marker of a complete one
    run.append_metrics({"train/global_step": 1, "train/tokens_seen": 64, "train/loss": 5.5})
    run.append_metrics({"train/global_step": 2, "train/tokens_seen": 128, "train/loss": float("nan")})
    [model] = parse_models([str(run.path)]).values()
    assert model.directory.name == "step-00000020"
    assert model.name == "with-spaces"
    assert evaluate_lm.arm_of(model, None, base_url="http://x").loss == ((64, 5.5),)
    [model] = parse_models([str(run.checkpoints / "step-00000010")]).values()
    assert model.name == "with-spaces"


def test_changed_weights_are_another_model(tmp_path):
    directory = write_model(tmp_path / "m")
    before = fingerprint(directory)
    assert fingerprint(directory) == before
    (directory / "model.safetensors").write_bytes(b"1")
    assert fingerprint(directory) != before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("missing", "no such directory; give a checkpoint"),
        ("empty", r"empty is not a model directory: it has no config\.json"),
        ("s3://bucket/model", "write http://host:port for a server"),
        ("http://host:8000", "say what the server calls the model, NAME=http://host:8000"),
        ("fresh", "no complete checkpoint yet"),
    ],
)
def test_a_model_that_cannot_be_used_is_named_with_what_to_do(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "fresh" / "checkpoints").mkdir(parents=True)
    with pytest.raises(ConfigError, match=message):
        parse_models([text])


def test_two_models_of_one_name_are_refused(tmp_path):
    write_model(tmp_path / "m")
    with pytest.raises(ConfigError, match="two models are called m; rename one"):
        parse_models([str(tmp_path / "m"), str(tmp_path / "m")])


def test_arms_are_models_with_a_control_token(models):
    assert parse_arms([], models) == [("mle", None), ("conditional", "good"), ("far", None)]
    assert parse_arms(["conditional:bad", "conditional:none", "mle", "far:good"], models) == [
        ("conditional", "bad"),
        ("conditional", "none"),
        ("mle", None),
        ("far", "good"),
    ]


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        (["gpt"], "no model is called gpt; --model names mle, conditional, far"),
        (["mle:good"], "has no control tokens; write mle"),
        (["conditional:great"], "write conditional:good, conditional:bad or conditional:none"),
        (["conditional", "conditional:good"], "named twice"),
    ],
)
def test_an_arm_that_cannot_be_is_refused(models, arms, message):
    with pytest.raises(ConfigError, match=message):
        parse_arms(arms, models)


@pytest.mark.parametrize("text", ["a", "1,1", "-1", ""])
def test_seeds_are_different_whole_numbers(text):
    with pytest.raises(ConfigError, match="--seeds"):
        cli.seeds_of(text)
    assert cli.seeds_of("0,7") == (0, 7)


def test_dry_run_prints_the_plan_and_starts_nothing(tmp_path, capsys):
    write_model(tmp_path / "cond", control=True)
    task = tmp_path / "task.yml"
    task.write_text(
        "scoring: {scorers: [{class_name: PEP8Scorer}]}\n"
        "generation: {scenario_configs: [{name: unconditional, num_samples: 340}]}\n"
    )
    arguments = ["--task", str(task), "--model", str(tmp_path / "cond"), "--arm", "cond:good", "cond:bad"]
    assert evaluate_lm.main([*arguments, "--seeds", "0,1,2", "--output", str(tmp_path / "out"), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "arm cond:good\narm cond:bad\n" in printed
    assert "scenario unconditional: 340 samples x 3 seeds x 2 arms" in printed
    assert not (tmp_path / "out").exists()


def test_a_reference_whose_texts_are_kept_needs_no_key(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    write_model(tmp_path / "mle")
    command = ["--task", "pep8", "--model", str(tmp_path / "mle"), "--output", str(tmp_path / "out"), "--dry-run"]
    command += ["--reference", "davinci=https://api.openai.com", "--reference-cache", str(tmp_path / "cache")]
    with pytest.raises(ConfigError, match="the environment variable OPENAI_API_KEY holds no key"):
        evaluate_lm.main(command)
    settings = load_config("pep8").kl_gpt3_callback
    drawing = Drawing(settings.num_samples, settings.max_tokens, settings.reference_prompt)
    arm = Arm("davinci", "https://api.openai.com", "davinci", source="https://api.openai.com")
    path = ask_drawn._path(arm, "completions", drawing, cache=str(tmp_path / "cache"))
    write_reference_samples(path, [DrawnText(text="a", logprob=-1.0)], {"reference": "davinci", "is_openai": True})
    assert evaluate_lm.main(command) == 0
    with pytest.raises(ConfigError, match="holds no key"):
        evaluate_lm.main([*command, "--override", "kl_gpt3_callback.num_samples=7"])


def test_processes_that_ask_are_as_many_as_the_cluster_has_room_for_unless_told():
    command = ["--task", "task.yml", "--model", "m", "--output", "out"]
    assert evaluate_lm.parser().parse_args(command).max_clients is EvaluationOptions().max_clients is None
    assert evaluate_lm.parser().parse_args([*command, "--max-clients", "3"]).max_clients == 3


def test_a_scorer_is_asked_for_by_its_name_on_the_server():
    def name(scorer):
        return scorer_name(parse_config({"scoring": {"scorers": [scorer]}}).evaluation_scorer)

    assert name({"class_name": "PEP8Scorer"}) == "pep8"
    assert name({"class_name": "PEP8Scorer", "name": "style"}) == "style"
    assert name({"class_name": "DetoxifyToxicityScorer"}) == "toxicity"


# -- What others measured ---------------------------------------------------------------------------------------------

RESULTS = "tests/golden/lm_eval_results.json"


def test_results_of_lm_eval_are_read_by_arm():
    found = evaluate_lm.parse_lm_eval([f"mle={RESULTS}"], ["mle", "conditional:good"])
    figures = {(result.task, result.metric): result for result in found["mle"]}
    choice = figures["tiny_choice", "acc"]
    assert (choice.value, choice.num_samples, choice.num_shots, choice.higher_is_better) == (
        pytest.approx(7 / 12),
        12,
        0,
        True,
    )
    assert choice.standard_error == pytest.approx((7 / 12 * 5 / 12 / 11) ** 0.5)
    assert figures["tiny_answer", "exact_match (strict)"].value == 1.0
    ppl = figures["tiny_perplexity", "bits_per_byte"]
    assert (ppl.standard_error, ppl.higher_is_better) == (None, False)
    assert ("tiny_group", "acc") in figures
    assert len(figures) == len(found["mle"]) == 5


def test_of_a_folder_of_lm_eval_the_newest_results_are_taken(tmp_path):
    content = json.loads(Path(RESULTS).read_text())
    for model, day, value in (("z", "2026-01-01", 0.25), ("a", "2026-01-02", 0.5)):
        content["results"] = {"task": {"alias": "task", "acc,none": value}}
        (tmp_path / model).mkdir()
        (tmp_path / model / f"results_{day}T00-00-00.json").write_text(json.dumps(content))
    [result] = evaluate_lm.parse_lm_eval([f"mle={tmp_path}"], ["mle"])["mle"]
    assert (result.value, result.num_shots, result.higher_is_better) == (0.5, None, None)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("gpt=x", ConfigError, "write ARM=PATH; the arms are mle, conditional:good"),
        ("mle", ConfigError, "write ARM=PATH"),
        ("mle=missing.json", ConfigError, "no such file; give lm-eval's --output_path"),
        ("mle=empty", ConfigError, r"holds no results_\*\.json"),
        ("mle=wrong.json", DataError, r"wrong\.json is not a results file of lm-eval"),
        ("mle=nan.json", DataError, "t, acc,none is nan"),
    ],
)
def test_what_is_no_result_of_lm_eval_is_named(tmp_path, monkeypatch, text, error, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "wrong.json").write_text("[]")
    (tmp_path / "nan.json").write_text('{"results": {"t": {"acc,none": NaN}}}')
    with pytest.raises(error, match=message):
        evaluate_lm.parse_lm_eval([text], ["mle", "conditional:good"])


# -- Prompts ----------------------------------------------------------------------------------------------------------


def test_headers_are_taken_as_written_from_def_to_colon():
    source = (
        "@cache\ndef first(a,\n          b=1):\n    '''Doc.'''\n    return a\n"
        "def _private(): pass\n"
        "def on_one_line(): return 1\n"
        "def with_comment(a):  # why\n    pass\n"
        "class C:\n    def method(self):\n        pass\n"
    )
    assert list(make_prompts.headers_of(source)) == ["def first(a,\n          b=1):"]


@pytest.mark.parametrize(("name", "count"), [("functions", 500), ("toxicity", 40), ("pii", 40)])
def test_shipped_prompts_can_be_read_and_differ(name, count):
    prompts = read_prompts(f"configs/prompts/{name}.jsonl")
    assert len(set(prompts)) == len(prompts) == count
    assert all(prompt == prompt.rstrip() and prompt for prompt in prompts)


def test_a_byte_order_mark_costs_no_prompt(tmp_path):
    path = tmp_path / "prompts.jsonl"
    record = {"prompt": "a", "test": "b", "entry_point": "c"}
    path.write_text(json.dumps(record), encoding="utf-8-sig")
    assert read_prompts(str(path)) == ["a"]
    assert read_problems(str(path)) == [Problem(**record)]


@pytest.mark.parametrize(("suffix", "compress"), [(".zst", zstandard.compress), (".gz", gzip.compress)])
def test_prompts_that_were_cut_off_are_not_taken_for_all(tmp_path, suffix, compress):
    path = tmp_path / f"prompts.jsonl{suffix}"
    # Numbers in order would compress to nothing.
    lines = "".join(f'{{"text": "{hash_of(number)}"}}\n' for number in range(2000))
    path.write_bytes(compress(lines.encode()))
    assert len(read_prompts(str(path))) == 2000
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ConfigError, match=rf"prompts\.jsonl\{suffix} can't be read"):
        read_prompts(str(path))


def hash_of(number):
    return hashlib.sha256(str(number).encode()).hexdigest()


def test_the_papers_pep8_task_finds_its_prompts():
    [_, functions] = load_config("configs/pep8/pretrain.yml").generation.scenario_configs
    assert all(prompt.startswith("def ") for prompt in read_prompts(functions.prompts_path))


class Roomy:
    """A probe of a model that every prompt leaves room to continue."""

    arm = Arm("a", "http://x", "m")
    context = 1000

    def read(self, path):
        return read_prompts(path)

    def shown(self, prompt):
        return prompt

    def prepare(self, prompt, scenario):
        return prompt, None, scenario.generate_kwargs.max_new_tokens


def test_real_toxicity_prompts_are_a_task_with_25_samples_of_each_prompt(tmp_path):
    [scenario] = load_config("real_toxicity_prompts").generation.scenario_configs
    assert scenario.prompts_path == "allenai/real-toxicity-prompts"
    assert scenario.num_samples == 25 * scenario.num_prompts
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": {"text": f"So I {number}"}}) + "\n" for number in range(9)))
    some = scenario.model_copy(update={"prompts_path": str(path), "num_prompts": 3, "num_samples": 75})
    plan = plan_evaluation([some], [Roomy()], seeds=[0])
    assert [unit.max_tokens for unit in plan.units] == [20] * len(plan.units)
    counts = Counter()
    for unit in plan.units:
        counts[unit.prompt] += unit.count
    assert list(counts.values()) == [25, 25, 25]
    assert plan.scenarios[0].num_prompts == 3


def test_prompts_are_made_from_a_library_without_its_tests_and_no_more_than_there_are(tmp_path):
    library = tmp_path / "library"
    for path in ("a.py", "package/b.py", "test/c.py"):
        (library / path).parent.mkdir(parents=True, exist_ok=True)
        (library / path).write_text(f"def {path[-4]}1(x):\n    pass\n\n\ndef {path[-4]}2(x):\n    pass\n")
    output = tmp_path / "prompts.jsonl"
    command = ["--library", str(library), "--output", str(output)]
    assert make_prompts.main([*command, "--num", "4"]) == 0
    made = sorted(json.loads(line)["text"] for line in output.read_text().splitlines())
    assert made == ["def a1(x):", "def a2(x):", "def b1(x):", "def b2(x):"]
    with pytest.raises(ConfigError, match="has 4 headers; ask for at most that many"):
        make_prompts.main([*command, "--num", "5"])


@pytest.mark.parametrize("job", ["evaluate_lm", "red_team"])
def test_a_data_set_of_prompts_that_is_not_there_is_an_error_before_any_server(job, tmp_path):
    write_model(tmp_path / "mle")
    task = tmp_path / "task.yml"
    section = {"scenario_configs": [{"name": "a", "prompts_path": "owner/none"}]}
    values = {"generation": section} if job == "evaluate_lm" else {"red_team": {"prompts_path": "owner/none"}}
    task.write_text(json.dumps({**values, "scoring": {"scorers": [{"class_name": "PEP8Scorer"}]}}))
    command = ["--task", str(task), "--output", str(tmp_path / "out"), "--dry-run", "--model", str(tmp_path / "mle")]
    attacker = ["--attacker", "mle"] if job == "red_team" else []
    with pytest.raises(ConfigError, match="prompts_path owner/none does not exist here, and the hub can't be asked"):
        importlib.import_module(f"jobs.{job}").main(command + attacker)
