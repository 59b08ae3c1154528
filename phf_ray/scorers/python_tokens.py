"""Cuts Python source into the tokens of Python 3.11, in every version of the interpreter.

pycodestyle uses the interpreter's own tokenizer, which became another one in Python 3.12: it stops at texts that 3.11
reads on (a string that is not closed, a NUL, tabs mixed with spaces), and it cuts f-strings into parts, which
pycodestyle then checks. With this tokenizer, a text has the same score everywhere.

The rules and patterns are those of Lib/tokenize.py in Python 3.11: copyright 2001-2023 Python Software Foundation, all
rights reserved; PSF License Agreement, https://docs.python.org/3.11/license.html. This version is cut into methods.
"""

import re
import tokenize
from collections.abc import Callable, Iterator
from tokenize import TokenInfo

_TAB_SIZE = 8
_BLANK = " \t\f"


def python_tokens(readline: Callable[[], str]) -> Iterator[TokenInfo]:
    """Yield the tokens of the lines that `readline` returns; it returns "" at the end.

    Raises IndentationError at a line whose indentation fits no line above, and tokenize.TokenError at the end of the
    text if a string in triple quotes, a bracket or a line that ends in a backslash is still open.
    """
    return _Tokenizer(readline).tokens()


class _OpenString:
    """A string that goes on in the next line: one in triple quotes, or one whose line ends in a backslash."""

    def __init__(self, text: str, line: str, start: tuple[int, int], quotes: str):
        self.parts = [text]
        self.lines = [line]
        self.start = start
        self.rest = _REST_OF_STRING[quotes]


class _Tokenizer:
    def __init__(self, readline: Callable[[], str]):
        self._readline = readline
        self._line = ""
        self._row = 0
        self._column = 0
        """Where the next token of the line is searched."""
        self._indents = [0]
        self._depth = 0
        """Open brackets, less those that only close."""
        self._is_continued = False
        self._string: _OpenString | None = None
        self._needs_backslash = False
        """Whether an open string ends with the line unless a backslash does. As in Python 3.11, it stays true after a
        string that ended so, until another string is closed."""

    def tokens(self) -> Iterator[TokenInfo]:
        while True:
            before, self._line = self._line, self._readline()
            self._row += 1
            self._column = 0
            if self._string is not None:
                yield from self._go_on_with_string(self._string)
            elif not self._depth and not self._is_continued:
                if not self._line.strip(_BLANK):
                    break
                yield from self._begin_statement()
            elif not self._line:
                raise tokenize.TokenError("EOF in multi-line statement", (self._row, 0))
            self._is_continued = False
            yield from self._rest_of_line()
        yield from self._end(before)

    def _go_on_with_string(self, string: _OpenString) -> Iterator[TokenInfo]:
        line = self._line
        if not line:
            raise tokenize.TokenError("EOF in multi-line string", string.start)
        end = string.rest.match(line)
        if end is None and not (self._needs_backslash and not line.endswith(_BACKSLASH_ENDS)):
            string.parts.append(line)
            string.lines.append(line)
            self._column = len(line)
            return
        self._string = None
        self._column = len(line) if end is None else end.end()
        text = "".join(string.parts) + line[: self._column]
        if end is None:
            kind, lines = tokenize.ERRORTOKEN, "".join(string.lines)
        else:
            kind, lines = tokenize.STRING, "".join(string.lines) + line
            self._needs_backslash = False
        yield TokenInfo(kind, text, string.start, (self._row, self._column), lines)

    def _begin_statement(self) -> Iterator[TokenInfo]:
        """Yield the tokens of a blank line or a comment, or else the change of the indentation."""
        line, row = self._line, self._row
        place = len(line) - len(line.lstrip(_BLANK))
        if line[place] in "#\r\n":
            if line[place] == "#":
                comment = line[place:].rstrip("\r\n")
                yield TokenInfo(tokenize.COMMENT, comment, (row, place), (row, place + len(comment)), line)
                place += len(comment)
            yield TokenInfo(tokenize.NL, line[place:], (row, place), (row, len(line)), line)
            self._column = len(line)
            return
        self._column = place
        width = _width(line[:place])
        if width > self._indents[-1]:
            self._indents.append(width)
            yield TokenInfo(tokenize.INDENT, line[:place], (row, 0), (row, place), line)
        while width < self._indents[-1]:
            if width not in self._indents:
                raise IndentationError(
                    "unindent does not match any outer indentation level", ("<tokenize>", row, place, line)
                )
            self._indents.pop()
            yield TokenInfo(tokenize.DEDENT, "", (row, place), (row, place), line)

    def _rest_of_line(self) -> Iterator[TokenInfo]:
        line, row = self._line, self._row
        while self._column < len(line):
            match = _TOKEN.match(line, self._column)
            if match is None:
                start, end = self._column, self._column + 1
                self._column = end
                yield TokenInfo(tokenize.ERRORTOKEN, line[start], (row, start), (row, end), line)
                continue
            start, self._column = match.span(1)
            kind = self._kind(line[start : self._column], start) if start < self._column else None
            if kind is not None:
                yield TokenInfo(kind, line[start : self._column], (row, start), (row, self._column), line)

    def _kind(self, text: str, start: int) -> int | None:
        """Return the token's type, or None if it is a backslash at the end of a line or the beginning of a string."""
        first = text[0]
        if first in "0123456789" or (first == "." and text not in (".", "...")):
            return tokenize.NUMBER
        if first in "\r\n":
            return tokenize.NL if self._depth > 0 else tokenize.NEWLINE
        if first == "#":
            return tokenize.COMMENT
        quote = _QUOTE.match(text)
        if quote is not None:
            return self._kind_of_string(text, start, quote[1])
        if first.isidentifier():
            return tokenize.NAME
        if first == "\\":
            self._is_continued = True
            return None
        self._depth += (first in "([{") - (first in ")]}")
        return tokenize.OP

    def _kind_of_string(self, text: str, start: int, quotes: str) -> int | None:
        """Like `_kind`. `text`: a whole string, its opening triple quotes, or its line up to a backslash at the end."""
        if len(quotes) == 3:
            end = _REST_OF_STRING[quotes].match(self._line, self._column)
            if end is not None:
                self._column = end.end()
                return tokenize.STRING
        elif text[-1] != "\n":
            return tokenize.STRING
        else:
            self._needs_backslash = True
        self._string = _OpenString(self._line[start:], self._line, (self._row, start), quotes)
        self._column = len(self._line)
        return None

    def _end(self, before: str) -> Iterator[TokenInfo]:
        """Yield the tokens at the end of a text whose last line is `before`."""
        row = self._row
        if before and before[-1] not in "\r\n" and not before.strip().startswith("#"):
            end = len(before)
            yield TokenInfo(tokenize.NEWLINE, "", (row - 1, end), (row - 1, end + 1), "")
        for _ in self._indents[1:]:
            yield TokenInfo(tokenize.DEDENT, "", (row, 0), (row, 0), "")
        yield TokenInfo(tokenize.ENDMARKER, "", (row, 0), (row, 0), "")


