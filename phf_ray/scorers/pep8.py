"""PEP8: violations of pycodestyle's default style per character.

Every violation that `pycodestyle.Checker` reports counts, on the line that it reports. The scorer does not read the
user's or the project's settings (setup.cfg, tox.ini): scores must not change with the working directory. They do not
change with the interpreter either, because the tokens are always those of Python 3.11.
"""

import io
import itertools
from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from phf_ray.records import Scored
from phf_ray.scorers.base import EMPTY, Scorer, ScorerSettings, failure
from phf_ray.scorers.pep8_checker import check


class PEP8Settings(ScorerSettings):
    name: str = "pep8"


class PEP8Scorer(Scorer):
    Settings = PEP8Settings
    unit = "violations per character"
    packages = ("pycodestyle",)
    default_segmenter = "lines"
    measures = "code_style"
    text_suffixes = (".py", ".pyi")
    version = "2"

    def score_all(self, texts: Sequence[str]) -> list[Scored]:
        """Return each text's violations per character.

        A text that ends inside a string, as many samples do that a length limit cuts off, has a score: what pycodestyle
        reports of it, the missing end included. As segments, the lines of that string have none: nobody knows whether
        they were meant as text or as code.
        """
        return [self._score([text], is_whole=True)[0] for text in texts]

    def score_segments(self, segments: Sequence[str]) -> list[Scored]:
        """Return each segment's violations per character. The checker sees the whole document."""
        return self._score(segments, is_whole=False)

    def _score(self, segments: Sequence[str], *, is_whole: bool) -> list[Scored]:
        text = "".join(segments)
        if not text:
            return [EMPTY] * len(segments)
        try:
            found = find_violations(text)
        # DIFFERS: phf-ray gives no score if the checker fails; the original gives the file 0.0, the best score.
        except Exception as error:  # noqa: BLE001  checks are regular expressions and index arithmetic over any text
            return [failure(error)] * len(segments)
        if is_whole and found.ends_in_string:
            return [Scored(len(found.places) / len(text))]
        ends = list(itertools.accumulate(map(len, segments)))
        counts = [0] * len(segments)
        for place in found.places:
            counts[bisect_right(ends, place)] += 1
        return [
            _scored(segment, count, found.failure if end > found.num_read else None)
            for segment, count, end in zip(segments, counts, ends, strict=True)
        ]


class Violations(NamedTuple):
    places: list[int]
    """Character offset of every violation, in the order of the report. It always lies on the violation's line, even if
    the reported column does not. A line past the end counts as the last line."""
    num_read: int
    """Number of characters up to the line at which Python's tokenizer failed."""
    failure: str | None
    """Why the rest was not read; None if the whole text was."""
    ends_in_string: bool
    """Whether the rest is the lines of a string that is not closed."""


def find_violations(text: str) -> Violations:
    """Return the violations in a non-empty text."""
    # DIFFERS: phf-ray ends lines at CR and CRLF too, as pycodestyle does when it reads the file; the original gives the
    # checker lines that end at LF.
    lines = io.StringIO(text, newline="").readlines()
    found = check([line.rstrip("\r\n") + "\n" if line[-1] in "\r\n" else line for line in lines])
    line_starts = [0, *itertools.accumulate(map(len, lines))]
    # DIFFERS: phf-ray counts a violation past the end (an unclosed bracket) on the last line; the original raises
    # IndexError and scores every line of the file 0.0.
    places = []
    for number, column in found.places:
        line = min(max(number, 1), len(lines)) - 1
        places.append(line_starts[line] + min(max(column, 0), len(lines[line]) - 1))
    return Violations(places, line_starts[found.num_read], found.failure, found.ends_in_string)


def _scored(segment: str, num_violations: int, why_not_read: str | None) -> Scored:
    if not segment:
        return EMPTY
    # DIFFERS: phf-ray gives no score from the line on at which the tokenizer fails; the original gives these lines 0.0,
    # the best score, because pycodestyle does not check them.
    return Scored(num_violations / len(segment)) if why_not_read is None else Scored(None, why_not_read)
