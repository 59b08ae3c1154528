"""Token blocks on disk, and the order in which training takes them.

    shard-00000-000.parquet  blocks of group 0 (some consecutive parts of a corpus): input_ids int32[L],
                             token_scores float32[L], token_kinds uint8[L]
    held-out-00000.parquet   documents of group 0 that are never packed: id, texts, scores
    group-00000.json         what group 0 contributed; written last, so a group is either whole or built again
    manifest.json            all of it, and what it was made from
    _SUCCESS                 written last

An order visits groups, the shards of a group, and the rows of a shard, each shuffled by (seed, epoch) alone: not by the
number of workers, nor by restarts. Price: blocks that are neighbors in the order come from one shard, which is no
larger than its group: the blocks of some 2 MB of the corpus on disk, about 2 M tokens or 2,000 blocks of 1,024. Where a
group is larger, as under compat, a shard ends at 64 MiB, 7,281 such blocks. Groups depend on the corpus only, so that
the head of an order holds the same documents whatever the packing: a run that finetunes on the rest of the stream does
not see the documents of the first part again, but for those of one group at the border.
"""

import bisect
import hashlib
import io
import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from phf_ray.errors import ConfigError, DataError
from phf_ray.records import ScoredDocument, TokenBlock

FORMAT = 1
MANIFEST = "manifest.json"
SUCCESS = "_SUCCESS"

BYTES_PER_TOKEN = 9
"""Of a block in memory: int32 id, float32 score, uint8 kind."""
SHARD_BYTES = 64 << 20


# --- Manifest ---------------------------------------------------------------------------------------------------------


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Shard(_Part):
    file: str
    corpus: int
    """Its place in `corpora`."""
    group: int
    num_blocks: int
    num_content_tokens: int
    num_source_tokens: int
    """Tokens of text of the corpus that this shard covers: with those that filtering dropped, estimated from their
    characters. Positions in the stream are counted in these, so that they are the same with and without filtering."""


class Corpus(_Part):
    name: str
    fingerprint: str
    scorer: dict[str, Any]
    segmenter: str


class TokenScores(_Part):
    """Of the content tokens that have a score, each token counted once."""

    mean: float | None
    std: float | None
    """Population standard deviation."""
    quantiles: dict[str, float]
    quantile_relative_error: float


class CorpusTokens(_Part):
    """What the blocks of one corpus hold."""

    num_blocks: int
    num_content_tokens: int
    num_tokens: int
    """Without padding."""
    num_scored_tokens: int
    """Content tokens that have a score."""
    score_mean: float | None
    score_std: float | None


class Manifest(_Part):
    """What is known of a folder of blocks without reading them."""

    format: int
    fingerprint: str
    """Hash of everything that decides the blocks; the folder is named by it."""
    sequence_length: int
    tokenizer: dict[str, Any]
    packing: dict[str, Any]
    thresholds: dict[str, float]
    """Resolved numbers of `conditional` and `filter`."""
    held_out_fraction: float
    corpora: tuple[Corpus, ...]
    num_groups: int
    """Those that gave no block count too."""
    shards: tuple[Shard, ...]
    documents: dict[str, Any]
    """kept, and dropped by reason."""
    segments: dict[str, int]
    tokens: dict[str, int]
    """By kind; `all` is everything but padding."""
    token_scores: TokenScores
    by_corpus: tuple[CorpusTokens, ...] = ()
    """In the order of `corpora`; none where older versions built the blocks."""

    @property
    def num_blocks(self) -> int:
        return sum(shard.num_blocks for shard in self.shards)

    @property
    def num_content_tokens(self) -> int:
        """Tokens of text, scored or not."""
        return sum(shard.num_content_tokens for shard in self.shards)

    def whole(self) -> CorpusTokens:
        """All corpora as one."""
        return CorpusTokens(
            num_blocks=self.num_blocks,
            num_content_tokens=self.num_content_tokens,
            num_tokens=self.tokens["all"],
            num_scored_tokens=self.tokens["content"],
            score_mean=self.token_scores.mean,
            score_std=self.token_scores.std,
        )


