"""Blocks on disk, their order, and the reader."""

import json
import math
from itertools import chain, pairwise

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phf_ray.blocks import reader as blocks_reader
from phf_ray.blocks.held_out import encode_documents, held_out_name, is_held_out, read_held_out
from phf_ray.blocks.manifest import (
    FORMAT,
    BlockManifest,
    CorpusTokens,
    Shard,
    SourceCorpus,
    TokenScores,
    read_block_file,
    read_block_manifest,
)
from phf_ray.blocks.mixture import Mixture
from phf_ray.blocks.order import BlockOrder
from phf_ray.blocks.reader import BlockReader
from phf_ray.blocks.shard_on_disk import ShardOnDisk
from phf_ray.blocks.shards import (
    BYTES_PER_TOKEN,
    SHARD_BYTES,
    blocks_per_shard,
    decode_shard,
    encode_shard,
    shard_name,
)
from phf_ray.errors import ConfigError, DataError
from phf_ray.records import ScoredDocument, TokenBlock

LENGTH = 8


def manifest_of(groups: list[list[int]], *, corpus_of_group: list[int] | None = None, tokens_per_block: int = 8):
    """A manifest of shards with these numbers of blocks, by group."""
    corpus_of_group = corpus_of_group or [0] * len(groups)
    shards = tuple(
        Shard(
            file=shard_name(group, index),
            corpus=corpus_of_group[group],
            group=group,
            num_blocks=count,
            num_content_tokens=count * tokens_per_block,
            num_source_tokens=count * tokens_per_block,
        )
        for group, counts in enumerate(groups)
        for index, count in enumerate(counts)
    )
    corpora = tuple(
        SourceCorpus(name=f"corpus-{number}", fingerprint=str(number), scorer={}, segmenter="lines")
        for number in sorted(set(corpus_of_group))
    )
    return BlockManifest(
        format=FORMAT,
        fingerprint="0" * 32,
        sequence_length=LENGTH,
        tokenizer={},
        packing={},
        thresholds={},
        held_out_fraction=0.0,
        corpora=corpora,
        num_groups=len(groups),
        shards=shards,
        documents={},
        segments={},
        tokens={},
        token_scores=TokenScores(mean=None, std=None, quantiles={}, quantile_relative_error=0.0),
    )


def block_of(number: int) -> TokenBlock:
    """A block that tells its number in every array."""
    return TokenBlock(
        np.arange(LENGTH, dtype=np.int32) + number * LENGTH,
        np.full(LENGTH, number / 7, np.float32),
        np.full(LENGTH, number % 5, np.uint8),
    )


def write(root: str, manifest: BlockManifest) -> None:
    """Blocks numbered through all shards."""
    filesystem, inner = fsspec.core.url_to_fs(root)
    filesystem.makedirs(inner, exist_ok=True)
    first = 0
    for shard in manifest.shards:
        blocks = [block_of(number) for number in range(first, first + shard.num_blocks)]
        filesystem.pipe_file(f"{inner}/{shard.file}", encode_shard(blocks))
        first += shard.num_blocks
    filesystem.pipe_file(f"{inner}/manifest.json", manifest.model_dump_json().encode())
    filesystem.pipe_file(f"{inner}/_SUCCESS", b"")


def numbers(places, manifest) -> list[int]:
    """Blocks as numbered by `write`."""
    before = np.cumsum([0, *(shard.num_blocks for shard in manifest.shards)])
    return (before[places.shards] + places.rows).tolist()


# -------------------------------------------------------------------------------------------------------------- shards


def test_a_shard_gives_back_its_blocks_in_fixed_size_columns():
    content = encode_shard([block_of(number) for number in range(5)])
    arrays = decode_shard(content, source="here")
    for number in range(5):
        for array, expected in zip(
            arrays[:3],
            (block_of(number).input_ids, block_of(number).token_scores, block_of(number).token_kinds),
            strict=True,
        ):
            assert array.dtype == expected.dtype
            assert array[number].tolist() == expected.tolist()
    assert encode_shard([block_of(number) for number in range(5)]) == content


