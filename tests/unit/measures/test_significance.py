import numpy as np
import pytest
from scipy.stats import ttest_rel

from phf_ray.errors import ConfigError, DataError
from phf_ray.measures import holm, paired_difference


def test_holm_by_hand():
    # Sorted .01, .02, .03, .04 times 4, 3, 2, 1: .04, .06, .06, .04, and never below the one before.
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])


def test_holm_leaves_out_what_was_not_tested_and_stays_below_one():
    assert holm([None, 0.02, None]) == [None, 0.02, None]
    assert holm([0.7, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
    with pytest.raises(DataError, match=r"1\.5 is not between 0 and 1"):
        holm([1.5])


def test_difference_of_the_same_items_is_that_of_a_paired_t_test():
    first, second = np.array([3.0, 1.0, 4.0, 1.0, 5.0]), np.array([2.0, 2.0, 1.0, 0.0, 1.0])
    found = paired_difference(first, second, level=0.9)
    other = ttest_rel(first, second)
    interval = other.confidence_interval(0.9)
    assert found.mean == pytest.approx(1.6)
    assert found.p_value == pytest.approx(other.pvalue)
    assert (found.interval.low, found.interval.high) == pytest.approx((interval.low, interval.high))
    assert found.n_pairs == 5


@pytest.mark.parametrize(
    ("first", "second", "mean", "p_value"),
    [
        ([], [], None, None),
        ([1.0], [0.0], 1.0, None),
        ([2.0, 3.0], [1.0, 2.0], 1.0, None),
        ([1.0, 2.0], [1.0, 2.0], 0, 1),
    ],
)
def test_what_is_no_test_has_no_interval(first, second, mean, p_value):
    found = paired_difference(np.array(first), np.array(second))
    assert (found.mean, found.p_value, found.interval) == (mean, p_value, None)


def test_values_must_be_pairs():
    with pytest.raises(DataError, match="two for each item"):
        paired_difference(np.zeros(2), np.zeros(3))
    with pytest.raises(ConfigError, match="level 95"):
        paired_difference(np.zeros(2), np.zeros(2), level=95)
