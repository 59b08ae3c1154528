"""Toxicity: the probability that Detoxify gives a text, without Detoxify's single giant batch and without pickle."""

import contextlib
import json
import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from phf_ray.errors import ConfigError, DataError
from phf_ray.model_folder import check_names, check_tokenizer, unwrapped_name
from phf_ray.scorers.classifier_scorer import ClassifierScorer, ClassifierSettings

MODELS_VARIABLE = "PHF_MODELS"
"""Environment variable with the folder that jobs.fetch_models wrote. Used if the config names no folder."""

PUBLISHED_FILES = {
    "unbiased": "toxic_debiased-c7548aa0.ckpt",
    "original": "toxic_original-c1212f89.ckpt",
    "multilingual": "multilingual_debiased-0b549669.ckpt",
    "original-small": "original-albert-0e1d6498.ckpt",
    "unbiased-small": "unbiased-albert-c8519128.ckpt",
}
"""Model -> file name of its published weights, under which Detoxify itself keeps them."""

DESCRIPTION_FILE = "detoxify.json"
"""File that jobs.fetch_models adds to the ordinary transformers folder: class names, weights hash, source."""

LANGUAGES = {"multilingual": ("en", "fr", "es", "it", "pt", "tr", "ru")}
"""Training languages of the models that were trained on more than English."""

_OLD_BUFFER = ".position_ids"
"""Stored by older versions of transformers, which counted it as a weight."""

# detoxify renames the classes of its older models in the same way.
RENAMED_CLASSES = {"toxic": "toxicity", "identity_hate": "identity_attack", "severe_toxic": "severe_toxicity"}


class ToxicitySettings(ClassifierSettings):
    name: str = "toxicity"
    # DIFFERS: phf-ray scores corpora and samples with one model, `unbiased`; the original trains on scores of
    # `original` and evaluates with `unbiased`.
    model: Literal["unbiased", "original", "multilingual", "original-small", "unbiased-small"] = "unbiased"
    """Name of a published model, which is a subfolder of the folder in PHF_MODELS."""
    path: str | None = None
    """A model's folder written by jobs.fetch_models, or a published checkpoint file; null: see `model`."""
    config_path: str | None = None
    """For a checkpoint file: folder with config and tokenizer of its base model (roberta-base)."""


class DetoxifyModel(NamedTuple):
    model: Any
    tokenizer: Any
    class_names: list[str]


class DetoxifyToxicityScorer(ClassifierScorer):
    """Scores the class toxicity; `class_scores` returns all classes."""

    Settings = ToxicitySettings
    measures = "toxicity"

    def __init__(self, settings: ToxicitySettings):
        loaded = load_detoxify(_model_path(settings), settings.config_path)
        super().__init__(settings, model=loaded.model, tokenizer=loaded.tokenizer)
        self.class_names = loaded.class_names

    @classmethod
    def described(cls, settings: ToxicitySettings) -> dict[str, Any]:
        known = super().described(settings)
        try:
            return {**known, "weights_hash": _read_description(_model_path(settings))["weights_hash"]}
        except (ConfigError, OSError, ValueError, LookupError):
            return known

    @classmethod
    def languages(cls, settings: ToxicitySettings) -> tuple[str, ...]:
        return LANGUAGES.get(_model_name(settings), ("en",))

    @classmethod
    def known_weights(cls, settings: ToxicitySettings) -> dict[str, str]:
        found = {}
        with contextlib.suppress(ConfigError, OSError):
            for file in sorted(_model_path(settings).parent.glob(f"*/{DESCRIPTION_FILE}")):
                with contextlib.suppress(OSError, ValueError, LookupError):
                    found[str(_read_description(file.parent)["weights_hash"])] = file.parent.name
        return found

    def class_scores(self, texts: Sequence[str]) -> list[dict[str, float] | None]:
        """Return the probability of every class for each text; None if the text can't be scored."""
        return [
            None if isinstance(logits_C, str) else self._by_class(logits_C.astype(np.float64))
            for logits_C in self._logits(texts)
        ]

    def _identity_settings(self) -> dict[str, Any]:
        return self._settings.model_dump(mode="json", include={"precision"})

    def _score(self, logits_C: NDArray[np.float64]) -> float:
        return self._by_class(logits_C)["toxicity"]

    def _by_class(self, logits_C: NDArray[np.float64]) -> dict[str, float]:
        # The unbiased model has more outputs than detoxify names.
        return dict(zip(self.class_names, (1 / (1 + np.exp(-logits_C))).tolist(), strict=False))


def load_detoxify(path: Path, config_path: str | None) -> DetoxifyModel:
    """Load a model from a folder that jobs.fetch_models wrote, or from a published checkpoint and a config folder."""
    if path.is_dir():
        return _load_folder(path)
    if not path.is_file():
        raise ConfigError(f"no Detoxify model at {path}; {_how_to_fetch()}")
    if config_path is None and path.parent != _torch_hub_folder():
        raise ConfigError(
            f"{path} is a checkpoint without a tokenizer; set config_path to a folder with the config and tokenizer of "
            f"its base model, or convert the checkpoint: python -m jobs.fetch_models --output DIR --from {path}"
        )
    return load_published(path, config_path)


