"""Which prompts a round answers and which rows a step learns. The seed and numbers alone decide, not the workers.

Each epoch goes through the prompts in an order of its own. A round takes the next ones; at an epoch's end, those that
are too few for a round are left for the next epoch, so that no round has a prompt twice.
"""

import numpy as np
from numpy.typing import NDArray

_PROMPTS, _ROWS = 1, 2


def prompts_of_round(round_: int, *, num_prompts: int, per_round: int, seed: int) -> NDArray[np.int64]:
    """Return the numbers of the prompts, all different. `per_round` is at most `num_prompts`."""
    epoch, place = divmod(round_, num_prompts // per_round)
    order = _order(num_prompts, seed, _PROMPTS, epoch)
    return order[place * per_round : (place + 1) * per_round]


def units_of_minibatch(
    minibatch: int, *, num_minibatches: int, num_units: int, round_: int, epoch: int, seed: int
) -> NDArray[np.int64]:
    """Return the numbers of the units that a minibatch of an epoch learns. Their sizes differ by at most one."""
    order = _order(num_units, seed, _ROWS, round_, epoch)
    begin, end = (number * num_units // num_minibatches for number in (minibatch, minibatch + 1))
    return order[begin:end]


def _order(size: int, seed: int, *what: int) -> NDArray[np.int64]:
    # SeedSequence accepts no negative numbers.
    return np.random.Generator(np.random.PCG64([seed % 2**64, *what])).permutation(size)
