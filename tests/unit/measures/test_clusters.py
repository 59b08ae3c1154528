"""Means whose values come in clusters, against numbers by hand."""

import numpy as np
import pytest

from phf_ray.measures.clusters import (
    cluster_sums,
    clustered_difference,
    clustered_mean,
    pooled,
)
from phf_ray.measures.overoptimization import OveroptimizationFit, fit_overoptimization


def test_a_cluster_is_one_draw():
    # PREFERENCES: preferences (2,2,1,2,1,1) in clusters (a,a,b,b,c,c) -> 50 and 28.8675 percent.
    found = clustered_mean(cluster_sums([*"aabbcc"], [1.0, 1.0, 0.0, 1.0, 0.0, 0.0]))
    assert (found.mean, found.num, found.num_clusters) == (0.5, 6, 3)
    assert found.standard_error == pytest.approx(0.288675, abs=1e-6)
    # t(2) at .975 is 4.30265.
    assert found.interval.high == pytest.approx(0.5 + 4.30265 * 0.288675, abs=1e-5)
    assert found.interval.low == pytest.approx(0.5 - 4.30265 * 0.288675, abs=1e-5)


def test_none_is_no_value_and_one_cluster_has_no_interval():
    sums = cluster_sums(["a", "a", "b"], [1.0, None, None])
    assert sums == {"a": (1.0, 1)}
    found = clustered_mean(sums)
    assert (found.mean, found.standard_error, found.interval) == (1.0, None, None)
    assert clustered_mean({}) is None
    assert clustered_difference(sums, {}) is None
    assert clustered_difference(sums, sums).low(0.025) is None


def test_pooled_values_are_those_of_all_parts():
    parts = [cluster_sums(["a", "b"], [1.0, 2.0]), cluster_sums(["b", "c"], [4.0, 5.0])]
    assert pooled(parts) == cluster_sums(["a", "b", "b", "c"], [1.0, 2.0, 4.0, 5.0])


def test_a_cluster_on_both_sides_is_paired_with_itself():
    first = cluster_sums([*"abc"], [10.0, 20.0, 30.0])
    second = cluster_sums([*"abc"], [9.0, 19.0, 29.0])
    # All clusters differ by 1: no noise, although the values of a side differ much.
    found = clustered_difference(first, second)
    assert found.mean == pytest.approx(1.0)
    assert found.standard_error == pytest.approx(0.0, abs=1e-12)
    apart = clustered_difference(first, cluster_sums([*"xyz"], [9.0, 19.0, 29.0]))
    # Each side moves its mean by -10/3, 0, 10/3: sqrt(6/5 * 4 * 100/9).
    assert apart.standard_error == pytest.approx(np.sqrt(6 / 5 * 400 / 9))


def test_a_fit_finds_the_curve_that_made_the_points():
    distances = np.linspace(0.0, 4.0, 17)
    rewards = [0.5 + (d * (0.9 - 0.6 * np.log(d)) if d else 0.0) for d in distances]
    fit = fit_overoptimization([float(d) ** 2 for d in distances], rewards)
    assert isinstance(fit, OveroptimizationFit)
    assert (fit.start, fit.alpha, fit.beta) == pytest.approx((0.5, 0.9, 0.6), abs=1e-9)
    assert fit.r_squared == pytest.approx(1.0)
    # The slope alpha - beta log d - beta is 0 at log d = .5: d = 1.64872, KL = e.
    assert fit.peak_kl == pytest.approx(np.e)
    assert fit.at(4.0) == pytest.approx(0.5 + 2 * (0.9 - 0.6 * np.log(2)))


def test_a_fit_of_best_of_n_has_the_form_without_a_logarithm():
    distances = np.linspace(0.0, 2.0, 12)
    rewards = [0.5 + d * (0.9 - 0.3 * d) for d in distances]
    fit = fit_overoptimization([float(d) ** 2 for d in distances], rewards, form="best of n")
    assert isinstance(fit, OveroptimizationFit)
    assert (fit.start, fit.alpha, fit.beta) == pytest.approx((0.5, 0.9, 0.3), abs=1e-9)
    # The slope alpha - 2 beta d is 0 at d = 1.5.
    assert fit.peak_kl == pytest.approx(2.25)
    assert fit.at(4.0) == pytest.approx(0.5 + 2 * (0.9 - 0.6))


@pytest.mark.parametrize(
    ("kls", "rewards", "reason"),
    [
        ([0.0, *range(1, 8)], [0.0] * 8, "7 points have a KL above 0; a fit needs 8"),
        ([1.0 + k / 100 for k in range(9)], [0.0] * 9, "within a factor of 2"),
        ([float(k) for k in range(12)], [float(k) ** 2 for k in range(12)], "the form does not fit: beta is -"),
        ([float(k) for k in range(12)], [(-1.0) ** k for k in range(12)], "of the variance is explained"),
        ([1.0] * 4 + [9.0] * 4, [1.0] * 8, "too much alike"),
    ],
)
def test_no_fit_without_reason(kls, rewards, reason):
    found = fit_overoptimization(kls, rewards)
    assert isinstance(found, str)
    assert reason in found
