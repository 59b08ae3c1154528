"""Figures of a reward model on comparisons, computed by hand."""

import math

import pytest

from phf_ray.evaluation.rewards.figures import report_of, reward_figures
from phf_ray.evaluation.rewards.judged import JudgedItem, RewardItem, judge
from phf_ray.evaluation.rewards.write import table_of
from phf_ray.generation.chat.prompts import TextPrompt
from phf_ray.records import Scored


def judged(chosen, rejected, *, better="aa", worse="a", prompt="p", subset=None, error=None):
    item = RewardItem("1", subset, TextPrompt(prompt), (better,) * len(chosen), (worse,) * len(rejected))
    return JudgedItem(item, tuple(chosen), tuple(rejected), error)


ROWS = [
    judged([2.0], [1.0], prompt="1"),
    judged([0.0], [3.0], prompt="2", better="a", worse="aaa"),
    judged([1.0], [1.0], prompt="3", better="a", worse="b"),
    judged([1.0], [-1.0], prompt="4"),
    judged([], [], prompt="5", error="too_long: by far"),
]


def test_figures_by_hand():
    found = reward_figures(ROWS)
    assert (found.num_judged, found.num_failed, found.num_equal) == (4, 1, 1)
    assert found.accuracy == 0.5  # equal rewards are not right
    assert found.margin == pytest.approx((1 - 3 + 0 + 2) / 4)
    assert (found.accuracy_chosen_longer, found.accuracy_chosen_shorter) == (1.0, 0.0)
    assert found.accuracy_of_longer == pytest.approx((1 + 0 + 0.5 + 1) / 4)
    sigmoid = [1 / (1 + math.exp(-margin)) for margin in (1, 3, 0, 2)]
    # Each in a bin of its own: (.73, right), (.95, wrong), (.5, wrong), (.88, right).
    wanted = ((1 - sigmoid[0]) + sigmoid[1] + sigmoid[2] + (1 - sigmoid[3])) / 4
    assert found.calibration_error == pytest.approx(wanted)
    assert 0 < found.interval.low < 0.5 < found.interval.high < 1


def test_comparisons_of_one_prompt_are_one_draw():
    alone = reward_figures([judged([float(number % 2)], [0.5], prompt=str(number)) for number in range(40)])
    together = reward_figures([judged([float(number % 2)], [0.5], prompt=str(number % 4)) for number in range(40)])
    width = [found.interval.high - found.interval.low for found in (alone, together)]
    assert width[1] > 1.5 * width[0]


def test_of_several_answers_every_better_one_must_beat_every_worse_one():
    found = reward_figures([judged([3.0], [1.0, 2.0, 4.0]), judged([3.0], [1.0, 2.0, 2.5]), judged([3.0, 1.0], [2.0])])
    assert found.accuracy == pytest.approx(1 / 3)
    assert found.margin == pytest.approx(((2 + 1 - 1) + (2 + 1 + 0.5) + (1 - 1)) / 8)


def test_subsets_are_apart_and_failures_are_counted_by_reason():
    rows = [judged([1.0], [0.0], subset="b")] * 3 + [
        judged([0.0], [1.0], subset="a"),
        judged([], [], subset="a", error="e: 1"),
    ]
    report = report_of(rows)
    assert list(report["subsets"]) == ["a", "b"]
    assert report["all"]["accuracy"] == 0.75
    assert report["mean_of_subsets"] == 0.5
    assert report["failures"] == {"e": 1}
    lines = table_of(report).splitlines()
    assert [line.split("  ")[0] for line in lines[1:]] == ["a", "b", "all", "mean of the subsets"]


def test_without_a_judgement_no_figure_is_zero():
    found = reward_figures([ROWS[-1]])
    values = [found.accuracy, found.interval, found.margin, found.calibration_error, found.accuracy_of_longer]
    assert values == [None] * 5
    assert report_of([ROWS[-1]])["mean_of_subsets"] is None


class Odd:
    """Fails on answers that say BAD, and has no score for those that say NONE."""

    def score_prompts(self, answers):
        if any("BAD" in answer for _, answer in answers):
            raise RuntimeError("out of luck")
        return [
            Scored(None, "empty: nothing") if "NONE" in answer else Scored(-float(len(answer))) for _, answer in answers
        ]


def test_a_comparison_that_can_not_be_judged_has_a_reason_and_the_others_their_rewards():
    answers = [("good", "x"), ("BAD", "x"), ("good", "NONE"), ("better", "y")]
    items = [RewardItem(str(n), None, TextPrompt(""), (a,), (b,)) for n, (a, b) in enumerate(answers)]
    found = list(judge(items, Odd()))
    assert [one.chosen for one in found] == [(4.0,), (), (), (6.0,)]
    assert [one.error for one in found] == [None, "RuntimeError: out of luck", "empty: nothing", None]
