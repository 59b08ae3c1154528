import math
import warnings

import numpy as np
import pytest
from scipy.optimize import minimize

from phf_ray.errors import ConfigError, DataError
from phf_ray.measures import UndefinedFigureWarning, bradley_terry, elo, fit_bradley_terry

ELO_POINTS = 400 / math.log(10)

WINS = np.array([[0, 7, 3, 9], [4, 0, 6, 2], [5, 1, 0, 8], [2, 6, 3, 0]])
TIES = np.array([[0, 2, 0, 1], [2, 0, 3, 0], [0, 3, 0, 0], [1, 0, 0, 0]])

# -- Bradley-Terry ----------------------------------------------------------------------------------------------------


def test_two_players_at_three_to_one_are_190_elo_points_apart():
    first, second = bradley_terry([[0, 3], [1, 0]])
    assert (first - second) * ELO_POINTS == pytest.approx(190.85, abs=5e-3)
    assert first - second == pytest.approx(math.log(3), abs=1e-12)
    assert first + second == pytest.approx(0, abs=1e-15)


def test_a_tie_is_half_a_win_to_each():
    assert bradley_terry(WINS, TIES) == pytest.approx(bradley_terry(WINS + TIES / 2), abs=1e-12)
    assert bradley_terry([[0, 2], [0, 0]], [[0, 2], [2, 0]]) == pytest.approx(bradley_terry([[0, 3], [1, 0]]))


def test_it_is_the_maximum_of_the_likelihood():
    wins = WINS + TIES / 2

    def loss(strengths):
        return (wins * np.logaddexp(0, -(strengths[:, None] - strengths[None, :]))).sum() + strengths.mean() ** 2

    expected = minimize(loss, np.zeros(4), tol=1e-12).x
    assert bradley_terry(WINS, TIES) == pytest.approx(expected - expected.mean(), abs=1e-5)
    # Expected wins are those observed: the condition of the maximum.
    found = bradley_terry(WINS, TIES)
    expected_wins = ((wins + wins.T) / (1 + np.exp(found[None, :] - found[:, None]))).sum(axis=1)
    assert expected_wins == pytest.approx(wins.sum(axis=1), abs=1e-10)


def test_it_is_that_of_evalica():
    # evalica 0.4.2, bradley_terry(..., tolerance=1e-13, limit=10000) on WINS and TIES: logarithms, mean 0.
    assert bradley_terry(WINS, TIES) == pytest.approx(
        [0.3580352996294727, -0.05412178880235679, 0.07631296438473036, -0.3802264752118463], abs=1e-9
    )


def test_players_may_stand_in_any_order_and_swapped_verdicts_change_the_sign():
    order = np.array([2, 0, 3, 1])
    found = bradley_terry(WINS, TIES)
    assert bradley_terry(WINS[np.ix_(order, order)], TIES[np.ix_(order, order)]) == pytest.approx(found[order])
    assert bradley_terry(WINS.T, TIES) == pytest.approx(-found)
    assert bradley_terry(1000 * WINS, 1000 * TIES) == pytest.approx(found)
    assert found.mean() == pytest.approx(0, abs=1e-14)


def test_players_who_never_met_are_compared_by_way_of_others():
    # 2:1 twice in a chain: log 2 each.
    assert np.diff(bradley_terry([[0, 1, 0], [2, 0, 1], [0, 2, 0]])) == pytest.approx([math.log(2)] * 2, abs=1e-12)


def test_lopsided_counts_are_fitted():
    assert np.diff(bradley_terry([[0, 1], [10**6, 0]])) == pytest.approx([math.log(10**6)], rel=1e-10)


@pytest.mark.parametrize(
    ("wins", "reason"),
    [
        # 0 never lost.
        ([[0, 3, 2], [0, 0, 1], [0, 1, 0]], r"the 3 players fall into 2 groups"),
        # Two pairs that never met.
        ([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]], r"such as \[0, 1\] and \[2, 3\]; judge more pairs"),
        (np.zeros((3, 3)), "fall into 3 groups"),
    ],
)
def test_where_strengths_grow_without_end_they_are_nan_with_the_reason(wins, reason):
    with pytest.warns(UndefinedFigureWarning, match=reason):
        found = bradley_terry(wins)
    assert found.shape == (len(wins),)
    assert np.isnan(found).all()
    assert fit_bradley_terry(wins).reason is not None


