"""KL(reference || model) from texts that were drawn from the reference: the capability axis of the paper.

    KL = E_{x ~ reference} [log p_reference(x) - log p_model(x)]

in nats per sequence, and divided by tokens and by bytes, which is the only one that models of different tokenizers
share. A control token tells the model what is asked of it and is no part of the text: it is inserted where the model
was trained to see it, and never counted.

Shapes: B sequences, S tokens, T = S - 1 targets (target t is token t + 1), V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from phf_ray.config import Compat
from phf_ray.errors import DataError

Floats = NDArray[np.float64]

_LOGITS_AT_ONCE = 1 << 26
"""Logits held at once: 256 MiB in fp32."""


class Logits(Protocol):
    """A causal language model of transformers, or anything that is called like one."""

    def __call__(self, *, input_ids: Tensor) -> Any:
        """An object whose `logits` are (B, S, V); those at position t predict token t + 1."""
        ...


@dataclass(frozen=True, slots=True)
class EncodedText:
    """A text as a model sees it."""

    ids: tuple[int, ...]
    """The first is given, not predicted: the end-of-text token that documents start with."""
    counted: tuple[bool, ...]
    """Whether a token is part of the text; false for the first and for inserted control tokens."""

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.counted) or not self.ids or self.counted[0]:
            raise DataError(
                f"{len(self.ids)} token ids and {len(self.counted)} marks; both must be there for every token, and the "
                "first token is given, so it does not count"
            )


def encode(
    ids: Sequence[int],
    *,
    first_id: int,
    control_id: int | None = None,
    starts: Sequence[int] = (),
    ends_with: int | None = None,
) -> EncodedText:
    """`first_id`, then the text's token ids with control tokens before the positions in `starts`.

    `starts`: [0] for one control token at the head, or the first token of every segment for one each.
    `ends_with`: the end-of-text token, where the text ended by itself; it is drawn like any other token and counts.
    """
    marked = set(starts) if control_id is not None else set()
    if not all(0 <= start < max(1, len(ids)) for start in marked):
        raise DataError(f"control tokens before tokens {sorted(marked)} of a text of {len(ids)}; give positions in it")
    found: list[tuple[int, bool]] = [(first_id, False)]
    for position, token_id in enumerate(ids):
        if position in marked and control_id is not None:
            found.append((control_id, False))
        found.append((token_id, True))
    if not ids and marked and control_id is not None:
        found.append((control_id, False))
    if ends_with is not None:
        found.append((ends_with, True))
    return EncodedText(tuple(token for token, _ in found), tuple(counted for _, counted in found))


def pad(texts: Sequence[EncodedText], *, pad_id: int, compat: Compat = None) -> tuple[Tensor, Tensor]:
    """Token ids (B, S) padded on the right, and which targets count (B, T)."""
    longest = max(len(text.ids) for text in texts)
    ids_BS = torch.full((len(texts), longest), pad_id, dtype=torch.long)
    counted_BS = torch.zeros((len(texts), longest), dtype=torch.bool)
    for row, text in enumerate(texts):
        ids_BS[row, : len(text.ids)] = torch.tensor(text.ids)
        counted_BS[row, : len(text.ids)] = torch.tensor(text.counted)
    if compat == "korbak2023":
        # DIFFERS: ours counts the tokens of the text; original counts control tokens, too (D-2), and shifts the mask by
        # one, so that each row shorter than the longest also pays for its first padding token (D-1).
        lengths_B1 = torch.tensor([[len(text.ids)] for text in texts])
        return ids_BS, torch.arange(longest - 1)[None, :] < lengths_B1
    return ids_BS, counted_BS[:, 1:]


@torch.no_grad()
def sequence_logprobs(model: Logits, ids_BS: Tensor, counted_BT: Tensor) -> Tensor:
    """Log-probability of each sequence given its first token, summed over counted targets, float64, shape (B,).

    Padding on the right needs no attention mask: a causal model does not look ahead.
    """
    if counted_BT.shape != (ids_BS.shape[0], ids_BS.shape[1] - 1):
        raise DataError(
            f"marks of shape {tuple(counted_BT.shape)} for tokens of shape {tuple(ids_BS.shape)}; the first token is "
            "no target, so give one mark less than there are tokens"
        )
    logits_BTV = model(input_ids=ids_BS).logits[:, :-1]
    logprobs_BT = -torch.nn.functional.cross_entropy(
        logits_BTV.flatten(0, 1).to(torch.promote_types(logits_BTV.dtype, torch.float32)),
        ids_BS[:, 1:].flatten(),
        reduction="none",
    ).view(counted_BT.shape)
    return logprobs_BT.double().masked_fill(~counted_BT, 0.0).sum(dim=1)


def text_logprobs(
    model: Logits,
    texts: Sequence[EncodedText],
    *,
    vocabulary_size: int,
    pad_id: int = 0,
    device: str | torch.device = "cpu",
    compat: Compat = None,
) -> Floats:
    """Log-probability of each text, shape (len(texts),), in batches of texts of like length.

    The model must be in eval mode.
    """
    order = sorted(range(len(texts)), key=lambda index: len(texts[index].ids))
    if compat == "korbak2023":
        order = list(range(len(texts)))  # what a row pays for padding depends on its batch
    found = np.zeros(len(texts))
    for batch in _batches(order, [len(text.ids) for text in texts], vocabulary_size=vocabulary_size):
        ids_BS, counted_BT = pad([texts[index] for index in batch], pad_id=pad_id, compat=compat)
        found[batch] = sequence_logprobs(model, ids_BS.to(device), counted_BT.to(device)).cpu().numpy()
    return found


def _batches(order: Sequence[int], lengths: Sequence[int], *, vocabulary_size: int) -> list[list[int]]:
    batches: list[list[int]] = []
    longest = 0
    for index in order:
        longest = max(longest, lengths[index])
        if not batches or (len(batches[-1]) + 1) * longest * vocabulary_size > _LOGITS_AT_ONCE:
            batches.append([])
            longest = lengths[index]
        batches[-1].append(index)
    return batches


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean in nats and its standard error over samples."""

    mean: float
    standard_error: float


@dataclass(frozen=True, slots=True)
class KL:
    per_sequence: Estimate
    per_token: Estimate
    """By the reference's tokens."""
    per_byte: Estimate
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


def _ratio(values: Floats, sizes: Floats) -> Estimate:
    """Sum of values over sum of sizes; standard error of a ratio of means (delta method)."""
    mean = math.fsum(values) / math.fsum(sizes)
    residuals = values - mean * sizes
    error = math.sqrt(math.fsum(residuals**2) / (len(values) - 1) / len(values)) / float(sizes.mean())
    return Estimate(mean, error)
