"""Compressed input: every record before a damage is read, and the end of a stream is no end of data."""

import bz2
import gzip
import io
import json
import lzma
import random
import zlib

import pytest
import zstandard
from fsspec.implementations.local import LocalFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sources import read_all, texts_of

from phf_ray.corpus import cut as corpus_cut
from phf_ray.corpus import decompress, streams
from phf_ray.corpus.cut import plan_shards
from phf_ray.corpus.decompress import CODECS, DamageError, Decompressed
from phf_ray.corpus.find import find_files

COMPRESS = {
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor(write_checksum=True).compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}
LINES = [json.dumps({"text": f"{index} {random.Random(index).randbytes(200).hex()}"}) + "\n" for index in range(300)]
TEXTS = [json.loads(line)["text"] for line in LINES]


def archive(suffix, *, members=1, lines=LINES):
    size = -(-len(lines) // members)
    groups = [lines[begin : begin + size] for begin in range(0, len(lines), size)]
    return b"".join(COMPRESS[suffix]("".join(group).encode()) for group in groups)


def in_pieces(path, **options):
    """Read a file as it is read in pieces of 20 KB, and check that reading it whole gives the same."""
    whole = read_all(path, **options)
    assert read_all(path, shard_bytes=20_000, **options) == whole
    return whole


def available(content, suffix):
    """The lines that can be decompressed, by feeding one byte after the other to the library."""
    decoder, output = CODECS[suffix].new(), b""
    for byte in content:
        if decoder.eof:
            decoder = CODECS[suffix].new()
        output += decoder.decompress(bytes([byte]))
    return output.count(b"\n")


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.9, 1.0])
def test_a_file_that_was_cut_off_is_unreadable_at_the_place_of_the_cut(tmp_path, monkeypatch, suffix, members, share):
    monkeypatch.setattr(streams, "CHUNK_BYTES", 1000)
    content = archive(suffix, members=members)
    content = content[: min(int(len(content) * share), len(content) - 1)]
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(content)
    *before, last = in_pieces(path)
    assert texts_of(before) == TEXTS[: available(content, suffix)]
    assert (last.reason, last.record) == ("unreadable", len(before))
    assert ("it was cut off" if content else "the file is empty") in last.detail


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("padding", [b"", b"\0" * 1024])
def test_all_members_of_a_file_are_read_and_zeros_after_them_are_padding(tmp_path, suffix, padding):
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(archive(suffix, members=7) + padding)
    assert texts_of(in_pieces(path)) == TEXTS


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("rest", [b"\r\n", b"\n", b"<html>", b"\xff\xfe" * 10])
@pytest.mark.parametrize("end", ["\n", ""])
def test_bytes_after_the_data_cost_no_record_and_are_noted(tmp_path, suffix, rest, end):
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(COMPRESS[suffix]("".join(LINES).rstrip("\n").encode() + end.encode()) + rest)
    *before, last = in_pieces(path)
    assert texts_of(before) == TEXTS
    assert (last.reason, last.record) == ("trailing_bytes", len(TEXTS))
    assert f"but {len(rest)} other bytes follow" in last.detail


@pytest.mark.parametrize("suffix", COMPRESS)
def test_all_before_a_damage_is_read(tmp_path, monkeypatch, suffix):
    """Seven of ten members end before the damage. Of the eighth, the library may deliver some before it notices."""
    monkeypatch.setattr(decompress, "_OUTPUT_BYTES", 5000)
    content = archive(suffix, members=10)
    at = len(content) * 3 // 4
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(content[:at] + bytes(byte ^ 0xFF for byte in content[at : at + 50]) + content[at + 50 :])
    *before, last = in_pieces(path)
    assert last.reason == "unreadable"
    assert "damaged" in last.detail
    assert texts_of(before[:210]) == TEXTS[:210]
    assert len(before) <= 240


def test_what_a_step_decompressed_before_its_damage_is_not_lost(tmp_path):
    """All of a small file is one step. The checksum at its end is wrong."""
    content = bytearray(gzip.compress("".join(LINES[:20]).encode()))
    content[-6] ^= 0xFF
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(content)
    assert len(content) < CODECS[".gz"].step
    *before, last = in_pieces(path)
    assert texts_of(before) == TEXTS[:20]
    assert last.reason == "unreadable"
    assert f"at byte {len(content) - 4}" in last.detail


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_file_that_is_not_compressed_says_with_what_it_begins(tmp_path, suffix):
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_text("".join(LINES))
    (record,) = in_pieces(path)
    assert record.reason == "unreadable"
    assert f"not a {CODECS[suffix].name} file: it begins with b'{{" in record.detail


def test_a_document_of_which_a_part_is_missing_is_no_document(tmp_path):
    content = gzip.compress("".join(LINES).encode())
    (tmp_path / "cut.txt.gz").write_bytes(content[:-100])
    (tmp_path / "rest.txt.gz").write_bytes(content + b"\r\n")
    (tmp_path / "whole.txt.gz").write_bytes(content)
    paths = [tmp_path / f"{name}.txt.gz" for name in ("cut", "rest", "whole")]
    (cut,), (document, rest), (whole,) = (read_all(path) for path in paths)
    assert (cut.reason, rest.reason) == ("unreadable", "trailing_bytes")
    assert document.text == whole.text == "".join(LINES)


