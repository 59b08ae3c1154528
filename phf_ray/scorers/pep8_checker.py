"""A faster pycodestyle checker that finds the same violations.

pycodestyle spends most of its time calling checks that can't find anything: it runs 27 checks on every line. Here each
check has a necessary condition that is cheap to test, and runs only on lines that meet it. The checks are pycodestyle's
own code, except that three of its searches are replaced by ones that find the same in linear time. Other checks still
take quadratic time on a logical line made for that, such as a megabyte of invalid escapes in one string; the scoring
job stops them after `text_timeout_s`, and such a text gets no score.
"""

import bisect
import keyword
import operator
import optparse
import re
import tokenize
import types
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import pycodestyle

from phf_ray.scorers.python_tokens import python_tokens

# The conditions below come from reading this version's checks. With any other version, all checks run on all lines.
CONDITIONS_HOLD = pycodestyle.__version__.startswith("2.15.")

_OPERATORS = pycodestyle.WS_NEEDED_OPERATORS | pycodestyle.UNARY_OPERATORS | pycodestyle.WS_OPTIONAL_OPERATORS
_OPERATORS_AND_SEPARATORS = _OPERATORS | frozenset(",;:")
_KEYWORDS = frozenset(keyword.kwlist)
_AMBIGUOUS = frozenset("lOI")
_TRAILING = (" ", "\t", "\v")


def default_options() -> optparse.Values:
    """Return the options that pycodestyle uses without any configuration."""
    options, _ = pycodestyle.get_parser().parse_args([])
    # Do not call StyleGuide(): its constructor always reads ~/.config/pycodestyle.
    style = pycodestyle.StyleGuide.__new__(pycodestyle.StyleGuide)
    style.options = options
    options.select, options.ignore = (), tuple(pycodestyle.DEFAULT_IGNORE.split(","))
    options.ignore_code, options.benchmark_keys = style.ignore_code, list(pycodestyle.BENCHMARK_KEYS)
    options.physical_checks = style.get_checks("physical_line")
    options.logical_checks = style.get_checks("logical_line")
    options.ast_checks = style.get_checks("tree")
    return options


class ViolationPlaces(pycodestyle.BaseReport):
    """Collects the line and column of each violation and prints nothing."""

    def init_file(self, filename: str, lines: list[str], expected: object, line_offset: int) -> None:
        super().init_file(filename, lines, expected, line_offset)
        self.places: list[tuple[int, int]] = []

    def error(self, line_number: int, offset: int, text: str, check: object) -> str | None:
        code: str | None = super().error(line_number, offset, text, check)
        if code:
            self.places.append((line_number, offset))
        return code


class Checked(NamedTuple):
    """What the checker found in a file."""

    places: list[tuple[int, int]]
    """Line (from 1) and column (from 0) of every violation, as reported: the line can lie past the end."""
    num_read: int
    """Number of lines up to the one at which the tokenizer failed. It hides the rest of the file from the checks."""
    failure: str | None
    """Why the rest was not read; None if all lines were."""
    ends_in_string: bool = False
    """Whether that is all: the file ends inside a string."""


def check(lines: list[str]) -> Checked:
    """Return the violations in a file with these lines."""
    places = ViolationPlaces(OPTIONS)
    # Copy the list: the checker strips a byte order mark from its first line.
    checker = FastChecker(lines=list(lines), options=OPTIONS, report=places)
    checker.check_all()
    if checker.failure is None:
        return Checked(places.places, len(lines), None)
    row = _row_of(checker.failure)
    if row > len(lines):
        # A bracket is still open at the end, but all lines have been checked.
        return Checked(places.places, len(lines), None)
    reason = f"{type(checker.failure).__name__}: {checker.failure.args[0]}, line {row}; nothing is judged from there on"
    return Checked(places.places, row - 1, reason, ends_in_string=isinstance(checker.failure, tokenize.TokenError))


def report(lines: list[str], *, checker: type[pycodestyle.Checker] | None = None) -> list[tuple[int, int]]:
    """Return the reported line and column of every violation in a file with these lines.

    `checker`: None for `FastChecker`, or `pycodestyle.Checker` for comparison.
    """
    places = ViolationPlaces(OPTIONS)
    # Copy the list, as above.
    (checker or FastChecker)(lines=list(lines), options=OPTIONS, report=places).check_all()
    return places.places


def _row_of(failure: SyntaxError | tokenize.TokenError) -> int:
    if isinstance(failure, SyntaxError):
        assert failure.lineno is not None
        return failure.lineno
    row: int = failure.args[1][0]
    return row


class _Bound(NamedTuple):
    """A check, and a function that reads all its arguments from the checker in one call."""

    check: Callable[..., Any]
    arguments: Callable[[Any], tuple[Any, ...]]
    state: str | None
    """Key of the check's own state; None if it keeps no state."""


