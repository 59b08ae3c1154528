import itertools
import math

import numpy as np
import pytest

from phf_ray.errors import ConfigError, DataError
from phf_ray.rollouts import gae, group_advantages, rloo_advantages

ONES = np.ones((1, 3))

# -- GAE --------------------------------------------------------------------------------------------------------------


def test_gae_by_hand():
    rewards, values = [[1, 2, 3]], [[0.5, 1, 1.5]]
    # Deltas 1 + 1 - .5 = 1.5, 2 + 1.5 - 1 = 2.5, 3 - 1.5 = 1.5; 2.5 + .75, 1.5 + 1.625.
    advantages, returns = gae(rewards, values, ONES, gamma=1, lambda_=0.5)
    assert advantages == pytest.approx(np.array([[3.125, 3.25, 1.5]]))
    assert returns == pytest.approx(np.array([[3.625, 4.25, 3.0]]))
    _, returns = gae(rewards, values, ONES, gamma=1, lambda_=1)
    assert returns == pytest.approx(np.array([[6.0, 5.0, 3.0]]))


def test_gae_at_its_ends():
    rng = np.random.default_rng(0)
    rewards, values = rng.normal(size=(2, 4, 6))
    mask = np.ones((4, 6))
    # lambda 0: one step of the temporal difference.
    advantages, _ = gae(rewards, values, mask, gamma=0.9, lambda_=0)
    following = np.hstack([values[:, 1:], np.zeros((4, 1))])
    assert advantages == pytest.approx(rewards + 0.9 * following - values)
    # lambda 1: the discounted sum of what follows, whatever the values are.
    _, returns = gae(rewards, values, mask, gamma=0.9, lambda_=1)
    discounts = 0.9 ** np.maximum(np.arange(6)[None, :] - np.arange(6)[:, None], 0)
    assert returns == pytest.approx(rewards @ np.triu(discounts).T)
    # gamma 0: each token's own reward.
    assert gae(rewards, values, mask, gamma=0, lambda_=1)[1] == pytest.approx(rewards)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kept", [[0, 1, 2], [3, 4, 5], [0, 2, 5]])
def test_what_stands_at_masked_positions_changes_nothing(kept):
    rng = np.random.default_rng(1)
    rewards, values = rng.normal(size=(2, 2, 3))
    expected = gae(rewards, values, np.ones((2, 3)), gamma=0.9, lambda_=0.8)
    for filler in (0.0, 1e6, math.nan, math.inf):
        padded_rewards, padded_values = np.full((2, 2, 6), filler)
        padded_rewards[:, kept], padded_values[:, kept] = rewards, values
        mask = np.zeros((2, 6), dtype=bool)
        mask[:, kept] = True
        for found, whole in zip(
            gae(padded_rewards, padded_values, mask, gamma=0.9, lambda_=0.8), expected, strict=True
        ):
            assert np.array_equal(found[:, kept], whole)
            assert not found[~mask].any()


def test_rollouts_do_not_see_each_other():
    rng = np.random.default_rng(2)
    rewards, values = rng.normal(size=(2, 5, 4))
    mask = np.arange(4) < np.array([4, 1, 3, 0, 2])[:, None]
    order = [3, 1, 4, 0, 2]
    whole, mixed = (
        gae(rewards[i], values[i], mask[i], gamma=0.99, lambda_=0.95) for i in (np.arange(5), np.array(order))
    )
    assert np.array_equal(mixed[0], whole[0][order])
    assert whole[0][3].tolist() == [0, 0, 0, 0]
    assert np.abs(whole[0][0]).min() > 0


@pytest.mark.parametrize(
    ("rewards", "values", "mask", "message"),
    [
        ([[1, 2]], [[1, 2, 3]], [[1, 1]], r"values_RT has shape \(1, 3\), the others \(1, 2\)"),
        ([[1, 2]], [[1, 2]], [[1]], r"mask has shape \(1, 1\)"),
        ([1, 2], [1, 2], [1, 1], r"rewards_RT has shape \(2,\); it must have 2 dimensions"),
        ([[1, 2]], [[1, 2]], [[1, 0.5]], "a mask with 0.5 in it; write 1 for tokens that count"),
        ([[1, math.nan]], [[1, 2]], [[1, 1]], r"nan at \(0, 1\): a reward must be finite where the mask is 1"),
        ([[1, 2]], [[math.inf, 2]], [[1, 1]], r"inf at \(0, 0\): a value must be finite"),
    ],
)
def test_what_is_no_rollout_is_refused(rewards, values, mask, message):
    with pytest.raises(DataError, match=message):
        gae(rewards, values, mask, gamma=1, lambda_=1)


