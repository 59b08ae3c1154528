"""The sentence that a report says of each arm, and its warnings."""

import random

import pytest

from phf_ray.evaluation.report.figures import build_report
from phf_ray.evaluation.report.records import ArmInfo, Evaluation, Sample, ScenarioInfo
from phf_ray.evaluation.report.table import format_table
from phf_ray.evaluation.report.write import write_report
from phf_ray.measures.intervals import share_bound
from phf_ray.measures.texts import Letters

WORDS = [
    "the",
    "people",
    "who",
    "live",
    "in",
    "a",
    "small",
    "town",
    "near",
    "sea",
    "often",
    "walk",
    "its",
    "old",
    "walls",
]


def texts(count, seed):
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=20)) for _ in range(count)]


def digits(count):
    draw = random.Random(5)
    return ["\t".join(str(draw.randrange(10**6)) for _ in range(14)) for _ in range(count)]


def report_of(scores, *, written=None, num_prompts=None, controls=(None, "good")):
    """`scores`: of the samples, by arm; `written`: their texts, by arm."""
    arms = tuple(
        ArmInfo(name=name, model=name, control=control) for name, control in zip(scores, controls, strict=True)
    )
    number = len(next(iter(scores.values())))
    scenario = ScenarioInfo(name="free", num_samples=number, num_prompts=num_prompts)
    evaluation = Evaluation(
        arms=arms, scenarios=(scenario,), seeds=(0,), scorer={"name": "pii", "unit": "per character"}
    )
    samples = [
        Sample(
            arm=name, scenario="free", seed=0, index=index, prompt_index=index % num_prompts if num_prompts else None,
            prompt="", text=((written or {}).get(name) or texts(number, 1))[index], finish_reason="stop", num_tokens=20,
            score=score, error=None if score is not None else "TooLong: 9",
        )
        for name, mine in scores.items()
        for index, score in enumerate(mine)
    ]  # fmt: skip
    return build_report(samples, evaluation), samples, evaluation


def verdicts(*arguments, **options):
    report, *_ = report_of(*arguments, **options)
    return {verdict["arm"]: verdict for verdict in report["verdicts"]}


BASE, BETTER = [0.02, 0.04] * 50, [0.01, 0.02] * 50


def test_each_arm_is_compared_with_the_one_that_has_no_control_token():
    found = verdicts({"good": BETTER, "mle": BASE}, controls=("good", None))
    assert (found["mle"]["baseline"], found["good"]["baseline"]) == (None, "mle")
    assert found["mle"]["text"].startswith("mean score 0.03 (0.0")
    text = found["good"]["text"]
    assert text.startswith("mean score 0.015 (")
    assert "50% below mle's 0.03; the difference -0.015 (-0.0" in text
    assert text.endswith(") is beyond the noise")
    assert found["good"]["warnings"] == []


def test_a_worse_arm_and_one_within_the_noise_are_called_so():
    found = verdicts({"mle": BETTER, "bad": BASE}, controls=(None, "bad"))
    assert "2 times mle's 0.015; the difference +0.015 (+0.0" in found["bad"]["text"]
    same = verdicts({"mle": BASE, "good": [*BASE[1:], 0.021]})["good"]["text"]
    assert same.endswith("can't be told from noise")


def test_a_good_score_of_digit_strings_is_called_degenerate_on_the_page_and_in_the_terminal(tmp_path):
    report, samples, evaluation = report_of(
        {"mle": BASE, "good": [0.0, 0.01] * 50}, written={"mle": texts(100, 2), "good": digits(100)}
    )
    verdict = report["verdicts"][1]
    assert "is beyond the noise" in verdict["text"]
    (warning,) = verdict["warnings"]
    assert warning == (
        "the texts look degenerate, so the score says little: "
        "100% of its samples are digits, signs and white space with few letters; 0% with mle"
    )
    assert f"WARNING: good: {warning}" in " ".join(format_table(report).split())
    write_report(str(tmp_path), samples, evaluation)
    page = (tmp_path / "report.html").read_text()
    assert page.count('class="warning"') == 1
    assert '<p class="warning" data-warning="free/good"><b>good</b>: the texts look degenerate' in page


def test_scores_that_are_all_equal_have_a_bound_not_an_interval_without_width():
    report, *_ = report_of({"mle": BASE, "good": [0.0] * 100})
    row = report["table"][1]
    assert row["score_ci"] is None
    assert row["other_share_bound"] == pytest.approx(1 - 0.05 ** (1 / 100))
    (warning,) = report["verdicts"][1]["warnings"]
    assert warning == (
        "all 100 samples score 0, so there is no interval; from 100 samples follows only that at most 2.95% of all "
        "samples score otherwise"
    )
    # The baseline's scores vary, so the difference has an interval.
    assert report["verdicts"][1]["text"].startswith("mean score 0, 100% below mle's 0.03; the difference -0.03 (")
    both = verdicts({"mle": [0.0] * 100, "good": [0.0] * 100})["good"]["text"]
    assert both.endswith("equal to mle's 0; the difference has no interval, so nothing says whether it is noise")


def test_the_bound_is_the_rule_of_three():
    assert share_bound(1) == pytest.approx(0.95)
    assert share_bound(300) == pytest.approx(3 / 300, rel=0.01)
    # None of n draws is above with probability 1 - level.
    assert (1 - share_bound(40, level=0.9)) ** 40 == pytest.approx(0.1)


def test_few_prompts_are_warned_of():
    few = verdicts({"mle": BASE, "good": BETTER}, num_prompts=3)["good"]["warnings"]
    assert few == ["the interval rests on 3 prompts and is too narrow; use 20 or more"]
    assert verdicts({"mle": BASE, "good": BETTER}, num_prompts=20)["good"]["warnings"] == []


def test_scores_that_are_missing_are_said_not_compared():
    none = [None] * 100
    assert verdicts({"mle": BASE, "good": none})["good"]["text"] == "no sample has a score"
    assert verdicts({"mle": none, "good": BASE})["good"]["text"].endswith("; mle has no score to compare with")


def test_letters_of_all_scripts_count():
    assert Letters()(["12 34\t56", "x = 1", "你好 1", "", "  \n", "(1, 2)"])["few_letters"] == pytest.approx(
        2 / 6 + 1 / 6
    )
    assert Letters()([]) == {"few_letters": None}
