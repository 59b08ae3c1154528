"""What goes into an algorithm and what comes out of it.

Shapes: R rows of a round, ordered by (prompt, sample); T tokens of the longest completion; G prompts, N samples each.
A reward is higher-is-better. A row whose reward is NaN failed: it is left out and counted.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from phf_ray.errors import DataError
from phf_ray.measures.arrays import floats, mask_of, require
from phf_ray.measures.numbers import Floats
from phf_ray.objectives.kl import kl_estimate

State = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class RoundArrays:
    """A round as numbers: all of its rows, also those that failed. What stands at masked tokens, even NaN, is read as
    0."""

    prompt_R: NDArray[np.int64]
    """Number of the row's prompt within the round."""
    sample_R: NDArray[np.int64]
    rewards_R: Floats
    """The weighted sum of all rewards, with penalties; NaN: failed."""
    mask_RT: NDArray[np.bool_]
    """The completion's tokens, its end of text among them."""
    policy_RT: Floats
    """Log-probabilities under the weights that the round's updates start from, at the sampling temperature."""
    reference_RT: Floats | None = None
    value_RT: Floats | None = None
    """The value before each token: what the model expects of a completion that goes on with it."""
    behaviour_RT: Floats | None = None
    """Log-probabilities under the weights that sampled, if those are older."""
    usable_R: NDArray[np.bool_] = field(init=False)
    """Rows with a reward and at least one token."""

    def __post_init__(self) -> None:
        rewards_R = floats(self.rewards_R, "rewards_R", ndim=1)
        require(~np.isinf(rewards_R), rewards_R, "a reward must be finite; NaN stands for one that failed")
        policy_RT = floats(self.policy_RT, "policy_RT", ndim=2)
        mask_RT = mask_of(self.mask_RT, shape=policy_RT.shape)
        prompt_R, sample_R = np.asarray(self.prompt_R), np.asarray(self.sample_R)
        if not len(prompt_R) == len(sample_R) == len(rewards_R) == len(policy_RT):
            raise DataError(
                f"{len(prompt_R)} prompts, {len(sample_R)} samples, {len(rewards_R)} rewards, {len(policy_RT)} rows of "
                "log-probabilities; a round has one of each per row"
            )
        checked: dict[str, Any] = {"rewards_R": rewards_R, "mask_RT": mask_RT}
        checked["usable_R"] = np.isfinite(rewards_R) & mask_RT.any(axis=1)
        for name in ("policy_RT", "reference_RT", "value_RT", "behaviour_RT"):
            given = getattr(self, name)
            if given is not None:
                numbers_RT = floats(given, name, shape=mask_RT.shape)
                require(np.isfinite(numbers_RT) | ~mask_RT, numbers_RT, f"{name} must be finite where the mask is 1")
                checked[name] = np.where(mask_RT, numbers_RT, 0.0)
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if _num_samples(prompt_R) is None:
            raise DataError("the rows of a round must be ordered by prompt, with equally many samples of each")

    @property
    def num_samples(self) -> int:
        """Of each prompt."""
        return _num_samples(np.asarray(self.prompt_R)) or 0

    @property
    def sampling_logprobs(self) -> Floats:
        """Log-probabilities under the weights that sampled: of these the samples measure the KL without bias."""
        return self.policy_RT if self.behaviour_RT is None else self.behaviour_RT

    def grouped(self, values_R: Floats) -> Floats:
        """Return the rows' numbers by prompt, (G, N); NaN for rows that can't be used."""
        return np.where(self.usable_R, values_R, np.nan).reshape(-1, max(self.num_samples, 1))

    def of(self, rows_R: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return the tokens of these rows, (R, T)."""
        found: NDArray[np.bool_] = self.mask_RT & rows_R[:, None]
        return found


def _num_samples(prompt_R: NDArray[np.int64]) -> int | None:
    """None: the rows are not in order, or the prompts have different numbers of samples."""
    if not len(prompt_R):
        return 0
    starts = np.flatnonzero(np.r_[True, prompt_R[1:] != prompt_R[:-1]])
    counts = np.diff(np.r_[starts, len(prompt_R)])
    is_once = len(np.unique(prompt_R)) == len(starts)
    return int(counts[0]) if is_once and (counts == counts[0]).all() else None


@dataclass(frozen=True, slots=True)
class Weighed:
    """What of a round is learned."""

    keep_R: NDArray[np.bool_]
    """Rows that are learned; the others have no targets."""
    channels: Mapping[str, NDArray[np.float32]]
    """Numbers of each token, (R, T), under the names that the objective reads; 0 where nothing is learned."""
    figures: Mapping[str, float]
    state: State = field(default_factory=dict)
    """What the next round's `weigh` is told."""
    prefix_R: list[str] | None = None
    """A control token before each row's prompt; an empty text: none. None: no row has one."""
    pairs: NDArray[np.int64] | None = None
    """(P, 2): rows (chosen, rejected) that are learned as pairs. None: each row is a unit."""


class Algorithm(ABC):
    """Has settings, and keeps nothing between rounds but the state that `weigh` returns."""

    needs_reference: bool = False
    """Whether `weigh` or the objective reads the reference's log-probabilities."""
    needs_values: ClassVar[bool] = False
    """Whether `weigh` reads the values of a round's tokens, and the objective learns them."""
    needs_reference_states: bool = False
    """Whether the objective runs the reference at each step, to compare whole distributions."""
    learns_pairs: ClassVar[bool] = False
    """Whether `weigh` returns pairs. They share a row, and are compared with the reference at temperature 1."""
    num_pool_rounds: int = 1
    """How many rounds, the newest last, `weigh` gets as one: rows of earlier rounds stand before this round's."""
    control_tokens: tuple[str, ...] = ()
    """Tokens that the tokenizer has to have."""
    sampling_prefix: str | None = None
    """Control token before each prompt when sampling, from the second round on."""

    @abstractmethod
    def weigh(self, arrays: RoundArrays, state: State) -> Weighed:
        """Say what is learned, and with which weights. `state` is that of the round before; empty for the first."""

    @abstractmethod
    def objective(self) -> dict[str, Any]:
        """Return the config of the objective that learns the rows, for `build_objective`. The driver adds what it
        knows, `temperature` and `importance_cap`, to that of a policy gradient."""


def as_channel(values_RT: Floats, mask_RT: NDArray[np.bool_]) -> NDArray[np.float32]:
    return np.where(mask_RT, values_RT, 0.0).astype(np.float32)


def round_figures(arrays: RoundArrays) -> dict[str, float]:
    """Return the figures of any algorithm, under AlpacaFarm's and TRL's names; those that are undefined are left out.

    A group is constant if all of its rewards are equal: it has nothing to teach to an algorithm that compares them.
    """
    usable_R = arrays.usable_R
    rewards_GN = arrays.grouped(arrays.rewards_R)
    num_G = (~np.isnan(rewards_GN)).sum(axis=1)
    figures = {"rollouts/failed": float((~usable_R).sum()), "rollouts/lone": float((num_G == 1).sum())}
    known = rewards_GN[num_G > 1]
    if arrays.num_samples > 1:
        constant = int((np.nanmax(known, axis=1) == np.nanmin(known, axis=1)).sum()) if len(known) else 0
        figures["rollouts/constant_groups"] = float(constant)
        if len(known):
            figures["frac_reward_zero_std"] = constant / len(known)
            figures["reward_std"] = float(np.nanstd(known, axis=1, ddof=1).mean())
    if usable_R.any():
        rewards = arrays.rewards_R[usable_R]
        figures["objective/rewards"] = figures["reward"] = float(rewards.mean())
        figures["completions/mean_length"] = float(arrays.mask_RT[usable_R].sum(axis=1).mean())
        if arrays.reference_RT is not None:
            kl_RT = kl_estimate(arrays.sampling_logprobs - arrays.reference_RT, "k1")[usable_R]
            figures["objective/kl_sum_seq"] = figures["kl"] = float(kl_RT.sum(axis=1).mean())
            figures["objective/kl_avg_seq"] = float(kl_RT[arrays.mask_RT[usable_R]].mean())
    return figures


def rows_alone(arrays: RoundArrays, keep_R: NDArray[np.bool_], *, prefix_R: list[str] | None = None) -> Weighed:
    """Return what is learned if each kept row counts 1 and its likelihood is raised."""
    figures = round_figures(arrays) | {"rollouts/kept": float(keep_R.sum())}
    if keep_R.any():
        figures["rollouts/kept_reward"] = float(arrays.rewards_R[keep_R].mean())
    ones_RT = np.ones(arrays.mask_RT.shape)
    channels = {"weight": as_channel(ones_RT, arrays.of(keep_R))}
    return Weighed(keep_R=keep_R, channels=channels, figures=figures, prefix_R=prefix_R)
