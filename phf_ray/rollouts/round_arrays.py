"""Made rounds as the arrays that algorithms read."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from phf_ray.measures.numbers import Floats
from phf_ray.rollouts.algorithms.base import RoundArrays
from phf_ray.rollouts.round_maker import MadeRound


def arrays_of(rounds: Sequence[MadeRound]) -> RoundArrays:
    """Return the rows of the rounds as those of one. A prompt counts as another in each round."""
    samples = [row for one in rounds for row in one.samples]
    logprobs = [row for one in rounds for row in one.logprobs]
    lengths = [len(row.completion_ids or ()) for row in samples]
    numbers: dict[tuple[int, str], int] = {}
    prompts = [
        numbers.setdefault((one.number, row.key.prompt_id), len(numbers)) for one in rounds for row in one.samples
    ]
    width = max(lengths, default=0)

    def table(rows: Sequence[NDArray[np.float32] | None]) -> Floats | None:
        if all(row is None for row in rows):
            return None
        table_RT = np.zeros((len(rows), width))
        for place, row in enumerate(rows):
            if row is not None:
                table_RT[place, : len(row)] = row
        return table_RT

    policy_RT = table([row.policy for row in logprobs])
    rewards = [np.nan if row.reward is None else row.reward for one in rounds for row in one.rewards]
    return RoundArrays(
        prompt_R=np.array(prompts, np.int64),
        sample_R=np.array([row.key.sample for row in samples], np.int64),
        rewards_R=np.array(rewards, np.float64),
        mask_RT=np.arange(width) < np.array(lengths, np.int64)[:, None],
        policy_RT=np.zeros((len(samples), width)) if policy_RT is None else policy_RT,
        reference_RT=table([row.reference for row in logprobs]),
        value_RT=table([row.value for row in logprobs]),
        behaviour_RT=table([row.behaviour for row in logprobs]),
    )
