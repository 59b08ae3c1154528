"""The phrases of Chain of Hindsight: the markers of good and bad answers, and sentences that name the quality.

`load_phrases()` reads `configs/phrases/coh.yml`, from which a user's own file takes what it leaves out.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from phf_ray.config.base import Section
from phf_ray.config.parsing import merge, parse_section, read_yaml
from phf_ray.config.shipped import phrases_path

DEFAULT_PHRASES = "coh"
FeedbackForm = Literal["dialogue", "summary", "question"]


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("is blank; give words")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{text!a} has half of a surrogate pair, which no tokenizer reads; write the character"
        ) from None
    return text


Words = Annotated[str, AfterValidator(_not_blank)]


class Markers(Section):
    user: Words
    """Before what the user says."""
    good: Words
    """Before a good answer."""
    bad: Words
    """Before a bad answer."""


class Qualities(Section):
    nouns: Annotated[tuple[Words, ...], Field(min_length=1)]
    qualities: Annotated[tuple[tuple[Words, Words], ...], Field(min_length=1)]
    """Pairs: of the better answer, of the worse one."""


class Hindsight(Section):
    sentences: Annotated[tuple[Words, ...], Field(min_length=1)]
    """With {quality} and {noun}."""
    dialogue: Qualities
    question: Qualities
    summary: Qualities

    @model_validator(mode="after")
    def _says_the_quality(self) -> Self:
        for sentence in self.sentences:
            if "{quality}" not in sentence:
                raise ValueError(f"sentence {sentence!r} has no {{quality}}, so good and bad answers look alike")
        return self


class Rating(Section):
    column: Words
    """Name of the ratings, such as score of `score_1` and `score_2`."""
    best: Annotated[float, Field(gt=0)]
    words: Words
    """With {rating} and {best}."""

    @model_validator(mode="after")
    def _says_the_rating(self) -> Self:
        if "{rating}" not in self.words:
            raise ValueError(f"words {self.words!r} have no {{rating}}, so all answers look alike")
        return self

    def marker(self, rating: float) -> str:
        return _filled(self.words, rating=f"{rating:g}", best=f"{self.best:g}")


class Phrases(Section):
    markers: Markers
    hindsight: Hindsight
    rating: Rating
    summary_requests: Annotated[tuple[Words, ...], Field(min_length=1)]
    source_introductions: Annotated[tuple[Words, ...], Field(min_length=1)]

    def marker_pairs(self, form: FeedbackForm, *, is_hindsight: bool) -> list[tuple[str, str]]:
        """Return the pairs of markers, good and bad: the two of `markers`, or one for each sentence of hindsight."""
        if not is_hindsight:
            return [(self.markers.good, self.markers.bad)]
        named: Qualities = getattr(self.hindsight, form)
        return [
            (_filled(sentence, quality=better, noun=noun), _filled(sentence, quality=worse, noun=noun))
            for sentence in self.hindsight.sentences
            for better, worse in named.qualities
            for noun in named.nouns
        ]


def load_phrases(phrases: str | Path = DEFAULT_PHRASES) -> Phrases:
    """Read a file of phrases: a shipped one by its name, or a path. Raises ConfigError with every problem found."""
    values: dict[str, Any] = read_yaml(phrases_path(DEFAULT_PHRASES))
    path = phrases_path(phrases)
    if path != phrases_path(DEFAULT_PHRASES):
        values = merge(values, read_yaml(path))
    return parse_section(Phrases, values, str(phrases))


def _filled(words: str, **values: str) -> str:
    # Not `format`: a user's words may hold other braces.
    for name, value in values.items():
        words = words.replace(f"{{{name}}}", value)
    return words