def read_manifest(root: str) -> Manifest:
    if not _exists(f"{root}/{SUCCESS}"):
        raise DataError(f"{root} holds no finished token blocks ({SUCCESS} is missing); run jobs.build_blocks again")
    try:
        manifest = Manifest.model_validate_json(_read(f"{root}/{MANIFEST}"))
    except ValidationError as error:
        raise DataError(f"{root}/{MANIFEST} is not a manifest of token blocks: {error}; build them again") from None
    if manifest.format != FORMAT:
        raise DataError(f"{root} has block format {manifest.format}, this version reads {FORMAT}; build them again")
    return manifest


# --- Held-out documents -----------------------------------------------------------------------------------------------


def is_held_out(document_id: str, fraction: float) -> bool:
    """Whether the document is kept from training. A larger fraction holds out a superset."""
    digest = hashlib.blake2b(document_id.encode(), digest_size=8, person=b"phf-held-out").digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


def read_held_out(root: str) -> Iterator[ScoredDocument]:
    """The held-out documents, in the order of the corpora."""
    manifest = read_manifest(root)
    if manifest.held_out_fraction == 0:
        return
    for group in range(manifest.num_groups):
        yield from decode_documents(_read(f"{root}/{held_out_name(group)}"))


# --- Shards -----------------------------------------------------------------------------------------------------------


class BlockArrays(NamedTuple):
    """n blocks of L tokens: input_ids int32 (n, L), token_scores float32 (n, L), token_kinds uint8 (n, L)."""

    input_ids: NDArray[np.int32]
    token_scores: NDArray[np.float32]
    token_kinds: NDArray[np.uint8]


def shard_name(group: int, index: int) -> str:
    return f"shard-{group:05d}-{index:03d}.parquet"


def held_out_name(group: int) -> str:
    return f"held-out-{group:05d}.parquet"


def group_name(group: int) -> str:
    return f"group-{group:05d}.json"


def blocks_per_shard(sequence_length: int) -> int:
    return max(1, SHARD_BYTES // (BYTES_PER_TOKEN * sequence_length))


def encode_shard(blocks: Sequence[TokenBlock]) -> bytes:
    """A Parquet file; the same bytes for the same blocks. `blocks` may not be empty."""
    columns = {
        name: pa.FixedSizeListArray.from_arrays(
            np.concatenate([getattr(block, name) for block in blocks]), len(blocks[0].input_ids)
        )
        for name in BlockArrays._fields
    }
    # Ids hardly repeat within a page: a dictionary only costs time. Scores and kinds come in runs, which zstd finds.
    return _parquet(pa.table(columns), use_dictionary=False)


def decode_shard(content: bytes, *, source: str) -> BlockArrays:
    try:
        table = pq.read_table(pa.BufferReader(content))
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{source} is not a shard of token blocks: {error}; delete its folder and build again"
        ) from None
    return BlockArrays(*(_matrix(table, name) for name in BlockArrays._fields))


def _matrix(table: pa.Table, name: str) -> NDArray[Any]:
    column = table[name].combine_chunks()
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), column.type.list_size)


def encode_documents(documents: Sequence[ScoredDocument]) -> bytes:
    strings = pa.list_(pa.string())
    schema = pa.schema(
        [("id", pa.string()), ("texts", strings), ("scores", pa.list_(pa.float64())), ("errors", strings)]
    )
    rows = [{"id": one.id, "texts": one.texts, "scores": one.scores, "errors": one.errors} for one in documents]
    return _parquet(pa.Table.from_pylist(rows, schema=schema), use_dictionary=True)


def decode_documents(content: bytes) -> Iterator[ScoredDocument]:
    for row in pq.read_table(pa.BufferReader(content)).to_pylist():
        yield ScoredDocument(row["id"], tuple(row["texts"]), tuple(row["scores"]), tuple(row["errors"]))


def _parquet(table: pa.Table, *, use_dictionary: bool) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", use_dictionary=use_dictionary, write_statistics=False)
    return buffer.getvalue()


def _read(path: str) -> bytes:
    filesystem, inner = fsspec.core.url_to_fs(path)
    try:
        return bytes(filesystem.cat_file(inner))
    except OSError as error:
        raise DataError(f"{path} can't be read: {error}; build the blocks again") from None


