"""Models of AlpacaFarm from a base model and their weight differences, and its reward models."""

import json
import logging

import pytest
import torch
from alpaca_farm import PAD, RewardModel, trained, write_base, write_difference, write_whole
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from jobs.recover import NAMES, main
from phf_ray.errors import ConfigError, DataError
from phf_ray.models import recovery
from phf_ray.models.backbone import load_backbone, load_classifier
from phf_ray.models.loading import load_checkpoint
from phf_ray.models.recovery import recover
from phf_ray.models.recovery_checks import doubt_about

TEXTS = ["def add(first, second):", "import os", "The quick brown fox jumps over the dog"]


@pytest.fixture
def base(tmp_path):
    return write_base(tmp_path / "base")


def run(tmp_path, *arguments):
    """Run the job with the base and, unless a reward model is converted, the differences in `tmp_path`."""
    place = [] if "--reward-model" in arguments else ["--differences", str(tmp_path)]
    return main(["--base", str(tmp_path / "base"), "--output", str(tmp_path / "models"), *place, *arguments])


def same_weights(found, wanted):
    found, wanted = found.state_dict(), wanted.state_dict()
    assert found.keys() == wanted.keys()
    for name, weight in wanted.items():
        assert torch.allclose(found[name], weight, rtol=0, atol=1e-6), name


@pytest.mark.parametrize(("is_pickled", "with_frequencies"), [(True, True), (False, True), (True, False)])
def test_a_language_model_comes_back_with_its_padding_row(tmp_path, base, is_pickled, with_frequencies):
    model = trained(base)
    write_difference(tmp_path / "sft10k", model, base, is_pickled=is_pickled, with_frequencies=with_frequencies)
    run(tmp_path, "--name", "sft10k")
    loaded = load_checkpoint(tmp_path / "models/sft10k")
    same_weights(loaded.model.backbone, model)
    assert loaded.tokenizer.pad_token == PAD
    assert len(loaded.tokenizer) == model.config.vocab_size
    # In fp32, though the base has fp16: fp16 would lose most of a small difference.
    assert {weight.dtype for weight in load_file(tmp_path / "models/sft10k/model.safetensors").values()} == {
        torch.float32
    }


def test_embeddings_with_control_tokens_were_stored_whole(tmp_path, base):
    model = trained(base, num_new_rows=3)
    write_difference(tmp_path / "reward-condition-sim", model, base)
    run(tmp_path, "--name", "reward-condition-sim")
    same_weights(load_backbone(tmp_path / "models/reward-condition-sim", revision=None, dtype=None), model)


@pytest.mark.parametrize("bias", [0.0, -1.25])
def test_a_reward_model_gives_the_rewards_of_the_original(tmp_path, base, bias):
    model = RewardModel(trained(base), bias=bias)
    write_difference(tmp_path / "alpaca-farm-reward-model-sim-wdiff", model, base)
    run(tmp_path, "--name", "reward-model-sim")
    check_rewards(tmp_path / "models/reward-model-sim", model, bias=bias)


def test_a_reward_model_that_alpaca_farm_trained_is_converted(tmp_path, base):
    model = RewardModel(trained(base), bias=0.5)
    write_whole(tmp_path / "mine", model)
    run(tmp_path, "--reward-model", str(tmp_path / "mine"))
    check_rewards(tmp_path / "models/mine", model, bias=0.5)


def check_rewards(folder, model, *, bias):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    wanted = model(**tokenizer(TEXTS, padding=True, padding_side="left", return_tensors="pt"))
    # As transformers loads it, and as scorers load it.
    for classifier in (
        AutoModelForSequenceClassification.from_pretrained(folder),
        load_classifier(folder, revision=None),
    ):
        classifier.eval()
        for side in ("left", "right"):
            inputs = tokenizer(TEXTS, padding=True, padding_side=side, return_tensors="pt")
            with torch.no_grad():
                logits_B1 = classifier(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask).logits
            assert logits_B1.shape == (len(TEXTS), 1)
            rewards_B = logits_B1[:, 0] + getattr(classifier.config, "reward_bias", 0.0)
            assert torch.allclose(rewards_B, wanted, atol=1e-5), (rewards_B, wanted)
    assert wanted.std() > 0.01
    assert ("reward_bias" in json.loads((folder / "config.json").read_text())) == (bias != 0)
    # What is trained on goes on to know it.
    classifier.save_pretrained(folder.parent / "again")
    again = AutoModelForSequenceClassification.from_pretrained(folder.parent / "again").config
    assert getattr(again, "reward_bias", 0.0) == bias


