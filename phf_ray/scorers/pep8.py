"""PEP8: violations of pycodestyle's default style per character.

Every violation that `pycodestyle.Checker` reports counts, on the line that it reports. Settings of the user or of the
project (setup.cfg, tox.ini) are not read: scores must not change with the working directory.
"""

import dataclasses
import itertools
import optparse
import platform
from bisect import bisect_right
from collections.abc import Sequence

import pycodestyle

from phf_ray.records import Scored, ScorerIdentity
from phf_ray.scorers.base import EMPTY, Scorer, ScorerSettings, failure
from phf_ray.segments import split_lines


class PEP8Settings(ScorerSettings):
    name: str = "pep8"


class PEP8Scorer(Scorer):
    Settings = PEP8Settings
    unit = "violations per character"
    packages = ("pycodestyle",)

    def score_all(self, texts: Sequence[str]) -> list[Scored]:
        return [self.score_segments([text])[0] for text in texts]

    def score_segments(self, segments: Sequence[str]) -> list[Scored]:
        """Violations in each segment, found in the context of the whole document, per character of the segment."""
        text = "".join(segments)
        if not text:
            return [EMPTY] * len(segments)
        try:
            places = find_violations(text)
        # DIFFERS: ours gives no score where the checker fails; original gave 0.0, the best score, to the file.
        except Exception as error:  # noqa: BLE001  checks are regular expressions and index arithmetic over any text
            return [failure(error)] * len(segments)
        ends = list(itertools.accumulate(map(len, segments)))
        counts = [0] * len(segments)
        for place in places:
            counts[bisect_right(ends, place)] += 1
        return [
            Scored(count / len(segment)) if segment else EMPTY for count, segment in zip(counts, segments, strict=True)
        ]

    def identity(self) -> ScorerIdentity:
        identity = super().identity()
        # Python's own tokenizer decides what pycodestyle sees.
        versions = {**identity.versions, "python": platform.python_version()}
        return dataclasses.replace(identity, versions=versions)


def find_violations(text: str) -> list[int]:
    """The character offset of each violation in a text that is not empty, in the order of the report.

    The offset lies on the violation's line, whatever its column; a line past the end is the last one.
    """
    lines = split_lines(text)
    line_starts = [0, *itertools.accumulate(map(len, lines))]
    # DIFFERS: ours counts a violation past the end (an unclosed bracket) on the last line; original raised IndexError
    # and scored every line of the file 0.0.
    places = []
    for number, column in _report(lines):
        line = min(max(number, 1), len(lines)) - 1
        places.append(line_starts[line] + min(max(column, 0), len(lines[line]) - 1))
    return places


class _Places(pycodestyle.BaseReport):
    """Collects line and column of each violation, and prints nothing."""

    def init_file(self, filename: str, lines: list[str], expected: object, line_offset: int) -> None:
        super().init_file(filename, lines, expected, line_offset)
        self.places: list[tuple[int, int]] = []

    def error(self, line_number: int, offset: int, text: str, check: object) -> str | None:
        code: str | None = super().error(line_number, offset, text, check)
        if code:
            self.places.append((line_number, offset))
        return code


def _default_style() -> optparse.Values:
    """The options of pycodestyle run without any configuration."""
    options, _ = pycodestyle.get_parser().parse_args([])
    # Not StyleGuide(): its constructor reads ~/.config/pycodestyle, whatever it is told.
    style = pycodestyle.StyleGuide.__new__(pycodestyle.StyleGuide)
    style.options = options
    options.select, options.ignore = (), tuple(pycodestyle.DEFAULT_IGNORE.split(","))
    options.ignore_code, options.benchmark_keys = style.ignore_code, list(pycodestyle.BENCHMARK_KEYS)
    options.physical_checks = style.get_checks("physical_line")
    options.logical_checks = style.get_checks("logical_line")
    options.ast_checks = style.get_checks("tree")
    return options


_OPTIONS = _default_style()


def _report(lines: list[str]) -> list[tuple[int, int]]:
    report = _Places(_OPTIONS)
    # The checker strips a byte order mark from the first line of the list it is given.
    pycodestyle.Checker(lines=list(lines), options=_OPTIONS, report=report).check_all()
    return report.places