def _bind(name: str, check: Callable[..., Any], argument_names: list[str]) -> _Bound:
    get = operator.attrgetter(*argument_names)
    one = len(argument_names) == 1
    return _Bound(
        check, (lambda checker: (get(checker),)) if one else get, name if "checker_state" in argument_names else None
    )


# A pattern that begins with `\s*` matches from the first space of a run or not at all; pycodestyle tries every space.
_OUTSIDE_SPACE = r"(?:(?<!\s)|(?!\s))"


class _LambdaSearch:
    """Finds the line's first `lambda` once; pycodestyle searches for it again before each colon."""

    def search(self, line: str, _begin: int, end: int) -> re.Match[str] | None:
        # There is a colon at `end`, so a word can't continue past it.
        first = _first_lambda(line)
        return first if first is not None and first.end() <= end else None


@lru_cache(maxsize=1)
def _first_lambda(line: str) -> re.Match[str] | None:
    return pycodestyle.LAMBDA_REGEX.search(line)


_LINEAR: dict[str, dict[str, object]] = {
    "whitespace_around_keywords": {"KEYWORD_REGEX": re.compile(_OUTSIDE_SPACE + pycodestyle.KEYWORD_REGEX.pattern)},
    "comparison_to_singleton": {
        "COMPARE_SINGLETON_REGEX": re.compile(_OUTSIDE_SPACE + pycodestyle.COMPARE_SINGLETON_REGEX.pattern)
    },
    "compound_statements": {"LAMBDA_REGEX": _LambdaSearch()},
}
"""Check -> pycodestyle's globals that are replaced for it."""


def _linear(name: str, check: Callable[..., Any]) -> Callable[..., Any]:
    """Return the check with the same code and its slow searches replaced."""
    if name not in _LINEAR or not CONDITIONS_HOLD:
        return check
    assert isinstance(check, types.FunctionType)
    return types.FunctionType(check.__code__, {**vars(pycodestyle), **_LINEAR[name]}, name)


