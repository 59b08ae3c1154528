import itertools
import math
import subprocess
import sys
import warnings

import numpy as np
import pytest
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

from phf_ray.config import MetricConfig
from phf_ray.errors import ConfigError, DataError
from phf_ray.measures.bleu import BleuCorpus, SelfBLEU
from phf_ray.measures.build import build_metric
from phf_ray.measures.intervals import Interval, bootstrap_difference, bootstrap_max_at_k, bootstrap_mean
from phf_ray.measures.maxima import grouped_max_at_k, max_at_k, order_statistic_weights
from phf_ray.measures.ngrams import NGramStats, count_ngrams
from phf_ray.measures.pareto import pareto_front
from phf_ray.measures.texts import Compilability, Length, Repetition, parse_outcome

# -- Expected maximum -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 3, 6])
def test_expected_maximum_is_the_mean_over_all_subsets_of_k(k):
    scores = [0.3, -1.0, 0.3, 7.5, 2.0, 0.0]
    subsets = list(itertools.combinations(scores, k))
    assert max_at_k(scores, k) == pytest.approx(sum(map(max, subsets)) / len(subsets), abs=1e-12)


def test_expected_maximum_does_not_depend_on_the_order_of_samples_but_the_original_does():
    # 0..99 in order, k = 25: the original's strided chunks give mean(96, 97, 98, 99) (D-4).
    scores = [float(i) for i in range(100)]
    assert max_at_k(scores, 25, compat="korbak2023") == 97.5
    # E[max of 25 of 1..100] = 25 * 101 / 26; ours counts from 0.
    assert max_at_k(scores, 25) == pytest.approx(25 * 101 / 26 - 1)
    assert max_at_k(scores[::-1], 25) == pytest.approx(max_at_k(scores, 25))


def test_weights_do_not_overflow_for_the_papers_number_of_samples():
    weights = order_statistic_weights(4096, 25)
    assert weights.sum() == pytest.approx(1.0, abs=1e-12)
    assert weights[:24].tolist() == [0.0] * 24
    assert weights[-1] == 25 / 4096


def test_a_maximum_over_more_samples_than_there_are_is_none_not_nan():
    assert max_at_k([1.0, 2.0], 3) is None
    assert max_at_k([], 1) is None
    assert max_at_k([1.0] * 10, 25, compat="korbak2023") is None
    with pytest.raises(DataError, match="draw at least 3 samples"):
        order_statistic_weights(2, 3)


def test_prompted_maximum_is_taken_within_each_prompt():
    # All of a prompt's samples are alike: within prompts the maximum of 2 is 0 and 1; over the pool it is 5/6.
    groups = [[0.0, 0.0], [1.0, 1.0]]
    assert grouped_max_at_k(groups, 2) == 0.5
    assert max_at_k([0.0, 0.0, 1.0, 1.0], 2) == pytest.approx(5 / 6)
    assert grouped_max_at_k([*groups, [9.0]], 2) == 0.5
    assert grouped_max_at_k([[9.0]], 2) is None


def test_of_hits_the_expected_maximum_is_the_probability_of_a_hit():
    # 2 hits of 5: P(no hit in 2) = (3/5)(2/4) = 0.3.
    assert max_at_k([1.0, 0.0, 0.0, 1.0, 0.0], 2) == pytest.approx(0.7)


# -- Bootstrap --------------------------------------------------------------------------------------------------------


def test_bootstrap_interval_agrees_with_the_normal_one():
    values = np.random.default_rng(1).exponential(size=2000)
    interval = bootstrap_mean([[float(value)] for value in values], num_resamples=4000)
    error = 1.96 * values.std() / math.sqrt(len(values))
    assert interval.low == pytest.approx(values.mean() - error, abs=0.15 * error)
    assert interval.high == pytest.approx(values.mean() + error, abs=0.15 * error)


def test_bootstrap_is_seeded_and_chunks_do_not_change_it(monkeypatch):
    groups = [[float(value)] for value in range(50)]
    whole = bootstrap_mean(groups, seed=3)
    assert bootstrap_mean(groups, seed=3) == whole
    assert bootstrap_mean(groups, seed=4) != whole
    monkeypatch.setattr("phf_ray.measures.intervals._RESAMPLED_AT_ONCE", 1000)
    assert bootstrap_mean(groups, seed=3) == whole


def test_samples_of_one_prompt_do_not_count_as_independent():
    rng = np.random.default_rng(0)
    groups = [[float(mean)] * 20 for mean in rng.normal(size=30)]
    by_prompt = bootstrap_mean(groups)
    by_sample = bootstrap_mean([[value] for group in groups for value in group])
    assert (by_prompt.high - by_prompt.low) > 3 * (by_sample.high - by_sample.low)