def test_discounts_beyond_one_are_refused():
    with pytest.raises(ConfigError, match=r"gamma = 1.1 is not between 0 and 1"):
        gae(ONES, ONES, ONES, gamma=1.1, lambda_=1)
    with pytest.raises(ConfigError, match=r"lambda_ = -0.1"):
        gae(ONES, ONES, ONES, gamma=1, lambda_=-0.1)


# -- RLOO and GRPO ----------------------------------------------------------------------------------------------------


def test_rloo_by_hand():
    assert rloo_advantages([[6, 3]]).tolist() == [[3, -3]]
    assert rloo_advantages([[5], [7]]).tolist() == [[0], [0]]
    # The others have means 1.5, 6 and 4.5.
    assert rloo_advantages([[9, 0, 3]]) == pytest.approx(np.array([[7.5, -6, -1.5]]))


def test_group_advantages_by_hand():
    # Mean 4.5, sd with ddof 1: 2.12132.
    assert group_advantages([[6, 3]]) == pytest.approx(np.array([[1.5, -1.5]]) / (math.sqrt(4.5) + 1e-4))
    assert group_advantages([[6, 3]], epsilon=1.0) == pytest.approx(np.array([[1.5, -1.5]]) / (math.sqrt(4.5) + 1))
    assert group_advantages([[6, 3]], scale=False).tolist() == [[1.5, -1.5]]
    assert group_advantages([[5], [7]]).tolist() == [[0], [0]]
    assert group_advantages([[0.5, 0.5, 0.5]]).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize(
    "advantages", [rloo_advantages, group_advantages, lambda rewards: group_advantages(rewards, scale=False)]
)
def test_a_prompts_level_and_order_mean_nothing_and_prompts_do_not_see_each_other(advantages):
    rewards = np.random.default_rng(0).normal(size=(4, 5))
    whole = advantages(rewards)
    assert whole.sum(axis=1) == pytest.approx(np.zeros(4), abs=1e-12)
    assert np.abs(whole).min() > 1e-3
    assert advantages(rewards + np.array([[1], [-2], [3], [100]])) == pytest.approx(whole)
    order = [2, 0, 4, 1, 3]
    assert advantages(rewards[::-1, order]) == pytest.approx(whole[::-1, order])
    assert advantages(rewards[1:2]) == pytest.approx(whole[1:2])


@pytest.mark.parametrize(
    "advantages", [rloo_advantages, group_advantages, lambda rewards: group_advantages(rewards, scale=False)]
)
def test_a_sample_without_a_reward_is_no_part_of_its_group(advantages):
    nan = math.nan
    found = advantages([[6, nan, 3, 1], [nan, nan, 2, nan], [nan, nan, nan, nan]])
    assert np.isnan(found).tolist() == [[False, True, False, False], [True, True, False, True], [True] * 4]
    assert found[0, [0, 2, 3]] == pytest.approx(advantages([[6, 3, 1]])[0])
    assert found[1, 2] == 0


def test_gradients_by_enumeration():
    """8 tokens in groups of 4: what the expected gradient of sum A grad log p / 4 is for each kind of advantage."""
    rng = np.random.default_rng(0)
    logits, rewards = rng.normal(size=8), rng.normal(size=8)
    p = np.exp(logits) / np.exp(logits).sum()
    groups = np.array(list(itertools.product(range(8), repeat=4)))
    probability = p[groups].prod(axis=1)

    def gradient(advantages):
        """For the logits: grad log p(token) = onehot(token) - p."""
        weights = probability[:, None] * advantages / 4
        return np.bincount(groups.ravel(), weights=weights.ravel(), minlength=8) - weights.sum() * p

    exact = p * (rewards - p @ rewards)
    assert gradient(rloo_advantages(rewards[groups])) == pytest.approx(exact, abs=1e-12)
    assert gradient(group_advantages(rewards[groups], scale=False)) == pytest.approx(3 / 4 * exact, abs=1e-12)
    scaled = gradient(group_advantages(rewards[groups]))
    cosine = scaled @ exact / np.linalg.norm(scaled) / np.linalg.norm(exact)
    assert 0.9 < cosine < 0.999


@pytest.mark.parametrize("advantages", [rloo_advantages, group_advantages])
def test_what_are_no_groups_of_rewards_is_refused(advantages):
    with pytest.raises(DataError, match=r"rewards_GN has shape \(2,\); it must have 2 dimensions"):
        advantages([1, 2])
    with pytest.raises(DataError, match=r"inf at \(0, 1\): a reward must be finite; write NaN"):
        advantages([[1, math.inf]])
    assert advantages(np.zeros((0, 4))).shape == (0, 4)


def test_epsilon_zero_is_refused():
    with pytest.raises(ConfigError, match=r"epsilon = 0 is not above 0"):
        group_advantages([[1, 1]], epsilon=0)
