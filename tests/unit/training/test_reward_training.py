"""From comparisons to a reward model and a scorer: one worker in this process, without Ray."""

import json
import math
import shutil

import pytest
import torch
import yaml
from feedback_runs import make_config, train, write_feedback
from safetensors.torch import load_file, save_file
from tiny_models import tiny_gpt2, tiny_tokenizer
from train_runs import metrics
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from jobs.train_lm import main as train_lm
from phf_ray.blocks.tokenizer import load_tokenizer
from phf_ray.config import parse_config
from phf_ray.errors import ConfigError, DataError
from phf_ray.generation.load import load_engine
from phf_ray.scorers.build import build_scorer
from phf_ray.training.start import initial_learner, initial_model, resumed_model

ANSWERS = [(f"{first} and {second}: ", answer) for first, second, answer in (
    ("fox", "house", "house again"), ("fox", "house", "never fox"), ("dog", "lazy", "lazy again"), ("dog", "lazy", "x"),
)]  # fmt: skip


OWN, END = "padding of its own", "padding is the end of text"


@pytest.fixture(scope="module", params=[OWN, END])
def folder(tmp_path_factory, request):
    folder = write_feedback(tmp_path_factory.mktemp("reward"))
    if request.param == OWN:
        tokenizer = tiny_tokenizer()
        tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
        tokenizer.save_pretrained(folder / "tokenizer")
    return folder


def reward_config(folder, **training):
    return make_config(folder, objective={"name": "BradleyTerry"}, **training)


@pytest.fixture(scope="module")
def trained(folder):
    run, start = train(folder, "reward", reward_config(folder, num_epochs=4, learning_rate=0.02), corpus="pairs")
    start()
    return run


def test_it_learns_which_answer_is_better(trained):
    rows = metrics(trained.path)
    first = next(row for row in rows if "train/loss" in row)
    assert first["train/loss"] == pytest.approx(math.log(2), abs=1e-6)  # all rewards are 0
    last = next(row for row in reversed(rows) if "objective/eval/accuracy" in row)
    assert last["objective/eval/accuracy"] > 0.9
    assert last["objective/eval/margin"] > 1
    assert last["objective/eval/calibration_error"] < 0.3
    assert 0 <= last["objective/eval/accuracy_of_longer"] <= 1
    assert "eval/perplexity" not in last


def test_the_checkpoint_is_a_classifier_of_transformers_and_a_scorer_with_the_same_rewards(folder, trained):
    checkpoint = trained.latest_checkpoint()
    config = json.loads((checkpoint / "config.json").read_text())
    assert config["architectures"] == ["GPT2ForSequenceClassification"]
    assert len(config["id2label"]) == 1
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    end = tokenizer.eos_token
    ids = [
        tokenizer(f"{end}{prompt}", add_special_tokens=False)["input_ids"]
        + tokenizer(f"{answer}{end}", add_special_tokens=False)["input_ids"]
        for prompt, answer in ANSWERS
    ]
    longest = max(map(len, ids))
    batch = torch.tensor([row + [config["pad_token_id"]] * (longest - len(row)) for row in ids])
    with torch.no_grad():
        wanted = model(batch).logits.squeeze(1).tolist()
    scorer = build_scorer({"class_name": "RewardModelScorer", "path": str(checkpoint), "device": "cpu"})
    found = [scored.score for scored in scorer.score_answers(ANSWERS)]
    assert found == pytest.approx([-reward for reward in wanted], abs=1e-5)
    assert found[0] < found[1]
    assert found[2] < found[3]
    assert json.loads((checkpoint / "phf.json").read_text())["rows"]["template"] == "plain"
    card = (checkpoint / "README.md").read_text()
    assert "pipeline_tag: text-classification" in card
    assert "| held-out accuracy |" in card
    assert "training loss, nats per pair" in card or "training loss" not in card


def adapter_config(folder, **training):
    """Adapters on a random model, which is written beside the feedback."""
    base = folder / "base"
    if not base.exists():
        tiny_gpt2(tiny_tokenizer()).save_pretrained(base)
        tiny_tokenizer().save_pretrained(base)
    values = reward_config(folder, **training).model_dump(exclude={"tokenizer"})
    values["model"] = {"path_or_name": str(base), "from_scratch": False, "lora": {"r": 4}}
    return parse_config(values | {"tokenizer": {"path_or_name": str(base)}})


