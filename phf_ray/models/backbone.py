"""Loads the weights of a model, and refuses weights that are damaged or do not fit.

Training, the engine and the scorers all load through this module.
"""

import pickle
import re
import textwrap
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)

from phf_ray.adapter_folder import base_folder, is_adapter
from phf_ray.errors import ConfigError, DataError, PhfError
from phf_ray.model_folder import (
    INNER_WRAPPER_PATTERN,
    WRAPPER_PATTERN,
    check_names,
    check_tokenizer,
    check_tokenizer_files,
    check_weight_files,
    refuse_quantised,
)

_WRAPPERS = {WRAPPER_PATTERN: "", INNER_WRAPPER_PATTERN: "."}


def load_backbone(
    source: str | Path, *, revision: str | None, dtype: torch.dtype | None, **options: Any
) -> PreTrainedModel:
    """Load a causal language model. Raises ConfigError if there is none, DataError if its weights can't be used.

    `options` go to transformers.
    """
    _refuse_classifier(source, revision=revision)
    model = _load(AutoModelForCausalLM, source, kind="causal language model", revision=revision, dtype=dtype, **options)
    model.train()
    return model


def load_classifier(source: str | Path, *, revision: str | None) -> PreTrainedModel:
    """Load a sequence classifier in fp32 from safetensors. Raises like `load_backbone`."""
    return _load(
        AutoModelForSequenceClassification,
        source,
        kind="sequence classifier",
        revision=revision,
        dtype=torch.float32,
        use_safetensors=True,
    )


def is_classifier(source: str | Path, *, revision: str | None = None) -> bool:
    """Return whether config.json says that the model judges texts, and so has no head to write them."""
    return bool(_classifiers(source, revision=revision))


def _classifiers(source: str | Path, *, revision: str | None) -> list[str]:
    try:
        config, _ = PreTrainedConfig.get_config_dict(source, revision=revision)
    except (OSError, ValueError):
        return []  # loading says more
    names = [str(name) for name in config.get("architectures") or []]
    return names if all(name.endswith("ForSequenceClassification") for name in names) else []


def _refuse_classifier(source: str | Path, *, revision: str | None) -> None:
    names = _classifiers(source, revision=revision)
    if names:
        raise DataError(
            f"{source} is a sequence classifier ({', '.join(names)}), not a language model; score with it "
            "(class_name: RewardModelScorer for a reward model), and give the model that it was trained from here"
        )


def _load(
    auto_class: Any, source: str | Path, *, kind: str, revision: str | None, dtype: torch.dtype | None, **options: Any
) -> PreTrainedModel:
    try:
        _check_files(source, revision=revision)
        loaded: Any = auto_class.from_pretrained(
            source,
            revision=revision,
            dtype=dtype if dtype is not None else "auto",
            trust_remote_code=False,
            weights_only=True,
            key_mapping=_WRAPPERS,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
    except pickle.UnpicklingError:
        # torch's own message explains how to run the code anyway.
        raise DataError(
            f"{source} can't be loaded: its weights are a pickle that holds more than tensors, perhaps code, so it was "
            "not run; save the model as safetensors, or fetch them again"
        ) from None
    except (OSError, ValueError, KeyError, ImportError) as error:
        at = f" at revision {revision!r}" if revision is not None else ""
        is_folder = (Path(source) / "config.json").is_file()
        raise (DataError if is_folder else ConfigError)(
            f"{str(source)!r}{at} can't be loaded as a {kind}: {first_words(error)}; give the folder of one"
        ) from None
    except (SafetensorError, RuntimeError, EOFError) as error:
        raise DataError(
            f"{source}: the weights can't be read: {first_words(error)}; write or fetch them again"
        ) from None
    model: PreTrainedModel = loaded[0]
    # transformers initialises missing weights at random and only warns.
    info: dict[str, Any] = loaded[1]
    for name, stored, expected in sorted(info["mismatched_keys"]):
        raise DataError(
            f"{source}: {name} has shape {tuple(stored)}, but the model of config.json needs {tuple(expected)}; "
            "correct config.json, or fetch both again"
        )
    check_names(source, missing=info["missing_keys"], unexpected=info["unexpected_keys"])
    refuse_non_finite(model, source)
    _forget_wrappers(model)
    return model


def _check_files(source: str | Path, *, revision: str | None) -> None:
    folder = Path(source)
    config, _ = PreTrainedConfig.get_config_dict(source, revision=revision)
    refuse_quantised(config, source)
    if (folder / "config.json").is_file():
        check_weight_files(folder)


def refuse_non_finite(model: nn.Module, source: str | Path) -> None:
    """Raise DataError if a weight is NaN or infinite."""
    for name, weight in model.named_parameters():
        if weight.numel() and not torch.stack(torch.aminmax(weight.detach())).isfinite().all():
            raise DataError(
                f"{source}: {name} has values that are NaN or infinite, so the model's output would be, too; take an "
                "earlier checkpoint, or fetch the weights again"
            )


def _forget_wrappers(model: PreTrainedModel) -> None:
    """Keep transformers, which reverses these renamings when it saves, from writing the wrappers' names again."""
    conversions: Any = model
    conversions._weight_conversions = [
        each for each in conversions._weight_conversions if not set(each.source_patterns) & _WRAPPERS.keys()
    ]


def load_tokenizer_beside(source: str | Path, *, revision: str | None = None) -> Any:
    """Load the tokenizer of a model's folder or hub name; an adapter without one has its base model's.

    Raises DataError if there is none, or one that is not fast.
    """
    try:
        if is_adapter(source) and not (Path(source) / "tokenizer_config.json").is_file():
            source = base_folder(source)
        if Path(source).is_dir():
            check_tokenizer_files(Path(source))
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
    except PhfError:
        raise
    except Exception as error:  # noqa: BLE001 - tokenizers raises plain Exception for a damaged file
        raise DataError(
            f"{source} can't be loaded as the tokenizer of a model: {first_words(error)}; put the tokenizer's files "
            "beside config.json"
        ) from None
    if not tokenizer.is_fast:
        raise DataError(
            f"{source}: its tokenizer, {type(tokenizer).__name__}, does not say which characters a token stands for; "
            "choose a model that has a tokenizer.json (tokenizers of bytes, such as ByT5's, have none)"
        )
    check_tokenizer(tokenizer, source)
    return tokenizer


def first_words(error: BaseException) -> str:
    """Return an error's first sentence: some of transformers' messages go on to list every architecture it knows."""
    return textwrap.shorten(re.split(r"\.\s", str(error).strip())[0], width=200) or type(error).__name__