def test_the_columns_are_those_of_the_format(tmp_path):
    path = tmp_path / "shard.parquet"
    path.write_bytes(encode_shard([block_of(0)]))
    schema = {field.name: str(field.type) for field in pq.read_schema(path)}
    assert schema == {
        "input_ids": "fixed_size_list<element: int32>[8]",
        "token_scores": "fixed_size_list<element: float>[8]",
        "token_kinds": "fixed_size_list<element: uint8>[8]",
    }


def test_a_shard_holds_64_mib_of_blocks():
    assert blocks_per_shard(1024) * 1024 * 9 <= SHARD_BYTES < (blocks_per_shard(1024) + 1) * 1024 * 9
    assert blocks_per_shard(10**9) == 1


# --------------------------------------------------------------------------------------------------------------- order

GROUPS = st.lists(st.lists(st.integers(0, 6), max_size=4), min_size=1, max_size=6).filter(
    lambda groups: sum(map(sum, groups)) > 0
)


@settings(max_examples=60)
@given(GROUPS, st.integers(-3, 10**10), st.integers(0, 4))
def test_every_epoch_is_a_permutation_of_all_blocks(groups, seed, epoch):
    manifest = manifest_of(groups)
    total = manifest.num_blocks
    places = BlockOrder(manifest, seed=seed).locate(epoch * total, (epoch + 1) * total)
    assert sorted(numbers(places, manifest)) == list(range(total))


@settings(max_examples=60)
@given(GROUPS, st.lists(st.integers(0, 80), min_size=2, max_size=6).map(sorted))
def test_any_cut_of_the_order_into_ranges_gives_the_same_blocks(groups, cuts):
    manifest = manifest_of(groups)
    order = BlockOrder(manifest, seed=3)
    whole = numbers(order.locate(cuts[0], cuts[-1]), manifest)
    parts = [numbers(BlockOrder(manifest, seed=3).locate(begin, end), manifest) for begin, end in pairwise(cuts)]
    assert list(chain.from_iterable(parts)) == whole


def test_epochs_and_seeds_differ_and_repeat():
    manifest = manifest_of([[50, 50], [50], [50, 50]])
    order = BlockOrder(manifest, seed=1)
    first, second = (numbers(order.locate(at, at + 250), manifest) for at in (0, 250))
    assert first != second != list(range(250))
    assert numbers(BlockOrder(manifest, seed=1).locate(0, 250), manifest) == first
    assert numbers(BlockOrder(manifest, seed=2).locate(0, 250), manifest) != first


def test_groups_shards_and_rows_are_each_shuffled_anew_in_every_epoch():
    manifest = manifest_of([[10, 10, 10, 10]] + [[10]] * 6)
    first, second = (BlockOrder(manifest, seed=1).locate(at, at + 100) for at in (0, 100))
    turns = [list(dict.fromkeys(places.shards.tolist())) for places in (first, second)]
    groups = [list(dict.fromkeys(manifest.shards[shard].group for shard in turn)) for turn in turns]
    assert groups[0] != groups[1] != list(range(7)) != groups[0]
    inside = [[shard for shard in turn if manifest.shards[shard].group == 0] for turn in turns]
    assert inside[0] != inside[1]
    rows = [places.rows[places.shards == 5].tolist() for places in (first, second)]
    assert sorted(rows[0]) == sorted(rows[1]) == list(range(10))
    assert rows[0] != rows[1]


def test_shards_are_gone_through_one_after_another_and_rows_in_random_order():
    manifest = manifest_of([[40], [40], [40, 40]])
    places = BlockOrder(manifest, seed=0).locate(0, 160)
    turns = [places.shards[begin : begin + 40] for begin in range(0, 160, 40)]
    assert all(len(set(turn.tolist())) == 1 for turn in turns)
    for begin in range(0, 160, 40):
        rows = places.rows[begin : begin + 40].tolist()
        assert sorted(rows) == list(range(40)) != rows
    # Both shards of the last group follow each other.
    order = [int(turn[0]) for turn in turns]
    assert abs(order.index(2) - order.index(3)) == 1


