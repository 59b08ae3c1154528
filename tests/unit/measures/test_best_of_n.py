import itertools
import math

import numpy as np
import pytest

from phf_ray.errors import DataError
from phf_ray.measures import best_of_n_estimate, best_of_n_kl, max_at_k


def test_kl_of_best_of_n():
    assert best_of_n_kl(4) == pytest.approx(0.636294, abs=5e-7)
    assert best_of_n_kl(1) == 0
    with pytest.raises(DataError, match="best of 0 is not defined"):
        best_of_n_kl(0)


def test_kl_of_best_of_n_bounds_that_of_a_policy_with_few_texts_from_above():
    # Texts in the order of their reward; P(best of n is text i) = F_i^n - F_{i-1}^n.
    p = np.array([0.5, 0.3, 0.2])
    for n in (2, 4, 16):
        best = np.diff(np.concatenate([[0], np.cumsum(p)]) ** n)
        assert 0 < (best * np.log(best / p)).sum() < best_of_n_kl(n)
    # Many equally likely texts: it is the KL.
    best = np.diff(np.linspace(0, 1, 100_001) ** 4)
    assert (best * np.log(best * 100_000)).sum() == pytest.approx(best_of_n_kl(4), abs=1e-3)


def by_enumeration(proxy, gold, n):
    """Mean over all subsets of n; among samples that the proxy holds equal, all are picked alike."""
    means = []
    for subset in itertools.combinations(range(len(proxy)), n):
        best = max(proxy[i] for i in subset)
        means.append(np.mean([gold[i] for i in subset if proxy[i] == best]))
    return np.mean(means)


@pytest.mark.parametrize("n", [1, 2, 3, 6])
@pytest.mark.parametrize("proxy", [[0.3, -1.0, 2.0, 7.5, 2.5, 0.0], [1, 0, 1, 1, 0, 2], [4, 4, 4, 4, 4, 4]])
def test_estimate_is_the_mean_over_all_subsets(proxy, n):
    gold = [5.0, 1.0, -2.0, 3.0, 0.5, 8.0]
    assert best_of_n_estimate([proxy], [gold], n) == pytest.approx(by_enumeration(proxy, gold, n), abs=1e-12)


def test_prompts_weigh_alike_and_samples_come_in_any_order():
    rng = np.random.default_rng(0)
    proxy, gold = rng.integers(4, size=(5, 8)).astype(float), rng.normal(size=(5, 8))
    whole = best_of_n_estimate(proxy, gold, 3)
    assert whole == pytest.approx(np.mean([by_enumeration(p, g, 3) for p, g in zip(proxy, gold, strict=True)]))
    order = rng.permutation(8)
    assert best_of_n_estimate(proxy[::-1, order], gold[::-1, order], 3) == pytest.approx(whole)
    # Only the order of the proxy's rewards counts; gold comes out in its own scale.
    assert best_of_n_estimate(np.exp(proxy) + 3, 10 * gold - 1, 3) == pytest.approx(10 * whole - 1)


def test_with_gold_as_proxy_it_is_the_expected_maximum():
    gold = [0.3, -1.0, 0.3, 7.5, 2.0]
    assert best_of_n_estimate([gold], [gold], 3) == pytest.approx(max_at_k(gold, 3))
    assert best_of_n_estimate([gold], [gold], 1) == pytest.approx(np.mean(gold))


def test_samples_that_lack_a_reward_are_left_out():
    nan = math.nan
    proxy, gold = [[1, nan, 3, 2], [9, 8, 7, nan]], [[5, 100, 7, 6], [1, nan, 2, 100]]
    expected = (by_enumeration([1, 3, 2], [5, 7, 6], 2) + by_enumeration([9, 7], [1, 2], 2)) / 2
    assert best_of_n_estimate(proxy, gold, 2) == pytest.approx(expected)
    # Two are left of the second prompt: none of three.
    assert best_of_n_estimate(proxy, gold, 3) == pytest.approx(7)
    assert best_of_n_estimate(proxy, gold, 4) is None
    assert best_of_n_estimate(np.zeros((0, 4)), np.zeros((0, 4)), 2) is None


@pytest.mark.parametrize(
    ("proxy", "gold", "n", "message"),
    [
        ([[1, 2]], [[1, 2]], 3, "best of 3 out of 2 samples is not defined; draw at least 3 per prompt"),
        ([[1, 2]], [[1, 2]], 0, "best of 0 out of 2 samples"),
        ([[1, 2]], [[1, 2, 3]], 1, r"proxy rewards of shape \(1, 2\), gold rewards of shape \(1, 3\)"),
        ([1, 2], [1, 2], 1, r"shape \(2,\); both need a row for each|shape \(2,\), gold"),
        ([[1, 2]], [[1, math.inf]], 1, "gold reward of prompt 0, sample 1 is infinite"),
    ],
)
def test_what_can_not_be_estimated_is_refused(proxy, gold, n, message):
    with pytest.raises(DataError, match=message):
        best_of_n_estimate(proxy, gold, n)
