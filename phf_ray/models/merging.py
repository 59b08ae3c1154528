"""Loads a causal LM from any folder: a whole model as it is, an adapter merged into its base model.

Merged weights are W + alpha / r * B A, rounded once; a forward pass with the adapter beside W rounds twice. So logits
differ in the last bits of fp32 (3e-7 of their size).
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from phf_ray.adapter_folder import ADAPTER_WEIGHTS, base_folder, is_adapter, judges_texts
from phf_ray.checkpoint import read_info
from phf_ray.errors import DataError
from phf_ray.model_folder import check_names, weights_fingerprint
from phf_ray.models.adapters import FILE_PREFIX
from phf_ray.models.backbone import first_words, load_backbone, refuse_non_finite


def load_merged(
    source: str | Path, *, revision: str | None = None, dtype: torch.dtype | None, base: Path | None = None
) -> PreTrainedModel:
    """Load a causal LM whose weights all can train. Raises like `load_backbone`.

    `base`: the folder of the adapter's base model, in place of the one that adapter_config.json names.
    """
    if not is_adapter(source):
        return load_backbone(source, revision=revision, dtype=dtype)
    folder = Path(source)
    if judges_texts(folder):
        raise DataError(
            f"{folder} is the adapter of a classifier, not of a language model; score with it (class_name: "
            "RewardModelScorer for a reward model), and give the model that it was trained from here"
        )
    base = checked_base(folder, base=base)
    # Merged in fp32, as it was trained, and rounded after that.
    merged = merged_into(load_backbone(base, revision=None, dtype=torch.float32), folder)
    if dtype is not None and dtype != torch.float32:
        _round(merged, dtype)
    return merged


def merged_into(backbone: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Merge the adapter into its base model, in training mode. Raises DataError if it is damaged or of another one."""
    _resize(backbone, folder)
    merged = _merge(backbone, folder)
    refuse_non_finite(merged, folder)
    merged.requires_grad_()
    merged.train()
    return merged


def checked_base(folder: Path, *, base: Path | None = None) -> Path:
    """Return the folder of the adapter's base model. Raises DataError if its weights are others than in training."""
    found = base or base_folder(folder)
    info = read_info(folder)
    if info is not None and info.base is not None and weights_fingerprint(found) != info.base.fingerprint:
        raise DataError(
            f"{found} has other weights than the base model that {folder} was trained on ({info.base.name}), and an "
            "adapter fits no other; give the base model as it was"
        )
    return found


def _resize(backbone: PreTrainedModel, folder: Path) -> None:
    """Give the model as many rows as the adapter stores, which has rows for tokens that the base model lacks."""
    embedding: Any = backbone.get_input_embeddings()
    name = next(name for name, module in backbone.named_modules() if module is embedding)
    key = f"{FILE_PREFIX}{name}.weight"
    shape = stored_shapes(folder).get(key)
    if shape is not None and shape[0] != embedding.weight.shape[0]:
        backbone.resize_token_embeddings(shape[0], mean_resizing=False)


def stored_shapes(folder: Path) -> dict[str, list[int]]:
    path = folder / ADAPTER_WEIGHTS
    if not path.is_file():
        raise DataError(f"{folder} has no {ADAPTER_WEIGHTS}; save the adapter as safetensors")
    try:
        with safe_open(path, framework="pt") as stored:
            return {name: stored.get_slice(name).get_shape() for name in stored.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} can't be read: {first_words(error)}; write or fetch it again") from None


def _merge(backbone: PreTrainedModel, folder: Path) -> PreTrainedModel:
    from peft import PeftModel, get_peft_model_state_dict

    own = {f"{FILE_PREFIX}{name}" for name in backbone.state_dict()}
    try:
        wrapped = PeftModel.from_pretrained(backbone, str(folder), torch_device="cpu")
    except (ValueError, TypeError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise DataError(
            f"{folder} is no adapter for its base model: {first_words(error)}; give the base model that it was trained "
            "on"
        ) from None
    # peft only warns of what is missing, and loads what remains.
    wanted, stored = set(get_peft_model_state_dict(wrapped, save_embedding_layers=False)), set(stored_shapes(folder))
    check_names(folder, missing=wanted - stored, unexpected=stored - wanted - own)
    merged: PreTrainedModel = wrapped.merge_and_unload()
    return merged


def _round(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Round the weights alone: transformers, too, keeps buffers exact, such as the frequencies of rotations."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype
