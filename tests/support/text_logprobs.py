"""Log-probabilities of whole texts by plain forward passes, one text at a time. Tests compare servers with them."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from phf_ray.evaluation.kl.encoding import EncodedText


@torch.no_grad()
def text_logprobs(model: Callable[..., Any], texts: Sequence[EncodedText]) -> np.ndarray:
    """Return sums over the counted tokens, float64, shape (len(texts),). `model` is called like one of transformers."""
    found = []
    for text in texts:
        ids_1S = torch.tensor([text.ids])
        logits_1SV = model(input_ids=ids_1S).logits
        logprobs_TV = logits_1SV[0, :-1].to(torch.promote_types(logits_1SV.dtype, torch.float32)).log_softmax(dim=-1)
        own_T = logprobs_TV.gather(1, ids_1S[0, 1:, None])[:, 0].double()
        found.append(float(own_T[torch.tensor(text.counted[1:], dtype=torch.bool)].sum()))
    return np.array(found)
