import contextlib
import io
import os
import pickle
import random
import sys
import time
import tokenize
from pathlib import Path

import pycodestyle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from places import ROOT

from phf_ray.corpus.segments import build_segmenter, split_lines
from phf_ray.errors import ConfigError
from phf_ray.records import Scored
from phf_ray.scorers import pep8_checker
from phf_ray.scorers.build import build_scorer
from phf_ray.scorers.pep8_checker import OPTIONS, FastChecker, ViolationPlaces, report
from phf_ray.scorers.process import ScoringProcess
from phf_ray.scorers.python_tokens import python_tokens
from phf_ray.scorers.tasks import ScoringSetup, ScoringTask

SCORER = build_scorer({"class_name": "PEP8Scorer"})
LIBRARY = Path(os.__file__).parent

AWKWARD = [
    "a",
    "a=1\n",
    "import os, sys\nx=1\n",
    "\n",
    " ",
    "\t",
    "\r",
    "\x0c\n",
    "\x00",
    "a\x00b\n",
    "'''\n\x00",
    "'\ud800'",
    "\ud800",
    "\ufeff",
    "\ufeffimport os\n",
    "\xef\xbb\xbfimport os\n",
    "a = 1\r\nb=2\r\n",
    "a\u2028b\n",
    "x = 1\x0c\ny=2\n\x0c\n\x0cz=3\n",
    "\u540d\u524d=1\n",
    "'\U0001f600'\n",
    "(",
    "x = (a +\n",
    "def f(:\n",
    "'''",
    "'open\n",
    "\\",
    "a\\",
    "a\\\n",
    "if x:\n",
    "  x\n y\n",
    "if x:\n\ty\n        z\n",
    "x = " + "(" * 400 + ")" * 400 + "\n",
    "x = " + "[" * 3000,
    "if a:\n" + "".join(" " * 4 * depth + "if a:\n" for depth in range(1, 120)),
    "x = '''a\n  b \n\tc\n'''  # noqa\ny=1\n",
    "x=1  # noqa\n",
    "try:\n    l = 1\nexcept:\n    pass\n",
    "@ a\ndef f():pass\n\n\n\n\nclass  A: x=lambda:0\n",
    "x = 1;\ny = 2 ;z=3\n" + "\n" * 3,
    "x" * 5000 + "\n",
    "$?`!\n",
]


def reference(text):
    """Line of every violation that pycodestyle prints by itself for a file, and where and why it stops reading."""
    checker = pycodestyle.Checker(lines=io.StringIO(text, newline=None).readlines())
    with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO(), errors="surrogatepass")):
        total = checker.check_all()
    lines = [row[0] for row in checker.report._deferred_print]
    assert len(lines) == total
    return lines, stop_of(checker.lines)


def stop_of(lines):
    """Line from 1 at which the tokenizer stops, None if it comes to the end; and whether a string is open there."""
    try:
        for _ in tokenize.generate_tokens(iter([*lines, ""]).__next__):
            pass
    except IndentationError as error:
        return error.lineno, False
    except tokenize.TokenError as error:
        row = error.args[1][0]
        return (row, True) if row <= len(lines) else (None, False)
    return None, False


def assert_equals_reference(text):
    numbers, (stop, is_string) = reference(text)
    lines = io.StringIO(text, newline="").readlines()
    counts = [0] * len(lines)
    for number in numbers:
        counts[min(number, len(lines)) - 1] += 1
    found = SCORER.score_segments(lines)
    judged = len(lines) if stop is None else stop - 1
    assert found[:judged] == [Scored(count / len(line)) for count, line in zip(counts, lines, strict=True)][:judged]
    assert all(one.score is None and f"line {stop};" in one.error for one in found[judged:])
    [whole] = SCORER.score_all([text])
    assert whole.score == (len(numbers) / len(text) if stop is None or is_string else None)


# From Python 3.12 on, pycodestyle gets other tokens from the interpreter.
as_in_311 = pytest.mark.skipif(sys.version_info >= (3, 12), reason="compares with the tokenizer of Python 3.11")


