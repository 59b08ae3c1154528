"""A LoRA adapter as training leaves it: a folder beside that of its base model."""

from pathlib import Path

import torch
from tiny_models import tiny_gpt2, tiny_tokenizer

from phf_ray.checkpoint import BaseInfo, CheckpointInfo
from phf_ray.config import ModelConfig
from phf_ray.model_folder import weights_fingerprint
from phf_ray.models.build import build_model
from phf_ray.models.saving import save_checkpoint


def write_base(folder: Path, *, seed: int = 0) -> Path:
    tokenizer = tiny_tokenizer()
    for what in (tiny_gpt2(tokenizer, seed=seed), tokenizer):
        what.save_pretrained(folder)
    return folder


def write_adapter(folder: Path, *, base: Path, seed: int = 3) -> Path:
    """Write an adapter that changes what its base model says."""
    tokenizer = tiny_tokenizer()
    config = ModelConfig(path_or_name=str(base), from_scratch=False, lora={"r": 4})
    model = build_model(config, tokenizer=tokenizer, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 5)
    info = CheckpointInfo(base=BaseInfo(name=str(base), fingerprint=weights_fingerprint(base)))
    save_checkpoint(folder, model, tokenizer, info)
    return folder
