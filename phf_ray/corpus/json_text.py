"""JSON in and out: metadata as JSON that every parser reads, whatever the input holds.

Metadata must not cost its document, so values that JSON or Python can't hold become text.
"""

import json
import math
import re
from typing import Any

MAX_DEPTH = 100
"""Metadata nested deeper is cut off there: Python's own JSON fails at about 1000, other parsers at 128."""

_PARSED_DEPTH = 2 * MAX_DEPTH
_TOO_DEEP = f"unreadable: nested more than {MAX_DEPTH} deep"
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[{\]}]', re.DOTALL)


def _integer(digits: str) -> int | str:
    try:
        return int(digits)
    except ValueError:
        return digits  # Python refuses to convert more than 4300 digits.


_DECODER = json.JSONDecoder(parse_int=_integer)


def parse_json(text: str) -> Any:
    """Parse JSON of any depth; values nested more than `MAX_DEPTH` deep may be missing. Raises ValueError."""
    try:
        return _DECODER.decode(text)
    except RecursionError:
        return _DECODER.decode(_shallow(text))


def meta_json(value: Any) -> str:
    """Return the value as JSON in ASCII. NaN and Infinity become strings; so does every value that JSON lacks."""
    try:
        text = json.dumps(value, ensure_ascii=True, allow_nan=False, default=_shown)
    except (ValueError, TypeError, RecursionError):
        return json.dumps(_plain(value, MAX_DEPTH))
    # Strict parsers refuse an escaped surrogate that is not one of a pair.
    if "\\ud" in text or text.count("[") + text.count("{") > MAX_DEPTH:
        return json.dumps(_plain(value, MAX_DEPTH))
    return text


def as_json(text: str) -> str:
    """Return a text that should be JSON as it is if every parser reads it, otherwise JSON with its content."""
    try:
        value = parse_json(text)
    except ValueError:
        return meta_json(text or {})
    plain = _plain(value, MAX_DEPTH)
    return text if plain == value else json.dumps(plain)


def storable(text: str) -> str:
    """Return the text with lone surrogates written as escapes: UTF-8 can't hold them."""
    return text.encode(errors="backslashreplace").decode()


def _plain(value: Any, room: int) -> Any:
    """Return the value made of what JSON has. `room`: the number of levels that may follow."""
    if isinstance(value, str):
        return value if value.isascii() else storable(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else "NaN" if math.isnan(value) else f"{'-' * (value < 0)}Infinity"
    if value is None or isinstance(value, int):
        return value
    if not isinstance(value, dict | list | tuple):
        return _shown(value)
    if not room:
        return _TOO_DEEP
    if isinstance(value, dict):
        return {_plain(_shown(key), room): _plain(item, room - 1) for key, item in value.items()}
    return [_plain(item, room - 1) for item in value]


def _shown(value: Any) -> str:
    try:
        return str(value)
    except Exception as error:  # noqa: BLE001  a library's type whose text can't be made must not cost the document
        return f"unreadable: {type(value).__name__}: {type(error).__name__}: {error}"


def _shallow(text: str) -> str:
    """Replace whatever is nested more than `_PARSED_DEPTH` deep. Invalid JSON stays invalid, unless it is in there."""
    kept: list[str] = []
    depth = begin = 0
    for token in _TOKEN.finditer(text):
        if token[0] in "[{":
            depth += 1
            if depth == _PARSED_DEPTH + 1:
                kept.append(text[begin : token.start()] + json.dumps(_TOO_DEEP))
                begin = len(text)
        elif token[0] in "]}":
            if depth == _PARSED_DEPTH + 1:
                begin = token.end()
            depth -= 1
    return "".join(kept) + text[begin:]