@pytest.mark.parametrize("folder", [END], indirect=True)
def test_adapters_learn_which_answer_is_better_and_their_folder_is_a_scorer(folder):
    config = adapter_config(folder, num_epochs=1, learning_rate=0.02, save_steps=3)
    run, start = train(folder, "adapters", config, corpus="pairs")
    start()
    measured = [row["objective/eval/accuracy"] for row in metrics(run.path) if "objective/eval/accuracy" in row]
    assert measured[-1] > 0.9
    newest, others = run.latest_checkpoint(), sorted(run.checkpoints.iterdir())[1:]
    assert len(others) > 1
    stored = load_file(newest / "training_state" / "optimizer.safetensors")
    assert {name.rpartition("/")[0] for name in stored} == {
        f"backbone.{name.removeprefix('base_model.model.').replace('.weight', middle + '.weight')}"
        for name in load_file(newest / "adapter_model.safetensors")
        for middle in [".default" if ".lora_" in name else ""]
    }
    card = (newest / "README.md").read_text()
    assert "from_pretrained(BASE, num_labels=1)" in card
    assert "library_name: peft" in card
    scorer = build_scorer({"class_name": "RewardModelScorer", "path": str(newest), "device": "cpu"})
    scores = [scored.score for scored in scorer.score_answers(ANSWERS)]
    assert scores[0] < scores[1]
    assert scores[2] < scores[3]
    # The run goes on from an earlier checkpoint to the same bits.
    files = ["adapter_model.safetensors", "training_state/optimizer.safetensors"]
    wanted = [(newest / name).read_bytes() for name in files]
    for path in others:
        shutil.rmtree(path)
    (run.path / "summary.json").unlink()
    start()
    assert run.latest_checkpoint() == newest
    assert [(newest / name).read_bytes() for name in files] == wanted


@pytest.mark.parametrize("folder", [END], indirect=True)
@pytest.mark.parametrize("what", ["whole", "adapters"])
def test_a_run_is_not_continued_from_a_checkpoint_without_its_head(folder, what, tmp_path):
    config = (reward_config if what == "whole" else adapter_config)(folder, num_epochs=1)
    run, start = train(folder, f"headless {what}", config, corpus="pairs")
    start()
    damaged = shutil.copytree(run.latest_checkpoint(), tmp_path / "damaged")
    tokenizer = AutoTokenizer.from_pretrained(damaged)
    assert resumed_model(config, damaged, checkpoint_path=None, tokenizer=tokenizer).head()[0].any()
    path = damaged / ("model.safetensors" if what == "whole" else "adapter_model.safetensors")
    weights = load_file(path)
    [head] = [name for name in weights if name.endswith("score.weight")]
    save_file({name: weight for name, weight in weights.items() if name != head}, path, {"format": "pt"})
    with pytest.raises(DataError, match=rf"the weights lack \['{head}'\]"):
        resumed_model(config, damaged, checkpoint_path=None, tokenizer=tokenizer)


@pytest.mark.parametrize("folder", [END], indirect=True)
def test_a_stopped_run_resumes_bit_for_bit(folder):
    config = reward_config(folder, save_steps=3, num_epochs=1)
    whole, start_whole = train(folder, "whole", config, corpus="pairs")
    start_whole()
    # Dropout is off while a reward model trains, so a model with much of it learns the same.
    values = config.model_dump()
    values["model"]["config_kwargs"]["resid_pdrop"] = 0.5
    parts, start_parts = train(folder, "parts", parse_config(values), corpus="pairs")
    start_parts()
    newest = parts.latest_checkpoint()
    removed = sorted(parts.checkpoints.iterdir())[1:]
    assert removed
    for path in removed:
        shutil.rmtree(path)
    (parts.path / "summary.json").unlink()
    start_parts()
    assert parts.latest_checkpoint() == newest
    weights = [(run.latest_checkpoint() / "model.safetensors").read_bytes() for run in (whole, parts)]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("folder", [END], indirect=True)
def test_a_reward_model_is_no_language_model(folder, trained):
    checkpoint = trained.latest_checkpoint()
    with pytest.raises(DataError, match=r"is a sequence classifier.*RewardModelScorer"):
        load_engine(checkpoint)
    with pytest.raises(DataError, match=r"is a sequence classifier.*RewardModelScorer"):
        initial_model(
            make_config(folder, objective={"name": "MLE"}),
            checkpoint_path=str(checkpoint),
            tokenizer=AutoTokenizer.from_pretrained(checkpoint),
        )


def test_what_a_reward_model_has_no_use_for_is_refused():
    values = {
        "objective": {"name": "BradleyTerry"},
        "model": {"model_kwargs": {"value_head_config": {}}},
        "generation": {"scenario_configs": [{"name": "all"}]},
        "dataset": {"eval_datasets": {"a": "b"}},
    }
    named = r"value_head_config, dataset\.eval_datasets, generation\.scenario_configs; remove"
    with pytest.raises(ConfigError, match=named):
        parse_config(values)


@pytest.mark.parametrize("folder", [END], indirect=True)
@pytest.mark.parametrize("what", ["whole", "adapters"])
def test_a_dry_run_counts_no_head_over_the_vocabulary(folder, what, tmp_path, capsys):
    config = (reward_config if what == "whole" else adapter_config)(folder, num_epochs=1)
    values = config.model_dump(mode="json", exclude_unset=True)
    values["dataset"]["datasets"] = [str(folder / "pairs")]
    task = tmp_path / "task.yml"
    task.write_text(yaml.safe_dump(values))
    train_lm(["--task", str(task), "--run-name", "dry", "--storage-path", str(tmp_path / "runs"), "--dry-run"])
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    model = initial_learner(config, checkpoint_path=None, tokenizer=load_tokenizer(config.tokenizer))
    trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
    assert f" {sum(each.numel() for each in model.parameters()):,}" in lines["parameters"]
    assert lines["parameters"].endswith("one reward")
    assert (f"({trained:,} of them trained)" in lines["parameters"]) == (what == "adapters")
    assert "measured on this machine" in lines["time"]