@as_in_311
@pytest.mark.parametrize("text", AWKWARD)
def test_awkward_text_scores_as_pycodestyle_reports(text):
    assert_equals_reference(text)


@as_in_311
@pytest.mark.parametrize("name", ["keyword.py", "this.py", "textwrap.py", "sre_compile.py", "lib2to3/pygram.py"])
def test_a_file_scores_as_pycodestyle_reports(name):
    assert_equals_reference((LIBRARY / name).read_text(encoding="utf-8"))


@as_in_311
def test_broken_files_score_as_pycodestyle_reports():
    rng = random.Random(0)
    num_bad = 0
    for name in ["keyword.py", "bisect.py", "struct.py", "sched.py", "colorsys.py", "stat.py"]:
        text = (LIBRARY / name).read_text(encoding="utf-8")
        for _ in range(4):
            begin = rng.randrange(len(text))
            cut = text[:begin] + rng.choice(["(", "]", "'", '"""', "\t", "  ", "\\", "\x0c", "\n\n\n", ""])
            assert_equals_reference(cut)
            num_bad += bool(reference(cut)[0])
    assert num_bad > 12


fragments = st.sampled_from(
    ["a", "l", "=", "==", " ", "  ", "\t", "\n", "\r\n", "\x0c", "(", ")", "[", "]", "{", "}", ":", ",", ";", "'", "\\",
     '"""', "#", "# noqa", "def f", "class A", "if ", "else", "lambda", "not ", " in ", "is ", "None", "import os", "@",
     "*", "->", ".", "1", "type(a)", "\x00", "\u2028", "\u540d", "\U0001f600", "\ud800", "except:", "async "]
)  # fmt: skip


@as_in_311
@settings(max_examples=300)
@given(text=st.lists(fragments, min_size=1, max_size=25).map("".join))
def test_any_text_scores_as_pycodestyle_reports_or_says_why_not(text):
    reason = None
    try:
        reference(text)
    except Exception as error:  # noqa: BLE001  whatever the reference raises must be the reason
        reason = type(error).__name__
    if reason is None:
        assert_equals_reference(text)
    else:
        [scored] = SCORER.score_all([text])
        assert scored.score is None
        assert scored.error.startswith(reason)


MUTATIONS = [
    "(", ")", "]", "'", '"""', "\t", "  ", " ", "\\", "\\\n", "\x0c", "\n\n\n", ";", ":", ",", "=", "==", "!=None", "#",
    "# noqa", "l", " l = ", "not ", " in ", "type(a) == type(b)", "\r\n", "\xa0", "\u3000", "lambda x:", "@ ", "$", "%",
    "\nimport os, re\n", "except:",
    "\nclass I:\n", "\n\ndef f(a = 1):pass\n", "return(", " .", "'\\d'", "*", "->", "0x1l",
]  # fmt: skip


def mutated(text, rng):
    """The text with a few of its characters replaced by something that checks look for."""
    for _ in range(rng.randrange(1, 5)):
        place = rng.randrange(len(text))
        text = text[:place] + rng.choice(MUTATIONS) + text[place + rng.randrange(3) :]
    return text


@as_in_311
def test_the_fast_checker_reports_what_pycodestyle_does_at_the_same_places():
    rng = random.Random(0)
    num_compared = num_violations = 0
    for path in sorted(LIBRARY.glob("*.py"))[::10]:
        whole = path.read_text(encoding="utf-8")
        for _ in range(8):
            begin = rng.randrange(len(whole))
            lines = split_lines(mutated(whole[begin : begin + 1500] + "\n", rng))
            found = report(lines)
            assert found == report(lines, checker=pycodestyle.Checker)
            num_compared += 1
            num_violations += len(found)
    assert num_compared > 100
    assert num_violations > 1000


