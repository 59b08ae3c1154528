"""Building, saving and loading language models; any architecture with a linear head."""

import importlib.util
import itertools
import json
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
from model_kinds import ARCHITECTURES, GPT2, LLAMA_LIKE, VALUE_HEAD, config_for, pretrained, save
from safetensors.torch import load_file, save_file
from tiny_models import BAD, GOOD, tiny_gpt2, tiny_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from phf_ray.checkpoint import CheckpointInfo
from phf_ray.config import ModelConfig
from phf_ray.errors import ConfigError, DataError
from phf_ray.models.build import build_model
from phf_ray.models.language_model import LanguageModel, document_positions, transformer_blocks
from phf_ray.models.loading import load_checkpoint
from phf_ray.models.positions import position_limit
from phf_ray.models.saving import save_checkpoint
from phf_ray.objectives.build import build_objective
from phf_ray.records import TokenKind


def batch_for(model, *, rows=2, length=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(model.backbone.config.vocab_size, (rows, length), generator=generator)
    return ids, torch.rand(rows, length, generator=generator), torch.zeros(rows, length, dtype=torch.uint8)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_loss_and_gradients_are_those_of_the_architecture_s_own_logits(model_type):
    tokenizer = tiny_tokenizer()
    model = build_model(config_for(model_type), tokenizer=tokenizer, seed=1).eval()
    ids, scores, kinds = batch_for(model)
    out = model(ids, scores, kinds, build_objective({"name": "MLE"}))
    (out.loss / out.num_targets).backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()

    logits = model.backbone(input_ids=ids).logits[:, :-1]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    expected.backward()
    assert (out.loss / out.num_targets).item() == pytest.approx(expected.item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        assert torch.allclose(gradients[name], parameter.grad, rtol=1e-3, atol=1e-6), name


@pytest.mark.parametrize(
    ("model_type", "settings", "message"),
    [
        (
            "gemma2",
            {**LLAMA_LIKE, "num_hidden_layers": 26, "num_key_value_heads": 1, "head_dim": 16},
            "Gemma2.*softcapping",
        ),
        ("bert", LLAMA_LIKE, "Bert.*not a causal LM"),
        ("xlm", {"emb_dim": 32, "n_layers": 1, "n_heads": 2}, "XLM.*not a causal LM"),
        ("vit", {}, "choose a causal LM"),
        ("gtp2", {}, "give a model directory"),
    ],
)
def test_models_without_a_linear_causal_head_are_refused_by_name(model_type, settings, message):
    with pytest.raises(ConfigError, match=message):
        build_model(config_for(model_type, config_kwargs=settings), tokenizer=tiny_tokenizer(), seed=0)


def test_equal_seeds_give_equal_weights_and_leave_the_global_stream_alone():
    tokenizer = tiny_tokenizer(control=True)
    config = config_for(num_additional_tokens=2)
    torch.manual_seed(5)
    first = build_model(config, tokenizer=tokenizer, seed=1).state_dict()
    after = torch.rand(3)
    torch.manual_seed(7)
    second = build_model(config, tokenizer=tokenizer, seed=1).state_dict()
    other = build_model(config, tokenizer=tokenizer, seed=2).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["backbone.transformer.wte.weight"], other["backbone.transformer.wte.weight"])
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(3))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale_attn_by": True}, r"\['scale_attn_by'\], which gpt2 does not have; did you mean"),
        ({"vocab_size": 100}, "follows from the tokenizer"),
        ({"n_layer": "three"}, "n_layer"),
    ],
)
def test_config_kwargs_that_the_architecture_does_not_have_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        build_model(config_for(config_kwargs={**GPT2, **settings}), tokenizer=tiny_tokenizer(), seed=0)


def test_an_architecture_can_be_taken_from_a_directory_and_changed(tmp_path):
    tokenizer = tiny_tokenizer()
    tiny_gpt2(tokenizer).save_pretrained(tmp_path)
    config = ModelConfig(path_or_name=str(tmp_path), config_kwargs={"num_hidden_layers": 3})
    model = build_model(config, tokenizer=tokenizer, seed=0)
    assert len(transformer_blocks(model)) == 3
    assert model.backbone.config.n_positions == 96
    assert not torch.equal(model.head()[0][: len(tokenizer)], tiny_gpt2(tokenizer).lm_head.weight[: len(tokenizer)])


