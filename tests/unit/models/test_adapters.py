"""Adapters: what is added and frozen, what their folder holds, and that it loads, merged or beside its base model."""

import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_models import BAD, GOOD, tiny_gpt2, tiny_llama, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from jobs.merge_adapter import main as merge_adapter
from phf_ray.blocks.tokenizer import load_tokenizer
from phf_ray.checkpoint import BaseInfo, CheckpointInfo
from phf_ray.config import ModelConfig, TokenizerConfig, parse_config
from phf_ray.errors import ConfigError, DataError
from phf_ray.generation.load import load_engine, load_strings
from phf_ray.generation.requests import EngineSettings
from phf_ray.model_folder import weights_fingerprint
from phf_ray.models.build import build_model
from phf_ray.models.loading import load_checkpoint
from phf_ray.models.merging import load_merged
from phf_ray.models.saving import rehearse_save, save_checkpoint
from phf_ray.models.shape import planned_shape, shape_of
from phf_ray.runs.checkpoints import find_checkpoint
from phf_ray.training.frozen import keep_old_rows

KINDS = {"gpt2": tiny_gpt2, "llama": tiny_llama}
IDS = torch.arange(3, 40)[None]


@pytest.fixture(scope="module", params=KINDS)
def base(request, tmp_path_factory):
    """Folder of a base model: GPT-2 with a tied head, or Llama with one of its own."""
    folder = tmp_path_factory.mktemp("base") / request.param
    tokenizer = tiny_tokenizer()
    model = KINDS[request.param](tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def config_for(base, *, num_new=0, value_head=False, **lora):
    kwargs = {"value_head_config": {"is_detached": False}} if value_head else {}
    return ModelConfig(
        path_or_name=str(base), from_scratch=False, lora=lora, num_additional_tokens=num_new, model_kwargs=kwargs
    )


def tokenizer_of(base, *special):
    return load_tokenizer(TokenizerConfig(path_or_name=str(base), special_tokens=list(special)))


def adapted(base, *, special=(), seed=0, **settings):
    """A model with an adapter that is not zero, and its tokenizer."""
    tokenizer = tokenizer_of(base, *special)
    model = build_model(config_for(base, num_new=len(special), **settings), tokenizer=tokenizer, seed=seed).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name or name.startswith("value_head"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 10)
        for parameter in model.partly_trained():
            parameter[model.adapter.first_new_row :] += 1
    return model, tokenizer


def saved(folder, base, **settings):
    model, tokenizer = adapted(base, **settings)
    info = CheckpointInfo(base=BaseInfo(name=str(base), fingerprint=weights_fingerprint(base)))
    save_checkpoint(folder, model, tokenizer, info)
    return model


def logits(model, ids=IDS):
    with torch.no_grad():
        return model(ids).logits


def assert_close(ours, theirs):
    assert (ours - theirs).abs().max() <= 3e-6 * theirs.abs().max()


def files_of(folder):
    return sorted(path.name for path in folder.iterdir())


# --- What is added ------------------------------------------------------------------------------------------------


def test_an_adapter_changes_nothing_at_first_and_is_all_that_trains(base):
    tokenizer = tokenizer_of(base)
    model = build_model(config_for(base, r=4), tokenizer=tokenizer, seed=0).eval()
    assert torch.equal(logits(model.backbone), logits(AutoModelForCausalLM.from_pretrained(base).eval()))
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert names
    assert all(".lora_" in name for name in names)
    assert not any("lm_head" in name for name in names)


def test_the_seed_gives_the_adapter_whatever_was_drawn_before(base):
    def matrix(seed, disturbance):
        torch.rand(disturbance)
        model = build_model(config_for(base), tokenizer=tokenizer_of(base), seed=seed)
        return next(each for name, each in model.named_parameters() if ".lora_A." in name)

    assert torch.equal(matrix(1, 1), matrix(1, 2))
    assert not torch.equal(matrix(1, 1), matrix(2, 1))


@pytest.mark.parametrize("targets", [["c_attn", "q_proj", "nowhere"], ["lm_head"], ["0"], []])
def test_targets_that_are_no_linear_layers_are_refused_with_those_that_are(base, targets):
    config = config_for(base, target_modules=targets)
    there = "c_attn, c_fc, c_proj" if base.name == "gpt2" else "down_proj, gate_proj, k_proj"
    for build in (
        lambda: build_model(config, tokenizer=tokenizer_of(base), seed=0),
        lambda: planned_shape(config, tokenizer=tokenizer_of(base)),
    ):
        with pytest.raises(ConfigError, match=rf"model\.lora\.target_modules: .*it has {there}"):
            build()


def test_targets_scale_and_rank_are_those_asked_for(base):
    name = "c_attn" if base.name == "gpt2" else "q_proj"
    model = build_model(
        config_for(base, target_modules=[name], r=3, alpha=6, use_rslora=True), tokenizer=tokenizer_of(base), seed=0
    )
    layers = [module for module in model.backbone.modules() if hasattr(module, "lora_A")]
    assert len(layers) == 2
    assert all(layer.scaling["default"] == pytest.approx(6 / 3**0.5) for layer in layers)
    assert all(layer.lora_A["default"].weight.shape[0] == 3 for layer in layers)


def test_random_weights_an_adapter_and_added_rows_are_no_base(base, tmp_path):
    tokenizer = tokenizer_of(base)
    fresh = config_for(base).model_copy(update={"from_scratch": True})
    with pytest.raises(ConfigError, match=r"model\.lora with model\.from_scratch: true"):
        build_model(fresh, tokenizer=tokenizer, seed=0)
    saved(tmp_path / "adapter", base)
    with pytest.raises(ConfigError, match=r"is itself an adapter.*phf merge-adapter"):
        build_model(config_for(tmp_path / "adapter"), tokenizer=tokenizer, seed=0)
    padded = config_for(base).model_copy(update={"pad_vocab_to_multiple_of": 512})
    with pytest.raises(ConfigError, match=r"pad_vocab_to_multiple_of=512 .*no adapter holds"):
        build_model(padded, tokenizer=tokenizer, seed=0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_four_bits_are_refused_by_name_without_a_gpu_and_without_adapters(base):
    config = config_for(base).model_copy(update={"load_in_4bit": True})
    with pytest.raises(ConfigError, match=r"model\.load_in_4bit needs NVIDIA GPUs"):
        build_model(config, tokenizer=tokenizer_of(base), seed=0)
    with pytest.raises(ConfigError, match="load_in_4bit=true needs lora"):
        parse_config({"model": {"load_in_4bit": True}})


@pytest.mark.parametrize("special", [(), (GOOD, BAD)])
def test_the_planned_shape_knows_what_trains(base, special):
    tokenizer, config = tokenizer_of(base, *special), config_for(base, num_new=len(special))
    shape = planned_shape(config, tokenizer=tokenizer)
    assert shape == shape_of(build_model(config, tokenizer=tokenizer, seed=0))
    assert 0 < shape.num_trained < shape.num_parameters
    assert shape.trains_head == bool(special)
    products = 4 * shape.num_multiplied + 2 * shape.num_trained_multiplied
    assert shape.flops_per_token(0) == products < 6 * shape.num_multiplied


# --- New tokens ---------------------------------------------------------------------------------------------------


def test_of_the_rows_those_of_new_tokens_alone_have_a_gradient(base):
    model, tokenizer = adapted(base, special=(GOOD, BAD))
    first = model.adapter.first_new_row
    assert first == len(tokenizer) - 2
    model.backbone(torch.tensor([[5, first, 7, first + 1, 9]])).logits.square().sum().backward()
    keep_old_rows(model)
    parameters = model.partly_trained()
    assert len(parameters) == (1 if base.name == "gpt2" else 2)
    for parameter in parameters:
        assert not parameter.grad[:first].any()
        assert parameter.grad[first : first + 2].abs().sum(dim=1).min() > 0


# --- Files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("special", [(), (GOOD, BAD)])
def test_peft_loads_a_saved_adapter_and_gives_the_same_logits(base, special, tmp_path):
    model = saved(tmp_path / "adapter", base, special=special, r=4)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "adapter")
    theirs = AutoModelForCausalLM.from_pretrained(base)
    if special:
        # What peft's users do after adding tokens.
        theirs.resize_token_embeddings(max(len(tokenizer), theirs.config.vocab_size))
    theirs = PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    ids = torch.cat([IDS, torch.tensor([[len(tokenizer) - 1]])], dim=1)
    assert_close(logits(model.backbone, ids), logits(theirs, ids))
    plain = logits(AutoModelForCausalLM.from_pretrained(base))
    assert not torch.allclose(logits(model.backbone)[..., : plain.shape[2]], plain)


@pytest.mark.parametrize("special", [(), (GOOD, BAD)])
def test_a_checkpoint_holds_the_adapter_alone_and_equal_ones_have_equal_bytes(base, special, tmp_path):
    for name in ("one", "two"):
        saved(tmp_path / name, base, special=special)
    files = files_of(tmp_path / "one")
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "phf.json"} <= set(files)
    assert not {"model.safetensors", "config.json"} & set(files)
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    with safe_open(tmp_path / "one" / "adapter_model.safetensors", framework="pt") as stored:
        others = [name for name in stored.keys() if ".lora_" not in name]  # noqa: SIM118 - not a mapping
    assert len(others) == (0 if not special else 1 if base.name == "gpt2" else 2)


