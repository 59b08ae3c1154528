"""Runs a sequence classifier over texts of any length and number, sorted by length into batches of about equal cost.

Batches are filled by tokens, padding included, not by texts: one batch of mixed lengths, padded to the longest, costs
20 times the work. While the model computes, a thread tokenizes the next texts. The price: the largest batch decides how
much memory is needed, and the results must be put back in order.
"""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from phf_ray.characters import half_at
from phf_ray.errors import ConfigError

TOKENS_PER_BATCH = {"cpu": 1024, "gpu": 32768}
"""Larger batches do not fit a CPU's caches; a GPU needs large batches to stay busy."""
_CHARACTERS_AHEAD = 16
"""Characters tokenized at once, per token of a batch. In typical text this makes four batches."""
_PADDING_PER_BATCH = 16
"""At most one in this many tokens of a full batch is padding. Beyond that, another batch costs less."""


class TextClassifier:
    """Runs a transformers sequence classifier.

    `num_truncated` counts the texts that have been cut to the model's limit so far.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        device: str,
        precision: Literal["fp32", "bf16"],
        tokens_per_batch: int | None,
    ):
        if not tokenizer.is_fast:
            raise ConfigError(
                f"{type(tokenizer).__name__} is not a fast tokenizer; save the model with a tokenizer.json"
            )
        self.device = torch.device(_best_device() if device == "auto" else device)
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self._model = model.to(device=self.device, dtype=dtype).eval()
        self._tokenizer = tokenizer
        if model.config.pad_token_id is None:
            # A causal model reads its answer at the last token that is not padding.
            known = (tokenizer.pad_token_id, tokenizer.eos_token_id, model.config.eos_token_id)
            model.config.pad_token_id = next((token for token in known if isinstance(token, int)), None)
        self._pad = model.config.pad_token_id
        kind = "cpu" if self.device.type == "cpu" else "gpu"
        self._tokens_per_batch = tokens_per_batch if tokens_per_batch is not None else TOKENS_PER_BATCH[kind]
        self.max_tokens = min(tokenizer.model_max_length, max_positions(model.config))
        self.num_truncated = 0

    def logits(self, texts: Sequence[str]) -> list[NDArray[np.float32] | str]:
        """Return each text's logits (C,), or the reason why there are none. Other texts do not change them."""
        results: list[NDArray[np.float32] | str] = ["UnicodeEncodeError: the text has a lone surrogate"] * len(texts)
        # Sort by characters: the number of tokens is not known yet.
        usable = sorted(
            (index for index, text in enumerate(texts) if half_at(text) is None), key=lambda index: -len(texts[index])
        )
        num_truncated = 0
        pending = []
        # Without a padding token, every text is a batch of its own.
        most = self._tokens_per_batch if self._pad is not None else 0
        for chunk, encoded in self._tokenized(usable, texts):
            token_ids = encoded["input_ids"]
            num_truncated += sum(bool(encoding.overflowing) for encoding in encoded.encodings)
            for batch in batches_by_tokens([len(ids) for ids in token_ids], tokens_per_batch=most):
                # Results stay on the device until all batches are queued, because fetching one waits for it.
                logits_BC = self._run([token_ids[position] for position in batch])
                pending.append(([chunk[position] for position in batch], logits_BC))
        for batch, logits_BC in pending:
            for index, logits_C in zip(batch, logits_BC.cpu().numpy(), strict=True):
                finite = bool(np.isfinite(logits_C).all())
                results[index] = logits_C if finite else "not_finite: the model's output is not a number"
        # Count only now: if the model raised above, the caller may try the same texts again.
        self.num_truncated += num_truncated
        return results

    def logits_of_rows(self, rows: Sequence[Sequence[int]]) -> list[NDArray[np.float32] | str]:
        """Like `logits`, for texts that are token ids already, each within the model's limit."""
        results: list[NDArray[np.float32] | str] = ["not_finite: the model's output is not a number"] * len(rows)
        most = self._tokens_per_batch if self._pad is not None else 0
        pending = []
        for batch in batches_by_tokens([len(row) for row in rows], tokens_per_batch=most):
            pending.append((batch, self._run([list(rows[index]) for index in batch])))
        for batch, logits_BC in pending:
            for index, logits_C in zip(batch, logits_BC.cpu().numpy(), strict=True):
                if np.isfinite(logits_C).all():
                    results[index] = logits_C
        return results

    def _tokenized(self, order: Sequence[int], texts: Sequence[str]) -> Iterator[tuple[list[int], Any]]:
        """Yield the indices of a chunk of texts and their encodings, tokenizing one chunk ahead.

        The tokenizer releases the interpreter's lock while it computes.
        """
        with ThreadPoolExecutor(1) as thread:
            ahead = None
            for chunk in _chunks(order, [len(text) for text in texts], most=_CHARACTERS_AHEAD * self._tokens_per_batch):
                submitted = (chunk, thread.submit(self._tokenize, [texts[index] for index in chunk]))
                if ahead is not None:
                    yield ahead[0], ahead[1].result()
                ahead = submitted
            if ahead is not None:
                yield ahead[0], ahead[1].result()

    def _tokenize(self, texts: list[str]) -> Any:
        return self._tokenizer(texts, truncation=True, max_length=self.max_tokens, return_attention_mask=False)

    @torch.inference_mode()
    def _run(self, token_ids: list[list[int]]) -> torch.Tensor:
        lengths_B = torch.tensor([len(ids) for ids in token_ids])
        ids_BS = torch.full((len(token_ids), int(lengths_B.max())), self._pad or 0)
        for row_S, ids in zip(ids_BS, token_ids, strict=True):
            row_S[: len(ids)] = torch.tensor(ids)
        mask_BS = (torch.arange(ids_BS.shape[1]) < lengths_B[:, None]).long()
        output = self._model(input_ids=ids_BS.to(self.device), attention_mask=mask_BS.to(self.device))
        logits_BC: torch.Tensor = output.logits.float()
        return logits_BC