def test_vocabulary_follows_the_tokenizer_and_is_padded():
    tokenizer = tiny_tokenizer()
    model = build_model(config_for(pad_vocab_to_multiple_of=64), tokenizer=tokenizer, seed=0)
    assert len(tokenizer) < model.backbone.config.vocab_size == model.head()[0].shape[0]
    assert model.backbone.config.vocab_size % 64 == 0
    exact = build_model(config_for(), tokenizer=tokenizer, seed=0)
    assert exact.backbone.config.vocab_size == len(tokenizer)


@pytest.mark.parametrize("model_type", ["gpt2", "gpt_neox"])
def test_new_tokens_start_near_the_mean_of_the_others(model_type):
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [GOOD, BAD]})
    model = build_model(config_for(model_type, num_additional_tokens=2), tokenizer=tokenizer, seed=0)
    embedding, head = model.backbone.get_input_embeddings().weight, model.head()[0]
    assert (embedding is head) is (model_type == "gpt2")
    for weight in (embedding, head):
        new, known = weight[len(tokenizer) - 2 : len(tokenizer)], weight[: len(tokenizer) - 2]
        distance = (new - known.mean(dim=0)).std().item()
        assert 0.005 < distance < 0.02
        assert known.std() > 0.1
        assert not torch.equal(new[0], new[1])


def test_special_tokens_of_the_tokenizer_end_up_in_both_configs():
    tokenizer = tiny_tokenizer()
    model = build_model(config_for("llama"), tokenizer=tokenizer, seed=0)
    for config in (model.backbone.config, model.backbone.generation_config):
        assert (config.eos_token_id, config.bos_token_id, config.pad_token_id) == (tokenizer.eos_token_id,) * 3


def test_values_are_fp32_under_autocast_and_as_wide_as_the_head_s_input():
    model = build_model(config_for("opt", model_kwargs=VALUE_HEAD), tokenizer=tiny_tokenizer(), seed=0).eval()
    torch.nn.init.normal_(model.value_head.head.weight, mean=-1.0)
    hidden = torch.randn(1, 5, 16)
    expected = -(hidden @ model.value_head.head.weight[0]).sigmoid()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.allclose(model.values(hidden), expected, rtol=1e-5)
        model(*batch_for(model), build_objective({"name": "AWR"})).loss.backward()


@pytest.mark.parametrize("is_detached", [True, False])
def test_value_head_starts_at_minus_one_half_and_reaches_the_trunk_unless_detached(is_detached):
    tokenizer = tiny_tokenizer()
    config = config_for(model_kwargs={"value_head_config": {"is_detached": is_detached}})
    model = build_model(config, tokenizer=tokenizer, seed=0).eval()
    ids, scores, kinds = batch_for(model)
    values = model.values(model.hidden_states(ids))
    assert torch.equal(values, torch.full_like(values, -0.5))
    torch.nn.init.ones_(model.value_head.head.weight)
    # alpha 0: the value loss alone.
    out = model(ids, scores, kinds, build_objective({"name": "AWR", "alpha": 0.0}))
    out.loss.backward()
    assert model.value_head.head.weight.grad.abs().max() > 0
    trunk = model.backbone.transformer.h[0].attn.c_attn.weight.grad
    assert (trunk.abs().max() == 0).item() is is_detached


def test_where_torch_cannot_compile_is_said_before_the_first_step(monkeypatch):
    model = build_model(config_for(), tokenizer=tiny_tokenizer(), seed=0)
    monkeypatch.setattr(torch, "__file__", "/home/my models/torch/__init__.py")
    with pytest.raises(ConfigError, match=r"/home/my models/.*without a space"):
        model.compile_blocks(torch.device("cpu"))


@pytest.mark.parametrize("config", [{"name": "AWR"}, {"name": "Unlikelihood", "score_threshold": 0.5}])
def test_a_compiled_model_gives_the_same_loss_and_gradients(config):
    model = build_model(config_for(model_kwargs=VALUE_HEAD), tokenizer=tiny_tokenizer(), seed=0).eval()
    objective = build_objective(config)
    results = []
    for call in (model, torch.compile(model, backend="aot_eager")):
        model.zero_grad()
        out = call(*batch_for(model), objective)
        out.loss.backward()
        results.append((out.loss.item(), objective.summarize(out.metrics), model.head()[0].grad.clone()))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
    # The correlation with values that are all -0.5 is no number.
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-6, nan_ok=True)
    assert torch.allclose(results[0][2], results[1][2], rtol=1e-4, atol=1e-6)


def test_a_value_head_that_the_objective_does_not_train_gets_a_zero_gradient():
    tokenizer = tiny_tokenizer()
    model = build_model(config_for(model_kwargs=VALUE_HEAD), tokenizer=tokenizer, seed=0).eval()
    model(*batch_for(model), build_objective({"name": "MLE"})).loss.backward()
    assert torch.equal(model.value_head.head.weight.grad, torch.zeros(1, 32))


# Layers that are computed twice, and compiled ones


def loss_and_gradient(model, objective):
    model.zero_grad()
    out = model(*batch_for(model), objective)
    out.loss.backward()
    return out.loss.item(), model.head()[0].grad.clone()


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_checkpointed_layers_are_computed_twice_and_give_the_same_loss_and_gradients(model_type):
    model = build_model(config_for(model_type), tokenizer=tiny_tokenizer(), seed=0)
    objective = build_objective({"name": "MLE"})
    calls = []
    for block in transformer_blocks(model):
        next(block.children()).register_forward_pre_hook(lambda *_: calls.append(1))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    plain = loss_and_gradient(model, objective)
    assert len(calls) == 2
    model.checkpoint_activations()
    checkpointed = loss_and_gradient(model, objective)
    assert len(calls) == 2 + 4
    assert checkpointed[0] == pytest.approx(plain[0], rel=1e-6)
    assert torch.allclose(checkpointed[1], plain[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_compiled_layers_give_the_same_loss_and_gradients(checkpointed):
    """With a backend that only counts: what a real one makes of the graph is torch's affair."""
    model = build_model(config_for(), tokenizer=tiny_tokenizer(), seed=0).eval()
    objective = build_objective({"name": "MLE"})
    plain = loss_and_gradient(model, objective)
    graphs = []

    def count(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    if checkpointed:
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        model.checkpoint_activations()
    model.compile_blocks(torch.device("cpu"), backend=count)
    compiled = loss_and_gradient(model, objective)
    assert graphs
    assert compiled[0] == pytest.approx(plain[0], rel=1e-6)
    assert torch.allclose(compiled[1], plain[1], rtol=1e-4, atol=1e-6)


# Documents of a block


def block_of_documents(model, *, lengths=(5, 1, 7)):
    """One row: the tail of an older document, then documents that begin with an end-of-text token each."""
    ids, scores, kinds = batch_for(model, rows=1, length=sum(lengths))
    starts = [sum(lengths[:number]) for number in range(1, len(lengths))]
    kinds[0, starts] = TokenKind.END_OF_TEXT
    return ids, scores, kinds, [0, *starts, sum(lengths)]


def test_positions_begin_anew_with_each_end_of_text_token():
    kinds = torch.tensor([[0, 0, 1, 1, 0, 2, 0], [1, 0, 0, 1, 0, 3, 3]], dtype=torch.uint8)
    assert document_positions(kinds).tolist() == [[0, 1, 0, 0, 1, 2, 3], [0, 1, 2, 0, 1, 0, 0]]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("model_type", ["gpt2", "llama", "qwen3", "gpt_neox"])
def test_with_a_document_mask_a_block_gives_the_logits_of_each_document_alone(model_type, attention):
    model = build_model(config_for(model_type), tokenizer=tiny_tokenizer(), seed=1).eval()
    model.backbone.set_attn_implementation(attention)
    ids, scores, kinds, borders = block_of_documents(model)
    alone = torch.cat([model.backbone(input_ids=ids[:, a:b]).logits for a, b in itertools.pairwise(borders)], dim=1)
    together = model.hidden_states(ids, position_ids_BS=document_positions(kinds)) @ model.head()[0].T
    assert torch.allclose(together, alone, rtol=1e-4, atol=1e-5)

    expected = torch.nn.functional.cross_entropy(alone[0, :-1], ids[0, 1:], reduction="sum").item()
    objective = build_objective({"name": "MLE"})
    assert model(ids, scores, kinds, objective).loss.item() != pytest.approx(expected, rel=1e-3)
    model.mask_documents()
    assert model(ids, scores, kinds, objective).loss.item() == pytest.approx(expected, rel=1e-5)


def padded_blocks(model):
    """Two blocks of documents; in the second, padding follows, in all more tokens than the model has positions."""
    ids, scores, kinds = batch_for(model, rows=2, length=50)
    kinds[:, [0, 7, 8, 30]] = TokenKind.END_OF_TEXT
    kinds[1, 41:] = TokenKind.PAD
    return ids, scores, kinds


def loss_and_gradients(model, batch, objective):
    model.zero_grad()
    loss = model(*batch, objective).loss
    loss.backward()
    return loss.item(), {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "qwen3", "gpt_neox", "phi", "cohere"])
def test_attention_by_document_learns_what_a_mask_learns_and_reads_no_padding(model_type):
    batch, objective = None, build_objective({"name": "MLE"})
    found, read = {}, []
    for attention in ("sdpa", "eager"):
        model = build_model(config_for(model_type), tokenizer=tiny_tokenizer(), seed=1)
        model.disable_dropout()
        model.backbone.set_attn_implementation(attention)
        model.mask_documents()
        model.train()
        batch = batch or padded_blocks(model)
        embedding = model.backbone.get_input_embeddings()
        embedding.register_forward_hook(lambda _module, inputs, _output: read.append(inputs[0].numel()))
        found[attention] = loss_and_gradients(model, batch, objective)
    assert read == [91, 100]
    (loss, gradients), (expected_loss, expected) = found["sdpa"], found["eager"]
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    for name, gradient in expected.items():
        assert torch.allclose(gradients[name], gradient, rtol=1e-4, atol=1e-4), name


def test_a_model_with_a_window_keeps_its_mask():
    settings = config_for("mistral", config_kwargs={**ARCHITECTURES["mistral"], "sliding_window": 4})
    model = build_model(settings, tokenizer=tiny_tokenizer(), seed=1).eval()
    ids, scores, kinds, borders = block_of_documents(model, lengths=(9, 3, 8))
    alone = [model.backbone(input_ids=ids[:, a:b]).logits for a, b in itertools.pairwise(borders)]
    expected = torch.nn.functional.cross_entropy(torch.cat(alone, dim=1)[0, :-1], ids[0, 1:], reduction="sum").item()
    model.mask_documents()
    objective = build_objective({"name": "MLE"})
    assert model(ids, scores, kinds, objective).loss.item() == pytest.approx(expected, rel=1e-5)


def test_a_model_that_takes_no_positions_is_refused_a_document_mask():
    config = AutoConfig.for_model("bloom", vocab_size=300, hidden_size=32, n_layer=1, n_head=2)
    model = LanguageModel(AutoModelForCausalLM.from_config(config))
    with pytest.raises(ConfigError, match=r"Bloom.*training\.document_mask: false"):
        model.mask_documents()


# Checkpoints


def test_a_checkpoint_loads_with_nothing_of_ours(tmp_path):
    model, tokenizer = save(tmp_path, model_kwargs=VALUE_HEAD, pad_vocab_to_multiple_of=64)
    ids, _, _ = batch_for(model)
    loaded, loading = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(loading.values())
    assert torch.equal(loaded(ids).logits, model.backbone(ids).logits)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again(f"{GOOD}def add(first)").input_ids == tokenizer(f"{GOOD}def add(first)").input_ids
    assert load_file(tmp_path / "value_head.safetensors").keys() == {"value_head.head.weight"}
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == tokenizer.eos_token_id


def test_a_checkpoint_comes_back_whole(tmp_path):
    model, tokenizer = save(tmp_path, model_kwargs=VALUE_HEAD)
    loaded = load_checkpoint(tmp_path)
    assert loaded.info == CheckpointInfo(task="pep8", step=7)
    assert len(loaded.tokenizer) == len(tokenizer)
    assert not loaded.model.training
    state, expected = loaded.model.state_dict(), model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in expected)
    half = load_checkpoint(tmp_path, dtype=torch.bfloat16)
    assert half.model.head()[0].dtype == torch.bfloat16


def test_equal_weights_give_equal_bytes(tmp_path):
    for name in ("first", "second"):
        save(tmp_path / name, model_kwargs=VALUE_HEAD)
    files = {path.name: path.read_bytes() for path in (tmp_path / "first").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "second").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "phf.json", "value_head.safetensors"} <= files.keys()