@pytest.mark.parametrize("special", [(), (GOOD, BAD)])
def test_a_loaded_adapter_is_merged_into_its_base(base, special, tmp_path):
    model = saved(tmp_path / "adapter", base, special=special, value_head=True)
    loaded = load_checkpoint(tmp_path / "adapter")
    assert_close(logits(loaded.model.backbone), logits(model.backbone))
    assert not any("lora" in name for name, _ in loaded.model.named_parameters())
    assert all(parameter.requires_grad for parameter in loaded.model.parameters()), "full training may start from it"
    assert torch.equal(loaded.model.value_head.head.weight, model.value_head.head.weight)
    assert len(loaded.tokenizer) == len(tokenizer_of(base)) + len(special)
    engine = load_engine(tmp_path / "adapter", settings=EngineSettings(dtype="bfloat16"))
    assert {parameter.dtype for parameter in engine.model.parameters()} == {torch.bfloat16}
    off = (logits(engine.model).float() - logits(model.backbone)).abs().max()
    assert off < 0.1 * logits(model.backbone).abs().max()


def test_an_adapter_without_a_tokenizer_has_that_of_its_base(base, tmp_path):
    saved(tmp_path / "adapter", base)
    for path in (tmp_path / "adapter").glob("tokenizer*"):
        path.unlink()
    strings, _, context = load_strings(tmp_path / "adapter")
    # Models of ours see an end-of-text token first.
    assert strings.encode("def add")[0][1:] == load_strings(base)[0].encode("def add")[0]
    assert context == 96


