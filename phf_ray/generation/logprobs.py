"""The log-probabilities that clients get."""

from collections.abc import Sequence

import torch
from torch import Tensor

LogprobRecord = tuple[int, float, list[tuple[int, float]]]
"""A token, its log-probability, and the most probable tokens with theirs."""

# The lowest log-probability that clients get, because JSON has no minus infinity.
LOWEST_LOGPROB = -9999.0


def logprob_records(logits_BV: Tensor, tokens: Sequence[int], counts: Sequence[int]) -> list[LogprobRecord]:
    """Return for each row its token's record, with the `counts[row]` most probable tokens.

    Both come from one tensor, so a client can test by equality whether the token was the most probable one.
    """
    logprobs_BV = logits_BV.float().log_softmax(dim=-1)
    own_B = logprobs_BV[torch.arange(len(tokens)), torch.tensor(tokens, device=logits_BV.device)].tolist()
    best = logprobs_BV.topk(min(max(counts), logits_BV.shape[-1]), dim=-1)
    values, ids = best.values.tolist(), best.indices.tolist()
    return [
        (
            token,
            max(own_B[row], LOWEST_LOGPROB),
            [(id_, max(value, LOWEST_LOGPROB)) for id_, value in zip(ids[row], values[row], strict=True)][
                : counts[row]
            ],
        )
        for row, token in enumerate(tokens)
    ]
