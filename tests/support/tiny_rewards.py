"""A tiny reward model with known weights, in a folder as training leaves it."""

import torch
from tiny_models import tiny_gpt2, tiny_tokenizer

from phf_ray.checkpoint import CheckpointInfo, RowInfo
from phf_ray.generation.chat import template_source
from phf_ray.models.language_model import LanguageModel
from phf_ray.models.reward_model import as_reward_model
from phf_ray.models.saving import save_checkpoint


def write_reward_model(folder, *, pad=None, make=tiny_gpt2, template="alpaca", length=48, compat=None):
    tokenizer = tiny_tokenizer()
    if pad is not None:
        tokenizer.add_special_tokens({"pad_token": pad})
    backbone = make(tokenizer)
    backbone.config.pad_token_id = tokenizer.eos_token_id if pad is None else tokenizer.pad_token_id
    model = as_reward_model(LanguageModel(backbone))
    torch.nn.init.normal_(model.backbone.score.weight, generator=torch.Generator().manual_seed(0))
    rows = RowInfo(template=template, template_text=template_source(template), length=length)
    save_checkpoint(folder, model, tokenizer, CheckpointInfo(rows=rows, compat=compat))
    return folder
