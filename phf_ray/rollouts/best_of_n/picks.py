"""Which sample of each prompt is the best, and what is to say about the rewards."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from phf_ray.measures.numbers import Floats


@dataclass(frozen=True, slots=True)
class Picks:
    best_S: tuple[int | None, ...]
    """Number of the best sample of each prompt; the first of equal ones. None: no sample has a reward."""
    num_tied: int
    """Prompts whose best reward several samples have, of different text or not."""
    num_constant: int
    """Prompts whose samples all have the same reward: the choice says nothing."""
    example: int | None
    """The first of these prompts."""

    @property
    def num_without(self) -> int:
        return sum(one is None for one in self.best_S)


def pick_best(reward_SN: Floats) -> Picks:
    """`reward_SN`: rewards of N samples for each of S prompts, NaN where there is none."""
    best: list[int | None] = []
    tied, constant = [], []
    for prompt, reward_N in enumerate(reward_SN):
        known = reward_N[~np.isnan(reward_N)]
        best.append(int(np.nanargmax(reward_N)) if len(known) else None)
        if len(known) > 1 and (known == known.max()).sum() > 1:
            tied.append(prompt)
        if len(known) > 1 and known.min() == known.max():
            constant.append(prompt)
    return Picks(tuple(best), len(tied), len(constant), constant[0] if constant else None)


def rewards_of(rows: Sequence[Mapping[str, Any]], column: str, *, n: int) -> Floats:
    """Return a column of all samples as an array of (prompts, n), NaN for null."""
    values = [np.nan if row[column] is None else row[column] for row in rows]
    return np.array(values, dtype=np.float64).reshape(-1, n)