def test_a_large_model_is_written_in_several_files(tmp_path, base, monkeypatch):
    monkeypatch.setattr(recovery, "_LARGEST_FILE", 40_000)
    model = trained(base)
    write_difference(tmp_path / "difference", model, base)
    recover(tmp_path / "difference", base=tmp_path / "base", output=tmp_path / "model")
    files = sorted(tmp_path.glob("model/*.safetensors"))
    assert [path.name for path in files] == [
        f"model-{n:05d}-of-{len(files):05d}.safetensors" for n in range(1, len(files) + 1)
    ]
    assert len(files) > 2
    largest = max(weight.numel() * 4 for weight in model.state_dict().values())
    assert max(path.stat().st_size for path in files) < max(40_000, largest) + 2_000
    index = json.loads((tmp_path / "model/model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(weight.numel() * 4 for weight in model.state_dict().values())
    same_weights(load_backbone(tmp_path / "model", revision=None, dtype=None), model)


def test_another_base_of_the_same_shape_is_told_by_the_sum_and_nothing_is_left(tmp_path, base):
    write_difference(tmp_path / "sft10k", trained(base), base)
    write_base(tmp_path / "base", seed=5)
    with pytest.raises(
        DataError, match=r"sft10k: the weights sum to .*, but model_sum.txt says .* so \S+base is not the base"
    ):
        run(tmp_path, "--name", "sft10k")
    assert list((tmp_path / "models").iterdir()) == []


def test_a_base_of_another_shape_is_named_with_the_difference(tmp_path, base):
    write_difference(tmp_path / "sft10k", trained(base), base)
    config = base.config
    config.intermediate_size = 48
    type(base)(config).save_pretrained(tmp_path / "base")
    with pytest.raises(
        ConfigError,
        match=r"/base is not the base model of \S*sft10k: its \S*gate_proj\S* has shape \(48, 32\), .*\(64, 32\)",
    ):
        run(tmp_path, "--name", "sft10k")
    config.num_hidden_layers = 3
    type(base)(config).save_pretrained(tmp_path / "base")
    with pytest.raises(ConfigError, match=r"only it has \['model.layers.2\.\S+.* \(9 in all\); give the model that"):
        run(tmp_path, "--name", "sft10k")
    assert not (tmp_path / "models").exists()


def test_all_goes_on_after_those_that_exist_and_a_second_time_does_nothing(tmp_path, base, capsys, caplog):
    for number, name in enumerate(NAMES):
        model = trained(base, seed=number)
        write_difference(tmp_path / name, RewardModel(model, bias=0.0) if "reward-model" in name else model, base)
    run(tmp_path, "--name", "ppo-sim")
    before = (tmp_path / "models/ppo-sim/model.safetensors").stat().st_mtime_ns
    capsys.readouterr()
    run(tmp_path, "--name", "all")
    assert capsys.readouterr().out.split() == [str(tmp_path / "models" / name) for name in NAMES]
    assert (tmp_path / "models/ppo-sim/model.safetensors").stat().st_mtime_ns == before
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == sorted(NAMES)
    (tmp_path / "base/config.json").unlink()  # Nothing is left to do, so the base is not asked for.
    run(tmp_path, "--name", "all")


def test_bad_input_is_refused_before_the_first_model_is_written(tmp_path, base):
    write_difference(tmp_path / "sft10k", trained(base), base)
    with pytest.raises(
        ConfigError, match=r"--name gpt4: AlpacaFarm has no such model; give one of sft10k, reward-model-sim"
    ):
        run(tmp_path, "--name", "gpt4")
    with pytest.raises(
        ConfigError, match=r"has neither reward-model-sim nor alpaca-farm-reward-model-sim-wdiff; clone"
    ):
        run(tmp_path, "--name", "all")
    (tmp_path / "sft10k/model_sum.txt").unlink()
    with pytest.raises(
        DataError, match=r"sft10k has no model_sum.txt, so nothing could tell .* fetch the whole folder"
    ):
        run(tmp_path, "--name", "sft10k")
    (tmp_path / "sft10k/model_sum.txt").write_text("many")
    with pytest.raises(DataError, match="does not hold a number; fetch it again"):
        run(tmp_path, "--name", "sft10k")
    assert not (tmp_path / "models").exists()
    (tmp_path / "models/sft10k").mkdir(parents=True)
    with pytest.raises(ConfigError, match="exists and is no model; delete it, or give another folder"):
        run(tmp_path, "--name", "sft10k")


def test_a_clone_without_its_large_files_is_told_before_the_first_model_is_written(tmp_path, base):
    for name in NAMES:
        write_difference(tmp_path / name, trained(base), base)
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    (tmp_path / "ppo-sim/pytorch_model-00002-of-00002.bin").write_bytes(pointer)
    with pytest.raises(DataError, match=r"is a Git LFS pointer, not the file itself; run `git lfs pull` in \S+ppo-sim"):
        run(tmp_path, "--name", "all")
    assert not (tmp_path / "models").exists()


def test_a_missing_base_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"--base \S+base: no such folder; give that of LLaMA 7B"):
        run(tmp_path, "--name", "sft10k")
    (tmp_path / "base").mkdir()
    with pytest.raises(DataError, match=r"base has no config.json; give the folder of a model"):
        run(tmp_path, "--name", "sft10k")


def test_a_reward_model_without_its_head_is_refused(tmp_path, base):
    model = RewardModel(trained(base), bias=0.0)
    del model.reward_head.bias
    write_difference(tmp_path / "reward-model-sim", model, base)
    with pytest.raises(DataError, match=r"has backbone_model\.\* but no reward_head.bias"):
        run(tmp_path, "--name", "reward-model-sim")
    write_difference(tmp_path / "lm", trained(base), base)
    with pytest.raises(ConfigError, match=r"lm is no reward model of AlpacaFarm: it has no reward_head.weight"):
        run(tmp_path, "--reward-model", str(tmp_path / "lm"))


@pytest.mark.parametrize(("version", "is_doubted"), [("4.27.0.dev0", True), ("4.29.2", False), ("4.100.0", False)])
def test_a_base_from_an_old_converter_is_doubted(tmp_path, base, caplog, version, is_doubted):
    path = tmp_path / "base/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"transformers_version": version}))
    assert (doubt_about(tmp_path / "base") is not None) == is_doubted
    write_difference(tmp_path / "sft10k", trained(base), base)
    with caplog.at_level(logging.WARNING, "jobs.recover"):
        run(tmp_path, "--name", "sft10k")
    assert ("convert LLaMA again" in caplog.text) == is_doubted
