"""Tiny models of all tested architectures, and one saved as a phf-ray checkpoint."""

import torch
from tiny_models import tiny_tokenizer

from phf_ray.checkpoint import CheckpointInfo
from phf_ray.config import ModelConfig
from phf_ray.models.build import build_model
from phf_ray.models.saving import save_checkpoint

LLAMA_LIKE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": 0.2,
}
ARCHITECTURES = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "initializer_range": 0.2},
    "llama": {**LLAMA_LIKE, "num_key_value_heads": 1},
    "qwen3": {**LLAMA_LIKE, "num_key_value_heads": 1, "head_dim": 16},
    "mistral": {**LLAMA_LIKE, "num_key_value_heads": 1, "sliding_window": None},
    "gemma": {**LLAMA_LIKE, "num_key_value_heads": 1, "head_dim": 16},
    "gpt_neox": LLAMA_LIKE,  # Pythia
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 2, "rotary_dim": 8, "initializer_range": 0.2},  # bias on the head
    "phi": LLAMA_LIKE,  # bias on the head
    "opt": {
        "hidden_size": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "word_embed_proj_dim": 16,
    },
    "cohere": LLAMA_LIKE,  # logits x 0.0625
    "granite": {**LLAMA_LIKE, "logits_scaling": 4.0},
}
GPT2 = ARCHITECTURES["gpt2"]
VALUE_HEAD = {"value_head_config": {"is_detached": False}}


def config_for(model_type="gpt2", **settings):
    settings = {"config_kwargs": ARCHITECTURES.get(model_type, {}), **settings}
    return ModelConfig(path_or_name=None, model_type=model_type, **settings)


def pretrained(directory, **settings):
    return ModelConfig(path_or_name=str(directory), from_scratch=False, **settings)


def save(directory, *, seed=0, model_type="gpt2", **settings):
    tokenizer = tiny_tokenizer(control=True)
    model = build_model(
        config_for(model_type, num_additional_tokens=2, **settings), tokenizer=tokenizer, seed=seed
    ).eval()
    if model.value_head is not None:
        torch.nn.init.normal_(model.value_head.head.weight, generator=torch.Generator().manual_seed(seed))
    save_checkpoint(directory, model, tokenizer, CheckpointInfo(task="pep8", step=7))
    return model, tokenizer
