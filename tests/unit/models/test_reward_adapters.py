"""Reward models of adapters: the head trains, is stored, and is still there after peft or a merge has loaded it."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny_models import BAD, GOOD, tiny_gpt2, tiny_llama, tiny_tokenizer
from transformers import AutoModelForSequenceClassification

from jobs.merge_adapter import main as merge_adapter
from phf_ray.blocks.tokenizer import load_tokenizer
from phf_ray.checkpoint import BaseInfo, CheckpointInfo, RowInfo
from phf_ray.config import ModelConfig, TokenizerConfig
from phf_ray.errors import DataError
from phf_ray.generation.chat import template_source
from phf_ray.generation.load import load_engine
from phf_ray.model_folder import weights_fingerprint
from phf_ray.models.build import build_model
from phf_ray.models.loading import load_checkpoint
from phf_ray.models.reward_model import as_reward_model, load_reward_model
from phf_ray.models.saving import rehearse_save, save_checkpoint
from phf_ray.models.shape import planned_shape, shape_of
from phf_ray.scorers.build import build_scorer

KINDS = {"gpt2": tiny_gpt2, "llama": tiny_llama}
IDS = torch.arange(3, 40)[None]
HEAD = "base_model.model.score.weight"


@pytest.fixture(scope="module", params=KINDS)
def base(request, tmp_path_factory):
    """Folder of a language model: GPT-2 with a tied head, or Llama with one of its own."""
    folder = tmp_path_factory.mktemp("base") / request.param
    tokenizer = tiny_tokenizer()
    KINDS[request.param](tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def config_for(base, *, num_new=0, lora=True):
    return ModelConfig(
        path_or_name=str(base), from_scratch=False, lora={"r": 4} if lora else None, num_additional_tokens=num_new
    )


def tokenizer_of(base, special=()):
    return load_tokenizer(TokenizerConfig(path_or_name=str(base), special_tokens=list(special)))


def saved(folder, base, *, special=()):
    """A reward model whose adapter, head and new rows are not zero, and its folder."""
    tokenizer = tokenizer_of(base, special)
    model = as_reward_model(build_model(config_for(base, num_new=len(special)), tokenizer=tokenizer, seed=0)).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name or ".score." in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)
        for parameter in model.partly_trained():
            parameter[model.adapter.first_new_row :] += 1
    info = CheckpointInfo(
        base=BaseInfo(name=str(base), fingerprint=weights_fingerprint(base)),
        rows=RowInfo(template="plain", template_text=template_source("plain"), length=64),
    )
    save_checkpoint(folder, model, tokenizer, info)
    return model


def reward_of(model, ids=IDS):
    with torch.no_grad():
        return model(ids).logits.item()


def test_head_and_adapter_train_and_nothing_else(base):
    model = as_reward_model(build_model(config_for(base), tokenizer=tokenizer_of(base), seed=0))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert "backbone.score.weight" in trained
    assert all(".lora_" in name for name in trained - {"backbone.score.weight"})
    assert len(trained) > 2
    assert set(model.stored_tensors()) == trained


@pytest.mark.parametrize("special", [(), (GOOD, BAD)])
def test_peft_loads_it_onto_a_classifier_and_gives_the_same_reward(base, special, tmp_path):
    model = saved(tmp_path / "adapter", base, special=special)
    theirs = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    first = len(tiny_tokenizer())
    if special:
        # What peft's users do after adding tokens.
        theirs.resize_token_embeddings(max(first + len(special), theirs.config.vocab_size))
    theirs.config.pad_token_id = tiny_tokenizer().eos_token_id
    theirs = PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    ids = torch.cat([IDS, torch.arange(first, first + len(special))[None]], dim=1)
    wanted = reward_of(model.backbone, ids)
    assert reward_of(theirs, ids) == pytest.approx(wanted, abs=1e-5)
    assert abs(wanted) > 0.01
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["task_type"], config["modules_to_save"]) == ("SEQ_CLS", ["score"])
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    others = {name for name in tensors if ".lora_" not in name}
    assert others - {HEAD} == (
        {name for name in others if "embed_tokens" in name or "wte" in name} if special else set()
    )
    assert len(others) == (2 if special else 1)
    assert not (tmp_path / "adapter" / "config.json").exists()


@pytest.mark.parametrize("special", [(), (GOOD, BAD)])
def test_a_merge_keeps_the_head_and_the_scorer_reads_both_alike(base, special, tmp_path, capsys):
    model = saved(tmp_path / "adapter", base, special=special)
    assert merge_adapter(["--checkpoint", str(tmp_path / "adapter"), "--output", str(tmp_path / "merged")]) == 0
    capsys.readouterr()
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    assert merged.config.num_labels == 1
    assert reward_of(merged) == pytest.approx(reward_of(model.backbone), abs=1e-5)
    assert not any("adapter" in path.name for path in (tmp_path / "merged").iterdir())
    again = load_reward_model(tmp_path / "adapter").eval()
    assert again.rewards(again.hidden_states(IDS))[0, -1].item() == pytest.approx(reward_of(merged), abs=1e-5)
    scorers = [
        build_scorer({"class_name": "RewardModelScorer", "path": str(tmp_path / name), "device": "cpu"})
        for name in ("adapter", "merged")
    ]
    answers = [("Name a fox.", "Reynard"), ("", "import os"), ("Name a dog.", "Rex")]
    scores = [[one.score for one in scorer.score_answers(answers)] for scorer in scorers]
    assert scores[0] == scores[1]
    assert len(set(scores[0])) == 3
    assert scorers[0].identity() == scorers[1].identity()


def without_head(folder):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    del tensors[HEAD]
    save_file(tensors, path, metadata={"format": "pt"})


def with_three_labels(folder):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {HEAD: tensors[HEAD].repeat(3, 1)}, path, metadata={"format": "pt"})


def of_a_language_model(folder):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"task_type": "CAUSAL_LM"}))


DAMAGE = {
    "no head": (without_head, r"the weights lack \['base_model.model.score.weight'\]"),
    "three labels": (with_three_labels, "classifier with 3 labels, and a reward model has one"),
    "of a language model": (of_a_language_model, "is the adapter of a language model .*, not of a reward model"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_what_is_no_whole_reward_model_is_refused(base, what, tmp_path):
    damage, words = DAMAGE[what]
    saved(tmp_path, base)
    damage(tmp_path)
    with pytest.raises(DataError, match=words):
        build_scorer({"class_name": "RewardModelScorer", "path": str(tmp_path), "device": "cpu"})
    with pytest.raises(DataError, match=words):
        load_reward_model(tmp_path)


def test_it_is_no_language_model(base, tmp_path):
    saved(tmp_path, base)
    for load in (load_engine, load_checkpoint):
        with pytest.raises(
            DataError, match=r"is the adapter of a classifier, not of a language model.*RewardModelScorer"
        ):
            load(tmp_path)


@pytest.mark.parametrize("special", [(), (GOOD, BAD)])
@pytest.mark.parametrize("lora", [True, False])
def test_the_planned_shape_has_no_head_over_the_vocabulary(base, special, lora):
    tokenizer, config = tokenizer_of(base, special), config_for(base, num_new=len(special), lora=lora)
    shape = planned_shape(config, tokenizer=tokenizer, is_reward_model=True)
    assert shape == shape_of(as_reward_model(build_model(config, tokenizer=tokenizer, seed=0)))
    plain = planned_shape(config, tokenizer=tokenizer)
    # The head multiplies each token, and GPT-2's is stored once with the embedding.
    assert plain.num_multiplied - shape.num_multiplied == (plain.num_rows - 1) * plain.width
    assert shape.num_rows == 1


def test_what_can_not_be_saved_is_known_beforehand(base, tmp_path):
    model = as_reward_model(build_model(config_for(base), tokenizer=tokenizer_of(base), seed=0))
    rehearse_save(tmp_path, model, tokenizer_of(base), CheckpointInfo())
    assert json.loads((tmp_path / "adapter_config.json").read_text())["task_type"] == "SEQ_CLS"
