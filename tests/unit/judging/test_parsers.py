import math

import pytest

from phf_ray.config import ParserConfig
from phf_ray.judging.parsers import read_verdicts
from phf_ray.judging.question import Answer, Failure

LINES = ParserConfig(regex={1: r"(?:^|\n) ?Output \(a\)", 2: r"(?:^|\n) ?Output \(b\)"})
RANKING = ParserConfig(ranking={})
JSON = ParserConfig(json_field={"key": "better", "values": {1: "a", 2: "b"}})
LOGPROBS = ParserConfig(logprobs={1: ["m"], 2: ["M"]})


def read(parser, text, num=1):
    return read_verdicts(parser, Answer(text), num=num)


def reason(parser, text, num=1):
    found = read(parser, text, num)
    assert isinstance(found, Failure)
    return found.reason


def test_matches_are_read_from_left_to_right():
    assert read(LINES, "Output (b)\nOutput (a)\n Output (b)", 3) == [2, 1, 2]
    # Alternating patterns: the earliest of both, not all of one first.
    assert read(ParserConfig(regex={1: "x", 2: "y"}), "yxyyx", 5) == [2, 1, 2, 2, 1]


def test_after_a_match_the_rest_is_a_text_of_its_own():
    # As AlpacaFarm has it: ^ matches again behind a match.
    assert read(LINES, "Output (a)Output (b)", 2) == [1, 2]


@pytest.mark.parametrize("num", [1, 3])
def test_another_number_of_verdicts_than_pairs_is_none(num):
    text = "Output (a)\nOutput (b)"
    assert reason(LINES, text, num) == f"unparsable: 2 verdicts on {num} pairs in {text!r}"


def test_a_pattern_that_matches_nothing_but_looks_ahead_ends():
    assert len(read(ParserConfig(regex={1: "(?=a)", 2: "b"}), "aab", 3)) == 3


@pytest.mark.parametrize("parser", [LINES, RANKING, JSON])
@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_answer_says_so(parser, text):
    assert reason(parser, text) == "empty_answer: the judge said nothing"


@pytest.mark.parametrize(
    ("text", "preference"),
    [
        ("[{'model': 'model_1', 'rank': 1}, {'model': 'model_2', 'rank': 2}]", 1),
        ("[{'model': 'model_1', 'rank': 2}, {'model': 'model_2', 'rank': 1}]", 2),
        ('Ranked: [{"model": "model_2", "rank": 1}, {"model": "model_1", "rank": 2}].', 2),
    ],
)
def test_a_ranking_is_read_as_json_or_as_python_writes_it(text, preference):
    assert read(RANKING, text) == [preference]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model_1 is best", "no list in"),
        ("[{'model': 'model_2', 'rank': 1}]", "model_1 is not ranked"),
        ("[{'model': 'model_1', 'rank': 3}]", "rank 3 of model_1 is neither 1 nor 2"),
        ("[{'model': 'model_1', 'rank': True}]", "rank True"),
        ("[__import__('os').system('echo run')]", "no list in"),
        ("[" * 5000 + "]" * 5000, "no list in|not ranked"),
    ],
)
def test_what_is_no_ranking_is_none_and_is_not_run(text, message, capfd):
    import re

    assert re.search(message, reason(RANKING, text))
    assert "run" not in capfd.readouterr().out


def test_json_objects_are_read_wherever_they_stand():
    assert read(JSON, '```json\n{"why": "{}", "better": "B "}\n```') == [2]
    assert read(JSON, '[{"better": "a"}, {"better": "b"}]', 2) == [1, 2]
    assert read(JSON, '{"verdicts": [{"better": "b"}]}') == [2]
    assert "0 verdicts on 1 pairs" in reason(JSON, '{"better": "both"}')
    flags = ParserConfig(json_field={"key": "a is better", "values": {1: True, 2: False}})
    assert read(flags, '{"a is better": false}') == [2]
    # 1 is not true.
    assert "0 verdicts" in reason(flags, '{"a is better": 1}')


def test_a_preference_of_log_probabilities_lies_between_the_labels():
    tokens = ((" M", math.log(0.5)), ("m", math.log(0.2)), ("M", math.log(0.1)), ("x", math.log(0.05)))
    (preference,) = read_verdicts(LOGPROBS, Answer("M", tokens), num=1)
    assert preference == pytest.approx(1 + 0.6 / 0.8)
    assert read_verdicts(LOGPROBS, Answer("m", (("m", -0.1),)), num=1) == [1]


def test_log_probabilities_without_a_label_are_none():
    assert "no_logprobs" in read_verdicts(LOGPROBS, Answer("m"), num=1).reason
    assert (
        "no label among the likeliest first tokens, 'x'"
        in read_verdicts(LOGPROBS, Answer("x", (("x", -0.1),)), num=1).reason
    )


def test_a_pattern_that_looks_ahead_counts_once_wherever_it_stands():
    ahead = ParserConfig(regex={1: r"(?=Output \(a\))", 2: r"(?=Output \(b\))"})
    assert read(ahead, "I say Output (a), not Output (b)", 2) == [1, 2]


@pytest.mark.parametrize("logprob", [math.nan, math.inf, 1e4])
def test_log_probabilities_that_are_none_are_unparsable(logprob):
    found = read_verdicts(LOGPROBS, Answer("m", (("m", logprob), ("M", -0.1))), num=1)
    assert isinstance(found, Failure)
    assert found.kind == "unparsable"
