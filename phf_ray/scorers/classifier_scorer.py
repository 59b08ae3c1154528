"""The base class of scorers that run a sequence classifier. Importing it loads no torch; building a scorer does."""

import dataclasses
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from phf_ray.records import Scored, ScorerIdentity
from phf_ray.scorers.base import Scorer, ScorerSettings
from phf_ray.scorers.origin import config_name


class ClassifierSettings(ScorerSettings):
    """How a model is run."""

    device: str = "auto"
    """auto: a GPU if there is one."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Scores with bf16 differ from those with fp32 by about 1e-3."""
    tokens_per_batch: int | None = None
    """Tokens per batch, padding included; null: 1024 on a CPU, 32768 on a GPU."""


class ClassifierScorer(Scorer):
    """A scorer that runs a sequence classifier, whose weights are part of the scorer's identity."""

    unit = "probability"
    packages = ("torch", "transformers", "tokenizers")
    runs_on_device = True
    is_batched = True

    def __init__(self, settings: ClassifierSettings, *, model: Any, tokenizer: Any):
        from phf_ray.scorers.classifier import TextClassifier, weights_hash

        super().__init__(settings)
        self._weights_hash = weights_hash(model)
        self._classifier = TextClassifier(
            model,
            tokenizer,
            device=settings.device,
            precision=settings.precision,
            tokens_per_batch=settings.tokens_per_batch,
        )

    @classmethod
    def described(cls, settings: Any) -> dict[str, Any]:
        return {
            "name": settings.name,
            "class_name": config_name(cls),
            "settings": settings.model_dump(mode="json", include={"precision"}),
        }

    def score_all(self, texts: Sequence[str]) -> list[Scored]:
        return [
            Scored(None, logits_C) if isinstance(logits_C, str) else Scored(self._score(logits_C.astype(np.float64)))
            for logits_C in self._logits(texts)
        ]

    def identity(self) -> ScorerIdentity:
        return dataclasses.replace(super().identity(), weights_hash=self._weights_hash)

    def _logits(self, texts: Sequence[str]) -> list[NDArray[np.float32] | str]:
        """Return the logits (C,) of each text, or the reason why there are none."""
        found = self._classifier.logits(texts)
        self.num_truncated = self._classifier.num_truncated
        return found

    @abstractmethod
    def _score(self, logits_C: NDArray[np.float64]) -> float: ...
