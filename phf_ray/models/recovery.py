"""Recovers a model from AlpacaFarm's weight difference, and checks its sum.

One file of the result, of about 2 GB, is in memory at a time. A reward model of AlpacaFarm (`backbone_model`,
`reward_head`) becomes a sequence classifier: `score` holds the head's weight. Classifiers of transformers have no bias
there, so config.json keeps it as `reward_bias`, unless it is 0: reward = logit + reward_bias.
"""

import json
import math
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from phf_ray.errors import ConfigError, DataError
from phf_ray.model_folder import check_names
from phf_ray.models.backbone import load_tokenizer_beside
from phf_ray.models.difference import BACKBONE, HEAD_BIAS, HEAD_WEIGHT, trained_weights
from phf_ray.models.recovery_checks import CHECKSUM_FILE, read_config, read_weight_sum
from phf_ray.models.stored_weights import StoredTensor
from phf_ray.models.weight_sum import is_weight_sum
from phf_ray.storage.files import publish, sync, write_text

REWARD_BIAS = "reward_bias"
"""Key of config.json: what to add to the logit of the classifier."""


def reward_bias_of(described: Any) -> float:
    """Return the bias of a model's configuration, 0 if it has none. Raises DataError if it is no number."""
    value = getattr(described, REWARD_BIAS, 0.0)
    try:
        bias = float(value)
    except (TypeError, ValueError):
        bias = math.nan
    if not math.isfinite(bias):
        where = f"{described.name_or_path}: {REWARD_BIAS} in config.json"
        raise DataError(f"{where} is {value!r}; write a number, or remove it")
    return bias


_LARGEST_FILE = 2 << 30
_BESIDE = (
    "generation_config.json",
    "tokenizer*",
    "*.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.jinja",
)


@dataclass(frozen=True, slots=True)
class Recovered:
    total: float
    """Sum of all weights."""
    reward_bias: float | None
    """Bias of a reward model's head; None: a language model."""


def recover(difference: Path, *, base: Path, output: Path, is_difference: bool = True) -> Recovered:
    """Write base + difference to `output`, a new folder, in fp32. It is whole or absent.

    `is_difference=False`: `difference` holds the weights themselves, of a reward model that AlpacaFarm trained, and the
    base gives its configuration alone. Raises like `trained_weights`, and DataError if the sum is wrong.
    """
    expected = read_weight_sum(difference) if is_difference else None
    weights = trained_weights(difference, base if is_difference else None)
    bias = float(weights[HEAD_BIAS].read()) if HEAD_BIAS in weights else None
    if bias is None and not is_difference:
        raise ConfigError(f"{difference} is no reward model of AlpacaFarm: it has no {HEAD_WEIGHT}; give one that is")
    output.parent.mkdir(parents=True, exist_ok=True)
    # Whole or absent: a killed command leaves a folder that begins with a dot.
    with tempfile.TemporaryDirectory(prefix=".recovering-", dir=output.parent) as scratch:
        folder = Path(scratch) / output.name
        folder.mkdir()
        _copy_files_beside(difference, folder)
        settings = (
            read_config(difference) if bias is None else _classifier(base, num_rows=_num_rows(weights), bias=bias)
        )
        _write_config(folder, settings)
        tokenizer = load_tokenizer_beside(folder)
        if bias is not None and tokenizer.pad_token_id is not None:
            # A classifier reads the last token that is no padding.
            _write_config(folder, settings | {"pad_token_id": tokenizer.pad_token_id})
        config = AutoConfig.from_pretrained(folder)
        _check_fits(weights, config, source=difference)
        total = _write_weights(weights, folder)
        if expected is not None and not is_weight_sum(expected, total, config):
            raise DataError(
                f"{output.name}: the weights sum to {total:.8g}, but {CHECKSUM_FILE} says {expected:.8g}, so {base} is "
                f"not the base model, or {difference} is damaged. AlpacaFarm's differences are to the first LLaMA 7B: "
                "give it as converted by transformers 4.29.2 or later, and fetch the difference again if that does not "
                "help"
            )
        publish(folder, output)
    return Recovered(total, bias)