def test_a_given_state_dict_is_what_is_written(tmp_path):
    model, tokenizer = save(tmp_path / "live", model_kwargs=VALUE_HEAD)
    snapshot = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    save_checkpoint(tmp_path / "snapshot", model, tokenizer, CheckpointInfo(task="pep8", step=7), state_dict=snapshot)
    for name in ("model.safetensors", "value_head.safetensors"):
        assert (tmp_path / "live" / name).read_bytes() == (tmp_path / "snapshot" / name).read_bytes()


def as_released(directory, *, format_, seed=0):
    """What the original released: GPT-2 with the value head among its weights, no phf.json."""
    model, _ = save(directory, seed=seed, model_kwargs=VALUE_HEAD)
    state = {key.removeprefix("backbone."): value.clone() for key, value in model.state_dict().items()}
    for name in ("model.safetensors", "value_head.safetensors", "phf.json"):
        (directory / name).unlink()
    if format_ == "bin":
        torch.save(state, directory / "pytorch_model.bin")
    else:
        del state["lm_head.weight"]  # tied
        save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    config["architectures"] = ["GPT2LMAndValueHeadModel"]
    (directory / "config.json").write_text(json.dumps(config))
    return model


@pytest.mark.parametrize("format_", ["bin", "safetensors"])
def test_released_checkpoints_of_the_original_load_with_their_value_head(tmp_path, format_):
    model = as_released(tmp_path, format_=format_)
    loaded = load_checkpoint(tmp_path)
    assert loaded.info is None
    ids, _, _ = batch_for(model)
    assert torch.equal(loaded.model.backbone(ids).logits, model.backbone(ids).logits)
    assert torch.equal(loaded.model.value_head.head.weight, model.value_head.head.weight)
    finetuned = build_model(pretrained(tmp_path, model_kwargs=VALUE_HEAD), tokenizer=loaded.tokenizer, seed=0)
    assert torch.equal(finetuned.value_head.head.weight, model.value_head.head.weight)


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_weights_that_would_run_code_are_not_loaded(tmp_path):
    save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    marker = tmp_path / "ran"
    torch.save({"lm_head.weight": Payload(marker)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(DataError, match="fetch them again"):
        load_checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(marker), protocol=2))
    with pytest.raises(DataError, match="fetch them again"):
        load_checkpoint(tmp_path)
    assert not marker.exists()


