"""Decompresses gzip, zstd, bzip2 and xz files as streams.

All four formats are series of members (gzip), frames (zstd) or streams (bzip2, xz), each complete in itself. Every
byte before a damage is delivered, and then the damage is an error. A file that ends within a member is damaged: its
end is not the end of the data.
"""

import bz2
import io
import lzma
import zlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import IO, Any

import zstandard

_OUTPUT_BYTES = 1 << 20
"""At most this much is decompressed at a time, however well it is compressed. A step of zstd makes up to 32 MB."""

_INPUT_BYTES = 64 << 10

_MAGIC_BYTES = 6


class DamageError(Exception):
    """A file's content can't be read from here on. `position`: offset in the file as stored, None if not known."""

    def __init__(self, message: str, position: int | None = None):
        super().__init__(message, position)
        self.position = position

    def __str__(self) -> str:
        return str(self.args[0])


class TrailingBytesError(DamageError):
    """The data are complete, but other bytes follow them."""


@dataclass(frozen=True, slots=True)
class Codec:
    """A compression format."""

    name: str
    magics: tuple[bytes, ...]
    """A member begins with one of these."""
    step: int
    """Compressed bytes to decompress at a time."""
    new: Callable[[], Any]
    """Returns a decompressor of one member, with `eof` and `unused_data`."""
    feed: Callable[[Any, bytes], Iterator[bytes]]
    errors: tuple[type[Exception], ...]


def _feed_zlib(decoder: Any, data: bytes) -> Iterator[bytes]:
    output = decoder.decompress(data, _OUTPUT_BYTES)
    yield output
    # If the output fills the limit exactly, more may come without further input.
    while output and not decoder.eof:
        output = decoder.decompress(decoder.unconsumed_tail, _OUTPUT_BYTES)
        yield output


def _feed_blocks(decoder: Any, data: bytes) -> Iterator[bytes]:
    yield decoder.decompress(data, _OUTPUT_BYTES)
    while not decoder.eof and not decoder.needs_input:
        yield decoder.decompress(b"", _OUTPUT_BYTES)


def _feed_zstd(decoder: Any, data: bytes) -> Iterator[bytes]:
    yield decoder.decompress(data)


def _new_zstd() -> Any:
    # Archives made with `zstd --long=31` have windows of 2 GB. zstd reserves as much as a frame says that it needs.
    return zstandard.ZstdDecompressor(max_window_size=1 << zstandard.WINDOWLOG_MAX).decompressobj()


_SKIPPABLE = tuple(bytes([0x50 + kind, 0x2A, 0x4D, 0x18]) for kind in range(16))

CODECS = {
    ".gz": Codec("gzip", (b"\x1f\x8b",), 16 << 10, lambda: zlib.decompressobj(31), _feed_zlib, (zlib.error,)),
    # 1 KB holds at most 256 blocks of 128 KB.
    ".zst": Codec(
        "zstd", (zstandard.FRAME_HEADER, *_SKIPPABLE), 1 << 10, _new_zstd, _feed_zstd, (zstandard.ZstdError,)
    ),
    ".bz2": Codec("bzip2", (b"BZh",), 16 << 10, bz2.BZ2Decompressor, _feed_blocks, (OSError, ValueError)),
    ".xz": Codec("xz", (b"\xfd7zXZ\0",), 16 << 10, lzma.LZMADecompressor, _feed_blocks, (lzma.LZMAError,)),
}
"""Suffix in lower case -> format."""


ZSTD_HEADER_BYTES = 18


def zstd_window(head: bytes) -> int:
    """Return the bytes of memory that a zstd file asks for in its first `ZSTD_HEADER_BYTES`; 0 if it has no frame."""
    try:
        return int(zstandard.get_frame_parameters(head).window_size)
    except zstandard.ZstdError:
        return 0


