"""Any sequence classifier in a Hugging Face folder, such as a learned reward model."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
import transformers

from phf_ray.errors import ConfigError
from phf_ray.records import Scored, ScorerIdentity
from phf_ray.scorers.base import Scorer, ScorerSettings
from phf_ray.scorers.classifier import TextClassifier, weights_hash


class SequenceClassifierSettings(ScorerSettings):
    name: str = "classifier"
    path: str
    """Folder, or hub id, with safetensors weights, config and tokenizer."""
    revision: str | None = None
    label: int | str = 0
    """The output that is the score, by number or by its name in the model's config."""
    activation: Literal["sigmoid", "softmax", "none"] = "sigmoid"
    """What turns outputs into scores; none: the output itself."""
    negate: bool = False
    """true for models whose output is higher for better texts: scores are higher for worse ones."""
    device: str = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    tokens_per_batch: int | None = None


class SequenceClassifierScorer(Scorer):
    Settings = SequenceClassifierSettings
    unit = "probability"
    packages = ("torch", "transformers", "tokenizers")

    def __init__(self, settings: SequenceClassifierSettings):
        super().__init__(settings)
        self._settings: SequenceClassifierSettings = settings
        try:
            model = transformers.AutoModelForSequenceClassification.from_pretrained(
                settings.path, revision=settings.revision, use_safetensors=True, dtype=torch.float32
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(settings.path, revision=settings.revision)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"no sequence classifier at {settings.path} ({reason}); give its folder") from None
        self._label = _label_index(settings.label, model.config)
        self._weights_hash = weights_hash(model)
        self._classifier = TextClassifier(
            model,
            tokenizer,
            device=settings.device,
            precision=settings.precision,
            tokens_per_batch=settings.tokens_per_batch,
        )

    @property
    def num_truncated(self) -> int:
        """Texts so far that were cut at the model's limit."""
        return self._classifier.num_truncated

    def score_all(self, texts: Sequence[str]) -> list[Scored]:
        return [
            Scored(None, logits_C) if isinstance(logits_C, str) else Scored(self._score(logits_C.astype(np.float64)))
            for logits_C in self._classifier.logits(texts)
        ]

    def identity(self) -> ScorerIdentity:
        settings = self._settings
        return ScorerIdentity(
            self.name,
            type(self).__name__,
            self.unit if settings.activation != "none" else "logit",
            super().identity().versions,
            self._weights_hash,
            {
                "label": self._label,
                "activation": settings.activation,
                "negate": settings.negate,
                "precision": settings.precision,
            },
        )

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
    raise ConfigError(f"label {label!r} is no output of the model; choose one of {sorted(names)}")
