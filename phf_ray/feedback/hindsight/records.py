"""Makes the records of Chain of Hindsight of a comparison.

A record names its answers by their order in the comparison, or in a dialogue by their turn: human_0, gpt_1, human_2,
gpt_bad_3. Each kind of feedback makes one record with the two markers, or one for each sentence of hindsight in their
place.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from phf_ray.config import FeedbackForm, Phrases
from phf_ray.feedback.formats.base import UnfitRecord
from phf_ray.feedback.hindsight.settings import HINDSIGHT, ORDERS, RATING, HindsightSettings
from phf_ray.feedback.rows import Comparison, FieldRecord
from phf_ray.feedback.values import finite_number, unfolded
from phf_ray.generation.chat.prompts import ASSISTANT, USER, ChatPrompt, Message, prompt_text

_FORMS: Mapping[str, FeedbackForm] = {"tldr": "summary", "webgpt": "question"}
"""Format of the input -> form of its records; of all others, the prompt says it."""
_SUMMARY_MARK = "TL;DR:"
_END = "<|eos|>"


def field_records(row: Comparison, settings: HindsightSettings, *, format: str) -> list[FieldRecord]:
    """Return the records of a comparison. Raises UnfitRecord if it makes none.

    `format`: that of the input, a key of `FORMATS`.
    """
    known = unfolded({"meta": row.meta})
    form = settings.form or _form_of(row, format, known)
    asked = _asked(row, form, settings, known)
    made = [*_by_order(row, form, settings, asked), *_by_rating(row, settings, asked, known)]
    if made:
        return made
    if row.verdict in ("tie", "unknown") and {*settings.kinds}.intersection(ORDERS):
        reason = "tie" if row.verdict == "tie" else "no_preference"
        raise UnfitRecord(reason, "--to coh needs a better answer, or ratings with --include-feedback rating")
    raise UnfitRecord("no_rating", f"the row has no ratings {settings.words.rating.column!r} of its answers")


@dataclass(frozen=True, slots=True)
class _Asked:
    """What stands before the answers."""

    turns: tuple[Message, ...]
    sources: tuple[str | None, str | None] = (None, None)
    """Of each answer."""


def _form_of(row: Comparison, format: str, known: Mapping[str, Any]) -> FeedbackForm:
    if isinstance(row.prompt, ChatPrompt):
        return "dialogue"
    if "quotes_0" in known or "quotes_1" in known:
        return "question"
    # A set that was made of the published one has its form no longer, but the words of its prompts.
    is_post = prompt_text(row.prompt).rstrip().endswith(_SUMMARY_MARK)
    return _FORMS.get(format, "summary" if is_post else "question")


def _asked(row: Comparison, form: FeedbackForm, settings: HindsightSettings, known: Mapping[str, Any]) -> _Asked:
    if form == "dialogue" and isinstance(row.prompt, ChatPrompt):
        return _Asked(row.prompt.messages)
    text = prompt_text(row.prompt)
    if form == "summary":
        post = text.rstrip().removesuffix(_SUMMARY_MARK).rstrip()
        request = _drawn(settings.words.summary_requests, settings.seed, row.id, "request")
        return _Asked((Message(USER, f"{request} {post}"),))
    introduction = _drawn(settings.words.source_introductions, settings.seed, row.id, "sources")
    first, second = (_sources(known.get(name), introduction) for name in ("quotes_0", "quotes_1"))
    return _Asked((Message(USER, text),), (first, second))


def _sources(quotes: Any, introduction: str) -> str | None:
    """Return the sources of an answer as a text; None if it has none. WebGPT has them as lists of titles and texts."""
    if isinstance(quotes, list):
        quotes = {
            "title": [one.get("title") for one in quotes if isinstance(one, dict)],
            "extract": [one.get("extract") for one in quotes if isinstance(one, dict)],
        }
    if not isinstance(quotes, dict):
        return None
    titles, texts = quotes.get("title") or [], quotes.get("extract") or []
    if not isinstance(titles, list) or not isinstance(texts, list) or not texts:
        return None
    lines = [
        f"[{number}] title: {title} content: {text}"
        for number, (title, text) in enumerate(zip(titles, texts, strict=False), 1)
    ]
    return " ".join([introduction, *lines]) if lines else None


def _by_order(row: Comparison, form: FeedbackForm, settings: HindsightSettings, asked: _Asked) -> Iterator[FieldRecord]:
    if row.verdict not in ("first", "second"):
        return
    good = 0 if row.verdict == "first" else 1
    is_hindsight = HINDSIGHT in settings.kinds
    for marker, bad_marker in settings.words.marker_pairs(form, is_hindsight=is_hindsight):
        for kind in (kind for kind in settings.kinds if kind in ORDERS):
            record = _Record(row, asked, settings.words, (marker, bad_marker), is_compat=settings.compat == "coh")
            for place, letter in enumerate(kind):
                is_good = letter == "p"
                record.answer(good if is_good else 1 - good, is_good=is_good, is_first=place == 0)
            yield record.finished()


def _by_rating(
    row: Comparison, settings: HindsightSettings, asked: _Asked, known: Mapping[str, Any]
) -> Iterator[FieldRecord]:
    if RATING not in settings.kinds:
        return
    rating = settings.words.rating
    for index, value in enumerate(_ratings(rating.column, row, known)):
        if value is None:
            continue
        if not 0 <= value <= rating.best:
            raise UnfitRecord(
                "rating_out_of_range", f"rating {value:g} is not in 0 to {rating.best:g}; set rating.best in --phrases"
            )
        record = _Record(row, asked, settings.words, (rating.marker(value), ""), is_compat=settings.compat == "coh")
        record.answer(index, is_good=True, is_first=True)
        yield record.finished()


def _ratings(name: str, row: Comparison, known: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """Return the ratings of the two answers, in their order."""
    for first, second in ((f"{name}_1", f"{name}_2"), (f"{name}_0", f"{name}_1")):
        if first in known and second in known:
            return finite_number(known[first]), finite_number(known[second])
    for chosen, rejected in (
        (f"{name}_chosen", f"{name}_rejected"),
        (f"chosen_{name}", f"rejected_{name}"),
        (f"chosen-{name}", f"rejected-{name}"),
    ):
        if chosen in known and rejected in known:
            better, worse = finite_number(known[chosen]), finite_number(known[rejected])
            if row.verdict == "unknown":  # ratings that contradict the names, and the order was drawn
                return None, None
            return (worse, better) if row.verdict == "second" else (better, worse)
    return None, None


@dataclass(slots=True)
class _Record:
    """A record under construction."""

    row: Comparison
    asked: _Asked
    words: Phrases
    markers: tuple[str, str]
    is_compat: bool
    _texts: dict[str, str] = field(default_factory=dict)
    _fields: list[str] = field(default_factory=list)

    def answer(self, index: int, *, is_good: bool, is_first: bool) -> None:
        """Add the question, unless an answer to it is there already and it is no dialogue; and an answer."""
        text = self.row.output_2 if index else self.row.output_1
        turns = self.asked.turns
        is_dialogue = isinstance(self.row.prompt, ChatPrompt) and turns is self.row.prompt.messages
        given = self._turns(is_good=is_good) if is_first or is_dialogue else []
        number = len(turns) if is_dialogue else index
        sources = self.asked.sources[index]
        if sources is not None:
            given.append(self._key(f"quote_{index}", sources))
        self._learned(given, self._answer_key(number, text, is_good=is_good), is_good=is_good)

    def finished(self) -> FieldRecord:
        return FieldRecord(",".join(self._fields), self._texts)

    def _turns(self, *, is_good: bool) -> list[str]:
        """Add the turns before the answer, and return the keys of those that follow the last shared answer."""
        given: list[str] = []
        for number, turn in enumerate(self.asked.turns):
            if turn.role == USER:
                given += [self._key("marker_user", self.words.markers.user), self._key(f"human_{number}", turn.content)]
            elif turn.role == ASSISTANT:
                self._shared(given, number, turn.content, is_good=is_good)
                given = []
            elif turn.role == "system":
                given.append(self._key(f"system_{number}", turn.content))
            else:
                raise UnfitRecord(
                    "unknown_role", f"turn {number} is of role {turn.role!r}; know user, assistant, system"
                )
        return given

    def _shared(self, given: list[str], number: int, text: str, *, is_good: bool) -> None:
        """Add an answer that both dialogues have: nobody called it bad."""
        if not text.strip():
            raise UnfitRecord("empty_answer", f"turn {number}, of the assistant, is blank")
        if is_good or self.is_compat:
            self._learned(given, self._answer_key(number, text, is_good=is_good), is_good=is_good)
            return
        # DIFFERS: phf-ray gives an answer that two dialogues share behind the good marker, not learned; CoH learns it
        # as a bad one.
        marker = self._key("marker_gpt", self.markers[0])
        self._fields += [f"[{'+'.join([*given, marker])}]", f"[{self._key(f'gpt_{number}', text)}]", f"[{_END}]"]

    def _learned(self, given: Sequence[str], key: str, *, is_good: bool) -> None:
        marker = self._key("marker_gpt", self.markers[0]) if is_good else self._key("marker_gpt_bad", self.markers[1])
        self._fields += [f"[{'+'.join([*given, marker])}]", key, _END]

    def _answer_key(self, number: int, text: str, *, is_good: bool) -> str:
        return self._key(f"gpt_{number}" if is_good else f"gpt_bad_{number}", text)

    def _key(self, key: str, text: str) -> str:
        self._texts[key] = text
        return key


def _drawn(choices: Sequence[str], seed: int, row_id: str, what: str) -> str:
    """Return one of the choices by a hash: no order and no division of the input changes it."""
    digest = hashlib.blake2b(json.dumps([seed, row_id, what]).encode(), digest_size=8, person=b"phf-hindsight").digest()
    return choices[int.from_bytes(digest, "big") % len(choices)]