def test_damaged_weights_are_named(tmp_path):
    save(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(DataError, match=re.escape(str(tmp_path))):
        load_checkpoint(tmp_path)


def test_missing_weights_are_not_drawn_at_random(tmp_path):
    save(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["transformer.h.1.mlp.c_fc.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"lack.*c_fc"):
        load_checkpoint(tmp_path)


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no config\.json"):
        load_checkpoint(tmp_path)
    with pytest.raises(ConfigError, match=r"no config\.json"):
        load_checkpoint(tmp_path / "absent")
    with pytest.raises(ConfigError, match="causal language model"):
        build_model(pretrained(tmp_path / "absent"), tokenizer=tiny_tokenizer(), seed=0)


# Starting from weights


def test_finetuning_keeps_weights_and_adds_tokens(tmp_path):
    tokenizer = tiny_tokenizer()
    source = tiny_gpt2(tokenizer, vocab_size=len(tokenizer))
    source.save_pretrained(tmp_path)
    tokenizer.add_special_tokens({"additional_special_tokens": [GOOD, BAD]})
    config = pretrained(tmp_path, num_additional_tokens=2, pad_vocab_to_multiple_of=64)
    model = build_model(config, tokenizer=tokenizer, seed=0)
    head, old = model.head()[0], source.lm_head.weight
    assert head.shape[0] == model.backbone.config.vocab_size == 64 * -(-len(tokenizer) // 64)
    assert torch.equal(head[: len(old)], old)
    assert (head[len(old) :] - old.mean(dim=0)).std() < 0.02
    assert model.backbone.get_input_embeddings().weight is head
    assert model.training


def test_rows_that_a_tokenizer_needs_and_a_model_lacks_are_asked_for(tmp_path):
    tokenizer = tiny_tokenizer()
    tiny_gpt2(tokenizer, vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.add_special_tokens({"additional_special_tokens": [GOOD, BAD]})
    with pytest.raises(ConfigError, match="num_additional_tokens: 2"):
        build_model(pretrained(tmp_path), tokenizer=tokenizer, seed=0)
    with pytest.raises(ConfigError, match="from_scratch: true"):
        build_model(pretrained(tmp_path, config_kwargs={"n_layer": 1}), tokenizer=tokenizer, seed=0)


def as_cached(folder, *, repository, revisions):
    """A hub's cache with those revisions of a repository: revision -> directory of the files."""
    root = folder / f"models--{repository.replace('/', '--')}"
    for revision, directory in revisions.items():
        shutil.copytree(directory, root / "snapshots" / revision)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(list(revisions)[-1])


def test_a_revision_of_a_released_model_is_that_revision(tmp_path, monkeypatch):
    """The paper's finetuning starts from the weights at one commit of a hub's repository."""
    revisions = {"a" * 40: tmp_path / "half", "b" * 40: tmp_path / "whole"}
    models = {
        revision: as_released(directory, format_="safetensors", seed=seed)
        for seed, (revision, directory) in enumerate(revisions.items())
    }
    as_cached(tmp_path / "cache", repository="owner/mighty", revisions=revisions)
    for module in ("huggingface_hub.constants", "huggingface_hub.file_download"):
        monkeypatch.setattr(f"{module}.HF_HUB_CACHE", str(tmp_path / "cache"), raising=False)
    tokenizer = tiny_tokenizer(control=True)
    for revision, model in models.items():
        config = ModelConfig(
            path_or_name="owner/mighty", revision=revision, from_scratch=False, model_kwargs=VALUE_HEAD
        )
        built = build_model(config, tokenizer=tokenizer, seed=7)
        assert torch.equal(built.head()[0], model.head()[0])
        assert torch.equal(built.value_head.head.weight, model.value_head.head.weight)


def test_a_hub_name_that_is_not_there_says_what_to_write():
    with pytest.raises(ConfigError, match="model directory"):
        build_model(ModelConfig(path_or_name="no/such-model"), tokenizer=tiny_tokenizer(), seed=0)


def test_language_model_takes_any_loaded_model():
    tokenizer = tiny_tokenizer()
    model = LanguageModel(tiny_gpt2(tokenizer))
    assert not model.backbone.training
    assert model.logit_scale == 1
    assert len(transformer_blocks(model)) == 2


@pytest.mark.parametrize(
    ("model_type", "fields"),
    [
        ("mamba", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}),
        ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 2}),
    ],
)
def test_what_can_not_be_served_is_refused_before_training(model_type, fields):
    with pytest.raises(ConfigError, match="could be trained but not served; choose"):
        build_model(config_for(model_type, config_kwargs=fields), tokenizer=tiny_tokenizer(), seed=0)


@pytest.mark.parametrize("model_type", ["gpt_neo", "mistral", "gpt_oss"])
def test_what_can_be_served_is_built(model_type):
    own = {
        "gpt_neo": {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]]},
        "gpt_oss": {"num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": 16, "num_key_value_heads": 1},
        "mistral": {"num_key_value_heads": 1},
    }[model_type]
    fields = own if model_type == "gpt_neo" else {**LLAMA_LIKE, **own}
    build_model(config_for(model_type, config_kwargs=fields), tokenizer=tiny_tokenizer(), seed=0)


