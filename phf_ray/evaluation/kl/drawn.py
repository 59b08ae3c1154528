"""A text that a server drew, with the log-probability that the server gave it.

The log-probability is the sum over the tokens that make up the text, and over the end-of-text token where the server
names it too. Servers differ in that: vLLM's do, OpenAI's chats do not. `has_end` says which it was, so that the model
that is compared counts the same tokens. Tokens of a character that the token limit cut count for neither.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from phf_ray.characters import whole_characters

_LOST = "\ufffd"
_BYTES = re.compile(r"bytes:((?:\\x[0-9a-fA-F]{2})+)")
"""How OpenAI's completions write a token that is no whole character."""
_LOWEST = -9999.0
"""What servers report for a token that is too unlikely for them to tell."""
_CUT_SHORT = ("content_filter", "tool_calls", "function_call")


@dataclass(frozen=True, slots=True)
class DrawnText:
    text: str
    logprob: float | None
    """Nats, over the text's tokens and, with `has_end`, its end; None if it has an `error`."""
    num_tokens: int | None = None
    """The tokens that `logprob` sums over; None if unknown."""
    has_end: bool = False
    """Whether the end-of-text token is one of them."""
    error: str | None = None
    """Why there is no log-probability."""


@dataclass(frozen=True, slots=True)
class _Token:
    text: str
    spelling: bytes | None
    """None: the server gave a replacement character in place of the bytes."""
    logprob: Any


def text_of_choice(choice: Mapping[str, Any]) -> DrawnText:
    """Return the text of a completion's or chat's choice with its log-probability, or with the reason for none."""
    message = choice.get("message")
    text = choice.get("text") if message is None else message.get("content")
    if not isinstance(text, str):
        return DrawnText("", None, error=f"no text{_refusal(message)}")
    text, finish = whole_characters(text), choice.get("finish_reason")
    tokens = _tokens(choice.get("logprobs"))
    if tokens is None:
        return DrawnText(text, None, error="no log-probabilities of the tokens")
    if finish in _CUT_SHORT:
        return DrawnText(text, None, error=f"the server cut the text short ({finish})")
    found = _counted(text, tokens, is_over=finish != "length")
    if found is None:
        return DrawnText(text, None, error="the tokens do not spell the text")
    text, counted, has_end = found
    if not counted:
        return DrawnText(text, None, error="empty, without a log-probability of its end")
    bad = next((token for token in counted if not is_logprob(token.logprob)), None)
    if bad is not None:
        return DrawnText(text, None, error=f"a token has the log-probability {bad.logprob}")
    return DrawnText(text, math.fsum(token.logprob for token in counted), len(counted), has_end)


def is_logprob(value: Any) -> bool:
    """Whether the value can be the log-probability of a token that was drawn."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and _LOWEST < value < 1e-3


def _refusal(message: Any) -> str:
    return "; the model refused" if isinstance(message, Mapping) and message.get("refusal") else ""


def _tokens(logprobs: Any) -> list[_Token] | None:
    """Return the tokens of `logprobs` in the form of completions or of chats, which some servers use for both."""
    if not isinstance(logprobs, Mapping):
        return None
    content = logprobs.get("content")
    if isinstance(content, list):
        return [_token(one.get("token"), one.get("logprob"), one.get("bytes")) for one in content]
    tokens, values = logprobs.get("tokens"), logprobs.get("token_logprobs")
    if not isinstance(tokens, list) or not isinstance(values, list) or len(tokens) != len(values):
        return None
    return [_token(token, value, None) for token, value in zip(tokens, values, strict=True)]


def _token(text: Any, logprob: Any, spelling: Any) -> _Token:
    text = whole_characters(str(text or ""))
    written = _BYTES.fullmatch(text)
    if isinstance(spelling, list):
        return _Token(text, bytes(spelling), logprob)
    if written:
        return _Token(text, bytes.fromhex(written[1].replace("\\x", "")), logprob)
    return _Token(text, None if _LOST in text else text.encode("utf-8"), logprob)


def _counted(text: str, tokens: Sequence[_Token], *, is_over: bool) -> tuple[str, Sequence[_Token], bool] | None:
    """Return the text without a cut character, the tokens that count, and whether the last of them is the text's end.

    None if the tokens do not make up the text. `is_over`: the text did not meet the token limit.
    """
    if not is_over:
        text, tokens = _without_cut_character(text, tokens)
    rest = tokens[:-1]
    # Some servers write the end as a token without letters.
    if is_over and tokens and not tokens[-1].text and _spell(rest, text):
        return text, tokens, True
    if _spell(tokens, text):
        return text, tokens, False
    if is_over and tokens and _spell(rest, text):
        return text, tokens, True
    return None


def _without_cut_character(text: str, tokens: Sequence[_Token]) -> tuple[str, Sequence[_Token]]:
    """Drop the tokens at the end that began a character which the token limit cut, and what the text shows of it."""
    whole = text.rstrip(_LOST)
    # A character has 4 bytes at most, so 3 tokens can hold a part of it.
    for count in range(len(tokens) - 1, max(-1, len(tokens) - 4), -1):
        if not _is_partial(tokens[count]) or (tokens[count].spelling is None and whole == text):
            break
        if _spell(tokens[:count], whole):
            return whole, tokens[:count]
    return text, tokens


def _is_partial(token: _Token) -> bool:
    return token.spelling is None or token.spelling.decode("utf-8", "ignore").encode() != token.spelling


def _spell(tokens: Sequence[_Token], text: str) -> bool:
    """Whether the tokens make up the text; where bytes are unknown, whether everything around them does."""
    spellings = [token.spelling for token in tokens]
    if None not in spellings:
        return b"".join(one for one in spellings if one is not None) == text.encode("utf-8")
    first, *parts = re.split(f"{_LOST}+", "".join(token.text for token in tokens))
    if not text.startswith(first):
        return False
    place = len(first)
    for part in parts[:-1]:
        # A character at least, whose bytes are unknown, is before each part.
        place = text.find(part, place + 1)
        if place < 0:
            return False
        place += len(part)
    return text.endswith(parts[-1]) and len(text) - len(parts[-1]) > place
