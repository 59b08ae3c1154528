import math

import numpy as np
import pytest

from phf_ray.errors import ConfigError, DataError
from phf_ray.rollouts import aggregation_weights, kl_estimate, ppo_loss, value_loss

# -- PPO --------------------------------------------------------------------------------------------------------------


def test_ppo_by_hand():
    loss, slope = ppo_loss([0.5, 1, 1.5], [1, -1, 2])
    assert loss == pytest.approx([-0.5, 1, -2.4])
    # -A ratio where that side counts; the last is clipped.
    assert slope == pytest.approx([-0.5, 1, 0])


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        # Good token: no gain beyond 1.2. Below .8 nothing is clipped.
        (1.3, 1, -1.2, 0),
        (0.7, 1, -0.7, -0.7),
        # Bad token: no gain below .8. Above 1.2 nothing is clipped.
        (0.7, -1, 0.8, 0),
        (1.3, -1, 1.3, 1.3),
        (5.0, 0, 0, 0),
    ],
)
def test_ppo_is_clipped_on_the_side_that_would_gain(ratio, advantage, loss, slope):
    found = ppo_loss([ratio], [advantage])
    assert [float(one[0]) for one in found] == pytest.approx([loss, slope])


def test_dual_clip_bounds_the_loss_of_bad_tokens_alone():
    ratio, advantage = [10, 2, 10, 1], [-1, -1, 1, -2]
    loss, slope = ppo_loss(ratio, advantage, dual_clip=3)
    assert loss == pytest.approx([3, 2, -1.2, 2])
    assert slope == pytest.approx([0, 2, 0, 2])
    assert ppo_loss(ratio, advantage)[0] == pytest.approx([10, 2, -1.2, 2])


@pytest.mark.parametrize("dual_clip", [None, 3.0])
def test_slope_is_the_derivative_by_the_log_probability(dual_clip):
    rng = np.random.default_rng(0)
    log_ratio, advantage = rng.normal(size=(4, 50)), rng.normal(size=(4, 50))
    log_ratio[0] *= 2

    def loss(shift):
        return ppo_loss(np.exp(log_ratio + shift), advantage, clip=0.3, dual_clip=dual_clip)[0]

    _, slope = ppo_loss(np.exp(log_ratio), advantage, clip=0.3, dual_clip=dual_clip)
    assert slope == pytest.approx((loss(1e-6) - loss(-1e-6)) / 2e-6, abs=1e-6)
    assert 0.2 < (slope == 0).mean() < 0.8
    # At the sampling policy it is the policy gradient.
    assert ppo_loss(np.ones_like(advantage), advantage)[1] == pytest.approx(-advantage)


@pytest.mark.parametrize(
    ("ratio", "advantage", "message"),
    [
        ([1, 0], [1, 1], r"0 at \(1,\): a ratio of probabilities must be above 0"),
        ([-0.5], [1], "-0.5 at"),
        ([math.nan], [1], "nan at"),
        ([math.inf], [1], "inf at"),
        ([1], [math.nan], r"nan at \(0,\): an advantage must be finite"),
        ([1, 1], [1], r"advantage has shape \(1,\), the others \(2,\)"),
    ],
)
def test_what_is_no_ratio_or_advantage_is_refused(ratio, advantage, message):
    with pytest.raises(DataError, match=message):
        ppo_loss(ratio, advantage)


def test_clips_that_clip_nothing_or_all_are_refused():
    with pytest.raises(ConfigError, match=r"clip = 0 is not above 0"):
        ppo_loss([1], [1], clip=0)
    with pytest.raises(ConfigError, match=r"dual_clip = 1 is not above 1"):
        ppo_loss([1], [1], dual_clip=1)
    with pytest.raises(ConfigError, match=r"clip = -0.2"):
        value_loss([1], [1], [1], clip=-0.2)


def test_value_loss_by_hand():
    # Clipped to .7: (.7 - 2)^2 / 2 = .845; the value itself: (1 - 2)^2 / 2 = .5.
    loss, slope = value_loss([1], [0.5], [2], clip=0.2)
    assert (loss[0], slope[0]) == (pytest.approx(0.845), 0)
    # Moved away from the return: not clipped.
    loss, slope = value_loss([1], [1.5], [2], clip=0.2)
    assert (loss[0], slope[0]) == (pytest.approx(0.5), pytest.approx(-1))