def test_a_tie_connects_both_ways_and_a_connected_table_has_no_reason():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert bradley_terry([[0, 0], [0, 0]], [[0, 1], [1, 0]]).tolist() == [0, 0]
        assert bradley_terry([[0]]).tolist() == [0]
    assert fit_bradley_terry(WINS).reason is None


@pytest.mark.parametrize(
    ("wins", "ties", "message"),
    [
        ([[0, 1, 2], [1, 0, 2]], None, r"wins_MM of shape \(2, 3\); it must be square"),
        (np.zeros((0, 0)), None, r"shape \(0, 0\)"),
        ([[0, -1], [1, 0]], None, r"wins_MM\[0, 1\] = -1 is not a count"),
        ([[0, math.nan], [1, 0]], None, r"wins_MM\[0, 1\] = nan is not a count; write 0"),
        ([[0, 1], [1, 4]], None, r"wins_MM\[1, 1\] = 4, but nobody plays against themselves"),
        ([[0, 1], [1, 0]], [[0, 3], [2, 0]], r"ties_MM\[0, 1\] = 3 and ties_MM\[1, 0\] = 2; write the number of ties"),
        ([[0, 1], [1, 0]], [[0]], r"ties_MM of shape \(1, 1\) for wins_MM of shape \(2, 2\)"),
    ],
)
def test_what_is_no_table_of_wins_is_refused(wins, ties, message):
    with pytest.raises(DataError, match=message):
        bradley_terry(wins, ties)


# -- Elo --------------------------------------------------------------------------------------------------------------

BATTLES = [("x", "y", "a"), ("y", "z", "tie"), ("z", "x", "b"), ("x", "z", "a"), ("y", "x", "a"), ("z", "y", "tie")]


def test_elo_by_hand():
    # Equals: expected 1/2, so a win moves 2 points and a tie none.
    assert elo([("x", "y", "a")]) == {"x": 1002.0, "y": 998.0}
    assert elo([("x", "y", "b")]) == {"x": 998.0, "y": 1002.0}
    assert elo([("x", "y", "tie")]) == {"x": 1000.0, "y": 1000.0}
    # From 1016 against 984: expected 1 / (1 + 10^(-32/400)) = .545922; the loss costs 32 times that.
    found = elo([("x", "y", "a"), ("x", "y", "b")], k=32)
    assert found["x"] == pytest.approx(1016 - 32 / (1 + 10 ** (-32 / 400)))
    assert found["x"] == pytest.approx(1016 - 32 * 0.545922, abs=1e-4)
    assert elo([]) == {}


def test_elo_is_that_of_evalica():
    # evalica 0.4.2, elo(..., k=4) and (..., k=32, initial=0, scale=100) on BATTLES.
    assert elo(BATTLES) == pytest.approx(
        {"x": 1003.9082402075379, "y": 1000.0340697606006, "z": 996.0576900318615}, abs=1e-9
    )
    assert elo(BATTLES, 32, 0.0, 100.0) == pytest.approx(
        {"x": 12.750876310894988, "y": 5.09058618698127, "z": -17.84146249787625}, abs=1e-9
    )


def test_elo_keeps_the_sum_depends_on_the_order_and_not_on_who_is_called_a():
    found = elo(BATTLES)
    assert sum(found.values()) == pytest.approx(3000)
    turned = [(b, a, {"a": "b", "b": "a", "tie": "tie"}[winner]) for a, b, winner in BATTLES]
    assert elo(turned) == pytest.approx(found, abs=1e-9)
    assert abs(elo(BATTLES[::-1])["x"] - found["x"]) > 1e-4


@pytest.mark.parametrize(
    ("battles", "message"),
    [
        ([("x", "y", "a"), ("x", "y", "model_a")], "winner 'model_a' of battle 1 is unknown; write a, b or tie"),
        ([("x", "x", "a")], "battle 0 is between 'x' and itself"),
    ],
)
def test_what_is_no_battle_is_refused(battles, message):
    with pytest.raises(DataError, match=message):
        elo(battles)


def test_elo_without_a_step_or_scale_is_refused():
    with pytest.raises(ConfigError, match="k = 0 and scale = 400"):
        elo(BATTLES, k=0)
    with pytest.raises(ConfigError, match="scale = -1"):
        elo(BATTLES, scale=-1)
