"""KL(reference || model) from texts drawn from the reference: the paper's capability axis.

    KL = E_{x ~ reference} [log p_reference(x) - log p_model(x)]

The estimate is in nats per sequence, per token and per byte; only nats per byte compare models with different
tokenizers. A control token tells the model which kind of text to write and is not part of the text: it is inserted if
the model was trained to see it, and never counted.
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
    per_token: MeanEstimate | None
    """Per token, as the reference tokenizes the texts; None if the numbers of tokens are not given."""
    per_byte: MeanEstimate
    """Per UTF-8 byte of the texts: comparable between tokenizers."""
    num_samples: int
    num_impossible: int
    """Texts that the model can't produce (log-probability minus infinity); no mean includes them."""


def forward_kl(
    reference_logprobs: Sequence[float] | Floats,
    model_logprobs: Sequence[float] | Floats,
    *,
    num_tokens: Sequence[int] | None,
    num_bytes: Sequence[int],
) -> KL:
    """Estimate KL(reference || model) from samples of the reference; every argument has one entry per text.

    The difference for a single text can be negative; the mean is negative only by chance.
    """
    reference, model = np.asarray(reference_logprobs, np.float64), np.asarray(model_logprobs, np.float64)
    counts = [len(num_bytes), *([] if num_tokens is None else [len(num_tokens)])]
    if {len(reference), len(model), *counts} != {len(reference)}:
        raise DataError(
            f"{len(reference)} and {len(model)} log-probabilities, {' and '.join(map(str, counts))} counts of bytes "
            "and tokens; there must be one of each for every text"
        )
    if np.isnan(reference).any() or np.isnan(model).any() or not np.isfinite(reference).all():
        raise DataError(
            "a log-probability is not a number, or it is minus infinity for a text that the reference drew itself"
        )
    possible = np.isfinite(model)
    if possible.sum() < 2:
        raise DataError(f"{possible.sum()} texts with a log-probability do not show the spread; draw at least 2")
    differences = (reference - model)[possible]
    return KL(
        per_sequence=_ratio(differences, np.ones(len(differences))),
        per_token=None if num_tokens is None else _ratio(differences, np.asarray(num_tokens, np.float64)[possible]),
        per_byte=_ratio(differences, np.asarray(num_bytes, np.float64)[possible]),
        num_samples=int(possible.sum()),
        num_impossible=int((~possible).sum()),
    )


def _ratio(values: Floats, sizes: Floats) -> MeanEstimate:
    """Return sum of values over sum of sizes, with the standard error of a ratio of means (delta method)."""
    mean = math.fsum(values) / math.fsum(sizes)
    residuals = values - mean * sizes
    error = math.sqrt(math.fsum(residuals**2) / (len(values) - 1) / len(values)) / float(sizes.mean())
    return MeanEstimate(mean, error)