def test_every_check_has_its_condition():
    checker = FastChecker(lines=["x = 1\n"], options=OPTIONS, report=ViolationPlaces(OPTIONS))
    checker.check_all()
    tokens = list(tokenize.generate_tokens(iter(["x = 1\n"]).__next__))[:4]
    assert set(checker._logical_conditions("x = 1", tokens)) == {name for name, _, _ in OPTIONS.logical_checks}
    assert set(checker._physical_conditions("x = 1\n")) == {name for name, _, _ in OPTIONS.physical_checks}


@as_in_311
def test_without_conditions_all_checks_run(monkeypatch):
    monkeypatch.setattr(pep8_checker, "CONDITIONS_HOLD", False)
    for text in AWKWARD:
        assert_equals_reference(text)


def test_a_bracket_that_is_not_closed_does_not_clean_the_file():
    lines = ["a=1\n", "b = 2\n", "z = (a +\n"]
    scores = SCORER.score_segments(lines)
    assert scores[0] == Scored(1 / 4)
    assert scores[1] == Scored(0.0)
    assert scores[2].score > 0


UNREADABLE = {
    "wrong dedent": (
        "    z = 1\nb=2\n",
        "IndentationError: unindent does not match any outer indentation level, line 4",
    ),
    "open docstring": ('        """Sums\nb=2\n', "TokenError: EOF in multi-line string, line 4;"),
    "open string": ("        z = 'a\\\n", "TokenError: EOF in multi-line string, line 4;"),
}


@pytest.mark.parametrize(("rest", "reason"), UNREADABLE.values(), ids=UNREADABLE)
def test_where_the_tokenizer_stops_the_scores_stop(rest, reason):
    """pycodestyle checks nothing after such a line, so a score of 0.0 would call the worst lines the best."""
    lines, unread = ["a=1\n", "if a:\n", "        b\n"], split_lines(rest)
    found = SCORER.score_segments([*lines, *unread])
    assert [one.score for one in found] == [1 / 4, 0.0, 1 / 10, *[None] * len(unread)]
    assert all(one.error.startswith(reason) for one in found[3:])
    # A segment that holds such a line among others has no score either.
    joined = SCORER.score_segments([lines[0], "".join(lines[1:]) + unread[0], *unread[1:]])
    assert [one.score for one in joined] == [1 / 4, *[None] * len(unread)]
    assert [one.score for one in SCORER.score_segments(["".join(lines) + rest])] == [None]


def test_a_text_that_is_cut_off_inside_a_string_keeps_its_score():
    """Many samples of a length limit end so. Without them, a mean is one of the samples without docstrings."""
    cut = 'a=1\nif a:\n    def f():\n        """Sums a and b.\n'
    # E225 and the missing end, E902; a function that follows `if a:` has no violation.
    assert SCORER.score_all([cut]) == [Scored(2 / len(cut))]
    [dedent] = SCORER.score_all(["if a:\n        b\n    z = 1\n"])
    assert dedent.error.startswith("IndentationError")


READ_ON = {
    "open string": "x = 'abc\n",
    "nul": "x = 1\0\n",
    "tabs and spaces": "if x:\n\ty = 1\n        z = 1\n",
    "f-string of Python 3.12": "x = f'{y['a']}'\n",
    "unknown characters": "x = $ ? !\n",
}


@pytest.mark.parametrize("text", READ_ON.values(), ids=READ_ON)
def test_lines_after_a_text_that_later_tokenizers_refuse_are_judged(text):
    assert [one.score for one in SCORER.score_segments([text, "b=2\n", "c = 3\n"])][1:] == [1 / 4, 0.0]


def test_what_an_f_string_holds_is_not_checked_in_any_version_of_python():
    assert SCORER.score_all(["x = f'{a,b} {c +d}'\n"]) == [Scored(0.0)]


def test_all_line_ends_count_as_in_the_file(tmp_path):
    """pycodestyle opens a file with universal newlines."""
    lines = ["def f(a):", "    x=1 + \\", "        a" + "a" * 80, "    y = '''a ", "    b'''", "class A:", "    z=2"]
    for end in ("\n", "\r\n", "\r"):
        text = end.join(lines) + end
        file = tmp_path / "file.py"
        file.write_bytes(text.encode())
        options = {"paths": [str(file)], "quiet": 2, "config_file": False}
        total = pycodestyle.StyleGuide(**options).check_files().total_errors
        assert total == 5
        assert SCORER.score_all([text]) == [Scored(total / len(text))]
        parts = [line + end for line in lines]
        assert [
            round(one.score * len(part)) for one, part in zip(SCORER.score_segments(parts), parts, strict=True)
        ] == [*(0, 1, 1, 1, 0, 1, 1)]


