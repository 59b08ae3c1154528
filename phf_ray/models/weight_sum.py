"""The sum of a model's weights: AlpacaFarm's model_sum.txt tells by it whether a base model was the right one."""

import math
from pathlib import Path
from typing import Any

from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from phf_ray.errors import DataError

CHECKSUM_FILE = "model_sum.txt"

# numpy.isclose, with which the original compares.
_RELATIVE, _ABSOLUTE = 1e-5, 1e-8


def read_weight_sum(folder: Path) -> float:
    """Return the sum of the trained model's weights. Raises DataError if the difference comes without it."""
    path = folder / CHECKSUM_FILE
    try:
        return float(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"{folder} has no {CHECKSUM_FILE}, so nothing could tell the right base model from a wrong one; fetch the "
            "whole folder"
        ) from None
    except ValueError:
        raise DataError(f"{path} does not hold a number; fetch it again") from None


def is_weight_sum(stored: float, total: float, config: Any) -> bool:
    """Tell whether `stored` is the sum `total` of all weights of a model with this configuration.

    When the published sums were made, transformers counted the frequencies of Llama's rotations among the weights, and
    today it does not. For LLaMA 7B they are 239 of about 50,000: more than the tolerance, so either sum is right.
    """
    sums = [total]
    if config.model_type == "llama":
        per_layer = float(LlamaRotaryEmbedding(config).inv_freq.sum())
        sums.append(total + config.num_hidden_layers * per_layer)
    return any(math.isclose(stored, each, rel_tol=_RELATIVE, abs_tol=_ABSOLUTE) for each in sums)