def test_slope_of_the_value_loss_is_its_derivative():
    values, old_values, returns = np.random.default_rng(0).normal(size=(3, 200))
    numeric = (
        value_loss(values + 1e-6, old_values, returns)[0] - value_loss(values - 1e-6, old_values, returns)[0]
    ) / 2e-6
    _, slope = value_loss(values, old_values, returns)
    assert slope == pytest.approx(numeric, abs=1e-6)
    assert 0.2 < (slope == 0).mean() < 0.8
    with pytest.raises(DataError, match=r"nan at \(0,\): values and returns must be finite"):
        value_loss([1], [1], [math.nan])
    with pytest.raises(DataError, match="returns has shape"):
        value_loss([1], [1], [1, 2])


# -- Aggregation ------------------------------------------------------------------------------------------------------

LOSSES = np.array([[1, 2, 9], [3, 4, 5], [7, 9, 9]], dtype=float)
MASK = np.array([[1, 1, 0], [1, 1, 1], [1, 0, 0]])


def mean_over_ranks(over, ranks):
    parts = [aggregation_weights(MASK[rows], over=over) for rows in ranks]
    total = sum((LOSSES[rows] * weights).sum() for rows, (weights, _) in zip(ranks, parts, strict=True))
    return total / sum(normalizer for _, normalizer in parts)


@pytest.mark.parametrize(("over", "expected"), [("tokens", 22 / 6), ("sequences", (1.5 + 4 + 7) / 3)])
@pytest.mark.parametrize("ranks", [[[0, 1, 2]], [[0], [1, 2]], [[2], [0], [1]]])
def test_means_over_tokens_and_over_sequences_on_any_number_of_ranks(over, expected, ranks):
    assert expected == pytest.approx({"tokens": 3.667, "sequences": 4.167}[over], abs=5e-4)
    assert mean_over_ranks(over, ranks) == pytest.approx(expected)


def test_sequences_without_tokens_are_no_part_of_the_mean():
    weights, normalizer = aggregation_weights([[1, 1], [0, 0]], over="sequences")
    assert weights.tolist() == [[0.5, 0.5], [0, 0]]
    assert normalizer == 1


def test_aggregation_of_another_name_or_mask_is_refused():
    with pytest.raises(ConfigError, match=r"over = 'token' is unknown; choose one of \['tokens', 'sequences'\]"):
        aggregation_weights(MASK, over="token")
    with pytest.raises(DataError, match="a mask with 2 in it"):
        aggregation_weights([[1, 2]], over="tokens")


# -- KL ---------------------------------------------------------------------------------------------------------------

P, Q = np.array([0.5, 0.3, 0.2]), np.array([0.25, 0.25, 0.5])
X = np.log(P / Q)
KL_GRADIENT = [0.237568, -0.010707, -0.226861]


def gradient(weights):
    """For the logits of p: E[weight grad log p]."""
    return P * (weights - P @ weights)


def slopes(kind):
    """Of the estimate by log p, numerically."""
    return (kl_estimate(X + 1e-6, kind) - kl_estimate(X - 1e-6, kind)) / 2e-6


@pytest.mark.parametrize(("kind", "expected"), [("k1", 0.218012), ("k2", 0.209058), ("k3", 0.218012)])
def test_expected_estimates_of_the_kl(kind, expected):
    assert (P * X).sum() == pytest.approx(0.218012, abs=5e-7)
    assert P @ kl_estimate(X, kind) == pytest.approx(expected, abs=5e-7)


@pytest.mark.parametrize(("kind", "expected"), [("k1", [0, 0, 0]), ("k2", KL_GRADIENT), ("k3", [0.25, 0.05, -0.30])])
def test_gradients_of_the_estimates_as_losses(kind, expected):
    assert gradient(slopes(kind)) == pytest.approx(expected, abs=1e-6)


def test_k1_in_the_reward_has_the_gradient_of_the_kl():
    assert gradient(kl_estimate(X, "k1")) == pytest.approx(KL_GRADIENT, abs=5e-7)
    assert gradient(slopes("k3")) == pytest.approx(P - Q, abs=1e-6)


def test_estimates_keep_their_shape_and_k3_is_exact_near_zero():
    assert kl_estimate(np.zeros((2, 3)), "k2").shape == (2, 3)
    assert kl_estimate([1e-9], "k3") == pytest.approx([5e-19], rel=1e-6, abs=0)
    assert kl_estimate([-2.0, 3.0], "k3") == pytest.approx([math.exp(2) - 3, math.exp(-3) + 2])
    assert np.isnan(kl_estimate([math.nan], "k1")).all()
    mine = np.array([1.0])
    kl_estimate(mine, "k1")[0] = 7
    assert mine[0] == 1


def test_an_unknown_estimator_is_refused():
    with pytest.raises(ConfigError, match=r"KL estimator 'k4' is unknown; choose one of \['k1', 'k2', 'k3'\]"):
        kl_estimate([0.1], "k4")