@as_in_311
def test_the_tokens_are_those_of_python_311():
    rng = random.Random(0)
    num_stopped = 0
    for path in sorted(LIBRARY.glob("*.py"))[::8]:
        whole = path.read_text(encoding="utf-8")
        for _ in range(8):
            begin = rng.randrange(len(whole))
            lines = split_lines(mutated(whole[begin : begin + 800], rng))
            expected = tokens_of(tokenize.generate_tokens, lines)
            assert tokens_of(python_tokens, lines) == expected
            num_stopped += isinstance(expected[-1], tuple)
    assert num_stopped > 50


def tokens_of(make, lines):
    """All tokens, then the error if there is one."""
    found = []
    try:
        for token in make(iter([*lines, "", ""]).__next__):
            found.append(list(token))
    except (SyntaxError, tokenize.TokenError) as error:
        found.append((type(error), error.args))
    return found


def test_a_line_is_judged_in_its_file():
    # Two blank lines are due before a function that follows code, none at the head of a file.
    assert SCORER.score_segments(["x = 1\n", "def f():\n", "    pass\n"])[1] == Scored(1 / 9)
    assert SCORER.score_all(["def f():\n    pass\n"]) == [Scored(0.0)]


def test_violations_go_to_the_segment_that_holds_them():
    text = "a = 1\nb=2\nc = 3\n"
    assert SCORER.score_segments([text]) == [Scored(1 / len(text))]
    assert SCORER.score_segments(["a = 1\nb", "=2\nc = 3\n"]) == [Scored(0.0), Scored(1 / 9)]
    assert SCORER.score_segments(["a = 1\n", "", "b=2\n"]) == [
        Scored(0.0),
        Scored(None, "empty: the text has no characters"),
        Scored(1 / 4),
    ]


def test_an_empty_text_has_no_score():
    assert SCORER.score_all(["", "a = 1\n"]) == [Scored(None, "empty: the text has no characters"), Scored(0.0)]
    assert SCORER.score_texts([""]) == [None]
    assert SCORER.score_segments([]) == []


def test_order_and_company_do_not_change_a_score():
    alone = [SCORER.score_all([text])[0] for text in AWKWARD]
    assert SCORER.score_all(AWKWARD) == alone
    assert SCORER.score_all(AWKWARD[::-1]) == alone[::-1]


def test_a_failing_checker_gives_a_reason_for_every_segment(monkeypatch):
    monkeypatch.setattr(sys.modules["phf_ray.scorers.pep8"], "check", lambda lines: [].pop())
    scores = SCORER.score_segments(["a=1\n", "b=2\n"])
    assert scores == [Scored(None, "IndexError: pop from empty list")] * 2


