"""Reads verdicts from a judge's words: one per pair of the prompt, or a Failure for all of them.

A verdict is a preference between the answers as they were shown. Nothing that a judge says is run.
"""

import ast
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from phf_ray.config import JsonParser, ParserConfig, RankingParser, same_value
from phf_ray.judging.pairs import Preference
from phf_ray.judging.question import Answer, Failure

_MAX_LITERAL = 10_000
"""Characters of a list in Python's notation that is read."""


def read_verdicts(parser: ParserConfig, answer: Answer, *, num: int) -> list[Preference] | Failure:
    """Return the verdicts on `num` pairs, in the order of the prompt."""
    if parser.logprobs is not None:
        return _of_logprobs(parser.logprobs, answer)
    if not answer.text.strip():
        return Failure("empty_answer: the judge said nothing")
    if parser.ranking is not None:
        return _of_ranking(parser.ranking, answer.text)
    if parser.regex is not None:
        found = list(_matches(parser.regex, answer.text))
    else:
        assert parser.json_field is not None
        found = list(_of_objects(parser.json_field, answer.text))
    if len(found) != num:
        # Nobody knows which verdict is missing, so none of them counts.
        return Failure(f"unparsable: {len(found)} verdicts on {num} pairs in {_shown(answer.text)}")
    return found


def _matches(patterns: Mapping[Any, str], text: str) -> Iterator[Preference]:
    """The earliest match of either pattern, then the earliest in the text after it."""
    compiled = {label: re.compile(pattern) for label, pattern in patterns.items()}
    while True:
        matches = [(match.start(), label, match.end()) for label in (1, 2) if (match := compiled[label].search(text))]
        if not matches:
            return
        start, label, end = min(matches)
        yield float(label)
        # A pattern that only looks ahead matches nothing, and would match at the same place once more.
        text = text[end if end > start else end + 1 :]


def _of_ranking(parser: RankingParser, text: str) -> list[Preference] | Failure:
    ranked = _list_in(text)
    if ranked is None:
        return Failure(f"unparsable: no list in {_shown(text)}")
    for one in ranked:
        if isinstance(one, Mapping) and one.get(parser.name_key) == parser.name:
            rank = one.get(parser.rank_key)
            if rank in (1, 2) and not isinstance(rank, bool):
                return [float(rank)]
            return Failure(f"unparsable: rank {rank!r:.40} of {parser.name} is neither 1 nor 2")
    return Failure(f"unparsable: {parser.name} is not ranked in {_shown(text)}")


def _list_in(text: str) -> list[Any] | None:
    """The first list in the text, as JSON or as Python writes it."""
    begin, end = text.find("["), text.rfind("]") + 1
    if begin < 0 or end <= begin or end - begin > _MAX_LITERAL:
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(text[begin:end])
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            continue
        if isinstance(value, list):
            return value
    return None


def _of_objects(parser: JsonParser, text: str) -> Iterator[Preference]:
    """The verdict of every JSON object that has one. A verdict of another value is none."""
    decoder = json.JSONDecoder()
    position = text.find("{")
    while position >= 0:
        try:
            value, end = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):
            end = position + 1
        else:
            if isinstance(value, dict) and parser.key in value:
                yield from (float(label) for label in (1, 2) if same_value(value[parser.key], parser.values[label]))
            else:
                # Perhaps an object around those that matter.
                end = position + 1
        position = text.find("{", end)


def _of_logprobs(labels: Mapping[Any, Sequence[str]], answer: Answer) -> list[Preference] | Failure:
    """1 + p(2) / (p(1) + p(2)), over the likeliest first tokens. A label that is not among them has probability 0."""
    if not answer.top_logprobs:
        return Failure("no_logprobs: the server sent no log-probabilities; ask one that does, or use another parser")
    shares = {
        label: sum(_probability(logprob) for token, logprob in answer.top_logprobs if _is_label(token, labels[label]))
        for label in (1, 2)
    }
    total = shares[1] + shares[2]
    if not math.isfinite(total):
        return Failure(f"unparsable: log-probabilities that are none, {answer.top_logprobs!r:.200}")
    if total == 0:
        tokens = ", ".join(repr(token) for token, _ in answer.top_logprobs)
        return Failure(f"unparsable: no label among the likeliest first tokens, {tokens:.200}")
    return [1 + shares[2] / total]


def _probability(logprob: float) -> float:
    try:
        return math.exp(logprob)
    except OverflowError:
        return math.inf


def _is_label(token: str, labels: Sequence[str]) -> bool:
    return token.strip() in {label.strip() for label in labels}


def _shown(text: str) -> str:
    return repr(text if len(text) <= 120 else text[:120] + "...")
