"""KL(reference || model) from texts that were drawn from the reference: the capability axis of the paper.

    KL = E_{x ~ reference} [log p_reference(x) - log p_model(x)]

in nats per sequence, and divided by tokens and by bytes; only the last is comparable between models with different
tokenizers. A control token tells the model what is asked of it and is no part of the text: it is inserted if the model
was trained to see it, and never counted.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from phf_ray.errors import DataError
from phf_ray.measures.numbers import Floats


@dataclass(frozen=True, slots=True)
class MeanEstimate:
    """A mean in nats and its standard error over samples."""

    mean: float
    standard_error: float


@dataclass(frozen=True, slots=True)
class KL:
    per_sequence: MeanEstimate
    per_token: MeanEstimate
    """By the reference's tokens."""
    per_byte: MeanEstimate
    """By the UTF-8 bytes of the texts: comparable between tokenizers."""
    num_samples: int
    num_impossible: int
    """Texts that the model can't say at all (log-probability minus infinity); they are in no mean."""


def forward_kl(
    reference_logprobs: Sequence[float] | Floats,
    model_logprobs: Sequence[float] | Floats,
    *,
    num_tokens: Sequence[int],
    num_bytes: Sequence[int],
) -> KL:
    """KL(reference || model) from samples of the reference: one entry a text in all four.

    A single sample's difference can be negative; the mean can only by chance.
    """
    reference, model = np.asarray(reference_logprobs, np.float64), np.asarray(model_logprobs, np.float64)
    if not len(reference) == len(model) == len(num_tokens) == len(num_bytes):
        raise DataError(
            f"{len(reference)} and {len(model)} log-probabilities, {len(num_tokens)} token and {len(num_bytes)} byte "
            "counts; there must be one of each for every text"
        )
    if np.isnan(reference).any() or np.isnan(model).any() or not np.isfinite(reference).all():
        raise DataError(
            "a log-probability is not a number, or minus infinity for a text that the reference drew itself"
        )
    possible = np.isfinite(model)
    if possible.sum() < 2:
        raise DataError(f"{possible.sum()} texts with a log-probability say nothing about the spread; draw at least 2")
    differences = (reference - model)[possible]
    return KL(
        per_sequence=_ratio(differences, np.ones(len(differences))),
        per_token=_ratio(differences, np.asarray(num_tokens, np.float64)[possible]),
        per_byte=_ratio(differences, np.asarray(num_bytes, np.float64)[possible]),
        num_samples=int(possible.sum()),
        num_impossible=int((~possible).sum()),
    )


def _ratio(values: Floats, sizes: Floats) -> MeanEstimate:
    """Sum of values over sum of sizes; standard error of a ratio of means (delta method)."""
    mean = math.fsum(values) / math.fsum(sizes)
    residuals = values - mean * sizes
    error = math.sqrt(math.fsum(residuals**2) / (len(values) - 1) / len(values)) / float(sizes.mean())
    return MeanEstimate(mean, error)
