"""Scores with any sequence classifier in a Hugging Face folder, such as a learned reward model."""

import dataclasses
from typing import Any, Literal

import numpy as np

from phf_ray.errors import ConfigError
from phf_ray.records import ScorerIdentity
from phf_ray.scorers.classifier_scorer import ClassifierScorer, ClassifierSettings


class SequenceClassifierSettings(ClassifierSettings):
    name: str = "classifier"
    path: str
    """Folder or hub id with safetensors weights, config and tokenizer."""
    revision: str | None = None
    label: int | str = 0
    """The output that is the score, by number or by its name in the model's config."""
    activation: Literal["sigmoid", "softmax", "none"] = "sigmoid"
    """Function that turns outputs into scores; none: the score is the output itself."""
    negate: bool = False
    """true for models whose output is higher for better texts. Scores must be higher for worse texts."""


class SequenceClassifierScorer(ClassifierScorer):
    Settings = SequenceClassifierSettings

    def __init__(self, settings: SequenceClassifierSettings):
        from phf_ray.models.backbone import load_classifier, load_tokenizer_beside

        model = load_classifier(settings.path, revision=settings.revision)
        tokenizer = load_tokenizer_beside(settings.path, revision=settings.revision)
        super().__init__(settings, model=model, tokenizer=tokenizer)
        self._settings: SequenceClassifierSettings = settings
        self._label = _label_index(settings.label, model.config)

    @classmethod
    def described(cls, settings: SequenceClassifierSettings) -> dict[str, Any]:
        known = super().described(settings)
        # If the label is a name, only the model's config knows its number.
        fields = {"activation", "negate", "precision"} | ({"label"} if isinstance(settings.label, int) else set())
        return {**known, "settings": settings.model_dump(mode="json", include=fields)}

    def identity(self) -> ScorerIdentity:
        unit = self.unit if self._settings.activation != "none" else "logit"
        return dataclasses.replace(super().identity(), unit=unit)

    def _identity_settings(self) -> dict[str, Any]:
        chosen = self._settings.model_dump(mode="json", include={"activation", "negate", "precision"})
        return {"label": self._label, **chosen}

    def _score(self, logits_C: Any) -> float:
        if self._settings.activation == "softmax":
            shifted_C = np.exp(logits_C - logits_C.max())
            score = float(shifted_C[self._label] / shifted_C.sum())
        elif self._settings.activation == "sigmoid":
            score = float(1 / (1 + np.exp(-logits_C[self._label])))
        else:
            score = float(logits_C[self._label])
        return -score if self._settings.negate else score


def _label_index(label: int | str, config: Any) -> int:
    names = {name: int(index) for index, name in config.id2label.items()}
    if isinstance(label, str) and label in names:
        return names[label]
    if isinstance(label, int) and 0 <= label < config.num_labels:
        return label
    raise ConfigError(f"label {label!r} is not an output of the model; choose one of {sorted(names)}")
