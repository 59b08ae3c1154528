"""Word list: occurrences of listed words per character, for corpora that need only a blocklist."""

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

    def __init__(self, settings: WordListSettings):
        super().__init__(settings)
        self._ignore_case = settings.ignore_case
        words = settings.words if settings.path is None else _read(Path(settings.path))
        # Longest first, so that a phrase is found before a word that it begins with.
        self._words = sorted({word for word in words if word}, key=lambda word: (-len(word), word))
        if not self._words:
            raise ConfigError(f"the word list {settings.path or settings.words!r} is empty; give at least one word")
        flags = re.IGNORECASE if settings.ignore_case else 0
        # Do not use \b: a listed word may begin or end with a character that is not a letter.
        self._pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, self._words))})(?!\w)", flags)

    def score_all(self, texts: Sequence[str]) -> list[Scored]:
        return [Scored(len(self.spans(text)) / len(text)) if text else EMPTY for text in texts]

    def spans(self, text: str) -> list[Span]:
        return [Span("word", match.start(), match.end()) for match in self._pattern.finditer(text)]

    def identity(self) -> ScorerIdentity:
        words = hashlib.sha256("\n".join(self._words).encode()).hexdigest()
        return dataclasses.replace(super().identity(), weights_hash=words)

    def _identity_settings(self) -> dict[str, Any]:
        return {"ignore_case": self._ignore_case, "num_words": len(self._words)}


def _read(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the word list {path} can't be read ({error}); give a UTF-8 file with one word per line"
        ) from None
    return [line.strip() for line in lines if not line.startswith("#")]