def _exists(path: str) -> bool:
    filesystem, inner = fsspec.core.url_to_fs(path)
    return bool(filesystem.exists(inner))


# --- Order ------------------------------------------------------------------------------------------------------------


class Places(NamedTuple):
    """Where blocks are: place in `manifest.shards` and row in the shard, int64 (n,) each."""

    shards: NDArray[np.int64]
    rows: NDArray[np.int64]


class _Epochs:
    """Endless passes over some shards, each pass in an order of its own."""

    def __init__(self, shards: Mapping[int, Shard], *, num_groups: int, seed: int):
        """`shards`: by place in the manifest."""
        self._shards = shards
        self._num_groups = num_groups
        self._seed = seed
        self._groups: dict[int, list[int]] = {}
        for place, shard in shards.items():
            self._groups.setdefault(shard.group, []).append(place)
        self.num_blocks = sum(shard.num_blocks for shard in shards.values())
        self._num_source_tokens = sum(shard.num_source_tokens for shard in shards.values())
        self._epoch = lru_cache(maxsize=4)(self._shuffled)

    def _shuffled(self, epoch: int) -> tuple[list[int], list[int], list[int]]:
        """Shards in order; blocks before each; source tokens before each."""
        order: list[int] = []
        for group in _generator(self._seed, epoch).permutation(self._num_groups).tolist():
            order += _generator(self._seed, epoch, group).permutation(self._groups.get(group, [])).tolist()
        blocks, source = [0], [0]
        for place in order:
            blocks.append(blocks[-1] + self._shards[place].num_blocks)
            source.append(source[-1] + self._shards[place].num_source_tokens)
        return order, blocks, source

    def locate(self, positions: NDArray[np.int64]) -> Places:
        shards, rows = np.empty_like(positions), np.empty_like(positions)
        epochs, offsets = np.divmod(positions, self.num_blocks)
        for epoch in np.unique(epochs).tolist():
            order, blocks_before, _ = self._epoch(epoch)
            in_epoch = epochs == epoch
            turns = np.searchsorted(blocks_before, offsets, side="right") - 1
            for turn in np.unique(turns[in_epoch]).tolist():
                place = order[turn]
                chosen = in_epoch & (turns == turn)
                shards[chosen] = place
                rows[chosen] = self._rows(epoch, place)[offsets[chosen] - blocks_before[turn]]
        return Places(shards, rows)

    def _rows(self, epoch: int, place: int) -> NDArray[np.int64]:
        return _permutation(self._seed, epoch, place, self._shards[place].num_blocks)

    def source_tokens_before(self, position: int) -> float:
        """Exact between shards; inside one as if its blocks held equally many."""
        epoch, offset = divmod(position, self.num_blocks)
        order, blocks_before, source_before = self._epoch(epoch)
        turn = bisect.bisect_right(blocks_before, offset) - 1
        shard = self._shards[order[turn]]
        inside = (offset - blocks_before[turn]) / shard.num_blocks * shard.num_source_tokens
        return epoch * self._num_source_tokens + source_before[turn] + inside


@lru_cache(maxsize=16)
def _permutation(seed: int, epoch: int, place: int, length: int) -> NDArray[np.int64]:
    # 1 keeps it apart from the order of a group's shards.
    return _generator(seed, epoch, place, 1).permutation(length)


def _generator(*words: int) -> np.random.Generator:
    # A seed sequence takes no negative number.
    return np.random.default_rng([word % 2**64 for word in words])


# Positions in which the shares of a mixture come out even, to 0.1%.
_ROUND = 1024