def test_one_group_says_nothing_about_the_spread():
    assert bootstrap_mean([[1.0, 2.0]]) is None
    assert bootstrap_mean([[1.0], []]) is None
    assert bootstrap_difference({0: [1.0]}, {0: [1.0], 1: [2.0]}, paired=True) is None


def test_paired_difference_is_narrower_than_unpaired_where_prompts_differ_more_than_arms():
    rng = np.random.default_rng(0)
    base = {prompt: float(mean) for prompt, mean in enumerate(rng.normal(size=100))}
    first = {prompt: [mean + 0.1 + 0.01 * float(rng.normal())] for prompt, mean in base.items()}
    second = {prompt: [mean] for prompt, mean in base.items()}
    difference, paired = bootstrap_difference(first, second, paired=True)
    _, unpaired = bootstrap_difference(first, second, paired=False)
    assert difference == pytest.approx(0.1, abs=0.01)
    assert 0.09 < paired.low < paired.high < 0.11
    assert unpaired.low < 0 < unpaired.high


def test_paired_difference_uses_only_prompts_that_both_have():
    first = {0: [1.0], 1: [2.0], 2: [100.0], 3: []}
    second = {0: [0.0], 1: [1.0], 3: [50.0]}
    difference, interval = bootstrap_difference(first, second, paired=True)
    assert (difference, interval) == (1.0, Interval(1.0, 1.0))


def test_interval_of_a_maximum_holds_its_estimate():
    scores = np.random.default_rng(2).random(300).tolist()
    for k, interval in zip([1, 25], bootstrap_max_at_k(scores, [1, 25]), strict=True):
        assert interval.low < max_at_k(scores, k) < interval.high


def test_the_front_is_what_nothing_beats():
    points = [("a", 3.0, 0.0), ("b", 1.0, 1.0), ("c", 2.0, 2.0), ("d", 1.0, 0.5), ("e", 1.0, 0.5), ("f", 4.0, 0.0)]
    assert pareto_front(points) == ["a", "d", "e"]


# -- Texts ------------------------------------------------------------------------------------------------------------


def test_length_is_in_characters():
    assert Length()(["abc", "a b c"]) == {"length": 4.0}
    assert Length()([]) == {"length": None}


