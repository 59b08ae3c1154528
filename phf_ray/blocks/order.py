"""The order in which training takes token blocks.

An order visits groups, the shards of a group, and the rows of a shard, each shuffled by (seed, epoch) alone: not by the
number of workers, nor by restarts. The price: blocks that are neighbors in the order come from one shard, which is no
larger than its group: the blocks of some 2 MB of the corpus on disk, about 2 M tokens or 2,000 blocks of 1,024. If a
group is larger, as under compat, a shard ends at 64 MiB, 7,281 such blocks. Groups depend on the corpus only, so the
head of an order holds the same documents whatever the packing: a run that finetunes on the rest of the stream does not
see the documents of the first part again, except those of one group at the border.
"""

import bisect
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from phf_ray.blocks.manifest import BlockManifest, Shard
from phf_ray.errors import ConfigError, DataError


class BlockPlaces(NamedTuple):
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

    def locate(self, positions: NDArray[np.int64]) -> BlockPlaces:
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
        return BlockPlaces(shards, rows)

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
ROUND_POSITIONS = 1024


class BlockOrder:
    """An endless sequence of blocks: position -> place, for every position at once, without any state."""

    def __init__(self, manifest: BlockManifest, *, seed: int, weights: Sequence[float] | None = None):
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
            self._shares = np.array([ROUND_POSITIONS])
            return
        self._shares = rounded_shares(weights, num_corpora=len(manifest.corpora))
        self._streams = []
        for corpus, share in enumerate(self._shares.tolist()):
            own = {place: shard for place, shard in shards.items() if shard.corpus == corpus}
            stream = _Epochs(own, num_groups=manifest.num_groups, seed=seed)
            if share and not stream.num_blocks:
                raise DataError(f"corpus {manifest.corpora[corpus].name} has weight {weights[corpus]} but no blocks")
            self._streams.append(stream)

    def locate(self, begin: int, end: int) -> BlockPlaces:
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
        return BlockPlaces(shards, rows)

    def _divide(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The stream of each position, and its position in that stream."""
        rounds, offsets = np.divmod(positions, ROUND_POSITIONS)
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
        return sum(
            stream.source_tokens_before(position * share // ROUND_POSITIONS) for stream, share in shares if share
        )

    def position_after(self, num_source_tokens: int) -> int:
        """The first position with at least this many source tokens before it (`dataset.skip_tokens`)."""
        upper = 1
        while self.source_tokens_before(upper) < num_source_tokens:
            upper *= 2
        return bisect.bisect_left(range(upper), True, key=lambda at: self.source_tokens_before(at) >= num_source_tokens)


def rounded_shares(weights: Sequence[float], *, num_corpora: int) -> NDArray[np.int64]:
    """Positions of a round for each corpus: the largest remainders are rounded up."""
    if len(weights) != num_corpora or min(weights) < 0 or sum(weights) <= 0:
        raise ConfigError(
            f"weights {list(weights)} for {num_corpora} corpora; give each one a number, not all of them 0"
        )
    exact = np.array(weights, np.float64) / sum(weights) * ROUND_POSITIONS
    shares = np.floor(exact).astype(np.int64)
    for corpus in np.argsort(shares - exact, kind="stable")[: ROUND_POSITIONS - int(shares.sum())].tolist():
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