def _width(indentation: str) -> int:
    """Return the column after an indentation: a tab goes to the next multiple of 8, a form feed to column 0."""
    column = 0
    for char in indentation.rpartition("\f")[2]:
        column = (column // _TAB_SIZE + 1) * _TAB_SIZE if char == "\t" else column + 1
    return column


_BACKSLASH_ENDS = ("\\\n", "\\\r\n")
_OPERATORS = [
    "!=",
    "%",
    "%=",
    "&",
    "&=",
    "(",
    ")",
    "*",
    "**",
    "**=",
    "*=",
    "+",
    "+=",
    ",",
    "-",
    "-=",
    "->",
    ".",
    "...",
    "/",
    "//",
    "//=",
    "/=",
    ":",
    ":=",
    ";",
    "<",
    "<<",
    "<<=",
    "<=",
    "=",
    "==",
    ">",
    ">=",
    ">>",
    ">>=",
    "@",
    "@=",
    "[",
    "]",
    "^",
    "^=",
    "{",
    "|",
    "|=",
    "}",
    "~",
]
_PREFIX = "(?:[bB][rR]?|[rR][bBfF]?|[uU]|[fF][rR]?)?"
_REST_OF_STRING = {
    "'": re.compile(r"[^'\\]*(?:\\.[^'\\]*)*'"),
    '"': re.compile(r'[^"\\]*(?:\\.[^"\\]*)*"'),
    "'''": re.compile(r"[^'\\]*(?:(?:\\.|'(?!''))[^'\\]*)*'''"),
    '"""': re.compile(r'[^"\\]*(?:(?:\\.|"(?!""))[^"\\]*)*"""'),
}
"""Opening quotes -> the rest of the string, to its end."""
_QUOTE = re.compile(f"{_PREFIX}('''|\"\"\"|'|\")")

_DECIMAL = "[0-9](?:_?[0-9])*"
_EXPONENT = f"[eE][-+]?{_DECIMAL}"
_FLOAT = rf"(?:(?:{_DECIMAL}\.(?:{_DECIMAL})?|\.{_DECIMAL})(?:{_EXPONENT})?|{_DECIMAL}{_EXPONENT})"
_INTEGER = "(?:0[xX](?:_?[0-9a-fA-F])+|0[bB](?:_?[01])+|0[oO](?:_?[0-7])+|0(?:_?0)*|[1-9](?:_?[0-9])*)"
_NUMBER = f"(?:{_DECIMAL}[jJ]|{_FLOAT}[jJ]|{_FLOAT}|{_INTEGER})"
_LINE_OF_STRING = (
    rf"(?:{_PREFIX}'[^\n'\\]*(?:\\.[^\n'\\]*)*(?:'|\\\r?\n)"
    rf'|{_PREFIX}"[^\n"\\]*(?:\\.[^\n"\\]*)*(?:"|\\\r?\n))'
)
# Longer operators come first.
_OPERATOR = "|".join(map(re.escape, sorted(_OPERATORS, reverse=True)))
_TOKEN = re.compile(
    r"[ \f\t]*("
    + "|".join(
        [
            *(r"\\\r?\n", r"\Z", r"#[^\r\n]*", f"{_PREFIX}(?:'''|\"\"\")"),
            *(_NUMBER, r"\r?\n", _OPERATOR, _LINE_OF_STRING, r"\w+"),
        ]
    )
    + ")"
)
