import math

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from phf_ray.errors import DataError
from phf_ray.measures import SwapConsistency, cohen_kappa, corrected_rate, krippendorff_alpha, swap_consistency

# -- Cohen's kappa ----------------------------------------------------------------------------------------------------


def test_kappa_by_hand():
    # Agree 35 of 50 = .7; chance (25 x 30 + 25 x 20) / 50^2 = .5; (.7 - .5) / (1 - .5).
    assert cohen_kappa([[20, 5], [10, 15]]) == pytest.approx(0.4, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_kappa_is_that_of_scikit_learn(seed):
    first, second = np.random.default_rng(seed).integers(4, size=(2, 200))
    table = np.zeros((4, 4))
    np.add.at(table, (first, second), 1)
    assert cohen_kappa(table) == pytest.approx(cohen_kappa_score(first, second), abs=1e-12)
    assert cohen_kappa(table.T) == pytest.approx(cohen_kappa(table), abs=1e-12)


def test_kappa_at_its_ends():
    assert cohen_kappa([[3, 0], [0, 4]]) == 1
    assert cohen_kappa([[0, 5], [5, 0]]) == -1
    # One class alone: chance agrees always.
    assert cohen_kappa([[7, 0], [0, 0]]) is None
    assert cohen_kappa(np.zeros((2, 2))) is None


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([[1, 2, 3], [4, 5, 6]], r"shape \(2, 3\); it must be square"),
        ([1, 2], r"shape \(2,\)"),
        ([[1, -2], [3, 4]], r"table_KK\[0, 1\] = -2 is not a count"),
        ([[1, 2], [math.nan, 4]], r"table_KK\[1, 0\] = nan"),
    ],
)
def test_what_is_no_table_of_counts_is_refused(table, message):
    with pytest.raises(DataError, match=message):
        cohen_kappa(table)


# -- Krippendorff's alpha ---------------------------------------------------------------------------------------------

N = math.nan
# Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", example C: 4 observers, 12 units, alpha .743.
OBSERVERS = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, N, N, N],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, N, 3],
    [N, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, N],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, N],
]


def test_alpha_of_the_published_example():
    assert krippendorff_alpha(OBSERVERS) == pytest.approx(0.743, abs=5e-4)
    # The package krippendorff 0.9.0 (nominal).
    assert krippendorff_alpha(OBSERVERS) == pytest.approx(0.743421052631579, abs=1e-12)


def test_alpha_by_hand():
    # 4 items, ratings aa, ab, bb, bb. n = 8, 3 a and 5 b. Differing: within 2/8; among all 2 x 15 / (8 x 7) = .535714.
    assert krippendorff_alpha([[0, 0, 1, 1], [0, 1, 1, 1]]) == pytest.approx(1 - 0.25 / (30 / 56), abs=1e-12)


def test_alpha_knows_no_order_of_raters_items_or_classes_and_leaves_lone_ratings_out():
    ratings = np.array(OBSERVERS)
    rng = np.random.default_rng(0)
    mixed = ratings[rng.permutation(4)][:, rng.permutation(12)]
    assert krippendorff_alpha(mixed) == pytest.approx(krippendorff_alpha(ratings), abs=1e-12)
    assert krippendorff_alpha(np.array([N, 9, -4, 0, 7.5, 2])[np.nan_to_num(ratings).astype(int)]) == pytest.approx(
        krippendorff_alpha(ratings), abs=1e-12
    )
    lone = np.array([[6, N], [N, N], [N, N], [N, 7]])
    assert krippendorff_alpha(np.hstack([ratings, lone])) == pytest.approx(krippendorff_alpha(ratings), abs=1e-12)


def test_alpha_that_is_not_defined_is_none():
    assert krippendorff_alpha([[1, 1, N], [1, 1, 2]]) is None
    assert krippendorff_alpha([[1, N], [N, 2]]) is None
    assert krippendorff_alpha(np.zeros((0, 0))) is None
    assert krippendorff_alpha([[1, 2, 3], [1, 2, 3]]) == 1
    with pytest.raises(DataError, match=r"shape \(2,\); give a row for each rater"):
        krippendorff_alpha([1, 2])


