"""The sum of a model's weights: AlpacaFarm's model_sum.txt tells by it whether a base model was the right one."""

import math
from typing import Any

from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

# numpy.isclose, with which the original compares.
_RELATIVE, _ABSOLUTE = 1e-5, 1e-8


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
