"""Pieces of code, comparisons of them, and when a job has shown that the marker works."""

import textwrap

import pytest
import torch
from tiny_models import write_checkpoint

from jobs.code_pieces import (
    CodePair,
    CodePiece,
    draw_piece_pairs,
    figures_of,
    has_code,
    pieces_of,
    whole_lines,
    why_not_shown,
)
from jobs.marker_preference import marker_preference
from phf_ray.generation.load import load_engine


def pieces(code):
    return list(pieces_of(textwrap.dedent(code)))


def test_a_piece_is_whole_statements_that_stand_at_the_left_margin():
    code = """
    import os
    import sys, re
    VERSION = "first"


    class LongEnoughNotToFitIntoAPieceByItself:
        @property
        def words(self):
            return [word for word in self.text]

        def lines(self):
            return [line for line in self.text.splitlines()]
    """
    assert pieces(code) == [
        'import os\nimport sys, re\nVERSION = "first"\n',
        "@property\ndef words(self):\n    return [word for word in self.text]\n",
        "def lines(self):\n    return [line for line in self.text.splitlines()]\n",
    ]


@pytest.mark.parametrize(
    "code",
    [
        f"if is_first:\n    {'value = 1; ' * 10}\nelif is_second_and_long_enough: value = 2\n",
        "x = 1\n",
        "def f(:\n    a_line_that_python_can_not_parse = 1\n",
        "no_null = 'bytes in a source \0 please'\n",
    ],
)
def test_what_does_not_stand_alone_is_no_piece(code):
    assert all("elif" not in piece for piece in pieces(code))
    assert len(pieces(code)) <= ("value" in code)


def test_lines_end_where_python_ends_them():
    code = "first_of_all = 'one'\n\f\nsecond_of_all = 'two two two'\n"
    assert pieces(code) == ["first_of_all = 'one'\n\f\nsecond_of_all = 'two two two'\n"]


def test_the_worse_piece_is_clearly_worse_than_one_without_violations_and_no_text_is_in_two_pairs():
    made = [CodePiece(f"text {number}", (0.0, 0.01, 0.03)[number % 3]) for number in range(60)]
    pairs = draw_piece_pairs([*made, *made], at_most=15)
    assert len(pairs) == 15
    assert all((pair.better.score, pair.worse.score) == (0.0, 0.03) for pair in pairs)
    assert len({piece.text for pair in pairs for piece in (pair.better, pair.worse)}) == 30
    assert pairs == draw_piece_pairs(reversed(made), at_most=15)
    assert len(draw_piece_pairs(made, at_most=100)) == 20


def test_a_line_that_the_limit_cut_is_not_judged():
    assert whole_lines("a = 1\nb = ", is_ended=False) == "a = 1\n"
    assert whole_lines("a = 1\nb = 2\n\n", is_ended=True) == "a = 1\nb = 2\n"
    assert whole_lines("a = ", is_ended=False) == ""


def samples(score, *, text="x = y + z\ncall(x, y)\n", number=40):
    return figures_of(
        [f"{text}v{one} = {one}\n" for one in range(number)], [score + one / 1e5 for one in range(number)]
    )


def test_fewer_violations_after_the_good_marker_are_shown():
    assert not list(why_not_shown(samples(0.01), samples(0.03)))


@pytest.mark.parametrize(
    ("good", "says"),
    [
        (samples(0.03), "intervals"),
        (samples(0.01, text="x"), "length"),
        (samples(0.01, text="x = 1\n" * 12), "distinct_2"),
        (samples(0.01, number=1), "too few"),
        (figures_of(["# a comment\n"] * 40, [0.0] * 40), "samples with code"),
        (figures_of([*[""] * 20, *["x = y + z\ncall(x, y)\nw = 1\n" * 2] * 20], [None] * 20 + [0.01] * 20), "empty"),
    ],
)
def test_what_comes_from_empty_or_repeated_text_is_not(good, says):
    assert any(says in problem for problem in why_not_shown(good, samples(0.03)))


def test_comments_are_no_code():
    assert has_code("# a\nx = 1\n")
    assert not has_code("# a\n\n")


@pytest.fixture
def engine(tmp_path):

    return load_engine(write_checkpoint(tmp_path / "model"))


def nats(engine, prompt, text):
    """Of an answer and its end of text, by a plain pass."""
    end, encode = engine.strings.eos_id, lambda part: engine.strings.tokenizer(part)["input_ids"]
    given, answer = [end, *encode(prompt)], [*encode(text), end]
    with torch.no_grad():
        logits_SV = engine.model(input_ids=torch.tensor([[*given, *answer]])).logits[0]
    logprobs_TV = logits_SV[len(given) - 1 : -1].log_softmax(dim=-1)
    return -sum(float(logprobs_V[token]) for logprobs_V, token in zip(logprobs_TV, answer, strict=True)), len(answer)


def test_the_preference_is_that_of_the_markers_and_not_of_probable_texts(engine):
    good, bad = "User: Code. Good:", "User: Code. An unhelpful one:"
    pairs = [
        CodePair(CodePiece(f"'ab' + {number}\n", 0.0), CodePiece(f"call(x, {number})\n" * 2, 0.1))
        for number in range(12)
    ]
    found = marker_preference(engine, pairs, good=good, bad=bad)
    prefers, own, swapped = [], [], []
    for pair in pairs:
        better, worse = pair.better.text, pair.worse.text
        (better_good, size), (worse_bad, other) = nats(engine, good, better), nats(engine, bad, worse)
        better_bad, worse_good = nats(engine, bad, better)[0], nats(engine, good, worse)[0]
        prefers.append(better_bad - better_good > worse_bad - worse_good)
        own.append((better_good + worse_bad) / (size + other))
        swapped.append((better_bad + worse_good) / (size + other))
    assert found["num_pairs"] == 12
    assert found["prefers"] == pytest.approx(sum(prefers) / 12)
    assert found["loss"] == pytest.approx(sum(own) / 12, abs=1e-4)
    assert found["loss_swapped"] == pytest.approx(sum(swapped) / 12, abs=1e-4)
    low, high = found["loss_difference_ci"]
    assert low <= found["loss_difference"] <= high
    # With the markers exchanged, every pair says the opposite.
    opposite = marker_preference(engine, pairs, good=bad, bad=good)
    assert opposite["prefers"] == pytest.approx(1 - found["prefers"])
    assert opposite["loss_difference"] == pytest.approx(-found["loss_difference"], abs=1e-4)


def test_a_preference_without_pairs_is_unknown_and_not_zero(engine):
    found = marker_preference(engine, [], good="a", bad="b")
    assert (found["num_pairs"], found["prefers"], found["loss"], found["prefers_ci"]) == (0, None, None, None)