class BlockOrder:
    """An endless sequence of blocks: position -> place, for every position at once, without any state."""

    def __init__(self, manifest: Manifest, *, seed: int, weights: Sequence[float] | None = None):
        """`weights`: share of each corpus among the blocks, to 0.1%; each corpus is then gone through at its own pace.

        Without weights every block of every corpus comes once an epoch.
        """
        if manifest.num_blocks == 0:
            raise DataError(
                "there are no token blocks; see the documents that were dropped, by reason, in the manifest"
            )
        self.manifest = manifest
        self._seed = seed
        shards = {place: shard for place, shard in enumerate(manifest.shards) if shard.num_blocks > 0}
        if weights is None:
            self._streams = [_Epochs(shards, num_groups=manifest.num_groups, seed=seed)]
            self._shares = np.array([_ROUND])
            return
        self._shares = _shares(weights, num_corpora=len(manifest.corpora))
        self._streams = []
        for corpus, share in enumerate(self._shares.tolist()):
            own = {place: shard for place, shard in shards.items() if shard.corpus == corpus}
            stream = _Epochs(own, num_groups=manifest.num_groups, seed=seed)
            if share and not stream.num_blocks:
                raise DataError(f"corpus {manifest.corpora[corpus].name} has weight {weights[corpus]} but no blocks")
            self._streams.append(stream)

    def locate(self, begin: int, end: int) -> Places:
        """Places of the positions [begin, end)."""
        if not 0 <= begin <= end:
            raise ConfigError(f"block positions [{begin}, {end}) are no range of the order")
        positions = np.arange(begin, end, dtype=np.int64)
        if len(self._streams) == 1:
            return self._streams[0].locate(positions)
        owners, own_positions = self._divide(positions)
        shards, rows = np.empty_like(positions), np.empty_like(positions)
        for number in np.unique(owners).tolist():
            chosen = owners == number
            shards[chosen], rows[chosen] = self._streams[number].locate(own_positions[chosen])
        return Places(shards, rows)

    def _divide(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The stream of each position, and its position in that stream."""
        rounds, offsets = np.divmod(positions, _ROUND)
        owners, own_positions = np.empty_like(positions), np.empty_like(positions)
        for number in np.unique(rounds).tolist():
            pattern, counts = _round_pattern(self._seed, number, tuple(self._shares.tolist()))
            chosen = rounds == number
            owners[chosen] = pattern[offsets[chosen]]
            own_positions[chosen] = number * self._shares[owners[chosen]] + counts[offsets[chosen]]
        return owners, own_positions

    def source_tokens_before(self, position: int) -> float:
        """Source tokens of the blocks before `position`: exact at the borders of shards, interpolated inside."""
        if len(self._streams) == 1:
            return self._streams[0].source_tokens_before(position)
        shares = zip(self._streams, self._shares.tolist(), strict=True)
        return sum(stream.source_tokens_before(position * share // _ROUND) for stream, share in shares if share)

    def position_after(self, num_source_tokens: int) -> int:
        """The first position with at least this many source tokens before it (`dataset.skip_tokens`)."""
        upper = 1
        while self.source_tokens_before(upper) < num_source_tokens:
            upper *= 2
        return bisect.bisect_left(range(upper), True, key=lambda at: self.source_tokens_before(at) >= num_source_tokens)


def _shares(weights: Sequence[float], *, num_corpora: int) -> NDArray[np.int64]:
    """Positions of a round for each corpus: the largest remainders are rounded up."""
    if len(weights) != num_corpora or min(weights) < 0 or sum(weights) <= 0:
        raise ConfigError(
            f"weights {list(weights)} for {num_corpora} corpora; give each one a number, not all of them 0"
        )
    exact = np.array(weights, np.float64) / sum(weights) * _ROUND
    shares = np.floor(exact).astype(np.int64)
    for corpus in np.argsort(shares - exact, kind="stable")[: _ROUND - int(shares.sum())].tolist():
        shares[corpus] += 1
    return shares


@lru_cache(maxsize=4)
def _round_pattern(seed: int, number: int, shares: tuple[int, ...]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Stream of each position of a round, and how many positions before it in the round have the same stream."""
    pattern = _generator(seed, number, 2).permutation(np.repeat(np.arange(len(shares)), shares))
    counts = np.empty_like(pattern)
    for stream, share in enumerate(shares):
        counts[pattern == stream] = np.arange(share)
    return pattern, counts


@dataclass(frozen=True, slots=True)
class Mixture:
    """What a training is fed: the corpora as one or, with weights, each with its share of the blocks."""

    corpora: Sequence[CorpusTokens]
    shares: Sequence[float]

    @classmethod
    def of(cls, manifest: Manifest, weights: Sequence[float] | None) -> "Mixture":
        """Raises DataError for weights where the blocks don't say what each corpus holds."""
        if weights is not None and not manifest.by_corpus:
            raise DataError(
                "dataset.weights need the counts of each corpus, which these token blocks of an older version lack; "
                "delete their folder and build them again"
            )
        return cls.from_counts([manifest.whole()] if weights is None else manifest.by_corpus, weights)

    @classmethod
    def from_counts(cls, corpora: Sequence[CorpusTokens], weights: Sequence[float] | None) -> "Mixture":
        """`corpora`: of all as one where there are no weights."""
        shares = [1.0] if weights is None else (_shares(weights, num_corpora=len(corpora)) / _ROUND).tolist()
        return cls(tuple(corpora), shares)

    def _parts(self) -> list[tuple[float, CorpusTokens]]:
        """What is drawn from, with its share."""
        return [
            (share, corpus)
            for share, corpus in zip(self.shares, self.corpora, strict=True)
            if share > 0 and corpus.num_blocks > 0
        ]

    def tokens_per_block(self, kind: Literal["content", "all"]) -> float:
        """A mean."""
        return sum(
            share * (corpus.num_tokens if kind == "all" else corpus.num_content_tokens) / corpus.num_blocks
            for share, corpus in self._parts()
        )

    def epochs_in(self, num_blocks: float) -> float:
        """Passes through the data; with weights the mean over the blocks, each of which counts its own corpus."""
        return sum(share * share * num_blocks / corpus.num_blocks for share, corpus in self._parts())

    def score_mean_and_std(self) -> tuple[float | None, float | None]:
        """Over the content tokens that have a score, as often as they are drawn."""
        scored = [
            (share * corpus.num_scored_tokens / corpus.num_blocks, corpus.score_mean, corpus.score_std)
            for share, corpus in self._parts()
        ]
        known = [(tokens, mean, std) for tokens, mean, std in scored if mean is not None and std is not None]
        if len(known) <= 1:
            return known[0][1:] if known else (None, None)
        num_tokens = sum(tokens for tokens, _, _ in known)
        mean = sum(tokens * one for tokens, one, _ in known) / num_tokens
        variance = sum(tokens * (std**2 + (one - mean) ** 2) for tokens, one, std in known) / num_tokens
        return mean, math.sqrt(variance)


# --- Reader -----------------------------------------------------------------------------------------------------------


class BlockReader:
    """Blocks by position of the training order, from any place of it.

    A shard is read whole, since all of its rows come up close together. Memory: two shards of each corpus, 64 MiB each.
    """

    def __init__(self, root: str, *, order: BlockOrder):
        self._root = root
        self._order = order
        self._shards = order.manifest.shards
        self._length = order.manifest.sequence_length
        self._held: OrderedDict[int, BlockArrays] = OrderedDict()
        self._num_held = 2 * len(order.manifest.corpora)

    def read(self, begin: int, end: int) -> BlockArrays:
        """Blocks of the positions [begin, end), over all epochs, in that order."""
        places = self._order.locate(begin, end)
        shape = (end - begin, self._length)
        out = BlockArrays(np.empty(shape, np.int32), np.empty(shape, np.float32), np.empty(shape, np.uint8))
        for number in np.unique(places.shards).tolist():
            chosen = places.shards == number
            shard = self._shard(number)
            rows = places.rows[chosen]
            out.input_ids[chosen] = shard.input_ids[rows]
            out.token_scores[chosen] = shard.token_scores[rows]
            out.token_kinds[chosen] = shard.token_kinds[rows]
        return out

    def _shard(self, number: int) -> BlockArrays:
        if number in self._held:
            self._held.move_to_end(number)
            return self._held[number]
        expected = self._shards[number]
        path = f"{self._root}/{expected.file}"
        shard = decode_shard(_read(path), source=path)
        if shard.input_ids.shape != (expected.num_blocks, self._length):
            raise DataError(
                f"{path} holds {shard.input_ids.shape} tokens, its manifest says "
                f"{(expected.num_blocks, self._length)}; delete the folder and build the blocks again"
            )
        self._held[number] = shard
        while len(self._held) > self._num_held:
            self._held.popitem(last=False)
        return shard