def test_ngram_statistics_by_hand():
    # Bigrams: aa aa | ab ba ab; of the 5: aa 2, ab 2, ba 1.
    stats = NGramStats(2)(["a a a", "a b a b", "a"])
    assert stats["distinct-2-grams"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert stats["distinct-2-grams_corpus"] == 3 / 5
    assert stats["distinct-2-grams_in_batch"] == 3
    assert stats["entropy-2-grams"] == pytest.approx(-(0.4 * math.log(0.4) * 2 + 0.2 * math.log(0.2)))
    assert count_ngrams(["a a a", "a b a b", "a"], 2) == 5


def test_a_sample_too_short_for_an_ngram_has_no_ratio_except_in_the_original():
    assert NGramStats(2)(["a b", "a"])["distinct-2-grams"] == 1.0
    assert NGramStats(2, compat="korbak2023")(["a b", "a"])["distinct-2-grams"] == 0.5
    assert NGramStats(1)([""])["distinct-1-grams"] is None


def test_corpus_ratio_at_a_fixed_number_of_ngrams_does_not_fall_with_more_samples():
    rng = np.random.default_rng(0)
    texts = [" ".join(map(str, rng.integers(50, size=20))) for _ in range(200)]
    assert NGramStats(1)(texts)["distinct-1-grams_corpus"] < NGramStats(1)(texts[:20])["distinct-1-grams_corpus"] / 5
    few, many = (NGramStats(1, num_ngrams=100)(part)["distinct-1-grams_corpus"] for part in (texts[:20], texts))
    assert few == many


def test_repetition_by_hand():
    # 4-grams of "x x x x x x": three, one of them new, so 2/3 are repeats. "a b c d e": two, none repeated.
    measured = Repetition()(["x x x x x x", "a b c d e", "a b c d e", " \n"])
    assert measured["repetition"] == pytest.approx((2 / 3 + 0 + 0) / 3)
    assert measured["longest_run"] == (6 + 1 + 1 + 0) / 4
    assert measured["duplicates"] == 1 / 4
    assert measured["empty"] == 1 / 4


@pytest.mark.parametrize("order", [1, 3, 5])
def test_bleu_equals_that_of_nltk(order):
    rng = np.random.default_rng(order)
    texts = [" ".join(map(str, rng.integers(4, size=length))) for length in [0, 1, 2, 3, 7, 7, 8, 12, 30, 5]]
    tokens = [text.split() for text in texts]
    corpus = BleuCorpus(tokens, order)
    compared = 0
    for hypothesis, references in itertools.product(range(len(texts)), [[1, 2, 3], [4, 5, 6, 7], [8], [0, 9]]):
        chosen = [index for index in references if index != hypothesis]
        if not chosen:
            continue
        expected = sentence_bleu(
            [tokens[index] for index in chosen],
            tokens[hypothesis],
            [1 / order] * order,
            smoothing_function=SmoothingFunction().method1,
        )
        assert corpus.bleu(hypothesis, chosen) == pytest.approx(expected, abs=1e-12)
        compared += expected > 0
    assert compared > 10


def test_self_bleu_is_one_for_equal_texts_and_small_for_unrelated_words():
    rng = np.random.default_rng(0)
    unrelated = ["".join(map(chr, rng.integers(97, 123, size=40 * 6))) for _ in range(40)]
    unrelated = [" ".join(text[i : i + 6] for i in range(0, len(text), 6)) for text in unrelated]
    assert SelfBLEU(3)(["a b c d e"] * 5)["Self-BLEU-3"] == pytest.approx(1.0)
    words = SelfBLEU(3)(unrelated)["Self-BLEU-3"]
    characters = SelfBLEU(3, compat="korbak2023")(unrelated)["Self-BLEU-3"]
    # The original's figure on characters finds random words alike (D-3).
    assert words < 0.02 < 0.3 < characters


def test_self_bleu_of_the_original_equals_nltk_on_characters():
    texts = ["the cat", "the dog sat", "a cat sat", "zzz"]
    scores = [
        sentence_bleu(texts[:i] + texts[i + 1 :], texts[i], (0.2,) * 5, smoothing_function=SmoothingFunction().method1)
        for i in range(4)
    ]
    assert SelfBLEU(5, compat="korbak2023")(texts)["Self-BLEU-5"] == pytest.approx(sum(scores) / 4)


def test_self_bleu_draws_references_with_its_seed():
    rng = np.random.default_rng(0)
    texts = [" ".join(map(str, rng.integers(5, size=10))) for _ in range(60)]
    drawn = [SelfBLEU(2, num_references=5, num_hypotheses=20, seed=seed)(texts)["Self-BLEU-2"] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_self_bleu_of_one_text_is_undefined():
    assert SelfBLEU()(["alone"]) == {"Self-BLEU-5": None}
    assert SelfBLEU()([]) == {"Self-BLEU-5": None}


def test_compilability_counts_texts_that_parse_and_apart_those_that_say_nothing():
    texts = ["x = 1", "def f(:", "", "# only a comment"]
    assert Compilability()(texts) == {"compilability": 0.75, "compilability_nonempty": 0.25}
    assert Compilability()([])["compilability"] is None


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("x = (", "SyntaxError"),
        ("x = 1\0", "ValueError"),
        ("x = '\ud800'", "UnicodeEncodeError"),
        ("(" * 5000, "SyntaxError"),
        ("x = " + "-" * 200_000 + "1", "MemoryError"),
        ("x" + ".y" * 50_000, "RecursionError"),
        ("x = " + "9" * 10_000, "SyntaxError"),
        ("# -*- coding: nonsense -*-\nx = 1", "parses"),
        (" x = 1", "IndentationError"),
        ("pass\n\ty = 1\n        z", "IndentationError"),
    ],
)
def test_hostile_text_gives_an_outcome_not_an_exception(text, outcome):
    # Which error nesting ends in differs between versions of Python; that it is one of these does not.
    expected = (
        {outcome} if "Error" not in outcome else {outcome, "SyntaxError", "MemoryError", "RecursionError", "parses"}
    )
    assert parse_outcome(text) in expected


def test_code_that_merely_warns_parses_even_where_warnings_are_errors():
    code = "from phf_ray.measures import parse_outcome; print(parse_outcome('x = \"\\\\d\" is 1'))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "parses", done
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert parse_outcome("x = '\\d'") == "parses"
    assert seen == []


def test_metrics_are_built_by_the_names_of_the_originals_configs():
    assert build_metric(MetricConfig(class_name="NGramStats", n=2))(["a b"])["distinct-2-grams"] == 1.0
    assert "Self-BLEU-5" in build_metric(MetricConfig(class_name="SelfBlEU"))(["a"])
    assert "Self-BLEU-3" in build_metric(MetricConfig(class_name="SelfBLEU", n=3))(["a"])
    assert build_metric(MetricConfig(class_name="Length"))(["ab"]) == {"length": 2.0}
    assert build_metric(MetricConfig(class_name="Compilability"))(["x"])["compilability"] == 1.0
    with pytest.raises(ConfigError, match="NGramStats needs n"):
        build_metric(MetricConfig(class_name="NGramStats"))
