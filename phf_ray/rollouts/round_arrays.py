"""Made rounds as the arrays that algorithms read, and the figures of one that do not depend on the algorithm."""

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
    )


def round_row(made: MadeRound) -> dict[str, float]:
    """Return the round's figures under TRL's and AlpacaFarm's names; what is undefined is left out."""
    drawn = [row for row in made.samples if row.completion_ids is not None]
    figures: dict[str, float] = {
        "rollouts/failed": float(sum(row.reward is None for row in made.rewards)),
        "rollouts/answers": float(len(made.samples)),
    }
    if drawn:
        lengths = [len(row.completion_ids or ()) for row in drawn]
        figures |= {
            "completions/mean_length": float(np.mean(lengths)),
            "completions/min_length": float(min(lengths)),
            "completions/max_length": float(max(lengths)),
            "completions/clipped_ratio": float(np.mean([row.finish_reason != "stop" for row in drawn])),
        }
    for name in made.rewards[0].by_name if made.rewards else ():
        known = [value for row in made.rewards if (value := row.by_name[name]) is not None]
        if known:
            figures[f"rewards/{name}/mean"] = float(np.mean(known))
            figures[f"rewards/{name}/std"] = float(np.std(known))
    gold = [row.gold for row in made.rewards if row.gold is not None]
    if gold:
        figures["rollouts/gold"] = float(np.mean(gold))
    spoken = [row for row in made.logprobs if row.policy is not None]
    if spoken:
        figures["objective/entropies"] = float(np.mean([-np.asarray(row.policy, float).sum() for row in spoken]))
    compared = [row for row in spoken if row.reference is not None]
    if compared:
        sums = [float(np.sum(np.asarray(row.policy, float) - np.asarray(row.reference, float))) for row in compared]
        figures["kl"] = float(np.mean(sums))
        figures["objective/ref_entropies"] = float(
            np.mean([-np.asarray(row.reference, float).sum() for row in compared])
        )
    return figures
