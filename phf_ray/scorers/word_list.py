"""Word list: occurrences of listed words per character, for corpora that need only a blocklist.

Words and texts are compared as `folding` folds them, so it does not matter how an accent is composed or which
apostrophe an editor writes. White space in a phrase is any white space in the text, line breaks included.
"""

import dataclasses
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import model_validator

from phf_ray.errors import ConfigError
from phf_ray.records import Scored, ScorerIdentity, Span
from phf_ray.scorers.base import EMPTY, Scorer, ScorerSettings
from phf_ray.scorers.folding import MARKS, Folded, fold


class WordListSettings(ScorerSettings):
    name: str = "word_list"
    words: tuple[str, ...] = ()
    path: str | None = None
    """File with one word or phrase per line. Empty lines and lines that begin with # are skipped."""
    ignore_case: bool = True

    @model_validator(mode="after")
    def _has_words(self) -> Self:
        if bool(self.words) == (self.path is not None):
            raise ValueError("give either words or a path to a file with one word per line")
        return self


class WordListScorer(Scorer):
    Settings = WordListSettings
    unit = "listed words per character"
    packages = ()
    version = "2"

    def __init__(self, settings: WordListSettings):
        super().__init__(settings)
        self._ignore_case = settings.ignore_case
        words = settings.words if settings.path is None else _read(Path(settings.path))
        folded = {" ".join(fold(word, ignore_case=settings.ignore_case).split()) for word in words}
        # Longest first, so that a phrase is found before a word that it begins with.
        self._words = sorted(folded - {""}, key=lambda word: (-len(word), word))
        if not self._words:
            raise ConfigError(f"the word list {settings.path or settings.words!r} is empty; give at least one word")
        self._pattern = _pattern(self._words)

    def score_all(self, texts: Sequence[str]) -> list[Scored]:
        return [Scored(len(self.spans(text)) / len(text)) if text else EMPTY for text in texts]

    def spans(self, text: str) -> list[Span]:
        folded = Folded(text, ignore_case=self._ignore_case)
        return [Span("word", *folded.span(*match.span())) for match in self._pattern.finditer(folded.text)]

    def identity(self) -> ScorerIdentity:
        words = hashlib.sha256("\n".join(self._words).encode()).hexdigest()
        return dataclasses.replace(super().identity(), weights_hash=words)

    def _identity_settings(self) -> dict[str, Any]:
        return {"ignore_case": self._ignore_case, "num_words": len(self._words)}


# Scripts that write no space between words, so that a word can stand beside any character: Thai, Lao, Tibetan, Burmese,
# Khmer, the Tai scripts, Javanese, Japanese and Chinese.
_UNSPACED = (
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u1950-\u19ff\u1a20-\u1aaf\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3031-\u3035"
    "\u303b\u303c\u3041-\u312f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua980-\ua9ff\uaa60-\uaadf\uf900-\ufaff\uff66-\uff9f"
    "\U0001aff0-\U0001b16f\U00020000-\U0003ffff"
)
_LETTER = rf"[^\W{_UNSPACED}]"
# A mark belongs to the letter before it, but re does not count it as one.
_MARK_OF_LETTER = rf"(?![{_UNSPACED}])[{MARKS}]"


def _pattern(words: Sequence[str]) -> re.Pattern[str]:
    """Return a pattern of the words, of which the first that fits counts.

    Do not use `\\b`: a listed word may begin or end with a character that is not a letter.
    """
    begin = rf"(?:(?=[{_UNSPACED}])|(?<!{_LETTER})(?<!{_MARK_OF_LETTER}))"
    end = rf"(?:(?<=[{_UNSPACED}])|(?!{_LETTER}))(?![{MARKS}])"
    phrases = [r"\s+".join(map(re.escape, word.split(" "))) for word in words]
    # Few characters of a text begin a word, and trying a thousand words takes time.
    first = "".join(sorted({re.escape(word[0]) for word in words}))
    return re.compile(f"(?=[{first}]){begin}(?:{'|'.join(phrases)}){end}")


def _read(path: Path) -> list[str]:
    try:
        # utf-8-sig: Windows editors begin a file with a byte order mark.
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the word list {path} can't be read ({error}); give a UTF-8 file with one word per line"
        ) from None
    return [line for line in lines if not line.startswith("#")]
