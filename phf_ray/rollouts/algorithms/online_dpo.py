"""Online DPO: pairs of a round's samples (Guo et al. 2024, arXiv 2402.04792)."""

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phf_ray.config.algorithms import OnlineDPOConfig
from phf_ray.errors import DataError
from phf_ray.measures.numbers import Floats
from phf_ray.objectives.pairs import check_settings
from phf_ray.rollouts.algorithms.base import Algorithm, RoundArrays, State, Weighed, as_channel, round_figures

_ROUND = "round"


class OnlineDPO(Algorithm):
    """Learns pairs of samples of one prompt with the loss of DPO; equal rewards make no pair and are counted.

    Only `pairing: drawn` leads to the policy that is proportional to reference x exp(reward / beta), and only if the
    labels are drawn with probability sigmoid(difference of the rewards). `higher` and `best_worst` say always what is
    sometimes so: they push past that policy, the further the smaller beta is.
    """

    needs_reference = True
    learns_pairs = True

    def __init__(self, config: OnlineDPOConfig) -> None:
        check_settings(config.loss_type, beta=config.beta, label_smoothing=config.label_smoothing)
        self.config = config

    def weigh(self, arrays: RoundArrays, state: State) -> Weighed:
        if arrays.reference_RT is None:
            raise DataError("algorithm online_dpo reads the reference's log-probabilities, and there are none")
        number = int(state.get(_ROUND, 0))
        rows_GN = np.arange(len(arrays.usable_R)).reshape(-1, max(arrays.num_samples, 1))
        rewards_GN = arrays.grouped(arrays.rewards_R)
        if self.config.pairing == "best_worst":
            candidates_P2 = _best_and_worst(rewards_GN, rows_GN)
        else:
            num_even = rows_GN.shape[1] // 2 * 2
            candidates_P2 = rows_GN[:, :num_even].reshape(-1, 2)
        pairs, num_tied = self._ordered(arrays, candidates_P2, number=number)
        keep_R = np.zeros_like(arrays.usable_R)
        keep_R[pairs.reshape(-1)] = True
        figures = round_figures(arrays) | {
            "rollouts/kept": float(keep_R.sum()),
            "rollouts/pairs": float(len(pairs)),
            "rollouts/tied_pairs": float(num_tied),
        }
        channels = {"reference_logprob": as_channel(arrays.reference_RT, arrays.of(keep_R))}
        return dataclasses.replace(
            Weighed(keep_R=keep_R, channels=channels, figures=figures, pairs=pairs), state={_ROUND: float(number + 1)}
        )

    def objective(self) -> dict[str, Any]:
        names = ("loss_type", "beta", "label_smoothing")
        return {"name": "DPO", **{name: getattr(self.config, name) for name in names}}

    def _ordered(
        self, arrays: RoundArrays, candidates_P2: NDArray[np.int64], *, number: int
    ) -> tuple[NDArray[np.int64], int]:
        """Put the preferred row of each pair first, and leave out pairs without one. Return how many are tied, too."""
        difference_P = arrays.rewards_R[candidates_P2[:, 0]] - arrays.rewards_R[candidates_P2[:, 1]]
        known_P = arrays.usable_R[candidates_P2].all(axis=1)
        if self.config.pairing == "drawn":
            # One draw for every pair, so that a failed sample changes no other pair's.
            draws_P = np.random.default_rng([self.config.seed % 2**64, number]).random(len(candidates_P2))
            first_P, tied_P = draws_P < _sigmoid(difference_P), np.zeros_like(known_P)
        else:
            first_P, tied_P = difference_P > 0, known_P & (difference_P == 0)
        ordered_P2 = np.where(first_P[:, None], candidates_P2, candidates_P2[:, ::-1])
        return ordered_P2[known_P & ~tied_P], int(tied_P.sum())


def _best_and_worst(rewards_GN: Floats, rows_GN: NDArray[np.int64]) -> NDArray[np.int64]:
    """Groups with fewer than two rewards make no pair; one whose rewards are all equal makes a tied pair."""
    has_two_G = (~np.isnan(rewards_GN)).sum(axis=1) > 1
    rewards_GN, rows_GN = rewards_GN[has_two_G], rows_GN[has_two_G]
    if not len(rows_GN):
        return np.zeros((0, 2), dtype=np.int64)
    # The last of equals is the worst, so that a group of equal rewards is a pair of two rows, and tied.
    best_G, worst_G = np.nanargmax(rewards_GN, axis=1), np.nanargmin(rewards_GN[:, ::-1], axis=1)
    worst_G, groups = rows_GN.shape[1] - 1 - worst_G, np.arange(len(rows_GN))
    pairs: NDArray[np.int64] = np.stack([rows_GN[groups, best_G], rows_GN[groups, worst_G]], axis=1)
    return pairs


def _sigmoid(values: Floats) -> Floats:
    found: Floats = 1 / (1 + np.exp(-np.clip(values, -700, 700)))
    return found
