"""Ruff: violations of pycodestyle's default style per character, as ruff counts them, for corpora of whole files.

Ruff has no rules for continuation lines (E12x), counts wide characters twice in the length of a line, and parses where
pycodestyle only tokenizes, so its scores are not those of `pep8`. The scorer reads no settings of ruff, and comments
such as `noqa` hide nothing. Many texts are files of one folder, because each start of ruff takes far longer than a
file of usual length.
"""

import importlib.util
import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from phf_ray.characters import half_at
from phf_ray.errors import ConfigError, DataError
from phf_ray.records import Scored
from phf_ray.scorers.base import EMPTY, Scorer, ScorerSettings
from phf_ray.storage.files import write_temporary

SUPPORTED = "0.17."
"""Beginning of the versions whose output this module reads. Most of the rules are a preview, which may change."""

_SURROGATE = Scored(None, "UnicodeEncodeError: the text has a lone surrogate")
# The order of ruff's report: file, line, column, rule.
_FOUND = re.compile(rb"^(\d+)\.py:(\d+):(\d+): ([a-z-]+): (.*)$", re.MULTILINE)
_NOT_JUDGED = {b"invalid-syntax": "SyntaxError", b"io-error": "OSError", b"panic": "RuffPanic"}
"""What ruff reports in place of a rule if it could not check a file -> the kind of the reason."""
_BOTH_SIDES = b"missing-whitespace-around-parameter-equals"
"""The one rule that reports two violations at one place: white space is missing before the sign and after it."""
_OPTIONS = (
    *("check", "--quiet", "--exit-zero", "--output-format", "concise"),
    *("--isolated", "--no-cache", "--no-respect-gitignore", "--config", "exclude=[]"),
    # pycodestyle's defaults. Ruff's versions of its rules on white space are a preview.
    *("--preview", "--select", "E,W", "--ignore", "E226,E241,E242", "--line-length", "79", "--ignore-noqa"),
    *("--target-version", "py314", "."),
)


class RuffSettings(ScorerSettings):
    name: str = "ruff"


class RuffScorer(Scorer):
    Settings = RuffSettings
    unit = "violations per character"
    packages = ("ruff",)
    is_batched = True
    default_segmenter = "document"
    measures = "code_style"
    text_suffixes = (".py", ".pyi")
    version = "1"

    def __init__(self, settings: RuffSettings):
        super().__init__(settings)
        _check_installed()
        from ruff import find_ruff_bin

        self._program = find_ruff_bin()

    @classmethod
    def described(cls, settings: Any) -> dict[str, Any]:
        _check_installed()
        return super().described(settings)

    def score_all(self, texts: Sequence[str]) -> list[Scored]:
        """Return each text's violations per character; None with the reason if ruff can't parse it."""
        judged = [index for index, text in enumerate(texts) if text and half_at(text) is None]
        found = self._check([texts[index] for index in judged])
        scored = [_SURROGATE if text else EMPTY for text in texts]
        for index, outcome in zip(judged, found, strict=True):
            if isinstance(outcome, int):
                scored[index] = Scored(outcome / len(texts[index]))
            else:
                scored[index] = Scored(None, outcome)
        return scored

    def _check(self, texts: Sequence[str]) -> list[int | str]:
        """Return each text's number of violations, or the reason why there is none."""
        if not texts:
            return []
        with tempfile.TemporaryDirectory(prefix="phf-ruff-") as folder:
            for index, text in enumerate(texts):
                write_temporary(Path(folder, f"{index}.py"), text.encode("utf-8"))
            # RUFF_* would be settings. The scoring job runs one process for each core.
            variables = {name: value for name, value in os.environ.items() if not name.startswith("RUFF_")}
            ended = subprocess.run(
                [self._program, *_OPTIONS],
                cwd=folder,
                env={**variables, "RAYON_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
            )
        if ended.returncode != 0:
            said = ended.stderr.decode("utf-8", errors="replace").strip()
            raise DataError(f"ruff ended with code {ended.returncode} on {len(texts)} texts: {said[:300]}")
        return _counted(ended.stdout, len(texts))


def _counted(report: bytes, num_texts: int) -> list[int | str]:
    counts = [0] * num_texts
    reasons: dict[int, str] = {}
    # A violation on a last line without a line break is reported twice.
    places: set[tuple[bytes, ...]] = set()
    for file, line, column, rule, message in _FOUND.findall(report):
        kind = _NOT_JUDGED.get(rule)
        if kind is None:
            place = (file, line, column, rule)
            counts[int(file)] += rule == _BOTH_SIDES or place not in places
            places.add(place)
        else:
            said = message.decode("utf-8", errors="replace").strip()
            reasons.setdefault(int(file), f"{kind}: {said}, line {int(line)}; nothing is judged"[:500])
    return [reasons.get(index, count) for index, count in enumerate(counts)]


def _check_installed() -> None:
    if importlib.util.find_spec("ruff") is None:
        raise ConfigError(
            "this scorer needs ruff, which is not installed; run on every node: pip install 'phf-ray[ruff]'"
        )
    if not version("ruff").startswith(SUPPORTED):
        raise ConfigError(
            f"this scorer needs ruff {SUPPORTED}*, and {version('ruff')} is installed; run on every node: "
            "pip install 'phf-ray[ruff]'"
        )
