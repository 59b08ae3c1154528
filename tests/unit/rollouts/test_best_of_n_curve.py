"""The curve over n from one set of samples: by hand, against all subsets, and against drawing anew."""

import itertools

import numpy as np
import pytest

from phf_ray.measures import best_of_n_kl
from phf_ray.rollouts.best_of_n.curve import curve_over_n, sizes, table_lines
from phf_ray.rollouts.best_of_n.picks import pick_best, rewards_of


def point_of(curve, n):
    return next(point for point in curve["points"] if point["n"] == n)


def test_sizes_end_with_all_samples():
    assert sizes(1) == [1]
    assert sizes(4) == [1, 2, 3, 4]
    assert sizes(16) == [1, 2, 3, 4, 6, 8, 12, 16]
    assert sizes(10) == [1, 2, 3, 4, 6, 8, 10]


def test_each_point_is_the_mean_over_all_subsets():
    rng = np.random.default_rng(0)
    proxy_SN, gold_SN = rng.normal(size=(3, 6)), rng.normal(size=(3, 6))
    curve = curve_over_n(proxy_SN, gold_SN)
    for n in (1, 2, 4, 6):
        subsets = [list(one) for one in itertools.combinations(range(6), n)]
        gold = np.mean([[g[s][np.argmax(p[s])] for s in subsets] for p, g in zip(proxy_SN, gold_SN, strict=True)])
        proxy = np.mean([[p[s].max() for s in subsets] for p in proxy_SN])
        point = point_of(curve, n)
        assert point["gold"]["mean"] == pytest.approx(gold)
        assert point["proxy"]["mean"] == pytest.approx(proxy)
        assert point["kl_upper_bound"] == best_of_n_kl(n)
    assert "upper bound" in curve["kl"]


def test_the_curve_from_one_set_agrees_with_drawing_anew_and_its_intervals_hold():
    # A proxy that is right half of the time: gold peaks lower than the proxy says.
    rng = np.random.default_rng(1)

    def draw(num_prompts, n):
        gold = rng.normal(size=(num_prompts, n))
        return gold + rng.normal(size=gold.shape), gold

    proxy, gold = draw(200_000, 4)
    truth = np.take_along_axis(gold, proxy.argmax(axis=1)[:, None], axis=1).mean()
    inside = 0
    for _ in range(40):
        point = point_of(curve_over_n(*draw(60, 16)), 4)
        low, high = point["gold"]["interval"]
        inside += low <= truth <= high
        assert point["proxy"]["mean"] > point["gold"]["mean"]
    assert inside >= 34


def test_a_sample_without_a_reward_counts_as_not_drawn():
    curve = curve_over_n([[1.0, np.nan, 3.0], [5.0, 6.0, 7.0]])
    assert point_of(curve, 1)["proxy"]["mean"] == (2.0 + 6.0) / 2
    last = point_of(curve, 3)["proxy"]
    assert (last["mean"], last["num_prompts"], last["interval"]) == (7.0, 1, None)
    assert point_of(curve_over_n([[np.nan, np.nan]]), 1)["proxy"] is None


def test_without_gold_the_curve_says_so_and_a_terminal_gets_a_line_for_each_n():
    curve = curve_over_n([[1.0, 2.0], [3.0, 4.0]])
    assert all(point["gold"] is None for point in curve["points"])
    assert table_lines(curve)[0].startswith("n    1: reward 2.5 [")


def test_the_first_of_equal_samples_is_picked_and_constant_rewards_are_counted():
    reward_SN = np.array([[1.0, 3.0, 3.0], [2.0, 2.0, np.nan], [np.nan] * 3, [1.0, 0.0, np.nan]])
    picks = pick_best(reward_SN)
    assert picks.best_S == (1, 0, None, 0)
    assert (picks.num_tied, picks.num_constant, picks.num_without, picks.example) == (2, 1, 1, 1)


def test_rewards_become_an_array_by_prompt():
    rows = [{"reward": value} for value in (1.0, None, 3.0, 4.0)]
    assert np.array_equal(rewards_of(rows, "reward", n=2), [[1.0, np.nan], [3.0, 4.0]], equal_nan=True)
