"""PEP8: violations of pycodestyle's default style per character.

Every violation that `pycodestyle.Checker` reports counts, on the line that it reports. The scorer does not read the
user's or the project's settings (setup.cfg, tox.ini): scores must not change with the working directory.
"""

import dataclasses
import itertools
import platform
from bisect import bisect_right
from collections.abc import Sequence

from phf_ray.corpus.segments import split_lines
from phf_ray.records import Scored, ScorerIdentity
from phf_ray.scorers.base import EMPTY, Scorer, ScorerSettings, failure
from phf_ray.scorers.pep8_checker import report


class PEP8Settings(ScorerSettings):
    name: str = "pep8"


class PEP8Scorer(Scorer):
    Settings = PEP8Settings
    unit = "violations per character"
    packages = ("pycodestyle",)
    default_segmenter = "lines"
    measures = "code_style"
    text_suffixes = (".py", ".pyi")

    def score_all(self, texts: Sequence[str]) -> list[Scored]:
        return [self.score_segments([text])[0] for text in texts]

    def score_segments(self, segments: Sequence[str]) -> list[Scored]:
        """Return each segment's violations per character. The checker sees the whole document."""
        text = "".join(segments)
        if not text:
            return [EMPTY] * len(segments)
        try:
            places = find_violations(text)
        # DIFFERS: phf-ray gives no score if the checker fails; the original gives the file 0.0, the best score.
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
        # pycodestyle uses Python's own tokenizer, so its results change with Python.
        versions = {**identity.versions, "python": platform.python_version()}
        return dataclasses.replace(identity, versions=versions)


def find_violations(text: str) -> list[int]:
    """Return the character offset of each violation in a non-empty text, in the order of the report.

    The offset always lies on the violation's line, even if the reported column does not. A line past the end counts as
    the last line.
    """
    lines = split_lines(text)
    line_starts = [0, *itertools.accumulate(map(len, lines))]
    # DIFFERS: phf-ray counts a violation past the end (an unclosed bracket) on the last line; the original raises
    # IndexError and scores every line of the file 0.0.
    places = []
    for number, column in report(lines):
        line = min(max(number, 1), len(lines)) - 1
        places.append(line_starts[line] + min(max(column, 0), len(lines[line]) - 1))
    return places
