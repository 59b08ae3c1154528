"""LoRA: small trained matrices beside the frozen weights of a model, and the trained rows of its new tokens.

An adapter's names in the model are peft's (`c_attn.lora_A.default.weight`), those in its file what
`PeftModel.from_pretrained` expects (`base_model.model. ... .c_attn.lora_A.weight`).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from phf_ray.adapter_folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CLASSIFIER_TASK, AdapterBase
from phf_ray.config import LoraSettings
from phf_ray.errors import ConfigError, DataError
from phf_ray.model_folder import check_names
from phf_ray.storage.files import write_text

FILE_PREFIX = "base_model.model."
"""Beginning of the names in an adapter's file."""
_NAME = "default"
"""peft's name of the only adapter."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """What is known of a model's adapter beside its weights."""

    base: AdapterBase
    first_new_row: int | None = None
    """Rows of the embedding and the head from here on belong to new tokens, and train; None: there are no new ones."""


def add_adapter(
    backbone: PreTrainedModel, settings: LoraSettings, *, base: AdapterBase, first_new_row: int | None, seed: int
) -> Adapter:
    """Freeze the model, and add matrices that train. They change nothing yet, because B is zero.

    The same seed gives the same matrices on any number of workers. Raises ConfigError for targets that don't exist.
    """
    from peft import LoraConfig

    targets = _targets(backbone, settings.target_modules)
    layers = [module for name, module in linear_layers(backbone).items() if _matches(name, targets)]
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # peft only divides by r
        lora_dropout=settings.dropout,
        target_modules=targets,
        use_rslora=settings.use_rslora,
        fan_in_fan_out=all(isinstance(layer, Conv1D) for layer in layers),
        task_type="CAUSAL_LM",
        revision=base.revision,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone.add_adapter(config, adapter_name=_NAME)
    config.base_model_name_or_path = base.name
    for parameter in token_parameters(backbone) if first_new_row is not None else []:
        parameter.requires_grad_()
    return Adapter(base, first_new_row)


def carry_over(classifier: PreTrainedModel, backbone: PreTrainedModel, *, head: str) -> None:
    """Give the adapter of a language model to the classifier on its trunk, whose head trains and is stored with it."""
    described: Any = backbone
    config = described.peft_config[_NAME]
    config.task_type, config.modules_to_save = CLASSIFIER_TASK, [head]
    target: Any = classifier
    target.peft_config = described.peft_config
    target._hf_peft_config_loaded = True


def linear_layers(backbone: PreTrainedModel) -> dict[str, nn.Module]:
    """Return the linear layers by name, without the head: the objective multiplies with that itself."""
    head = backbone.get_output_embeddings()
    return {
        name: module
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    }


def _targets(backbone: PreTrainedModel, wanted: list[str] | str) -> list[str]:
    layers = linear_layers(backbone)
    others = [name for name, _ in backbone.named_modules() if name not in layers]

    def is_layers_alone(target: str) -> bool:
        return any(_matches(name, [target]) for name in layers) and not any(_matches(name, [target]) for name in others)

    short = {name: name.rpartition(".")[2] for name in layers}
    all_linear = sorted({last if is_layers_alone(last) else name for name, last in short.items()})
    if isinstance(wanted, str):
        return all_linear
    unknown = [target for target in wanted if not is_layers_alone(target)]
    if unknown or not wanted:
        raise ConfigError(
            f"model.lora.target_modules: {unknown or '[]'} are no linear layers of {type(backbone).__name__} that an "
            f"adapter can stand beside; it has {', '.join(all_linear)}; or write all-linear"
        )
    return sorted(set(wanted))


def _matches(name: str, targets: list[str]) -> bool:
    """As peft matches names."""
    return any(name == target or name.endswith(f".{target}") for target in targets)


def token_parameters(backbone: PreTrainedModel) -> list[nn.Parameter]:
    """Return the parameters that have a row for each token: embedding, head unless they are tied, and its bias.

    A classifier's head has none.
    """
    head: Any = backbone.get_output_embeddings()
    embedding: Any = backbone.get_input_embeddings()
    found = [embedding.weight, getattr(head, "weight", None), getattr(head, "bias", None)]
    return list({id(each): each for each in found if each is not None}.values())


def trained_names(backbone: nn.Module) -> list[str]:
    return [name for name, parameter in backbone.named_parameters() if parameter.requires_grad]


def write_adapter_config(directory: Path, backbone: PreTrainedModel) -> None:
    described: Any = backbone
    values = described.peft_config[_NAME].to_dict() | {"inference_mode": True}
    # peft's sets have no order, and equal checkpoints have equal bytes.
    values = {key: sorted(value) if isinstance(value, set) else value for key, value in values.items()}
    write_text(directory / ADAPTER_CONFIG, json.dumps(values, indent=2, sort_keys=True) + "\n")


def save_adapter(directory: Path, backbone: PreTrainedModel, tensors: Mapping[str, Tensor]) -> None:
    """Write what was trained, and peft's description of it. `tensors`: the backbone's, by name."""
    stored = {_file_name(name): tensors[name].detach().cpu().contiguous() for name in trained_names(backbone)}
    save_file(stored, directory / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    write_adapter_config(directory, backbone)


def restore_adapter(directory: Path, backbone: PreTrainedModel) -> None:
    """Copy a checkpoint's adapter into a model that has the same one. Raises DataError if it is not the same."""
    path = directory / ADAPTER_WEIGHTS
    parameters = {_file_name(name): each for name, each in backbone.named_parameters() if each.requires_grad}
    try:
        with safe_open(path, framework="pt") as stored, torch.no_grad():
            names = set(stored.keys())
            check_names(path, missing=parameters.keys() - names, unexpected=names - parameters.keys())
            for name, parameter in parameters.items():
                parameter.copy_(stored.get_tensor(name))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise DataError(
            f"{path} can't be read as this model's adapter: {error}; start from another checkpoint"
        ) from None


def _file_name(name: str) -> str:
    return FILE_PREFIX + name.replace(f".{_NAME}.", ".")