# -- Swapped answers --------------------------------------------------------------------------------------------------


def orders(always_1, always_2, always_first, always_second):
    first = [1.0] * always_1 + [2.0] * always_2 + [1.0] * always_first + [2.0] * always_second
    second = [1.0] * always_1 + [2.0] * always_2 + [2.0] * always_first + [1.0] * always_second
    return first, second


def test_swapped_pairs_by_hand():
    found = swap_consistency(*orders(55, 25, 15, 5))
    assert found.consistency == pytest.approx(0.80)
    assert found.debiased_win_rate == pytest.approx(0.65)
    assert found.position_bias == pytest.approx(0.10)
    # 15 of 20 fair coins or further out: 2 (C(20,15) + ... + C(20,20)) / 2^20.
    assert found.p_value == pytest.approx(2 * sum(math.comb(20, i) for i in range(15, 21)) / 2**20)
    assert found.p_value == pytest.approx(0.04139, abs=5e-6)


def test_a_judge_of_the_other_position_has_the_other_sign_and_renamed_answers_the_other_win_rate():
    found, turned = swap_consistency(*orders(55, 25, 15, 5)), swap_consistency(*orders(55, 25, 5, 15))
    assert turned.position_bias == pytest.approx(-found.position_bias)
    assert (turned.consistency, turned.debiased_win_rate) == (found.consistency, pytest.approx(0.65))
    # Answer 1 called answer 2: the order in which it was second becomes the first one.
    first, second = (3 - np.array(order) for order in orders(55, 25, 15, 5))
    renamed = swap_consistency(second, first)
    assert renamed.position_bias == pytest.approx(found.position_bias)
    assert renamed.debiased_win_rate == pytest.approx(0.35)


def test_draws_are_verdicts_and_degrees_on_one_side_are_the_same_verdict():
    # Both draws: the same. Draw, then answer 2: leans to what is shown first. 1.2 and 1.4: the same.
    found = swap_consistency([1.5, 1.5, 1.2], [0, 2, 1.4])
    assert found.consistency == pytest.approx(2 / 3)
    assert found.debiased_win_rate == pytest.approx(((0.5 + 0.5) + (0.5 + 0) + (0.8 + 0.6)) / 6)
    assert found.position_bias == pytest.approx((0 + 0.5 + 0.2) / 3)
    assert found.p_value == 1


def test_pairs_that_were_not_judged_in_both_orders_are_left_out():
    assert swap_consistency([1, 2, None, 1, 2], [1, None, 2, 2, 2]) == swap_consistency([1, 1, 2], [1, 2, 2])
    assert swap_consistency([1, None], [math.nan, 2]) == SwapConsistency(None, None, None, None)
    assert swap_consistency([], []) == SwapConsistency(None, None, None, None)


def test_a_judge_that_never_turns_shows_no_position():
    assert swap_consistency([1, 2], [1, 2]) == SwapConsistency(1.0, 0.5, 0.0, 1.0)


def test_orders_that_are_no_pairs_are_refused():
    with pytest.raises(DataError, match="2 preferences in the first order, 1 in the second"):
        swap_consistency([1, 2], [1])
    with pytest.raises(DataError, match="preference 3 in row 1"):
        swap_consistency([1, 2], [1, 3])


def test_a_rate_is_corrected_for_the_errors_of_the_judge():
    # Of 60 true wins 48 are called wins (.8), of 40 true losses 12 (1 - .7): .6 are observed.
    assert corrected_rate(0.6, sensitivity=0.8, specificity=0.7) == pytest.approx(0.6)
    assert corrected_rate(0.5, sensitivity=0.9, specificity=0.8) == pytest.approx(0.3 / 0.7)
    # A rate below what the errors alone would give.
    assert corrected_rate(0.1, sensitivity=0.9, specificity=0.8) == 0
    assert corrected_rate(0.95, sensitivity=0.9, specificity=0.8) == 1
    assert corrected_rate(0.5, sensitivity=0.5, specificity=0.5) is None
    with pytest.raises(DataError, match="sensitivity 80 is no share"):
        corrected_rate(0.5, sensitivity=80, specificity=0.5)