@pytest.mark.parametrize(
    ("model_type", "fields", "limit", "reason"),
    [
        ("llama", {"max_position_embeddings": 96}, 96, "names no more positions"),
        ("gpt2", {"n_positions": 64}, 64, "names no more positions"),
        ("mpt", {"max_seq_len": 48}, 48, "names no more positions"),
        ("bloom", {}, None, "names no limit"),
        (
            "phi3",
            {
                "max_position_embeddings": 96,
                "original_max_position_embeddings": 40,
                "hidden_size": 32,
                "num_attention_heads": 2,
                "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [8.0] * 8},
            },
            40,
            "longrope factors change",
        ),
    ],
)
def test_a_text_may_use_the_positions_that_the_model_treats_alike_in_any_batch(model_type, fields, limit, reason):
    found, why = position_limit(AutoConfig.for_model(model_type, **fields))
    assert found == limit
    assert reason in why


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_attention_can_be_chosen_and_computes_the_same(model_type):
    tokenizer = tiny_tokenizer()
    ids = torch.arange(10, 26)[None]
    found = []
    for implementation in ("eager", "sdpa"):
        model = build_model(config_for(model_type), tokenizer=tokenizer, seed=0).eval()
        model.use_attention(implementation)
        assert model.backbone.config._attn_implementation == implementation
        found.append(model.hidden_states(ids))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is not None, reason="flash_attn is installed")
def test_attention_whose_package_is_missing_is_named():
    model = build_model(config_for(), tokenizer=tiny_tokenizer(), seed=0)
    with pytest.raises(
        ConfigError, match=r"model\.attn_implementation: flash_attention_2: .*install what it needs.*sdpa"
    ):
        model.use_attention("flash_attention_2")
