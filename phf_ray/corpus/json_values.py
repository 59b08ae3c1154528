"""Cuts JSON that is not written line by line into records: the elements of an array, or objects one after the other.

Reads a file as a stream: the largest record bounds memory, not the array. It looks only at brackets, commas and
strings, so a record that is no valid JSON costs no other record.
"""

import json
import re
from collections.abc import Iterator

from phf_ray.corpus import streams
from phf_ray.corpus.decompress import DamageError
from phf_ray.corpus.find import InputFile
from phf_ray.corpus.streams import InputStream, open_lines

_HEAD_BYTES = 64 << 10

BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_MARK = re.compile(rb'["{}\[\],]')
_IN_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)


def is_by_lines(file: InputFile) -> bool:
    """Whether a file has one record per line. The beginning of a JSON file tells, unless its suffix does."""
    if file.has_lines_suffix or file.kind == "text_lines":
        return True
    with open_lines(file.name) as stream:
        return _begins_by_lines(stream.read(_HEAD_BYTES))


def _begins_by_lines(head: bytes) -> bool:
    begin = head.removeprefix(BYTE_ORDER_MARK).lstrip()
    if begin.startswith(b"["):
        return False
    line, newline, _ = begin.partition(b"\n")
    return not begin.startswith(b"{") or not newline or is_json(line)


def is_json(content: bytes | bytearray) -> bool:
    try:
        json.loads(content)
    except (ValueError, RecursionError):
        return False
    return True


def json_values(stream: InputStream) -> Iterator[bytes | None]:
    """Yield the bytes of each record, None for one of more than `streams.MAX_DOCUMENT_BYTES`.

    After the last whole record, raises one of UNREADABLE if the JSON ends within a record or an array.
    """
    cutter = _Cutter()
    while chunk := stream.read(streams.CHUNK_BYTES):
        yield from cutter.feed(chunk)
    yield from cutter.finish()


class _Cutter:
    """Follows the structure of JSON from chunk to chunk."""

    def __init__(self) -> None:
        self._depth = 0
        """Number of open brackets within the record."""
        self._in_array = False
        self._in_string = False
        self._record = bytearray()
        self._is_too_large = False
        self._escape = b""
        """A backslash at the end of a chunk, which belongs to the character after it."""

    def feed(self, chunk: bytes) -> Iterator[bytes | None]:
        chunk, self._escape = self._escape + chunk, b""
        begin = at = 0
        while True:
            if self._in_string:
                found = _IN_STRING.match(chunk, at)
                assert found is not None
                at = found.end()
                if chunk[at : at + 1] != b'"':
                    break
                at += 1
                self._in_string = False
            mark = _MARK.search(chunk, at)
            if mark is None:
                at = len(chunk)
                break
            at = mark.end()
            ends_before, ends_after = self._pass(mark.group())
            if ends_before or ends_after:
                self._add(chunk[begin : at if ends_after else at - 1])
                begin = at
                yield from self._take()
        self._add(chunk[begin:at])
        self._escape = chunk[at:]

    def _pass(self, mark: bytes) -> tuple[bool, bool]:
        """Follow a structural character. Return whether a record ends before it, and whether one ends with it."""
        if mark == b'"':
            self._in_string = True
        elif mark == b"[" and not self._depth and not self._in_array:
            self._in_array = True
            return True, False
        elif mark in b"{[":
            self._depth += 1
        elif mark in b"}]" and self._depth:
            self._depth -= 1
            return False, not self._depth and not self._in_array
        elif mark == b"]":
            self._in_array = False
            return True, False
        elif mark == b"," and not self._depth:
            return True, False
        return False, False

    def _add(self, data: bytes) -> None:
        if len(self._record) + len(data) > streams.MAX_DOCUMENT_BYTES:
            self._is_too_large = True
            self._record.clear()
        if not self._is_too_large:
            self._record += data

    def _take(self) -> Iterator[bytes | None]:
        record = bytes(self._record).strip()
        if self._is_too_large:
            yield None
        elif record and record != BYTE_ORDER_MARK:
            yield record
        self._record.clear()
        self._is_too_large = False

    def finish(self) -> Iterator[bytes | None]:
        is_torn = self._in_string or self._depth
        if not is_torn and (not self._in_array or is_json(self._record)):
            yield from self._take()
        if is_torn or self._in_array:
            what = "an array" if self._in_array else "a record"
            raise DamageError(f"the JSON ends in the middle of {what}: the file was cut off, or a bracket is missing")