def test_groups_come_in_the_same_order_whatever_the_packing():
    # The same corpus as plain text, with control tokens (more blocks, more shards), and filtered (one group is empty).
    plain = manifest_of([[10]] * 8)
    conditional = manifest_of([[10, 3]] * 8)
    filtered = manifest_of([[4]] * 3 + [[]] + [[6]] * 4)

    def groups(manifest):
        places = BlockOrder(manifest, seed=5).locate(0, manifest.num_blocks)
        seen = [manifest.shards[shard].group for shard in places.shards.tolist()]
        return list(dict.fromkeys(seen))

    assert groups(plain) == groups(conditional) != sorted(groups(plain))
    assert groups(filtered) == [group for group in groups(plain) if group != 3]


def test_skipped_tokens_end_at_the_same_document_group_whatever_the_packing():
    plain = manifest_of([[10]] * 8, tokens_per_block=8)  # 80 tokens a group
    conditional = manifest_of([[16]] * 8, tokens_per_block=5)
    for num_tokens, num_groups in ((0, 0), (80, 1), (320, 4), (640, 8), (800, 10)):
        assert BlockOrder(plain, seed=5).position_after(num_tokens) == num_groups * 10
        assert BlockOrder(conditional, seed=5).position_after(num_tokens) == num_groups * 16
    assert BlockOrder(plain, seed=5).position_after(1) == 1
    assert BlockOrder(plain, seed=5).position_after(81) == 11


@pytest.mark.parametrize("weights", [(1, 1), (3, 1), (0.1, 0.9), (1, 0)])
def test_corpora_are_mixed_by_weight(weights):
    manifest = manifest_of([[30], [30], [500]], corpus_of_group=[0, 0, 1])
    order = BlockOrder(manifest, seed=2, weights=weights)
    places = order.locate(0, 4096)
    corpus_of = np.array([shard.corpus for shard in manifest.shards])
    share = (corpus_of[places.shards] == 0).mean()
    assert share == pytest.approx(weights[0] / sum(weights), abs=0.001)
    # Each corpus is gone through whole, epoch by epoch, in the order it has without the other.
    own = np.array(numbers(places, manifest))[corpus_of[places.shards] == 0]
    for begin in range(0, len(own) - 60, 60):
        assert sorted(own[begin : begin + 60].tolist()) == list(range(60))
    parts = [numbers(order.locate(begin, begin + 512), manifest) for begin in range(0, 4096, 512)]
    assert list(chain.from_iterable(parts)) == numbers(places, manifest)


def test_the_mixture_is_even_within_a_round():
    manifest = manifest_of([[100], [100]], corpus_of_group=[0, 1])
    places = BlockOrder(manifest, seed=2, weights=(1, 1)).locate(0, 1024)
    turns = np.abs(np.diff(places.shards)).sum()
    assert 400 < turns < 620  # of 1023; 512 if drawn at random


def test_position_after_counts_both_corpora_of_a_mixture():
    manifest = manifest_of([[100], [100]], corpus_of_group=[0, 1], tokens_per_block=8)
    assert BlockOrder(manifest, seed=2, weights=(1, 3)).position_after(8 * 5000) == pytest.approx(5000, abs=2)


@pytest.mark.parametrize("weights", [(1,), (-1, 2), (0, 0)])
def test_weights_that_make_no_mixture_are_refused(weights):
    manifest = manifest_of([[1], [1]], corpus_of_group=[0, 1])
    with pytest.raises(ConfigError, match="give each corpus a number"):
        BlockOrder(manifest, seed=0, weights=weights)


