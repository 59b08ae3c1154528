import math
import warnings

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from phf_ray.errors import DataError
from phf_ray.measures import UndefinedFigureWarning, fit_length_control, length_controlled_win_rate
from phf_ray.measures.logistic import are_separable, fit_logistic, sigmoid


def rows(num_long, num_short):
    """Answer 2 wins .8 where it is longer by 10 and .4 where it is shorter by 10."""
    preferences, lengths_2 = [], []
    for count, share, length in ((num_long, 0.8, 110), (num_short, 0.4, 90)):
        wins = round(share * count)
        preferences += [2.0] * wins + [1.0] * (count - wins)
        lengths_2 += [length] * count
    return preferences, [100.0] * len(preferences), lengths_2


@pytest.mark.parametrize(("num_long", "num_short"), [(10, 10), (15, 5), (5, 15)])
def test_at_equal_and_opposite_differences_the_logits_average(num_long, num_short):
    preferences, lengths_1, lengths_2 = rows(num_long, num_short)
    expected = 100 / (1 + math.exp(-(math.log(4) + math.log(2 / 3)) / 2))
    assert expected == pytest.approx(62.0204, abs=5e-5)
    if (num_long, num_short) == (10, 10):
        assert length_controlled_win_rate(preferences, lengths_1, lengths_2) == pytest.approx(expected, abs=1e-8)
    else:
        # The standard deviation differs with the mix, but both differences stay equal and opposite.
        assert fit_length_control(preferences, lengths_1, lengths_2).win_rate == pytest.approx(expected, abs=1e-8)
    assert {(15, 5): 70.0, (10, 10): 60.0, (5, 15): 50.0}[num_long, num_short] == 100 * np.mean(preferences) - 100


def many(num=600, *, theta=1.5, beta=0.4, psi=0.0, seed=0):
    rng = np.random.default_rng(seed)
    lengths_1, lengths_2 = rng.integers(50, 500, size=(2, num)).astype(float)
    difference = lengths_1 - lengths_2
    difficulty = rng.normal(size=num)
    logit = theta * np.tanh(difference / difference.std(ddof=1)) + psi * difficulty + beta
    return 1.0 + (rng.random(num) < sigmoid(logit)), lengths_1, lengths_2, difficulty


def test_it_is_the_unregularised_fit_of_scikit_learn():
    preferences, lengths_1, lengths_2, difficulty = many(psi=0.8)
    difference = lengths_1 - lengths_2
    design = np.stack([np.tanh(difference / difference.std(ddof=1)), difficulty], axis=1)
    theirs = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(design, preferences - 1)
    expected = sigmoid(theirs.intercept_ + theirs.coef_[0, 1] * difficulty).mean()
    found = length_controlled_win_rate(preferences, lengths_1, lengths_2, difficulty)
    assert found == pytest.approx(100 * expected, abs=1e-4)
    assert abs(found - length_controlled_win_rate(preferences, lengths_1, lengths_2)) > 0.01


def test_unit_of_length_and_order_of_rows_mean_nothing_and_swapped_answers_give_the_other_side():
    preferences, lengths_1, lengths_2, _ = many()
    whole = length_controlled_win_rate(preferences, lengths_1, lengths_2)
    assert abs(whole - 100 * (preferences.mean() - 1)) > 0.01
    order = np.random.default_rng(1).permutation(len(preferences))
    again = length_controlled_win_rate(preferences[order], 4 * lengths_1[order], 4 * lengths_2[order])
    assert again == pytest.approx(whole, abs=1e-8)
    assert length_controlled_win_rate(3 - preferences, lengths_2, lengths_1) == pytest.approx(100 - whole, abs=1e-8)


def test_difficulty_counts_only_by_what_it_says_apart_from_its_scale():
    preferences, lengths_1, lengths_2, difficulty = many(psi=0.8)
    whole = length_controlled_win_rate(preferences, lengths_1, lengths_2, difficulty)
    assert length_controlled_win_rate(preferences, lengths_1, lengths_2, 7 - 3 * difficulty) == pytest.approx(whole)
    constant = length_controlled_win_rate(preferences, lengths_1, lengths_2, np.full(len(preferences), 0.3))
    assert constant == length_controlled_win_rate(preferences, lengths_1, lengths_2)


