"""Checks a model's folder, and the names of its weights, before anything runs: training, the engine and scorers agree.

This module imports no torch. It reads JSON, the first bytes of files and the headers of safetensors files.
"""

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from phf_ray.errors import DataError

WRAPPER_PATTERN = r"^(?:(?:module|_orig_mod|_forward_module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.)+"
"""Beginning of a weight's name that DataParallel, DDP, DeepSpeed, torch.compile, FSDP or checkpointing added."""
INNER_WRAPPER_PATTERN = r"\.(?:(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.)+"
"""The same around a layer inside the model, with the dot before it."""

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_TOKENIZER_SUFFIXES = (".json", ".model", ".txt")
_FLOATS = {"F64", "F32", "F16", "BF16"}
# Files in which quantisers describe the weights, if config.json does not.
_QUANTISERS_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
_QUANTISED_NAME = re.compile(r"\.(qweight|qzeros|g_idx|SCB|absmax|quant_map|quant_state|weight_scale|weight_packed)\b")
# Buffers that older versions of transformers stored, and heads that a model may carry besides its own.
_HARMLESS_NAME = re.compile(
    r"(^|\.)(value_head|v_head|pooler)\."
    r"|\.(attn|attention|self_attn)\.bias$|(^|\.)(masked_bias|causal_mask|position_ids|version|_float_tensor)$"
    r"|rotary_emb\.(inv_freq|cos_cached|sin_cached)$"
)
_SHOWN = 5


def check_weight_files(folder: Path) -> None:
    """Raise DataError if the files in the folder can't be the weights of a whole model in plain numbers."""
    for name in _QUANTISERS_FILES:
        if (folder / name).is_file():
            raise DataError(f"{folder}: {_quantised(name)}")
    if (folder / "adapter_config.json").is_file():
        raise DataError(
            f"{folder} holds an adapter (adapter_config.json) beside a model, which would be left out; move one of "
            "them, or merge the adapter: phf merge-adapter"
        )
    for path in weight_files(folder):
        _refuse_pointer(path)
        _refuse_integers(path)


def weights_fingerprint(folder: Path) -> str:
    """Hash config.json and the weights that are loaded from the folder. Takes about a second per GB."""
    digest = hashlib.blake2b(digest_size=16)
    for path in [folder / "config.json", *weight_files(folder)]:
        digest.update(path.name.encode())
        with path.open("rb") as source:
            while chunk := source.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def check_tokenizer_files(folder: Path) -> None:
    """Raise DataError if a file of the tokenizer is a Git LFS pointer. The weights may be: a tokenizer needs none."""
    for path in sorted(folder.iterdir()):
        if path.suffix in _TOKENIZER_SUFFIXES:
            _refuse_pointer(path)


def _refuse_pointer(path: Path) -> None:
    if path.is_file() and path.stat().st_size < 1024 and path.read_bytes().startswith(_LFS_POINTER):
        raise DataError(f"{path} is a Git LFS pointer, not the file itself; run `git lfs pull` in {path.parent}")


def refuse_quantised(config: Mapping[str, Any], source: str | Path) -> None:
    """Raise DataError if config.json says that the weights are quantised."""
    for part in (config, *(value for value in config.values() if isinstance(value, Mapping))):
        described = part.get("quantization_config") or part.get("compression_config")
        if described:
            method = described.get("quant_method") if isinstance(described, Mapping) else None
            raise DataError(f"{source}: {_quantised(str(method or 'quantization_config'))}")


def _quantised(how: str) -> str:
    return f"the weights are quantised ({how}), and phf-ray reads plain numbers only; give the model as it was before"


def weight_files(folder: Path) -> list[Path]:
    """Return the files that transformers would load. Raises DataError if there are none or some are missing."""
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _parts(index)
    others = sorted(
        path.name for path in folder.glob("*") if path.suffix in (".gguf", ".h5", ".msgpack", ".pth", ".onnx")
    )
    found = f"{', '.join(others[:_SHOWN])} is of another kind" if others else "it has neither"
    raise DataError(
        f"{folder} has no weights that can be loaded: {found}; give a folder with model.safetensors or "
        "pytorch_model.bin, whole or in parts"
    )


def _parts(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{index} is not an index of weights ({type(error).__name__}: {error}); fetch it again"
        ) from None
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise DataError(f"{index.parent} lacks {_some(missing)}, listed in {index.name}; fetch them again")
    return [index.parent / name for name in names]


def _refuse_integers(path: Path) -> None:
    """Raise DataError if a safetensors file stores weights as integers or fp8: loading would take them as they are."""
    if path.suffix != ".safetensors":
        return
    for name, entry in _header(path).items():
        if name.endswith("weight") and isinstance(entry, Mapping) and entry.get("dtype") not in _FLOATS:
            reason = _quantised(f"{name} is stored as {entry.get('dtype')}")
            raise DataError(f"{path}: {reason}")


def _header(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if not 0 < size <= path.stat().st_size - 8:
            raise DataError(f"{path} is not a whole safetensors file; write or fetch it again")
        try:
            header = json.loads(file.read(size))
        except ValueError:
            header = None
    if not isinstance(header, dict):
        raise DataError(f"{path} is not a whole safetensors file; write or fetch it again")
    return header


def unwrapped_name(name: str) -> str:
    """Return a weight's name without the names that wrappers of the model added."""
    return re.sub(INNER_WRAPPER_PATTERN, ".", re.sub(WRAPPER_PATTERN, "", name))


def check_names(source: str | Path, *, missing: Iterable[str], unexpected: Iterable[str]) -> None:
    """Raise DataError if weights are missing, which would be random, or if the model has no place for some.

    Tolerates buffers that older versions of transformers stored, value heads, and poolers.
    """
    lacking = sorted(missing)
    unknown = sorted(name for name in unexpected if not _HARMLESS_NAME.search(name))
    if not lacking and not unknown:
        return
    found = [f"the weights lack {_some(lacking)}"] * bool(lacking)
    found += [f"the model has no place for {_some(unknown)}"] * bool(unknown)
    raise DataError(f"{source}: {', and '.join(found)}; {_remedy(lacking, unknown)}")


def _remedy(lacking: Collection[str], unknown: Collection[str]) -> str:
    if any(_QUANTISED_NAME.search(name) for name in unknown):
        return "these weights are quantised; give the model as it was before"
    if any(".lora_" in name or name.startswith("base_model.") for name in unknown):
        return "these are weights of an adapter; merge it into its base model: phf merge-adapter"
    if not unknown:
        return "write or fetch them again, correct config.json, or choose a model that was trained for this use"
    if not lacking:
        return "correct config.json, whose model is smaller than the weights, or fetch both again"
    return (
        "the weights belong to another architecture than config.json, or have other names; save them with transformers"
    )


def _some(names: list[str]) -> str:
    return f"{names[:_SHOWN]} ({len(names)} in all)"


def check_tokenizer(tokenizer: Any, source: str | Path) -> None:
    """Raise DataError if the tokenizer has no vocabulary: transformers makes one up if the files are missing."""
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise DataError(f"{source} has no tokenizer: its vocabulary is missing; put tokenizer.json beside config.json")