def test_an_order_of_nothing_is_refused():
    with pytest.raises(DataError, match="the manifest counts the dropped documents by reason"):
        BlockOrder(manifest_of([[], []]), seed=0)


# -------------------------------------------------------------------------------------------------------------- reader


@pytest.mark.parametrize("root", [None, "memory://blocks-of-the-reader-test", "s3://bucket/blocks"])
def test_the_reader_gives_the_blocks_of_the_order_at_any_place(tmp_path, root, s3):
    root = root or str(tmp_path)
    manifest = manifest_of([[7, 5], [], [9]])
    write(root, manifest)
    order = BlockOrder(read_block_manifest(root), seed=4)
    reader = BlockReader(root, order=order)
    for begin, end in ((0, 21), (18, 30), (3, 4), (100, 142), (5, 5)):
        blocks = reader.read(begin, end)
        expected = numbers(order.locate(begin, end), manifest)
        assert blocks.input_ids.dtype == np.int32
        assert blocks.input_ids.shape == (end - begin, LENGTH)
        assert (blocks.input_ids[:, 0] // LENGTH).tolist() == expected
        assert blocks.input_ids.tolist() == [block_of(number).input_ids.tolist() for number in expected]
        assert blocks.token_scores.tolist() == [block_of(number).token_scores.tolist() for number in expected]
        assert blocks.token_kinds.tolist() == [block_of(number).token_kinds.tolist() for number in expected]


@pytest.mark.parametrize("num_shards", [0, 3])
def test_shards_without_room_in_memory_are_held_on_disk_and_give_the_same_blocks(tmp_path, monkeypatch, num_shards):
    manifest = manifest_of([[4]] * 8, corpus_of_group=[*range(8)])
    write(str(tmp_path), manifest)
    order = BlockOrder(manifest, seed=0, weights=[1.0] * 8)
    opened = []
    read = read_block_file
    monkeypatch.setattr(blocks_reader, "read_block_file", lambda path: opened.append(path) or read(path))
    expected = [BlockReader(str(tmp_path), order=order).read(begin, begin + 8) for begin in range(0, 64, 8)]
    opened.clear()
    monkeypatch.setattr(blocks_reader, "HELD_BYTES", num_shards * 4 * LENGTH * BYTES_PER_TOKEN)
    reader = BlockReader(str(tmp_path), order=order)
    for number, blocks in enumerate(expected):
        found = reader.read(number * 8, number * 8 + 8)
        for one, other in zip(found[:3], blocks[:3], strict=True):
            assert one.tolist() == other.tolist()
    # Each once: nothing is moved out to be brought in again.
    assert sorted(opened) == sorted({*opened})
    assert len(opened) == 8
    assert sum(isinstance(one, ShardOnDisk) for one in reader._held.values()) == 8 - num_shards


def test_reading_in_order_opens_each_shard_once_an_epoch(tmp_path, monkeypatch):
    manifest = manifest_of([[20]] * 5)
    write(str(tmp_path), manifest)
    opened = []
    read = read_block_file
    monkeypatch.setattr(blocks_reader, "read_block_file", lambda path: opened.append(path) or read(path))
    reader = BlockReader(str(tmp_path), order=BlockOrder(manifest, seed=0))
    for begin in range(0, 100, 4):
        reader.read(begin, begin + 4)
    assert len(opened) == 5
    assert len(reader._held) == 2


def test_a_folder_without_success_is_not_read(tmp_path):
    write(str(tmp_path), manifest_of([[1]]))
    (tmp_path / "_SUCCESS").unlink()
    with pytest.raises(DataError, match=r"_SUCCESS is missing.*run jobs\.build_blocks again"):
        read_block_manifest(str(tmp_path))


@pytest.mark.parametrize("damage", [{"format": FORMAT + 1}, {"shards": "none"}, {"unknown": 1}])
def test_a_manifest_of_another_kind_is_refused(tmp_path, damage):
    write(str(tmp_path), manifest_of([[1]]))
    values = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(values | damage))
    with pytest.raises(DataError, match="build them again"):
        read_block_manifest(str(tmp_path))