def test_a_merged_folder_needs_neither_base_nor_peft(base, tmp_path, capsys):
    model = saved(tmp_path / "run" / "adapter", base, special=(GOOD,), value_head=True)
    moved = shutil.copytree(base, tmp_path / "elsewhere")
    arguments = ["--checkpoint", str(tmp_path / "run" / "adapter"), "--output", str(tmp_path / "merged")]
    assert merge_adapter([*arguments, "--base", str(moved)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'merged'}\n"
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert_close(logits(theirs), logits(model.backbone))
    again = load_checkpoint(tmp_path / "merged")
    assert again.info.base is None
    assert torch.equal(again.model.value_head.head.weight, model.value_head.head.weight)
    assert not any("adapter" in name for name in files_of(tmp_path / "merged"))
    with pytest.raises(ConfigError, match="exists; give the name of a new folder"):
        merge_adapter(arguments)
    with pytest.raises(ConfigError, match="is a whole model already"):
        merge_adapter(["--checkpoint", str(base), "--output", str(tmp_path / "other")])


def test_what_can_not_be_saved_is_known_beforehand_of_an_adapter_too(base, tmp_path):
    model, tokenizer = adapted(base)
    rehearse_save(tmp_path, model, tokenizer, CheckpointInfo())
    assert "adapter_config.json" in files_of(tmp_path)
    assert "config.json" not in files_of(tmp_path)


# --- Bad folders --------------------------------------------------------------------------------------------------


def test_a_base_that_is_gone_or_has_changed_is_named(base, tmp_path):
    moved = shutil.copytree(base, tmp_path / "base")
    saved(tmp_path / "adapter", moved)
    weights = load_file(moved / "model.safetensors")
    first = next(iter(weights))
    save_file({**weights, first: weights[first] + 1}, moved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"has other weights than the base model that .*adapter was trained on"):
        load_merged(tmp_path / "adapter", dtype=None)
    shutil.rmtree(moved)
    with pytest.raises(ConfigError, match=r"--model.*base_model_name_or_path .*no such folder.*phf merge-adapter"):
        find_checkpoint(tmp_path / "adapter", option="--model")
    with pytest.raises(ConfigError, match=r"no such folder"):
        load_engine(tmp_path / "adapter")


def change(folder, **values):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def without_a_tensor(folder):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors.pop(min(tensors))
    save_file(tensors, path, metadata={"format": "pt"})


def of_nan(folder):
    path = folder / "adapter_model.safetensors"
    save_file({name: tensor * float("nan") for name, tensor in load_file(path).items()}, path)


DAMAGE = {
    "no base": (lambda at: change(at, base_model_name_or_path=None), DataError, "names no base model"),
    "another kind": (lambda at: change(at, peft_type="IA3"), DataError, "only LORA can be loaded"),
    "no JSON": (lambda at: (at / "adapter_config.json").write_text("{"), DataError, "not an adapter's configuration"),
    "other targets": (lambda at: change(at, target_modules=["nowhere"]), DataError, "no adapter for its base model"),
    "another rank": (lambda at: change(at, r=5), DataError, "no adapter for its base model"),
    "no weights": (lambda at: (at / "adapter_model.safetensors").unlink(), DataError, "has no adapter_model"),
    "cut off": (lambda at: (at / "adapter_model.safetensors").write_bytes(b"\0" * 9), DataError, "can't be read"),
    "a tensor missing": (without_a_tensor, DataError, "the weights lack"),
    "NaN": (of_nan, DataError, "NaN or infinite"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_adapter_is_refused_with_what_is_wrong(what, base, tmp_path):
    if base.name != "gpt2":
        pytest.skip("one family is enough")
    damage, kind, words = DAMAGE[what]
    saved(tmp_path / "adapter", base)
    damage(tmp_path / "adapter")
    with pytest.raises(kind, match=words):
        load_merged(tmp_path / "adapter", dtype=None)