def test_draws_count_half_and_rows_without_a_verdict_are_left_out_whatever_their_lengths():
    preferences, lengths_1, lengths_2 = rows(10, 10)
    doubled = length_controlled_win_rate(preferences * 2 + [2, 1], lengths_1 * 2 + [9, 9], lengths_2 * 2 + [8, 8])
    # The two rows in place of two draws: the same likelihood.
    drawn = [*preferences * 2, 1.5, 0, None, math.nan]
    found = length_controlled_win_rate(drawn, [*lengths_1 * 2, 9, 9, math.nan, 1e9], [*lengths_2 * 2, 8, 8, 3, 7])
    assert found == pytest.approx(doubled, abs=1e-8)


@pytest.mark.parametrize(
    ("preferences", "lengths_2", "difficulty", "reason"),
    [
        # The longer answer wins, and equal lengths are draws.
        ([2, 2, 1, 1.5], [8, 9, 3, 5], None, "length separates wins from losses"),
        # Quasi-complete: at one length both occur, beyond it only wins.
        ([1, 2, 1, 2], [5, 5, 3, 9], None, "length separates wins from losses"),
        ([2, 2, 2], [4, 5, 6], None, "length separates wins from losses"),
        ([2, 1, 2, 1], [7, 7, 7, 7], None, "differ in length by the same in every row"),
        ([2, None], [7, 8], None, "1 judged rows"),
        ([], [], None, "0 judged rows"),
        ([2, 1, 2, 1], [4, 6, 6, 4], [1, -1, 1, -1], "length, with difficulty, separates"),
        ([2, 1, 2, 1], [4, 6, 6, 4], [3, 7, 7, 3], "difficulty follows from length"),
    ],
)
def test_where_no_fit_is_best_the_result_is_nan_with_the_reason(preferences, lengths_2, difficulty, reason):
    lengths_1 = [5] * len(preferences)
    fitted = fit_length_control(preferences, lengths_1, lengths_2, difficulty)
    assert math.isnan(fitted.win_rate)
    assert reason in fitted.reason
    with pytest.warns(UndefinedFigureWarning, match=reason):
        assert math.isnan(length_controlled_win_rate(preferences, lengths_1, lengths_2, difficulty))


def test_nothing_is_warned_of_where_the_figure_is_defined():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert length_controlled_win_rate(*rows(10, 10)) > 60
    assert fit_length_control(*rows(10, 10)).reason is None


def test_one_row_against_the_rule_is_enough_for_a_fit():
    lengths_2 = list(range(100, 160))
    preferences = [2.0 if length >= 130 else 1.0 for length in lengths_2]
    assert math.isnan(fit_length_control(preferences, [130] * 60, lengths_2).win_rate)
    preferences[10] = 2.0
    assert 30 < fit_length_control(preferences, [130] * 60, lengths_2).win_rate < 70


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([2, 1], [1], [1, 2]), r"lengths_1 of shape \(1,\) for 2 preferences"),
        (([2, 1], [1, 2], [1, math.nan]), "lengths_2 of row 1 is nan; every judged row needs a number"),
        (([2, 1], [1, 2], [1, 2], [math.inf, 1]), "difficulty of row 0 is inf"),
        (([2, 5], [1, 2], [1, 2]), "preference 5 in row 1"),
    ],
)
def test_what_can_not_be_fitted_is_refused(arguments, message):
    with pytest.raises(DataError, match=message):
        length_controlled_win_rate(*arguments)


def test_logistic_regression_steps_back_where_newtons_step_overshoots():
    # Found by search: whole steps from 0 run off to where the loss is linear and the Hessian singular.
    design = np.array([[-2.1, 1.7], [32.7, -22.9], [36.6, 3.4]])
    targets, weights = np.array([0.108, 0.3726, 0.598]), np.array([947.9, 11.6, 0.1])
    fitted = fit_logistic(design, targets, weights)
    # At the maximum the likelihood has no slope.
    assert design.T @ (weights * (sigmoid(design @ fitted) - targets)) == pytest.approx([0, 0], abs=1e-8)
    assert fit_logistic(np.ones((3, 2)), targets, weights) is None


def test_separation_is_found_in_any_direction():
    rng = np.random.default_rng(3)
    design = rng.normal(size=(40, 3))
    targets = (design @ [1.0, -2.0, 0.5] > 0).astype(float)
    assert are_separable(design, targets)
    targets[0] = 1 - targets[0]
    assert not are_separable(design, targets)
    assert not are_separable(design, np.full(40, 0.3))
