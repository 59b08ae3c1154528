"""Penalties of tokens that a text has already, as OpenAI and vLLM define them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from phf_ray.generation.requests import GenerationRequest

# An extreme repetition penalty takes logits past the largest float32. The sampler divides by temperatures down to 1e-5.
_LARGEST = 1e30


class History:
    """The penalized tokens of one request: those of its prompt and output, with their number in the output."""

    def __init__(self, request: GenerationRequest, prompt_ids: Sequence[int]):
        self.request = request
        # The other two penalties spare the prompt.
        self.counts = dict.fromkeys(prompt_ids if request.repetition_penalty != 1 else (), 0)

    def add(self, token_id: int) -> None:
        self.counts[token_id] = self.counts.get(token_id, 0) + 1

    @property
    def subtracted(self) -> list[float]:
        """How much frequency and presence take from the logit of each token."""
        frequency, presence = self.request.frequency_penalty, self.request.presence_penalty
        return [count * frequency + (presence if count else 0.0) for count in self.counts.values()]


def penalize(logits_BV: Tensor, penalized: Sequence[tuple[int, History]]) -> None:
    """Penalize, in place, the tokens that a row has already. `penalized`: pairs of row and history.

    The order is vLLM's: repetition first, then frequency and presence. Logits at minus infinity stay there.
    """

    def column(values: list[float], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=logits_BV.device)

    where = (
        column([row for row, history in penalized for _ in history.counts], torch.long),
        column([id_ for _, history in penalized for id_ in history.counts], torch.long),
    )
    repetition_E = column([h.request.repetition_penalty for _, h in penalized for _ in h.counts], torch.float64)
    subtracted_E = column([value for _, history in penalized for value in history.subtracted], torch.float64)
    old_E = logits_BV[where].double()
    new_E = torch.where(old_E > 0, old_E / repetition_E, old_E * repetition_E) - subtracted_E
    logits_BV[where] = torch.where(old_E.isinf(), old_E, new_E.clamp(-_LARGEST, _LARGEST)).to(logits_BV.dtype)
