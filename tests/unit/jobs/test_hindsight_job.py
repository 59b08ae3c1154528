"""Pieces of code, comparisons of them, and when a job has shown that the marker works."""

import pytest

from jobs.code_pieces import CodePiece, draw_piece_pairs, figures_of, has_code, pieces_of, whole_lines, why_not_shown

CODE = "import os\nimport sys\n\n\ndef main(arguments):\n    return os.getcwd()\n"


def test_a_piece_begins_with_a_statement_that_is_not_indented():
    (piece,) = pieces_of(f"    # the end of something\n)\n{CODE}{'    long_name = 1' * 30}\n")
    assert piece == CODE


def test_the_better_piece_has_fewer_violations_and_no_text_is_in_two_pairs():
    pieces = [CodePiece(f"text {number}", number % 3) for number in range(60)]
    pairs = draw_piece_pairs([*pieces, *pieces], at_most=15)
    assert len(pairs) == 15
    assert all(pair.better.score < pair.worse.score for pair in pairs)
    texts = [piece.text for pair in pairs for piece in (pair.better, pair.worse)]
    assert len(set(texts)) == 30
    assert pairs == draw_piece_pairs(reversed(pieces), at_most=15)


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