def test_settings_in_the_working_directory_are_not_read(tmp_path, monkeypatch):
    (tmp_path / "setup.cfg").write_text("[pycodestyle]\nignore = E225\nmax-line-length = 200\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "pycodestyle").write_text("[pycodestyle]\nignore = E225\n")
    code = (
        "from phf_ray.scorers import build_scorer; "
        "print(build_scorer({'class_name': 'PEP8Scorer'}).score_texts(['a=1\\n']))"
    )
    import subprocess

    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.check_output([sys.executable, "-c", code], text=True, env=environment).strip() == "[0.25]"


def test_a_megabyte_in_one_line_is_scored_in_bounded_time():
    text = "x = [" + "'a', " * 200_000 + "]\n"
    started = time.process_time()
    [scored] = SCORER.score_all([text])
    # The line is too long, and a space stands before the closing bracket... which follows a comma, where it may.
    assert scored == Scored(1 / len(text))
    # pycodestyle copies the rest of the line at every token, which takes minutes.
    assert time.process_time() - started < 60


LONG_LINES = {
    "spaces": lambda size: "x =" + " " * size + "1\n",
    "tabs": lambda size: "x = (" + "\t" * size + "1)\n",
    "spaces near a comparison": lambda size: "x == None" + " " * size + "and y == 1\n",
    "colons": lambda size: "x:" * (size // 2) + "\n",
    "colons and lambdas": lambda size: "f = [lambda: 0, " + "x:" * (size // 2) + "]; g = lambda:lambdax\n",
    "calls of type": lambda size: "type(" * (size // 5) + "\n",
    "spaces in type": lambda size: "x = type(" + " " * size + "a\n",
}


@as_in_311
@pytest.mark.parametrize("make", LONG_LINES.values(), ids=LONG_LINES)
def test_a_long_line_has_the_violations_that_pycodestyle_finds(make):
    for size in (3, 40, 500):
        lines = split_lines(make(size))
        assert report(lines) == report(lines, checker=pycodestyle.Checker)


@pytest.mark.timeout(300)
def test_no_such_line_is_cut_off_however_long_and_a_hopeless_one_is():
    """pycodestyle takes half an hour for some of them; where ours does too, the job goes on without a score."""
    texts = [make(300_000) for make in LONG_LINES.values()]
    hopeless = "not\t" * 100_000 + "\n"
    process = ScoringProcess(ScoringSetup(({"class_name": "PEP8Scorer"},), segmenter="document", text_timeout_s=60))
    try:
        process.submit([ScoringTask(text=text) for text in texts])
        scored = [outcome.scores["pep8"] for outcome in process.collect().outcomes]
    finally:
        process.close()
    assert [errors for _, errors in scored] == [[None]] * len(texts)
    process = ScoringProcess(ScoringSetup(({"class_name": "PEP8Scorer"},), segmenter="document", text_timeout_s=3))
    try:
        process.submit([ScoringTask(text=hopeless), ScoringTask(text="a=1\n")])
        outcomes = process.collect().outcomes
    finally:
        process.close()
    assert [outcome.scores["pep8"] for outcome in outcomes] == [
        ([None], ["timeout: nothing after 3 s"]),
        ([0.25], [None]),
    ]


words = st.sampled_from(
    ["a", "==", "!=", " ", "   ", "\t", "None", "True", " not ", " in ", "lambda", "lambdax", ":", "=", "type(a)", "(",
     ")", "is", " and", "or  ", "\x0c", "if ", "[", "]"]
)  # fmt: skip


@as_in_311
@settings(max_examples=200)
@given(text=st.lists(words, min_size=2, max_size=30).map("".join))
def test_searches_in_linear_time_find_the_same(text):
    lines = split_lines(text + "\n")
    assert report(lines) == report(lines, checker=pycodestyle.Checker)


def test_the_identity_names_what_can_change_a_score():
    identity = build_scorer({"class_name": "PEP8Scorer", "name": "style"}).identity()
    assert (identity.name, identity.class_name, identity.unit) == ("style", "PEP8Scorer", "violations per character")
    assert set(identity.versions) == {"pycodestyle", "PEP8Scorer"}
    assert pickle.loads(pickle.dumps(identity)) == identity


def test_unknown_scorers_and_keys_are_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"choose one of .*PEP8Scorer"):
        build_scorer({"class_name": "Pep8"})
    with pytest.raises(ConfigError, match="did you mean 'name'"):
        build_scorer({"class_name": "PEP8Scorer", "nam": "x"})
    with pytest.raises(ConfigError, match="name: input should be a valid string, got 3"):
        build_scorer({"class_name": "PEP8Scorer", "name": 3})
    with pytest.raises(ConfigError, match="class_name None"):
        build_scorer({})


def test_lines_of_the_segmenter_are_the_lines_of_the_score():
    text = "a=1\n\x0cb=2\u2028\nc = 3"
    assert len(SCORER.score_segments(build_segmenter("lines")(text))) == 3
