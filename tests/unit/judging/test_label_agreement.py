import pytest

from phf_ray.errors import ConfigError, DataError
from phf_ray.judging import PairwiseAutoAnnotator, agreement_with_labels, agreement_with_scorer, load_pool
from phf_ray.judging.pairs import Pair

# 20 both 1, 5 judge 1 and label 2, 10 judge 2 and label 1, 15 both 2: PREFERENCES's table, kappa .4.
TABLE = [(1, 1)] * 20 + [(1, 2)] * 5 + [(2, 1)] * 10 + [(2, 2)] * 15


def test_agreement_by_hand():
    judge, labels = zip(*TABLE, strict=True)
    found = agreement_with_labels(judge, labels)
    assert (found.accuracy, found.kappa) == (pytest.approx(0.7), pytest.approx(0.4))
    # A share of .7 in 50: sd .065.
    assert found.accuracy_interval.low == pytest.approx(0.7 - 1.96 * 0.065, abs=0.02)
    assert found.accuracy_interval.high == pytest.approx(0.7 + 1.96 * 0.065, abs=0.02)
    assert found.kappa_interval.low < 0.4 < found.kappa_interval.high
    assert (found.num_judged, found.num_ties, found.num_failed) == (50, 0, 0)


def test_ties_of_the_judge_count_half_and_labels_without_a_better_answer_not_at_all():
    found = agreement_with_labels([1, 1.5, 2, None, 1], [1, 2, 1, 2, 1.5])
    # Right, a tie, wrong; no judgement; a tied label.
    assert found.accuracy == 0.5
    assert (found.num_judged, found.num_ties, found.num_failed) == (3, 1, 1)


def test_pairs_of_one_prompt_are_one_draw():
    judge, labels = zip(*TABLE, strict=True)
    single = agreement_with_labels(judge, labels)
    copies = agreement_with_labels(judge * 9, labels * 9, clusters=[*range(50)] * 9)
    assert copies.accuracy_interval == single.accuracy_interval
    alone = agreement_with_labels(judge * 9, labels * 9)
    assert alone.accuracy_interval.high - alone.accuracy_interval.low < 0.5 * (
        copies.accuracy_interval.high - copies.accuracy_interval.low
    )


def test_what_cannot_be_known_is_none():
    none = agreement_with_labels([None], [1])
    assert (none.accuracy, none.accuracy_interval, none.kappa, none.kappa_interval) == (None, None, None, None)
    assert agreement_with_labels([1, 1], [1, 1]).kappa is None
    with pytest.raises(DataError, match="2 preferences and 1 labels"):
        agreement_with_labels([1, 2], [1])


def test_a_judge_that_always_says_the_same_is_right_half_of_the_time():
    # The better answer comes first in every row; the order that the judge sees is drawn.
    pairs = [{"instruction": f"i{i}", "output_1": "good", "output_2": "bad"} for i in range(5000)]
    pool = {"annotators": [{"name": "constant", "judge": {"rule": "constant"}}]}
    said = [row["preference"] for row in PairwiseAutoAnnotator(pool).annotate_pairs(pairs)]
    assert 0.48 < agreement_with_labels(said, [1] * len(said)).accuracy < 0.52


def test_only_biased_scorers_have_a_scorer_to_agree_with():
    with pytest.raises(ConfigError, match="none of longer is a biased_scorer"):
        agreement_with_scorer(load_pool({"annotators": [{"name": "longer", "judge": {"rule": "longer"}}]}), [])
    with pytest.raises(ConfigError, match="likes_long: its scorer prefers neither answer in any of 1 pairs"):
        agreement_with_scorer(load_pool("offline"), [Pair("i", "", "x = 1\n", "y = 1\n")])
