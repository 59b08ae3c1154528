"""Folders that training, the engine and scorers refuse alike, and names that wrappers changed."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from model_kinds import VALUE_HEAD, config_for, pretrained, save
from safetensors.torch import load_file, save_file
from tiny_models import tiny_gpt2, tiny_tokenizer, write_checkpoint
from transformers import (
    BertConfig,
    BertTokenizer,
    ByT5Tokenizer,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaTokenizer,
    Qwen2Tokenizer,
    T5Config,
    T5ForConditionalGeneration,
)

from phf_ray.blocks.tokenizer import load_tokenizer
from phf_ray.checkpoint import CheckpointInfo
from phf_ray.config import TokenizerConfig
from phf_ray.errors import ConfigError, DataError
from phf_ray.generation.load import load_engine, load_strings
from phf_ray.models.build import build_model
from phf_ray.models.loading import load_checkpoint
from phf_ray.models.saving import save_checkpoint
from phf_ray.scorers.build import build_scorer


def training(folder):
    return build_model(pretrained(folder), tokenizer=tiny_tokenizer(), seed=0)


def scorer(folder):
    return build_scorer({"class_name": "SequenceClassifierScorer", "path": str(folder), "device": "cpu"})


CAUSAL = {"training": training, "resuming": load_checkpoint, "engine": load_engine}


def write_classifier(folder: Path) -> Path:
    tokenizer = tiny_tokenizer()
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=8, n_layer=3, n_head=2, n_positions=32, num_labels=2)
    GPT2ForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def causal_folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("causal") / "model")


@pytest.fixture(scope="module")
def classifier_folder(tmp_path_factory):
    return write_classifier(tmp_path_factory.mktemp("classifier") / "model")


@pytest.fixture(params=[*CAUSAL, "scorer"])
def loader(request, tmp_path, causal_folder, classifier_folder):
    """One way to load a model, and a folder of its own that it can load."""
    folder = shutil.copytree(classifier_folder if request.param == "scorer" else causal_folder, tmp_path / "model")
    return CAUSAL.get(request.param, scorer), folder


def edit_weights(folder, change):
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def edit_json(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def renamed(prefix):
    return lambda weights: {prefix + name: weight for name, weight in weights.items()}


def without(*endings):
    return lambda weights: {name: weight for name, weight in weights.items() if not name.endswith(endings)}


def first_changed(to):
    def change(weights):
        name = next(name for name in weights if name.endswith("c_attn.weight"))
        weights[name] = weights[name].clone()
        weights[name][0, 0] = to
        return weights

    return change


def as_int8(weights):
    return {name: (weight * 10).to(torch.int8) for name, weight in weights.items()}


def shard_that_is_absent(folder):
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def pointer(name):
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 17\n"
    return lambda folder: (folder / name).write_text(text)


def in_weights(change):
    return lambda folder: edit_weights(folder, change)


def no_tokenizer(folder):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()


FAULTS = {
    "lacks a layer": (in_weights(without("h.1.mlp.c_fc.weight")), r"lack .*h\.1\.mlp\.c_fc"),
    "fewer layers than in the config": (
        lambda at: edit_json(at / "config.json", n_layer=5),
        r"lack .*h\.\d\..*correct config\.json",
    ),
    "more layers than in the config": (lambda at: edit_json(at / "config.json", n_layer=1), r"no place for .*h\.1\."),
    "another width": (lambda at: edit_json(at / "config.json", n_inner=8), r"has shape .*needs .*config\.json"),
    "other names": (in_weights(renamed("model.")), r"lack .*no place for .*model\."),
    "names of an adapter": (in_weights(renamed("base_model.model.")), "merge it into its base model"),
    "an adapter beside": (
        lambda at: (at / "adapter_config.json").write_text("{}"),
        r"beside a model, .*phf merge-adapter",
    ),
    "GPTQ": (
        lambda at: edit_json(at / "config.json", quantization_config={"quant_method": "gptq", "bits": 4}),
        "quantised .gptq.*give the model as it was before",
    ),
    "AutoGPTQ's file": (lambda at: (at / "quantize_config.json").write_text("{}"), "quantised"),
    "integers": (in_weights(as_int8), "quantised .*stored as I8"),
    "a pointer for weights": (pointer("model.safetensors"), r"model\.safetensors is a Git LFS pointer.*git lfs pull"),
    "a lost part": (shard_that_is_absent, r"lacks .*model-00001-of-00002"),
    "cut short": (lambda at: (at / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{"), "not a whole"),
    "NaN": (in_weights(first_changed(float("nan"))), r"c_attn\.weight has values that are NaN"),
    "infinite": (in_weights(first_changed(float("inf"))), "NaN or infinite"),
}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_folders_that_can_not_be_used_are_refused_by_all(loader, fault):
    load, folder = loader
    load(folder)
    break_it, message = FAULTS[fault]
    break_it(folder)
    with pytest.raises(DataError, match=message) as caught:
        load(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module."])
def test_names_that_a_wrapper_changed_are_understood_and_not_written_again(loader, wrapper):
    load, folder = loader
    edit_weights(folder, renamed(wrapper))
    loaded = load(folder)
    if load is scorer:
        reference = GPT2ForSequenceClassification.from_pretrained(folder, key_mapping={f"^{wrapper}": ""})
        stored = reference.state_dict()
        found = loaded._classifier._model.state_dict()
    else:
        backbone = loaded.model if load is load_engine else getattr(loaded, "model", loaded).backbone
        stored, found = tiny_gpt2(tiny_tokenizer()).state_dict(), backbone.state_dict()
        if load is training:
            save_checkpoint(folder / "again", loaded, tiny_tokenizer(), CheckpointInfo())
            assert "transformer.wte.weight" in load_file(folder / "again" / "model.safetensors")
    assert stored.keys() == found.keys()
    assert all(torch.equal(stored[name], found[name]) for name in stored)


def test_layers_that_were_compiled_one_by_one_are_understood(tmp_path):
    model, _ = save(tmp_path)
    edit_weights(
        tmp_path, lambda weights: {name.replace(".h.0.", ".h.0._orig_mod."): each for name, each in weights.items()}
    )
    found, expected = load_checkpoint(tmp_path).model.state_dict(), model.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_value_head_under_a_wrapper_is_found(tmp_path):
    model, _ = save(tmp_path, model_kwargs=VALUE_HEAD)
    head = load_file(tmp_path / "value_head.safetensors")
    (tmp_path / "value_head.safetensors").unlink()
    edit_weights(tmp_path, lambda weights: renamed("module.")(weights | head))
    loaded = load_checkpoint(tmp_path).model
    assert torch.equal(loaded.value_head.head.weight, model.value_head.head.weight)


def test_buffers_that_older_versions_stored_are_no_fault(causal_folder, tmp_path):
    folder = shutil.copytree(causal_folder, tmp_path / "model")
    extra = {"h.0.attn.bias": torch.ones(1, 1, 4, 4), "h.0.attn.masked_bias": torch.tensor(-1e4)}
    edit_weights(folder, lambda weights: weights | extra)
    load_engine(folder)


def test_an_untied_head_that_the_weights_lack_is_refused(tmp_path):
    model = build_model(config_for("llama"), tokenizer=tiny_tokenizer(), seed=0)
    save_checkpoint(tmp_path, model, tiny_tokenizer(), CheckpointInfo())
    edit_weights(tmp_path, without("lm_head.weight"))
    for load in CAUSAL.values():
        with pytest.raises(DataError, match=r"lack \['lm_head\.weight'\]"):
            load(tmp_path)


def test_a_base_model_is_no_scorer(causal_folder):
    with pytest.raises(DataError, match=r"lack \['score\.weight'\].*trained for this use"):
        scorer(causal_folder)


def test_a_folder_without_a_tokenizer_is_refused(causal_folder, classifier_folder, tmp_path):
    folder = shutil.copytree(causal_folder, tmp_path / "causal")
    no_tokenizer(folder)
    no_tokenizer(judge := shutil.copytree(classifier_folder, tmp_path / "classifier"))
    loads = [(load, folder) for load in (load_checkpoint, load_engine, load_strings)]
    for load, source in [
        *loads,
        (scorer, judge),
        (lambda at: load_tokenizer(TokenizerConfig(path_or_name=str(at))), folder),
    ]:
        with pytest.raises(DataError, match="has no tokenizer"):
            load(source)


def test_a_tokenizer_is_no_pointer_but_weights_that_are_not_used_may_be(causal_folder, classifier_folder, tmp_path):
    folder = shutil.copytree(causal_folder, tmp_path / "causal")
    pointer("tf_model.h5")(folder)
    load_engine(folder)
    pointer("model.safetensors")(folder)
    load_strings(folder)
    load_tokenizer(TokenizerConfig(path_or_name=str(folder)))
    pointer("tokenizer.json")(folder)
    pointer("tokenizer.json")(judge := shutil.copytree(classifier_folder, tmp_path / "classifier"))
    for load, source in ((load_strings, folder), (scorer, judge)):
        with pytest.raises(DataError, match=r"tokenizer\.json is a Git LFS pointer.*git lfs pull"):
            load(source)


@pytest.mark.parametrize("kind", [BertTokenizer, LlamaTokenizer, Qwen2Tokenizer])
def test_a_tokenizer_that_transformers_made_up_is_refused(tmp_path, kind):
    kind().save_pretrained(tmp_path)
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(DataError, match="has no tokenizer"):
        load_strings(tmp_path)


def test_a_tokenizer_of_bytes_is_refused_with_the_reason(causal_folder, classifier_folder, tmp_path):
    for load, source in ((load_engine, causal_folder), (load_checkpoint, causal_folder), (scorer, classifier_folder)):
        folder = shutil.copytree(source, tmp_path / load.__name__)
        no_tokenizer(folder)
        ByT5Tokenizer().save_pretrained(folder)
        with pytest.raises(DataError, match=r"ByT5Tokenizer.*characters.*choose a model that has a tokenizer\.json"):
            load(folder)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("version https://git-lfs.github.com/spec/v1\n", DataError, "tokenizer.json is a Git LFS pointer"),
        ('{"model": 1}', ConfigError, "could not be loaded"),
    ],
)
def test_a_tokenizer_to_train_with_that_is_damaged_is_refused(tmp_path, content, error, message):
    tiny_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(error, match=message):
        load_tokenizer(TokenizerConfig(path_or_name=str(tmp_path)))


def test_an_encoder_and_decoder_is_refused_in_one_line(tmp_path):
    config = T5Config(vocab_size=384, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    for load in CAUSAL.values():
        with pytest.raises(DataError, match="can't be loaded as a causal language model") as caught:
            load(tmp_path)
        assert len(str(caught.value)) < 400


def test_an_adapter_of_a_kind_that_is_not_known_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    for load in (load_checkpoint, load_engine):
        with pytest.raises(DataError, match=r"peft_type is None, and only LORA can be loaded"):
            load(tmp_path)


@pytest.mark.parametrize("name", ["model.gguf", "tf_model.h5"])
def test_weights_of_another_kind_are_named(causal_folder, tmp_path, name):
    folder = shutil.copytree(causal_folder, tmp_path / "model")
    (folder / "model.safetensors").rename(folder / name)
    for load in CAUSAL.values():
        with pytest.raises(DataError, match=rf"{name} is of another kind"):
            load(folder)


def test_the_architecture_of_a_quantised_folder_makes_a_plain_model(causal_folder, tmp_path):
    folder = shutil.copytree(causal_folder, tmp_path / "model")
    edit_json(folder / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    tokenizer = tiny_tokenizer()
    model = build_model(pretrained(folder).model_copy(update={"from_scratch": True}), tokenizer=tokenizer, seed=0)
    save_checkpoint(tmp_path / "saved", model, tokenizer, CheckpointInfo())
    load_checkpoint(tmp_path / "saved")
