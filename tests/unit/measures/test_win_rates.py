import math

import numpy as np
import pytest

from phf_ray.errors import ConfigError, DataError
from phf_ray.measures import WinRate, win_rate
from phf_ray.measures.intervals import Interval


def verdicts(wins, losses, draws):
    return [2.0] * wins + [1.0] * losses + [1.5] * draws


@pytest.mark.parametrize(
    ("counts", "rate", "error"), [((135, 115, 1), 53.98406, 3.14590), ((80, 160, 10), 34.0, 2.93436)]
)
def test_win_rate_and_its_standard_error(counts, rate, error):
    found = win_rate(verdicts(*counts))
    assert found.win_rate == pytest.approx(rate, abs=5e-6)
    assert found.standard_error == pytest.approx(error, abs=5e-6)
    assert (found.n_wins, found.n_wins_base, found.n_draws) == counts
    assert found.n_total == sum(counts)


def test_rows_of_one_prompt_are_one_draw():
    found = win_rate([2, 2, 1, 2, 1, 1], ["a", "a", "b", "b", "c", "c"])
    assert found.win_rate == 50
    assert found.standard_error == pytest.approx(28.8675, abs=5e-5)
    assert win_rate([2, 2, 1, 2, 1, 1]).standard_error == pytest.approx(22.3607, abs=5e-5)


def test_every_judgement_written_twice_says_no_more_than_once():
    once = verdicts(30, 20, 3)
    twice = win_rate(once * 2, [*range(53), *range(53)])
    assert twice.standard_error == pytest.approx(win_rate(once).standard_error)
    assert win_rate(once * 2).standard_error < 0.75 * twice.standard_error


def test_without_clusters_every_row_is_one_and_the_order_means_nothing():
    rows = np.random.default_rng(0).choice([1.0, 1.5, 2.0, 1.2, np.nan], size=200)
    prompts = np.random.default_rng(1).integers(40, size=200)
    order = np.random.default_rng(2).permutation(200)
    assert win_rate(rows, range(200)).standard_error == pytest.approx(win_rate(rows).standard_error)
    mixed, sorted_ = win_rate(rows[order], prompts[order]), win_rate(rows, prompts)
    assert (mixed.win_rate, mixed.standard_error) == pytest.approx((sorted_.win_rate, sorted_.standard_error))
    # Swapped answers: the other side of 100.
    assert win_rate(3 - rows).win_rate == pytest.approx(100 - win_rate(rows).win_rate)


def test_what_was_not_judged_is_left_out_with_its_cluster():
    whole = win_rate([2, None, 1, math.nan, 1.5], ["a", "only missing", "b", "a", "c"])
    assert whole == win_rate([2, 1, 1.5], ["a", "b", "c"])
    assert whole.n_total == 3


def test_zero_is_the_old_draw_and_the_input_is_not_changed():
    rows = np.array([0, 2, 1, 0], dtype=float)
    assert win_rate(rows) == win_rate([1.5, 2, 1, 1.5])
    assert rows.tolist() == [0, 2, 1, 0]


def test_degrees_count_as_wins_and_losses_but_weigh_by_degree():
    found = win_rate([1.9, 1.6, 1.4])
    assert (found.n_wins, found.n_wins_base, found.n_draws) == (2, 1, 0)
    assert found.win_rate == pytest.approx(100 * (0.9 + 0.6 + 0.4) / 3)


def test_what_is_not_known_is_none():
    assert win_rate([]) == win_rate([None, math.nan]) == WinRate(None, None, 0, 0, 0, 0)
    assert win_rate([2]) == WinRate(100.0, None, 1, 1, 0, 0)
    assert win_rate([2, 1], ["a", "a"]).standard_error is None
    assert win_rate([], []).interval() is win_rate([2]).interval() is win_rate([2, 2]).interval() is None


@pytest.mark.parametrize(
    ("preferences", "clusters", "message"),
    [
        ([1, 2, 3], None, r"preference 3 in row 2 is not between 1 .* write 1.5 for a draw"),
        ([0.5], None, "preference 0.5 in row 0"),
        ([-1.0], None, "preference -1 in row 0"),
        ([math.inf], None, "preference inf in row 0"),
        (["a is better"], None, "must be numbers"),
        ([[1, 2]], None, r"shape \(1, 2\); give one number per row"),
        ([1, 2], ["a"], "1 clusters for 2 preferences"),
    ],
)
def test_what_is_no_preference_is_refused(preferences, clusters, message):
    with pytest.raises(DataError, match=message):
        win_rate(preferences, clusters)


def test_interval_is_wilsons_for_independent_rows():
    # Wilson's for 30 of 100 at z = 1.959964; our standard error divides by n - 1, so n counts as 99.
    z, n, p = 1.959964, 99, 0.3
    middle, half = p + z * z / 2 / n, z * math.sqrt(p * (1 - p) / n + z * z / 4 / n**2)
    found = win_rate(verdicts(30, 70, 0)).interval()
    assert found.low == pytest.approx(100 * (middle - half) / (1 + z * z / n), abs=1e-4)
    assert found.high == pytest.approx(100 * (middle + half) / (1 + z * z / n), abs=1e-4)
    wider = win_rate(verdicts(30, 70, 0)).interval(0.99)
    assert wider.low < found.low < found.high < wider.high
    with pytest.raises(ConfigError, match=r"level 95 is not between 0 and 1"):
        win_rate(verdicts(30, 70, 0)).interval(95)


def coverage(rate, *, num_clusters, size, likeness):
    """Share of 1,000 draws whose interval holds the rate. likeness: correlation of two rows of a cluster."""
    rng = np.random.default_rng(0)
    rate_DG = np.full((1000, num_clusters), rate)
    if likeness:
        scale = 1 / likeness - 1
        rate_DG = rng.beta(rate * scale, (1 - rate) * scale, size=rate_DG.shape)
    preferences_DGN = 1.0 + (rng.random((*rate_DG.shape, size)) < rate_DG[:, :, None])
    clusters = np.repeat(np.arange(num_clusters), size).tolist()
    held = 0
    for preferences_GN in preferences_DGN:
        interval = win_rate(preferences_GN.ravel(), None if size == 1 else clusters).interval()
        held += interval is not None and interval.low <= 100 * rate <= interval.high
    return held / 1000


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize(("num_clusters", "size", "likeness"), [(250, 1, 0.0), (50, 5, 0.6)])
def test_interval_covers_the_rate_as_often_as_it_says(rate, num_clusters, size, likeness):
    assert 0.93 <= coverage(rate, num_clusters=num_clusters, size=size, likeness=likeness) <= 0.97


def test_interval_covers_near_the_end_where_two_standard_errors_do_not():
    # Two standard errors: 80%. In 5% of the draws all rows are wins, and there is no interval.
    assert 0.90 <= coverage(0.97, num_clusters=100, size=1, likeness=0.0) <= 0.95


def test_interval_stays_within_the_percentages():
    assert win_rate(verdicts(99, 1, 0)).interval().high < 100
    assert isinstance(win_rate(verdicts(1, 99, 0)).interval(), Interval)
    assert win_rate(verdicts(1, 99, 0)).interval().low > 0
