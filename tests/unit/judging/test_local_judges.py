import sysconfig
from pathlib import Path

import pytest

from phf_ray.config import BiasedScorerSettings, JudgeConfig
from phf_ray.errors import ConfigError
from phf_ray.judging import Judge, agreement_with_scorer, load_pool
from phf_ray.judging.judges.build import build_judge
from phf_ray.judging.judges.by_score import ScorerJudge
from phf_ray.judging.pairs import Pair
from phf_ray.judging.question import Failure

PEP8 = {"class_name": "PEP8Scorer"}
GOOD, BAD = "x = 1\n", "x=1;y=2\n"


def prefer(config, *answers, seed=0):
    return build_judge(JudgeConfig(**config), seed=seed).prefer([Pair("i", "", one, two) for one, two in answers])


@pytest.mark.parametrize(
    ("rule", "expected"), [("longer", [2, 1, 1.5]), ("shorter", [1, 2, 1.5]), ("constant", [1, 1, 1])]
)
def test_rules(rule, expected):
    assert prefer({"rule": rule}, ("a", "bb"), ("aa", "b"), ("a", "b")) == expected


def test_chance_depends_on_the_pair_and_the_seed_alone():
    answers = [(f"a{i}", "b") for i in range(1000)]
    said = prefer({"rule": "random"}, *answers)
    assert 440 < said.count(1) < 560
    assert said[::-1] == prefer({"rule": "random"}, *answers[::-1])
    assert said != prefer({"rule": "random"}, *answers, seed=1)


def test_the_lower_score_is_better_and_no_score_is_no_preference():
    good, bad, none = prefer({"scorer": PEP8}, (GOOD, BAD), (BAD, GOOD), (GOOD, ""))
    assert (good, bad) == (1, 2)
    assert isinstance(none, Failure)
    assert none.reason == "unscored: answer 2 as shown: empty: the text has no characters"


def biased(first, second, **biases):
    (said,) = prefer({"biased_scorer": {"scorer": PEP8, **biases}}, (first, second))
    return said


def test_biases_are_gains_beside_the_relative_difference_of_scores():
    # By hand: the first has 1 violation (E225) in 4 characters, the second 1 in 8: (.125 - .25) / .375 = -1/3.
    first, second = "x=1\n", "xxxxx=1\n"
    assert biased(first, second) == 2
    assert biased(first, second, position_weight=0.334) == 1
    assert biased(first, second, position_weight=0.333) == 2
    assert biased(second, first, position_weight=-0.334) == 2
    assert biased(second, first, position_weight=-0.333) == 1
    # The first is (4 + 1) / (8 + 1) times as long, whose logarithm is -.5878; 1/3 of it is .567.
    assert biased(first, second, length_weight=-0.568) == 1
    assert biased(first, second, length_weight=-0.566) == 2
    # The longer one gains: log(9/7) = .2513 against (0 - .125) / .125 = -1, which is 3.979 of it.
    assert biased("xxxxx=1\n", "x = 1\n", length_weight=3.98) == 1
    assert biased("xxxxx=1\n", "x = 1\n", length_weight=3.97) == 2
    assert biased("x = 1\n", "y = 2\n", length_weight=1) == 1.5


def test_white_space_can_be_ignored():
    messy = "x = 1   \n\n\n\n   y  =  2\n"
    tidy = "x = 1\n    y = 2\n"
    assert biased(messy, tidy) == 2
    assert biased(messy, tidy, ignore=["white_space"]) == 1.5
    # What is no white space still counts.
    assert biased(messy, "x = 1\n    y=2\n", ignore=["white_space"]) == 1


class Reads:
    """A scorer that needs the prompt."""

    def score_answers(self, answers):
        from phf_ray.records import Scored

        return [Scored(float(len(prompt) != len(answer))) for prompt, answer in answers]


def test_a_scorer_that_reads_prompts_is_shown_instruction_and_input(monkeypatch):
    judge = ScorerJudge(PEP8, biases=BiasedScorerSettings(scorer=PEP8))
    judge._scorer = Reads()
    # "ab" and "cd" with a blank line between them are 6 characters.
    assert judge.prefer([Pair("ab", "cd", "123456", "1"), Pair("ab", "", "1", "12")]) == [1, 2]


def standard_library_pairs(num=240, lines=8):
    """Pairs of some lines of code each, from the standard library of this Python."""
    texts = []
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        rows = file.read_text(encoding="utf-8", errors="ignore").splitlines()
        texts += ["\n".join(rows[i : i + lines]) + "\n" for i in range(40, len(rows) - lines, 240)]
    texts = [text for text in texts if text.strip()][: 2 * num]
    return [
        Pair("Write code.", "", *two) for two in zip(texts[: len(texts) // 2], texts[len(texts) // 2 :], strict=True)
    ]


def test_each_judge_of_the_offline_pool_agrees_with_its_scorer_on_75_to_90_percent(record_property):
    pairs = standard_library_pairs()
    shares = agreement_with_scorer(load_pool("offline"), pairs)
    record_property("shares", dict(shares))
    assert set(shares) == {"likes_long", "likes_short", "likes_the_first", "ignores_white_space"}
    assert len(pairs) == 240
    assert all(0.75 <= share <= 0.9 for share in shares.values()), shares


class Mine(Judge):
    def __init__(self, answer=1.25):
        self.answer = answer

    def prefer(self, pairs):
        return [self.answer for _ in pairs]


NAME = f"{__name__}:Mine"


def test_a_judge_of_ones_own_is_named_by_module_and_class():
    assert prefer({"class_name": NAME}, ("a", "b")) == [1.25]
    assert prefer({"class_name": NAME, "settings": {"answer": 2}}, ("a", "b")) == [2]
    (failure,) = prefer({"class_name": NAME, "settings": {"answer": None}}, ("a", "b"))
    assert failure.reason == "no_preference: the judge said None"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"class_name": "Mine"}, "write my_module:MyJudge"),
        ({"class_name": "not_there:Mine"}, "module 'not_there' can't be imported"),
        (
            {"class_name": f"{__name__}:Reads"},
            r"no class Reads derived from phf_ray\.judging\.Judge; its judges are Mine",
        ),
        ({"class_name": NAME, "settings": {"anser": 1}}, "anser"),
        ({"class_name": NAME, "settings": {"answer": 0}}, r"prefer\(\) returned 0; return 1"),
        ({"class_name": NAME, "settings": {"answer": "first"}}, r"prefer\(\) returned 'first'; return 1"),
        ({"class_name": NAME, "settings": {"answer": float("nan")}}, r"prefer\(\) returned nan; return 1"),
    ],
)
def test_a_judge_of_ones_own_that_cannot_be_used_says_why(config, message):
    with pytest.raises(ConfigError, match=message):
        prefer(config, ("a", "b"))