class FastChecker(pycodestyle.Checker):
    """A Checker that runs each check only on lines in which it can find something.

    Its tokens are those of Python 3.11, in every version of the interpreter.
    """

    failure: SyntaxError | tokenize.TokenError | None = None
    """What ended the tokens early; None if the tokenizer came to the end of the file."""

    def check_all(self, expected: object = None, line_offset: int = 0) -> int:
        """Like pycodestyle's, without its options for verbose output and without checks of the syntax tree."""
        self.report.init_file(self.filename, self.lines, expected, line_offset)
        self.total_lines = len(self.lines)
        self.line_number = 0
        self.indent_char: str | None = None
        self.indent_level = self.previous_indent_level = 0
        self.previous_logical = self.previous_unindented_logical_line = ""
        self.tokens: list[tokenize.TokenInfo] = []
        self.blank_lines = self.blank_before = 0
        depth = 0
        for token in self.generate_tokens():
            self.tokens.append(token)
            kind, text = token[0], token[1]
            if kind == tokenize.OP:
                depth += (text in "([{") - (text in "}])")
            elif not depth and kind in pycodestyle.NEWLINE:
                self._end_line(kind)
        if self.tokens:
            self.check_physical(self.lines[-1])
            self.check_logical()
        num_violations: int = self.report.get_file_results()
        return num_violations

    def _end_line(self, kind: int) -> None:
        if kind == tokenize.NEWLINE:
            self.check_logical()
            self.blank_before = 0
        elif len(self.tokens) == 1:
            # The physical line contains only this token.
            self.blank_lines += 1
            del self.tokens[0]
        else:
            self.check_logical()

    def generate_tokens(self) -> Iterator[tokenize.TokenInfo]:
        """Yield the file's tokens, and run the physical checks at the end of each physical line."""
        previous = last = ""
        line_noqa: Any = ""
        ends_in_backslash = False
        try:
            for token in python_tokens(self.readline):
                kind, text, start, end, line = token
                if start[0] > self.total_lines:
                    return
                if line is not last:
                    # pycodestyle computes this for every token, in time proportional to the line.
                    last, line_noqa, ends_in_backslash = line, line and pycodestyle.noqa(line), line.endswith("\\\n")
                self.noqa = line_noqa
                ends_line = kind in pycodestyle.NEWLINE or (ends_in_backslash and line[end[1] :].lstrip() == "\\\n")
                if ends_line or (kind == tokenize.STRING and "\n" in text):
                    self.maybe_check_physical(token, previous)
                yield token
                previous = line
        except (SyntaxError, tokenize.TokenError) as error:
            self.failure = error
            self.report_invalid_syntax()

    def check_physical(self, line: str) -> None:
        self.physical_line = line
        for name, needed in self._physical_conditions(line).items():
            if not needed:
                continue
            check, arguments, _ = _PHYSICAL[name]
            result = check(*arguments(self))
            if result is not None:
                offset, text = result
                self.report_error(self.line_number, offset, text, check)
                if text[:4] == "E101":
                    self.indent_char = line[0]

    def check_logical(self) -> None:
        self.report.increment_logical_line()
        mapping = self.build_tokens_line()
        if not mapping:
            return
        start_row, start_column = mapping[0][1]
        self.indent_level = pycodestyle.expand_indent(self.lines[start_row - 1][:start_column])
        self.blank_before = max(self.blank_before, self.blank_lines)
        offsets = [offset for offset, _ in mapping]
        for name, needed in self._logical_conditions(self.logical_line, self.tokens).items():
            if not needed:
                continue
            for place, text, check in self._run_logical(_LOGICAL[name]):
                if isinstance(place, tuple):
                    row, column = place
                else:
                    offset, (row, column) = mapping[bisect.bisect_left(offsets, place)]
                    column += place - offset
                self.report_error(row, column, text, check)
        if self.logical_line:
            self.previous_indent_level = self.indent_level
            self.previous_logical = self.logical_line
            if not self.indent_level:
                self.previous_unindented_logical_line = self.logical_line
        self.blank_lines = 0
        self.tokens = []

    def _run_logical(self, bound: _Bound) -> Iterator[tuple[Any, str, Callable[..., Any]]]:
        """Yield the place (row and column, or offset in the logical line), text and check of each violation."""
        check, arguments, state = bound
        if state is not None:
            self.checker_state = self._checker_states.setdefault(state, {})
        for place, text in check(*arguments(self)) or ():
            yield place, text, check

    def _physical_conditions(self, line: str) -> Mapping[str, bool]:
        """Return check -> whether it can find anything in a physical line."""
        if not CONDITIONS_HOLD:
            return dict.fromkeys(_PHYSICAL, True)
        has_tab = "\t" in line
        return {
            "maximum_line_length": len(line) > self.max_line_length,
            "tabs_obsolete": has_tab,
            "tabs_or_spaces": has_tab or (self.indent_char != " " and line[:1] == " "),
            "trailing_blank_lines": self.line_number == self.total_lines,
            "trailing_whitespace": line.rstrip("\n\r\x0c").endswith(_TRAILING),
        }

    def _logical_conditions(self, line: str, tokens: list[tokenize.TokenInfo]) -> Mapping[str, bool]:
        """Return check -> whether it can find anything in a logical line, whose strings are blanked out."""
        if not CONDITIONS_HOLD:
            return dict.fromkeys(_LOGICAL, True)
        texts = {token[1] for token in tokens}
        several_rows = tokens[0][2][0] != tokens[-1][2][0]
        row = tokens[0][4]
        # In a printable string, the space is the only white space.
        wide = "  " in line or not line.isprintable()
        opens = "(" in texts or "[" in texts
        compares = "==" in line or "!=" in line
        level = self.indent_level
        return {
            "ambiguous_identifier": not texts.isdisjoint(_AMBIGUOUS),
            "bare_except": line.startswith("except"),
            "blank_lines": bool(self.blank_lines) or not level or line[:1] in "adc@",
            "comparison_negative": "not" in line,
            "comparison_to_singleton": compares,
            "comparison_type": compares and "type" in line,
            "compound_statements": -1 < line.find(":") < len(line) - 1 or ";" in line,
            "continued_indentation": several_rows,
            "explicit_line_join": several_rows,
            "extraneous_whitespace": wide or line[:1] == "@" or _has_bracket_gap(line),
            "imports_on_separate_lines": line.startswith("import "),
            "indentation": bool(level % self.indent_size)
            or level > self.previous_indent_level
            or self.previous_logical.endswith(":"),
            "maximum_doc_length": self.max_doc_length is not None,
            "missing_whitespace": not texts.isdisjoint(_OPERATORS_AND_SEPARATORS),
            "missing_whitespace_after_keyword": not texts.isdisjoint(_KEYWORDS),
            "module_imports_on_top_of_file": not level,
            "python_3000_invalid_escape_sequence": several_rows or "\\" in row,
            "whitespace_around_keywords": wide,
            "whitespace_around_named_parameter_equals": opens and "=" in texts,
            "whitespace_around_operator": wide,
            "whitespace_before_comment": several_rows or "#" in row,
            "whitespace_before_parameters": opens
            and (several_rows or " (" in row or " [" in row or "\t" in row or "\x0c" in row),
        }


def _has_bracket_gap(line: str) -> bool:
    """Whether a space follows an opening bracket or precedes a closing one, a comma, a colon or a semicolon."""
    return (
        "( " in line or "[ " in line or "{ " in line or " )" in line or " ]" in line or " }" in line
        or " ," in line or " ;" in line or " :" in line
    )  # fmt: skip


OPTIONS = default_options()
_PHYSICAL = {name: _bind(name, check, names) for name, check, names in OPTIONS.physical_checks}
_LOGICAL = {name: _bind(name, _linear(name, check), names) for name, check, names in OPTIONS.logical_checks}