def long_window(data):
    """Compress as `zstd --long=31` does: the window is 2 GB."""
    parameters = zstandard.ZstdCompressionParameters(window_log=31, enable_ldm=False, hash_log=6, chain_log=6)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return compressor.compress(data) + compressor.flush()


def test_archives_with_windows_of_2_gb_are_read_and_cut_one_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "CHUNK_BYTES", 1000)
    content = long_window("".join(LINES).encode())
    assert zstandard.get_frame_parameters(content).window_size == 1 << 31
    for number in range(3):
        (tmp_path / f"{number}.jsonl.zst").write_bytes(content)
    held = []
    cut = corpus_cut._cut

    def watched(*arguments):
        held.append(corpus_cut._one_wide.locked())
        return cut(*arguments)

    monkeypatch.setattr(corpus_cut, "_cut", watched)
    assert texts_of(in_pieces(tmp_path)) == TEXTS * 3
    assert held == [True] * 3
    (tmp_path / "3.jsonl.zst").write_bytes(archive(".zst"))
    list(plan_shards(find_files([str(tmp_path / "3.jsonl.zst")]).files, shard_bytes=1000))
    assert held == [True] * 3 + [False]


def test_a_store_that_fails_while_a_file_is_decompressed_is_no_damage_of_the_file(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(archive(".gz"))
    opened = LocalFileSystem.open

    class Failing(io.RawIOBase):
        """A file whose first 30,000 bytes can be read."""

        def __init__(self, raw):
            self._raw = raw

        def read(self, size=-1):
            if self._raw.tell() > 30_000:
                raise OSError(5, "Input/output error")
            return self._raw.read(min(size, 30_000))

    monkeypatch.setattr(
        LocalFileSystem, "open", lambda system, name, *given, **more: Failing(opened(system, name, *given, **more))
    )
    *before, last = read_all(path)
    assert texts_of(before) == TEXTS[: len(before)]
    assert len(before) > 20
    assert (last.reason, "Input/output error" in last.detail) == ("unreadable", True)


records = st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1, max_size=30)


@settings(max_examples=60)
@given(records, st.sampled_from(["", *COMPRESS]), st.integers(1, 400), st.data())
def test_every_text_is_read_once_however_lines_and_members_fall(tmp_path_factory, texts, suffix, shard_bytes, data):
    ends = data.draw(st.lists(st.sampled_from(["\n", "\r\n", "\n\n", " \n"]), min_size=len(texts), max_size=len(texts)))
    lines = [json.dumps({"text": text}, ensure_ascii=False) + end for text, end in zip(texts, ends, strict=True)]
    content = "".join(lines)
    content = (content if data.draw(st.booleans()) else content.rstrip()).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=5)))
    parts = [content[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(content)], strict=True)]
    path = tmp_path_factory.mktemp("lines") / f"a.jsonl{suffix}"
    path.write_bytes(b"".join(COMPRESS[suffix](part) if suffix else part for part in parts))
    chunk = streams.CHUNK_BYTES
    streams.CHUNK_BYTES = data.draw(st.integers(1, 200))
    try:
        assert texts_of(read_all(path)) == texts
        assert texts_of(read_all(path, shard_bytes=shard_bytes)) == texts
    finally:
        streams.CHUNK_BYTES = chunk


@pytest.mark.parametrize("mark", ["#", "%41", "?", "*", "[a]", "\n", "\u202e", "é", " ", "~", "$HOME", "a:b"])
def test_any_character_may_be_in_a_name(tmp_path, mark):
    for name in (f"{mark}.txt", f"{mark}.jsonl", f"{mark}.jsonl.zst"):
        folder = tmp_path / f"folder{mark}"
        folder.mkdir(exist_ok=True)
        content = b"a text" if name.endswith("txt") else b'{"text": "a text"}\n'
        (folder / name).write_bytes(COMPRESS[".zst"](content) if name.endswith("zst") else content)
    assert texts_of(read_all(folder)) == ["a text"] * 3
    assert texts_of(read_all(folder / f"{mark}.jsonl")) == ["a text"]


def test_a_step_that_expands_much_is_handed_on_in_bounded_pieces():
    content = zlib.compressobj(wbits=31)
    content = content.compress(bytes(50 << 20)) + content.flush()
    sizes = [len(output) for output in decompress.decompressed(io.BytesIO(content), CODECS[".gz"])]
    assert (sum(sizes), max(sizes)) == (50 << 20, decompress._OUTPUT_BYTES)


def test_a_stream_ends_at_a_damage_that_it_keeps():
    stream = Decompressed(io.BytesIO(gzip.compress(b"x" * 10)[:-1]), CODECS[".gz"])
    assert stream.readall() == b"x" * 10
    assert isinstance(stream.damage, DamageError)
    assert stream.damage.position == len(gzip.compress(b"x" * 10)) - 1