class _Source:
    """The bytes of a file as stored, with a position that can be taken back."""

    def __init__(self, raw: IO[bytes]):
        self._raw = raw
        self._block = b""
        self._used = 0
        self.position = 0

    def take(self, num_bytes: int) -> bytes:
        """Return up to `num_bytes`, none only at the end of the file."""
        if self._used == len(self._block):
            self._block, self._used = self._raw.read(_INPUT_BYTES), 0
        data = self._block[self._used : self._used + num_bytes]
        self._used += len(data)
        self.position += len(data)
        return data

    def give_back(self, data: bytes) -> None:
        self._block, self._used = data + self._block[self._used :], 0
        self.position -= len(data)

    def go_to(self, position: int) -> None:
        self._raw.seek(position)
        self._block, self._used, self.position = b"", 0, position

    def peek(self) -> bytes:
        """Return the next `_MAGIC_BYTES`, fewer only at the end of the file."""
        head = b""
        while len(head) < _MAGIC_BYTES and (data := self.take(_MAGIC_BYTES - len(head))):
            head += data
        self.give_back(head)
        return head

    def skip_zeros(self) -> None:
        while data := self.take(_INPUT_BYTES):
            if rest := data.lstrip(b"\0"):
                self.give_back(rest)
                return

    def num_left(self) -> int:
        begin = self.position
        while self.take(_INPUT_BYTES):
            pass
        return self.position - begin


def decompressed(raw: IO[bytes], codec: Codec) -> Generator[bytes, None, None]:
    """Yield the data of a file, then raise DamageError if there is more that can't be decompressed."""
    source = _Source(raw)
    _check_begin(source.peek(), codec)
    while source.peek():
        yield from _member(source, codec)
        # Tapes, and files written in blocks, are padded with zeros.
        source.skip_zeros()
        head = source.peek()
        if head and not _may_begin(head, codec):
            end = source.position
            raise TrailingBytesError(
                f"the {codec.name} data end at byte {end}, but {source.num_left()} other bytes follow", end
            )


def _check_begin(head: bytes, codec: Codec) -> None:
    if not head:
        raise DamageError(f"the file is empty, which no {codec.name} file is", 0)
    if not _may_begin(head, codec):
        raise DamageError(f"not a {codec.name} file: it begins with {head!r}", 0)


def _may_begin(head: bytes, codec: Codec) -> bool:
    """Whether a member begins with these bytes, which are fewer than a magic number if the file ends there."""
    return any(head.startswith(magic) or magic.startswith(head) for magic in codec.magics)


def _member(source: _Source, codec: Codec) -> Iterator[bytes]:
    begin = source.position
    num_out = 0
    decoder = codec.new()
    while not decoder.eof:
        fed = source.position
        data = source.take(codec.step)
        if not data:
            raise DamageError(f"the file ends in the middle of {codec.name} data, at byte {fed}: it was cut off", fed)
        try:
            for output in codec.feed(decoder, data):
                num_out += len(output)
                yield output
        except codec.errors as error:
            yield from _up_to_damage(source, codec, begin=begin, fed=fed, num_out=num_out)
            raise DamageError(
                f"damaged {codec.name} data at byte {source.position}: {error}", source.position
            ) from error
    source.give_back(decoder.unused_data)


def _up_to_damage(source: _Source, codec: Codec, *, begin: int, fed: int, num_out: int) -> Iterator[bytes]:
    """Yield what a failed step would have decompressed before its damage: the libraries discard it.

    Decompresses the member, which begins at `begin`, again: up to `fed` as before, and from there byte by byte. Skips
    the `num_out` bytes that are known.
    """
    try:
        source.go_to(begin)
    except (OSError, ValueError):
        return  # some web servers send a file only from its beginning to its end
    decoder = codec.new()
    total = 0
    while data := source.take(min(codec.step, max(1, fed - source.position))):
        try:
            for output in codec.feed(decoder, data):
                known = max(0, num_out - total)
                total += len(output)
                yield output[known:]
        except codec.errors:
            return


class Decompressed(io.RawIOBase):
    """A stream that ends at a damage and keeps it in `damage`, so that a reader gets all that comes before."""

    def __init__(self, raw: IO[bytes], codec: Codec):
        self._raw = raw
        self._chunks = decompressed(raw, codec)
        self._rest = memoryview(b"")
        self.damage: Exception | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest and self.damage is None:
            try:
                output = next(self._chunks, None)
            except (DamageError, OSError) as error:
                self.damage = error
                break
            if output is None:
                return 0
            self._rest = memoryview(output)
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size

    def close(self) -> None:
        if not self.closed:
            self._chunks.close()
            self._raw.close()
        super().close()