def test_a_damaged_shard_is_named(tmp_path):
    manifest = manifest_of([[3]])
    write(str(tmp_path), manifest)
    path = tmp_path / manifest.shards[0].file
    reader = BlockReader(str(tmp_path), order=BlockOrder(manifest, seed=0))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"shard-00000-000\.parquet is not a shard.*build again"):
        reader.read(0, 1)
    path.write_bytes(encode_shard([block_of(0)]))
    with pytest.raises(DataError, match=r"shard-00000-000\.parquet holds \(1, 8\) tokens"):
        reader.read(0, 1)
    path.unlink()
    with pytest.raises(DataError, match=r"shard-00000-000\.parquet can't be read"):
        reader.read(0, 1)


# ------------------------------------------------------------------------------------------------------------ held out


def test_a_mixture_is_what_its_corpora_give_by_their_shares():
    """3/4 of the blocks from a corpus of 6 content tokens a block, 1/4 from one of 2, half of whose tokens count."""
    corpora = [
        CorpusTokens(
            num_blocks=100,
            num_content_tokens=600,
            num_tokens=800,
            num_scored_tokens=600,
            score_mean=0.0,
            score_std=1.0,
        ),
        CorpusTokens(
            num_blocks=10, num_content_tokens=20, num_tokens=80, num_scored_tokens=60, score_mean=4.0, score_std=3.0
        ),
    ]
    mixture = Mixture.from_counts(corpora, [3, 1])
    assert mixture.tokens_per_block("content") == 0.75 * 6 + 0.25 * 2
    assert mixture.tokens_per_block("all") == 8
    # Of 400 blocks 300 are three passes of the first, 100 ten of the second.
    assert mixture.epochs_in(400) == 0.75 * 3 + 0.25 * 10
    # Scored tokens 3 : 1. Mean 1; variance 3/4 (1 + 1) + 1/4 (9 + 9).
    assert mixture.score_mean_and_std() == (1.0, pytest.approx(math.sqrt(6)))
    second = Mixture.from_counts(corpora, [0, 1])
    assert (second.tokens_per_block("content"), second.epochs_in(20)) == (2, 2)
    assert second.score_mean_and_std() == (4.0, 3.0)


def test_a_mixture_of_blocks_that_do_not_say_what_each_corpus_holds_is_refused():
    with pytest.raises(DataError, match="delete their folder and build them again"):
        Mixture.of(manifest_of([[1], [1]], corpus_of_group=[0, 1]), [1, 1])


def test_held_out_documents_are_a_share_by_id_and_grow_with_the_fraction():
    ids = [f"document-{number}" for number in range(4000)]
    some = {one for one in ids if is_held_out(one, 0.1)}
    more = {one for one in ids if is_held_out(one, 0.3)}
    # Standard deviation of the share: sqrt(.1 * .9 / 4000) = 0.0047.
    assert len(some) / 4000 == pytest.approx(0.1, abs=0.02)
    assert len(more) / 4000 == pytest.approx(0.3, abs=0.03)
    assert some < more
    assert not any(is_held_out(one, 0.0) for one in ids)


def test_held_out_documents_come_back_whole(tmp_path):
    documents = [
        ScoredDocument("a", ("x \u00e9", "y\n"), (0.5, None), (None, "unscorable"), "{}"),
        ScoredDocument("b", ("z",), (0.0,), (None,), "{}"),
    ]
    manifest = manifest_of([[1], []]).model_copy(update={"held_out_fraction": 0.1})
    write(str(tmp_path), manifest)
    (tmp_path / held_out_name(0)).write_bytes(encode_documents(documents))
    (tmp_path / held_out_name(1)).write_bytes(encode_documents([]))
    assert list(read_held_out(str(tmp_path))) == documents