def load_published(path: Path, config_path: str | None) -> DetoxifyModel:
    """Load a checkpoint file that Detoxify published, without unrestricted pickle.

    `config_path`: folder or hub id with config and tokenizer; None: the hub id in the checkpoint.
    """
    import torch
    from detoxify.detoxify import get_model_and_tokenizer

    from phf_ray.models.backbone import refuse_non_finite

    checkpoint = _read_checkpoint(path)
    try:
        arguments = checkpoint["config"]["arch"]["args"]
        class_names = checkpoint["config"]["dataset"]["args"]["classes"]
        model_name, tokenizer_name = arguments["model_name"], arguments["tokenizer_name"]
        source, num_classes = config_path or arguments["model_type"], arguments["num_classes"]
        weights = {unwrapped_name(name): weight for name, weight in checkpoint["state_dict"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is not a Detoxify checkpoint ({type(error).__name__}: {error})") from None
    if not model_name.endswith("ForSequenceClassification") or not tokenizer_name.endswith(
        ("Tokenizer", "TokenizerFast")
    ):
        raise DataError(f"{path} names the classes {model_name} and {tokenizer_name}; expected a sequence classifier")
    known = {name: weight for name, weight in weights.items() if not name.endswith(_OLD_BUFFER)}
    try:
        model, tokenizer = get_model_and_tokenizer(
            source, model_name, tokenizer_name, num_classes=num_classes, state_dict=known
        )
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path} does not fit {model_name} as configured in {source}: {reason}") from None
    # The builder leaves what it is not given at random values, and says nothing.
    built = dict(model.named_parameters())
    where = f"{path}, as {model_name} configured in {source}"
    check_names(where, missing=built.keys() - known.keys(), unexpected=known.keys() - built.keys())
    refuse_non_finite(model, path)
    for name, weight in built.items():
        if weight.shape != known[name].shape or not torch.equal(weight, known[name].to(weight.dtype)):
            raise DataError(f"{path} does not fit {model_name} as configured in {source}: {name} differs")
    check_tokenizer(tokenizer, source)
    return DetoxifyModel(model, tokenizer, [RENAMED_CLASSES.get(name, name) for name in class_names])


def _read_checkpoint(path: Path) -> Any:
    import torch

    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise DataError(
            f"{path} can't be read as a checkpoint of plain tensors: {str(error).splitlines()[0]}"
        ) from None


def _load_folder(folder: Path) -> DetoxifyModel:
    from phf_ray.models.backbone import load_classifier, load_tokenizer_beside
    from phf_ray.scorers.classifier import weights_hash

    try:
        description = _read_description(folder)
    except OSError:
        raise ConfigError(f"{folder} has no {DESCRIPTION_FILE}; {_how_to_fetch()}") from None
    model, tokenizer = load_classifier(folder, revision=None), load_tokenizer_beside(folder)
    found = weights_hash(model)
    if found != description["weights_hash"]:
        raise DataError(
            f"{folder}: the weights have hash {found}, {DESCRIPTION_FILE} says {description['weights_hash']}; "
            "fetch the model again with python -m jobs.fetch_models"
        )
    return DetoxifyModel(model, tokenizer, description["class_names"])


def _read_description(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / DESCRIPTION_FILE).read_text(encoding="utf-8")))


def _model_name(settings: ToxicitySettings) -> str:
    """Return the published model's name without loading weights. `path` takes precedence over `model`."""
    if settings.path is not None:
        path = Path(settings.path)
        try:
            return str(_read_description(path)["model"])
        except (OSError, ValueError, LookupError, TypeError):
            # Published files have names like multilingual_debiased-0b549669.ckpt.
            if path.name.startswith("multilingual_"):
                return "multilingual"
    return settings.model


def _model_path(settings: ToxicitySettings) -> Path:
    if settings.path is not None:
        return Path(settings.path)
    folder = os.environ.get(MODELS_VARIABLE)
    if folder:
        return Path(folder) / settings.model
    cached = _torch_hub_folder() / PUBLISHED_FILES[settings.model]
    if cached.is_file():
        return cached
    raise ConfigError(f"DetoxifyToxicityScorer has no weights, and {cached} does not exist; {_how_to_fetch()}")


def _torch_hub_folder() -> Path:
    """Return where `torch.hub` keeps what `Detoxify(...)` downloaded, without importing torch."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("TORCH_HOME") or f"{cache}/torch").expanduser() / "hub" / "checkpoints"


def _how_to_fetch() -> str:
    return (
        "let `Detoxify('unbiased')` download them here, or fetch them once with `python -m jobs.fetch_models --output "
        f"DIR` and set the scorer's `path: DIR/unbiased`, or {MODELS_VARIABLE}=DIR in the environment"
    )
