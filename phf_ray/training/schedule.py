"""Number of steps, learning rate of each step, and how well micro-batches fit the workers."""

import math
from dataclasses import dataclass
from typing import Literal

from phf_ray.errors import ConfigError


def speed_up(*, batch_size: int, micro_batch_size: int, num_workers: int) -> float:
    """Return how many workers are busy on average.

    Micro-batches are dealt whole, and a worker that gets none computes padding.
    """
    num_micro_batches = math.ceil(batch_size / micro_batch_size)
    return num_micro_batches / math.ceil(num_micro_batches / num_workers)


def fitting_micro_batch(*, batch_size: int, micro_batch_size: int, num_workers: int) -> int:
    """Return the smallest micro-batch that takes no more rounds than this one, so that padding becomes work."""
    num_rounds = math.ceil(batch_size / (micro_batch_size * num_workers))
    return math.ceil(batch_size / (num_rounds * num_workers))


@dataclass(frozen=True, slots=True)
class Schedule:
    """Learning rate of each step, by the formulas of transformers' schedulers."""

    num_steps: int
    learning_rate: float
    kind: Literal["linear", "cosine", "constant"] = "linear"
    warmup_ratio: float = 0.0

    def at(self, step: int) -> float:
        """Return the learning rate of the step that follows `step` finished steps."""
        warmup = math.ceil(self.num_steps * self.warmup_ratio)
        if step < warmup:
            return self.learning_rate * step / warmup
        if self.kind == "constant":
            return self.learning_rate
        done = (step - warmup) / max(1, self.num_steps - warmup)
        if self.kind == "linear":
            return self.learning_rate * max(0.0, 1 - done)
        return self.learning_rate * max(0.0, 0.5 * (1 + math.cos(math.pi * done)))


def steps_in(num_tokens: int, *, tokens_per_block: float, batch_size: int) -> int:
    """Return the number of whole optimizer steps in `num_tokens`."""
    # DIFFERS: phf-ray uses the blocks' own token count and the batch size over all workers; the original divides by
    # 1024 for any sequence length, and by the world size twice (B-9).
    num_steps = int(num_tokens / (tokens_per_block * batch_size))
    if num_steps < 1:
        raise ConfigError(
            f"training.num_tokens leaves {num_tokens} tokens, fewer than one step of {batch_size} sequences with "
            f"{tokens_per_block:.1f} tokens each; raise training.num_tokens to at least "
            f"{math.ceil(tokens_per_block * batch_size)} more than training.tokens_already_seen or lower "
            "training.effective_batch_size"
        )
    return num_steps


def theoretical_loss(num_parameters: int, *, num_tokens: int) -> float:
    """Return Chinchilla's fit (Hoffmann et al. 2022, equation 10): nats per token for N parameters after D tokens."""
    return 1.69 + 406.4 / num_parameters**0.34 + 410.7 / max(num_tokens, 1) ** 0.28
