"""The base model that adapters are trained on: which one it is, what it can't be, and its weights in 4 bits."""

import importlib.util
from pathlib import Path
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from phf_ray.adapter_folder import AdapterBase, is_adapter
from phf_ray.config import ModelConfig
from phf_ray.errors import ConfigError
from phf_ray.models.backbone import load_backbone


def base_model(config: ModelConfig) -> AdapterBase:
    """Return the base model as adapter_config.json will name it. Raises ConfigError if adapters can't name it."""
    if config.from_scratch or config.path_or_name is None:
        raise ConfigError(
            "model.lora with model.from_scratch: true would freeze random weights, which no adapter holds; set "
            "model.from_scratch: false and model.path_or_name, or give --checkpoint-path"
        )
    if is_adapter(config.path_or_name):
        raise ConfigError(
            f"model.lora: {config.path_or_name} is itself an adapter, and one on top of it would have no base model "
            "for others to load; merge it first: phf merge-adapter"
        )
    folder = Path(config.path_or_name)
    # A relative path would mean another folder elsewhere.
    return AdapterBase(str(folder.resolve()) if folder.is_dir() else config.path_or_name, config.revision)


def refuse_rows_without_tokens(config: ModelConfig, *, num_rows: int, wanted: int) -> None:
    """Raise ConfigError if a frozen model would get rows that neither train nor are stored."""
    if config.lora is not None and config.num_additional_tokens == 0:
        raise ConfigError(
            f"model.pad_vocab_to_multiple_of={config.pad_vocab_to_multiple_of} would give the frozen model {wanted} "
            f"rows in place of {num_rows}, which no adapter holds; remove it"
        )


def refuse_4bit(*, has_gpu: bool, parallelism: str) -> None:
    """Raise ConfigError unless the weights can be kept in 4 bits."""
    if not has_gpu:
        raise ConfigError(
            "model.load_in_4bit needs NVIDIA GPUs, and the workers have none; remove it to keep the weights in fp32, "
            "or set training.resources_per_worker: {GPU: 1} if only this machine lacks one"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError("model.load_in_4bit needs bitsandbytes, which is not installed; install it on every node")
    if parallelism != "ddp":
        raise ConfigError(f"model.load_in_4bit: training.parallelism: {parallelism} can't shard 4-bit weights; use ddp")


def load_in_4bit(folder: Path) -> PreTrainedModel:
    """Load the model onto the GPU with its linear layers in 4 bits (NF4, as in QLoRA)."""
    refuse_4bit(has_gpu=torch.cuda.is_available(), parallelism="ddp")
    options: dict[str, Any] = {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        ),
        "device_map": {"": torch.cuda.current_device()},
    }
    return load_backbone(folder, revision=None, dtype=torch.float32, **options)