def _copy_files_beside(source: Path, folder: Path) -> None:
    for pattern in _BESIDE:
        for path in source.glob(pattern):
            shutil.copyfile(path, folder / path.name)


def _write_config(folder: Path, config: Mapping[str, Any]) -> None:
    # Where the authors had the model says nothing here; `torch_dtype` is the old name of `dtype`.
    kept = {key: value for key, value in config.items() if key not in ("_name_or_path", "torch_dtype")}
    write_text(folder / "config.json", json.dumps(kept | {"dtype": "float32"}, indent=2) + "\n")


def _classifier(base: Path, *, num_rows: int, bias: float) -> dict[str, Any]:
    """Return the backbone's configuration, which that of a reward model only refers to, with one output."""
    config = read_config(base)
    [name, *_] = config.get("architectures") or ["LlamaForCausalLM"]
    config["architectures"] = [name.removesuffix("ForCausalLM") + "ForSequenceClassification"]
    config |= {"id2label": {"0": "reward"}, "label2id": {"reward": 0}, "vocab_size": num_rows}
    return config | ({REWARD_BIAS: bias} if bias else {})


def _num_rows(weights: Mapping[str, StoredTensor]) -> int:
    return next(stored.shape[0] for name, stored in weights.items() if name.endswith("embed_tokens.weight"))


def _name_in_result(name: str) -> str | None:
    """Return the weight's name in the recovered model. None: a reward model does not need it."""
    if name == HEAD_WEIGHT:
        return "score.weight"
    if name == HEAD_BIAS or name.startswith(f"{BACKBONE}lm_head."):
        return None
    return name.removeprefix(BACKBONE)


def _check_fits(weights: Mapping[str, StoredTensor], config: Any, *, source: Path) -> None:
    """Raise DataError if a model of this configuration has other weights."""
    auto: Any = AutoModelForSequenceClassification if HEAD_BIAS in weights else AutoModelForCausalLM
    with torch.device("meta"):
        wanted = {name: tuple(weight.shape) for name, weight in auto.from_config(config).state_dict().items()}
    found = {renamed: each.shape for name, each in weights.items() if (renamed := _name_in_result(name)) is not None}
    check_names(source, missing=wanted.keys() - found.keys(), unexpected=found.keys() - wanted.keys())
    for name, shape in wanted.items():
        if found[name] != shape:
            raise DataError(
                f"{source}: {name} has shape {found[name]}, but the model of config.json needs {shape}; fetch it again"
            )


def _write_weights(weights: Mapping[str, StoredTensor], folder: Path) -> float:
    """Write the weights, and return the sum of all, also of those that the result does not need."""
    total = sum(_sum(stored.read()) for name, stored in weights.items() if _name_in_result(name) is None)
    files = _files(weights)
    places: dict[str, str] = {}
    for number, names in enumerate(files, 1):
        file = "model.safetensors" if len(files) == 1 else f"model-{number:05d}-of-{len(files):05d}.safetensors"
        tensors = {renamed: weights[name].read() for renamed, name in names.items()}
        total += sum(map(_sum, tensors.values()))
        save_file(tensors, folder / file, metadata={"format": "pt"})
        sync(folder / file)
        places |= dict.fromkeys(tensors, file)
    if len(files) > 1:
        size = sum(_num_bytes(weights[name]) for names in files for name in names.values())
        index = {"metadata": {"total_size": size}, "weight_map": places}
        write_text(folder / "model.safetensors.index.json", json.dumps(index, indent=2) + "\n")
    return total


def _sum(tensor: torch.Tensor) -> float:
    return tensor.sum(dtype=torch.float64).item()


def _files(weights: Mapping[str, StoredTensor]) -> list[dict[str, str]]:
    """Return the weights by the files that they go to: name in the result -> name."""
    files: list[dict[str, str]] = [{}]
    size = 0
    for name, stored in weights.items():
        renamed = _name_in_result(name)
        if renamed is None:
            continue
        size += _num_bytes(stored)
        if files[-1] and size > _LARGEST_FILE:
            files.append({})
            size = _num_bytes(stored)
        files[-1][renamed] = name
    return files


def _num_bytes(stored: StoredTensor) -> int:
    return 4 * math.prod(stored.shape)