def batches_by_tokens(lengths: Sequence[int], *, tokens_per_batch: int) -> Iterator[list[int]]:
    """Yield batches of indices, longest texts first; number of texts x longest length is at most `tokens_per_batch`.

    A sixteenth of that may be padding. A text longer than `tokens_per_batch` is a batch of its own.
    """
    batch: list[int] = []
    longest = padding = 0
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        padding += longest - lengths[index]
        is_full = (len(batch) + 1) * longest > tokens_per_batch
        if batch and (is_full or padding * _PADDING_PER_BATCH > tokens_per_batch):
            yield batch
            batch = []
        if not batch:
            longest, padding = lengths[index], 0
        batch.append(index)
    if batch:
        yield batch


def _chunks(order: Sequence[int], sizes: Sequence[int], *, most: int) -> Iterator[list[int]]:
    """Yield runs of consecutive indices whose sizes add up to `most` or slightly more."""
    chunk: list[int] = []
    total = 0
    for index in order:
        chunk.append(index)
        total += sizes[index]
        if total >= most:
            yield chunk
            chunk, total = [], 0
    if chunk:
        yield chunk


def max_positions(config: Any) -> int:
    """Return the number of tokens that the model has positions for."""
    # RoBERTa and its descendants count positions from the padding token's id + 1.
    offset = config.pad_token_id + 1 if "roberta" in config.model_type else 0
    return int(getattr(config, "max_position_embeddings", 512)) - offset


def weights_hash(model: Any) -> str:
    """Return the sha256 over names, shapes and values of all weights. The format of their file does not matter."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not name.endswith("position_ids"):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            digest.update(memoryview(tensor.cpu().contiguous().view(torch.uint8).numpy().reshape(-1)))
    return digest.hexdigest()


def _best_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
