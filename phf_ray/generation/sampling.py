"""Draws one token per request from its distribution."""

import torch
from torch import Tensor

# The same threshold as in vLLM. Logits divided by a subnormal temperature overflow, and their softmax is NaN.
GREEDY_BELOW = 1e-5


def sample_tokens(
    logits_BV: Tensor, uniform_B: Tensor, *, temperature_B: Tensor, top_k_B: Tensor, top_p_B: Tensor
) -> Tensor:
    """Sample one token per row from the k most probable, and of these from the fewest with mass >= p.

    The order is that of transformers: temperature, top-k, top-p. `uniform_B`: float64 random numbers in [0, 1). A
    temperature below GREEDY_BELOW picks the most probable token; top_k 0 means no limit. Tokens at minus infinity are
    never sampled. Returns shape (B,).
    """
    greedy_B = logits_BV.argmax(dim=-1)
    is_drawn_B = temperature_B >= GREEDY_BELOW
    if not bool(is_drawn_B.any()):
        return greedy_B
    # Divide greedy rows by 1, not by 0; their draw is not used.
    scaled_BV = logits_BV / torch.where(is_drawn_B, temperature_B, 1.0)[:, None]
    max_k = int(top_k_B.max())
    if max_k > 0:
        width = logits_BV.shape[-1]
        k_B = torch.where(top_k_B > 0, top_k_B, width).clamp(max=width)
        best_BK = scaled_BV.topk(min(max_k, width), dim=-1).values
        lowest_B1 = best_BK.gather(1, k_B.clamp(max=best_BK.shape[1])[:, None] - 1)
        limited_B1 = (top_k_B > 0)[:, None]
        scaled_BV = scaled_BV.masked_fill(limited_B1 & (scaled_BV < lowest_B1), -torch.inf)
    probs_BV = scaled_BV.softmax(dim=-1)
    if bool((top_p_B < 1).any()):
        probs_BV = torch.where(probs_BV >= _nucleus_floor(probs_BV, top_p_B)[:, None], probs_BV, 0.0)
    # float64, because the boundaries between tokens must not depend on how many rows are summed together.
    mass_BV = probs_BV.to(torch.float64).cumsum(dim=-1)
    total_B = mass_BV[:, -1]
    target_B = torch.minimum(uniform_B * total_B, torch.nextafter(total_B, torch.zeros_like(total_B)))
    drawn_B = torch.searchsorted(mass_BV, target_B[:, None], right=True)[:, 0]
    return torch.where(is_drawn_B, drawn_B, greedy_B)


def _nucleus_floor(probs_BV: Tensor, top_p_B: Tensor) -> Tensor:
    """Return the smallest probability in each row's nucleus, 0 if top_p is 1. Tied tokens all belong to the nucleus."""
    # Sorting the whole vocabulary costs more than the rest of a step, and the top 256 nearly always hold the nucleus.
    for width in (min(256, probs_BV.shape[-1]), probs_BV.shape[-1]):
        best_BW = probs_BV.topk(width, dim=-1).values
        mass_BW = best_BW.to(torch.float64).cumsum(dim=-1)
        inside_BW = mass_BW - best_BW < top_p_B[:, None]
        if bool((~inside_BW[:, -1] | (top_p_B >= 1)).all()):
            break
    last_B = inside_BW.sum(dim=-1).clamp(min=1) - 1
    return torch.where(top_p_B < 1, best_BW.gather(1, last_B[:, None])[:, 0], 0.0)
