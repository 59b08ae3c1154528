"""The arithmetic of the projection, and that it is made of what was measured."""

import math

import pytest

from benchmarks import scale
from benchmarks.scale import Rate, ScoringCost, fit, flops_per_token, predict, project_scoring, project_training
from phf_ray.scoring.executor import InProcessScoring

COST = ScoringCost(per_document_s=0.002, per_character_s=1e-6)


def rate(documents, characters):
    return Rate(documents, characters, COST.of(documents=documents, characters=characters))


def test_the_fit_gives_back_the_costs_that_made_the_rates():
    found = fit(rate(3000, 600_000), rate(30, 3_000_000))
    assert found.per_document_s == pytest.approx(COST.per_document_s)
    assert found.per_character_s == pytest.approx(COST.per_character_s)


def test_corpora_of_one_shape_can_not_be_fitted():
    with pytest.raises(ValueError, match="different shapes"):
        fit(rate(10, 1000), rate(20, 2000))


def test_noise_makes_no_negative_cost():
    assert fit(Rate(1000, 1000, 0.5), Rate(1, 1_000_000, 10.0)).per_document_s >= 0
    assert fit(Rate(1000, 1000, 10.0), Rate(1, 1_000_000, 0.001)).per_character_s == 0


@pytest.mark.parametrize(("actors", "share"), [(1, 1), (2, 2), (4, 2)])
def test_actors_share_the_work_as_far_as_there_are_cores(actors, share):
    done = rate(600, 6_000_000)
    assert predict(COST, done, actors=actors, cores=2) == pytest.approx(done.seconds / share)


def test_a_terabyte_by_hand():
    # 1e12 characters at 1 us, and 1e8 documents of 10,000 at 2 ms: 1.2e6 s; on 100 CPUs at 0.8: 15,000 s.
    found = project_scoring(COST, mean_characters=1e4, cpus=100, efficiency=0.8, price=0.05)
    assert found.hours == pytest.approx(15_000 / 3600)
    assert found.cost == pytest.approx(15_000 / 3600 * 100 * 0.05)


def test_more_nodes_take_less_time_and_cost_the_same():
    few, many = (project_scoring(COST, mean_characters=1e4, cpus=n, efficiency=0.9, price=1.0) for n in (16, 1024))
    assert few.hours == pytest.approx(64 * many.hours)
    assert few.cost == pytest.approx(many.cost)


def test_training_by_hand():
    # 6 operations per parameter, and 12 x 12 x 768 x 1024 for attention.
    per_token = flops_per_token(**scale.GPT2_SMALL)
    assert per_token == 6 * 124e6 + 12 * 12 * 768 * 1024
    found = project_training(per_token, processors=8, flops=300e12, price=3.0)
    assert found.hours == pytest.approx(3.3e9 * per_token / (8 * 300e12) / 3600)
    assert found.cost == pytest.approx(found.hours * 24)
    assert math.isinf(project_training(per_token, processors=0, flops=1.0, price=1.0).hours)


def test_rates_are_measured_on_what_was_really_scored(tmp_path):
    folder = scale.write_corpus(tmp_path / "corpus", documents=80, lines=3)
    found = scale.scoring_rate(folder, executor=InProcessScoring)
    size = sum(path.stat().st_size for path in folder.iterdir())
    # All but the first of the parts.
    assert 0.9 * 80 <= found.documents < 80
    assert found.characters / found.documents == pytest.approx(size / 80, rel=0.05)
    assert found.seconds > 0
