"""Which lines are compared, how often the judge errs, and what is said of the reward that is learned from it."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from train_runs import write_corpus

from jobs import learned_reward
from jobs.demo import GOOD as TRUE_GOOD
from jobs.demo import MLE
from jobs.learned_reward import GOOD, compare, effect, format_accuracy, judge
from jobs.line_pairs import JudgedLine, LinePair, accuracies, draw_pairs, read_lines
from phf_ray.blocks.held_out import is_held_out
from phf_ray.config import load_config
from phf_ray.errors import ConfigError
from phf_ray.evaluation.report.records import Evaluation, Sample
from phf_ray.evaluation.report.samples import write_samples
from phf_ray.feedback import read_feedback
from phf_ray.generation.chat.prompts import TextPrompt
from phf_ray.measures.intervals import bootstrap_share


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    return list(read_lines(write_corpus(tmp_path_factory.mktemp("corpus") / "scored", num_documents=400)))


def draw(lines, *, at_most=10_000, held_out=False):
    return draw_pairs(lines, at_most=at_most, held_out=held_out, held_out_fraction=0.2)


def places(drawn):
    return [line.place for pair in drawn.pairs for line in (pair.first, pair.second)]


def test_pairs_are_the_same_in_any_order_and_no_line_is_in_two(lines):
    drawn = draw(lines)
    assert len(drawn.pairs) > 300
    assert draw(reversed(lines)) == drawn
    assert len({*places(drawn)}) == 2 * len(drawn.pairs)
    assert draw(lines, at_most=5).pairs == drawn.pairs[:5]


def test_ties_are_left_out_and_counted(lines):
    drawn = draw(lines)
    assert all(pair.first.violations != pair.second.violations for pair in drawn.pairs)
    num_lines = sum(not is_held_out(line.place[0], 0.2) for line in lines)
    assert len(drawn.pairs) + drawn.num_ties + drawn.num_equal == num_lines // 2
    twins = [JudgedLine(("a", 0), "x\n", 0), JudgedLine(("a", 1), "x\n", 1)]
    found = draw_pairs(twins, at_most=5, held_out=False, held_out_fraction=0.0)
    assert (found.pairs, found.num_ties, found.num_equal) == ((), 0, 1)


def test_no_file_is_on_both_sides(lines):
    drawn, held_out = draw(lines), draw(lines, held_out=True)
    assert held_out.pairs
    assert {place[0] for place in places(drawn)}.isdisjoint(place[0] for place in places(held_out))


def test_lines_are_counted_by_violations_and_blank_ones_are_no_answers(tmp_path):
    row = {
        "id": "a",
        "texts": ["x=1;\n", "  \n", "y = 2\n", "z\n"],
        "scores": [2 / 5, 1 / 3, 0.0, None],
        "avg_score": 0.2,
        "num_sents": 4,
        "errors": [None, None, None, "IndentationError"],
        "meta": "{}",
    }
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "part-00000.parquet")
    assert [(line.place[1], line.violations) for line in read_lines(tmp_path)] == [(0, 2), (2, 0)]


def test_the_judge_errs_in_a_quarter_of_the_pairs_and_says_the_same_again(lines):
    pairs = draw(lines).pairs
    wrong = [pair.said_better(0.25) != pair.better for pair in pairs]
    assert 0.2 < sum(wrong) / len(wrong) < 0.3
    assert [pair.said_better(0.25) != pair.better for pair in pairs] == wrong
    assert all(pair.said_better(0.0) == pair.better for pair in pairs)
    better_first = [pair for pair in pairs if pair.better == 1]
    assert 0.4 < len(better_first) / len(pairs) < 0.6


def test_comparisons_are_what_the_judge_says_and_are_made_once(lines, tmp_path):
    folder = compare(lines, tmp_path, number=300)
    drawn = draw(lines, at_most=300)
    # Equal comparisons are stored once.
    said = {(pair.first.text, pair.second.text, pair.said_better(0.25)) for pair in drawn.pairs}
    rows = list(read_feedback(str(folder)))
    assert len(rows) == len(said) > 250
    assert {(row.output_1, row.output_2, row.preference) for row in rows} == said
    assert {row.prompt for row in rows} == {TextPrompt("")}
    assert compare(lines, tmp_path, number=300) == folder
    with pytest.raises(ConfigError, match="another number; --restart"):
        compare(lines, tmp_path, number=200)


def pair(number, first, second, violations):
    better, worse = violations
    return LinePair(JudgedLine((str(number), 0), first, better), JudgedLine((str(number), 1), second, worse))


def test_a_reward_is_judged_beside_the_rule_of_length():
    # The shorter line is better, worse, better and neither; one more has a line without a score.
    answers = [("a", "bbb"), ("aaaa", "b"), ("a", "bb"), ("a", "bb"), ("a", "b")]
    pairs = [pair(number, *texts, (0, 1)) for number, texts in enumerate(answers)]
    scores = {one.first.place: -1.0 for one in pairs} | {one.second.place: 1.0 for one in pairs}
    scores["2", 1] = -1.0  # equal: wrong
    scores["3", 0] = None
    found = accuracies(pairs, scores, error_rate=0.0)
    assert (found["num_pairs"], found["num_unscored"]) == (4, 1)
    assert found["reward"]["truth"] == 3 / 4
    assert found["shorter_line"]["truth"] == 2.5 / 4
    assert found["reward_where_longer_is_better"] == {
        "num_pairs": 1,
        "truth": 1.0,
        "truth_ci": None,
        "judge": 1.0,
        "judge_ci": None,
    }
    assert accuracies(pairs, scores, error_rate=1.0)["reward"]["judge"] == 0
    assert "where the longer line is better (1 pairs): agrees with truth 100.0%" in format_accuracy(found)


def test_intervals_are_those_of_files():
    lines = [[JudgedLine((name, number), "x" * (1 + number), number % 2) for number in range(400)] for name in "ab"]
    pairs = [LinePair(*those) for one in lines for those in zip(one[0::2], one[1::2], strict=True)]
    # Right in all of one file, wrong in all of the other: 50%, and two files say nothing more precise.
    scores = {line.place: line.violations * (1.0 if line.place[0] == "a" else -1.0) for one in lines for line in one}
    found = accuracies(pairs, scores, error_rate=0.0)["reward"]
    assert (found["truth"], found["truth_ci"]) == (0.5, [0.0, 1.0])


def test_without_pairs_there_is_no_figure():
    found = accuracies([], {}, error_rate=0.25)
    assert found["reward"]["truth"] is None
    assert "truth -" in format_accuracy(found)


def row(arm, mean, half_width=0.001, **changes):
    figures = {"length": 250.0, "distinct-2-grams": 0.8, "distinct-2-grams_corpus": 0.6}
    figures |= dict.fromkeys(("empty", "few_letters", "duplicates", "repetition"), 0.02)
    ci = [mean - half_width, mean + half_width]
    return {"scenario": "unconditional", "arm": arm, "score": mean, "score_ci": ci, **figures, **changes}


def test_the_verdict():
    assert judge({"table": [row(MLE, 0.014), row(GOOD, 0.010)]}) == []
    (overlap,) = judge({"table": [row(MLE, 0.014), row(GOOD, 0.0135)]})
    assert "with separate 95% intervals" in overlap
    (short,) = judge({"table": [row(MLE, 0.014), row(GOOD, 0.010, length=100.0)]})
    assert "length" in short
    assert "too few" in judge({"table": [row(MLE, 0.014), row(GOOD, 0.010, score_ci=None)]})[-1]


def test_the_part_of_the_effect_is_read_from_the_samples(tmp_path):
    def samples(arm, scores):
        return [
            Sample(arm, "unconditional", 0, number, None, "", "x", "stop", 1, score, None if score is not None else "e")
            for number, score in enumerate(scores)
        ]

    def evaluate(folder: Path, true: float):
        drawn = [*samples(MLE, [0.9, 1.1, None] * 50), *samples(TRUE_GOOD, [true - 0.1, true + 0.1] * 50)]
        drawn += samples(GOOD, [0.6, 0.8] * 50)
        scenario = {"name": "unconditional", "num_samples": 150}
        arms = [{"name": name, "model": name} for name in (MLE, TRUE_GOOD, GOOD)]
        evaluated = {"arms": arms, "scenarios": [scenario], "scorer": {}, "seeds": [0]}
        write_samples(str(folder), drawn, Evaluation.model_validate(evaluated))
        return effect(folder)

    found = evaluate(tmp_path / "a", true=0.5)
    assert found["share"] == pytest.approx(0.6)
    assert found["ci"][0] < 0.6 < found["ci"][1]
    assert found["ci"][1] - found["ci"][0] < 0.15
    assert evaluate(tmp_path / "b", true=1.0)["share"] is None


def test_a_share_is_a_part_of_a_way_that_is_there():
    share, interval = bootstrap_share([6.0, 6.0, 7.0], start=[9.0, 10.0, 11.0], goal=[0.0, 0.0, 0.0])
    assert share == pytest.approx((10 - 19 / 3) / 10)
    assert interval.low < share < interval.high
    assert bootstrap_share([1.0, 2.0], start=[1.0, 3.0], goal=[1.0, 3.0]) is None
    assert bootstrap_share([1.0], start=[1.0, 3.0], goal=[5.0, 6.0]) is None


def test_overrides_that_a_reward_model_refuses_do_not_reach_it():
    overrides = ["generation.scenario_configs=[{name: a, num_samples: 8}]", "dataset.held_out_fraction=0.1"]
    with pytest.raises(ConfigError, match="scenario_configs"):
        load_config("demo", "reward_model", overrides)
    config = load_config("demo", "reward_model", [*overrides, *learned_reward.FEW])
    assert config.dataset.held_out_fraction == 0
    assert config.generation.scenario_configs == ()
