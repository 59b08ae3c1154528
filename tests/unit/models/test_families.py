"""Every family of causal models that transformers has, as tiny as its fields allow."""

import pytest
import torch
from model_kinds import config_for, pretrained, save
from tiny_models import BAD, GOOD, tiny_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from phf_ray.checkpoint import CheckpointInfo
from phf_ray.models.build import build_model
from phf_ray.models.loading import load_checkpoint
from phf_ray.models.saving import save_checkpoint
from phf_ray.models.shape import planned_shape

WIDTHS = (
    "hidden_size", "d_model", "n_embd", "emb_dim", "embedding_size", "word_embed_proj_dim", "intermediate_size",
    "ffn_dim", "d_inner", "n_inner", "d_ff", "ffn_hidden_size", "decoder_ffn_dim",
)  # fmt: skip
COUNTS = (
    "num_hidden_layers", "num_layers", "n_layer", "n_layers", "decoder_layers", "num_attention_heads", "n_head",
    "n_heads", "num_heads", "attention_heads", "decoder_attention_heads", "num_key_value_heads", "num_experts_per_tok",
)  # fmt: skip
OTHERS = {"head_dim": 16, "max_position_embeddings": 64, "n_positions": 64, "rotary_dim": 8, "is_decoder": True}
EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
SMALL = dict.fromkeys(WIDTHS, 32) | dict.fromkeys(COUNTS, 2) | OTHERS | EXPERTS
MAX_WEIGHTS = 3_000_000


def tiny_fields(family):
    kind = type(AutoConfig.for_model(family))
    return {name: value for name, value in SMALL.items() if name in kind.__dataclass_fields__}


def is_tiny(family, fields):
    """Count the weights without allocating them."""
    with torch.device("meta"):
        config = AutoConfig.for_model(family, **fields, vocab_size=300, pad_token_id=0)
        return sum(each.numel() for each in AutoModelForCausalLM.from_config(config).parameters()) < MAX_WEIGHTS


def tiny_model(family, tokenizer):
    """Return None for a family whose models are refused, or can't be made tiny with these fields alone."""
    try:
        fields = tiny_fields(family)
        if not is_tiny(family, fields):
            return None
        config = config_for(family, config_kwargs=fields, num_additional_tokens=2)
        return build_model(config, tokenizer=tokenizer, seed=0)
    except Exception:  # noqa: BLE001 - each family has its own way to refuse these fields
        return None


def embedding_gradient(model, ids):
    """The gradient that reaches the embedding by its lookup alone: a tied head would add its own."""
    states = model.train().hidden_states(ids)
    (states * torch.randn_like(states)).sum().backward()
    return model.backbone.get_input_embeddings().weight.grad


def test_the_embedding_of_every_structural_token_learns_in_every_family():
    tokenizer = tiny_tokenizer(control=True)
    structural = [tokenizer.eos_token_id, *tokenizer.convert_tokens_to_ids([GOOD, BAD])]
    ids = torch.tensor([[structural[0], structural[1], 40, 41, structural[0], structural[2], 42]])
    models = {family: tiny_model(family, tokenizer) for family in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}
    models = {family: model for family, model in models.items() if model is not None}
    stuck = []
    for family, model in models.items():
        rows = model.backbone.get_input_embeddings().weight[structural]
        moved = embedding_gradient(model, ids)[structural]
        if not (rows.any(dim=1).all() and moved.any(dim=1).all()):
            stuck.append(family)
    assert not stuck
    assert len(models) > 80
    assert {"llama", "mistral", "qwen2", "qwen3", "gemma", "phi", "phi3", "opt", "gpt2", "gpt_neox"} <= models.keys()


@pytest.mark.parametrize("family", ["llama", "opt", "gemma"])
def test_the_embedding_of_end_of_text_learns_after_a_restart(tmp_path, family):
    _, tokenizer = save(tmp_path, model_type=family, config_kwargs=tiny_fields(family))
    end = tokenizer.eos_token_id
    assert embedding_gradient(load_checkpoint(tmp_path).model, torch.tensor([[end, 40, 41]]))[end].any()


def test_a_row_of_zeros_in_loaded_weights_stays_and_learns(tmp_path):
    model, tokenizer = save(tmp_path, model_type="llama", config_kwargs=tiny_fields("llama"))
    end = tokenizer.eos_token_id
    with torch.no_grad():
        model.backbone.get_input_embeddings().weight[end] = 0
    save_checkpoint(tmp_path, model, tokenizer, CheckpointInfo())
    for loaded in (load_checkpoint(tmp_path).model, build_model(pretrained(tmp_path), tokenizer=tokenizer, seed=0)):
        assert not loaded.backbone.get_input_embeddings().weight[end].any()
        assert embedding_gradient(loaded, torch.tensor([[end, 40, 41]]))[end].any()


def test_the_first_token_of_a_document_is_not_uniform_for_ever():
    """A row of zeros made every logit after it zero in families that norm what they look up."""
    tokenizer = tiny_tokenizer()
    model = build_model(config_for("llama"), tokenizer=tokenizer, seed=0)
    logits = model.hidden_states(torch.tensor([[tokenizer.eos_token_id]])) @ model.head()[0].T
    assert logits.std() > 0.01


@pytest.mark.parametrize("family", ["phi3", "glm4", "smollm3"])
def test_a_plan_needs_no_row_for_a_padding_token_that_the_tokenizer_lacks(family):
    tokenizer = tiny_tokenizer()
    config = config_for(family, config_kwargs=tiny_fields(family))
    built = build_model(config, tokenizer=tokenizer, seed=0)
    assert planned_shape(config, tokenizer=tokenizer).num_parameters == sum(each.numel() for each in built.parameters())
