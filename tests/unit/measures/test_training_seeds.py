"""The interval of a mean over training seeds: of seeds alone, of prompts alone, of both, and how often it is right."""

import numpy as np
import pytest
from scipy.stats import t as student

from phf_ray.measures.training_seeds import difference_over_seeds


def groups(values_P):
    return {f"p{number}": [float(value)] for number, value in enumerate(values_P)}


def interval_of(values, *, degrees=None):
    degrees = len(values) - 1 if degrees is None else degrees
    half = student.ppf(0.975, degrees) * np.std(values, ddof=1) / np.sqrt(len(values))
    return np.mean(values) - half, np.mean(values) + half


def test_where_prompts_are_alike_the_interval_is_students_over_seeds():
    found = difference_over_seeds([groups(np.full(50, gain)) for gain in (1.0, 2.0, 4.0)], groups(np.zeros(50)))
    assert found.by_seed == (1.0, 2.0, 4.0)
    assert (found.interval.low, found.interval.high) == pytest.approx(interval_of([1.0, 2.0, 4.0]))
    assert (found.over_prompts.low, found.over_prompts.high) == pytest.approx((7 / 3, 7 / 3))


def test_where_seeds_are_alike_the_interval_is_students_over_paired_prompts():
    rng = np.random.default_rng(0)
    base_P, gains_P = 10 * rng.normal(size=30), rng.normal(size=30)
    found = difference_over_seeds([groups(base_P + gains_P)] * 3, groups(base_P))
    assert (found.interval.low, found.interval.high) == pytest.approx(interval_of(gains_P))
    assert found.over_prompts == found.interval
    assert found.num_prompts == 30


def test_the_interval_holds_the_truth_where_that_over_prompts_does_not():
    rng = np.random.default_rng(0)
    held = {"both": 0, "prompts": 0}
    for _ in range(400):
        runs_SP = rng.normal(0, 0.3, (3, 1)) + rng.normal(size=(1, 40)) * 0.5 + rng.normal(size=(3, 40)) * 0.5
        found = difference_over_seeds([groups(run_P) for run_P in runs_SP], groups(np.zeros(40)))
        held["both"] += found.interval.low < 0 < found.interval.high
        held["prompts"] += found.over_prompts.low < 0 < found.over_prompts.high
    assert held["both"] / 400 > 0.9
    assert held["prompts"] / 400 < 0.75


def test_a_seed_without_values_is_not_left_out_of_the_mean():
    good, base = groups(np.arange(5)), groups(np.zeros(5))
    assert difference_over_seeds([good, {"p0": []}], base) is None
    assert difference_over_seeds([good, {"other": [1.0], "p0": [1.0]}], base) is None
    assert difference_over_seeds([good], base) is None
