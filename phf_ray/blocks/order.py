"""The order in which training reads token blocks.

An order shuffles the groups, the shards of each group, and the rows of each shard. The shuffle depends only on (seed,
epoch), not on the number of workers or on restarts. The price: neighboring blocks in the order come from the same
shard, which is no larger than its group: the blocks of some 2 MB of the corpus on disk, about 2 M tokens or 2,000
blocks of 1,024. If a group is larger, as under compat, a shard ends at 64 MiB, 7,281 such blocks. Groups depend only on
the corpus, so the beginning of an order holds the same documents whatever the packing. A run that finetunes on the rest
of the stream sees none of the documents of the first part again, except those of one group at the border.
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
    """Places of n blocks: index in `manifest.shards` and row in the shard, int64 (n,) each."""

    shards: NDArray[np.int64]
    rows: NDArray[np.int64]


class _Epochs:
    """Endless passes over some shards, each pass in its own order."""

    def __init__(self, shards: Mapping[int, Shard], *, num_groups: int, seed: int):
        """`shards`: index in the manifest -> shard."""
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
        """Return the shards in order, the blocks before each, and the source tokens before each."""
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
        """Return the source tokens before `position`: exact between shards, interpolated inside a shard."""
        epoch, offset = divmod(position, self.num_blocks)
        order, blocks_before, source_before = self._epoch(epoch)
        turn = bisect.bisect_right(blocks_before, offset) - 1
        shard = self._shards[order[turn]]
        inside = (offset - blocks_before[turn]) / shard.num_blocks * shard.num_source_tokens
        return epoch * self._num_source_tokens + source_before[turn] + inside


@lru_cache(maxsize=16)
def _permutation(seed: int, epoch: int, place: int, length: int) -> NDArray[np.int64]:
    # The 1 separates these random numbers from those that order a group's shards.
    return _generator(seed, epoch, place, 1).permutation(length)


def _generator(*words: int) -> np.random.Generator:
    # A seed sequence rejects negative numbers.
    return np.random.default_rng([word % 2**64 for word in words])


# Length of a round: in each round of positions, every corpus of a mixture gets its share, to 0.1%.
ROUND_POSITIONS = 1024


class BlockOrder:
    """An endless sequence of blocks: position -> place, for any positions, without any state."""

    def __init__(self, manifest: BlockManifest, *, seed: int, weights: Sequence[float] | None = None):
        """`weights`: each corpus's share of the blocks, to 0.1%. Each corpus then has its own epochs.

        Without weights, every block of every corpus comes once per epoch.
        """
        if manifest.num_blocks == 0:
            raise DataError("there are no token blocks; the manifest counts the dropped documents by reason")
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
        """Return the places of the blocks at positions [begin, end)."""
        if not 0 <= begin <= end:
            raise ConfigError(f"block positions [{begin}, {end}) are not a range; use 0 <= begin <= end")
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
        """Return the stream of each position, and the position in that stream."""
        rounds, offsets = np.divmod(positions, ROUND_POSITIONS)
        owners, own_positions = np.empty_like(positions), np.empty_like(positions)
        for number in np.unique(rounds).tolist():
            pattern, counts = _round_pattern(self._seed, number, tuple(self._shares.tolist()))
            chosen = rounds == number
            owners[chosen] = pattern[offsets[chosen]]
            own_positions[chosen] = number * self._shares[owners[chosen]] + counts[offsets[chosen]]
        return owners, own_positions

    def source_tokens_before(self, position: int) -> float:
        """Return the source tokens of the blocks before `position`: exact at shard borders, interpolated inside."""
        if len(self._streams) == 1:
            return self._streams[0].source_tokens_before(position)
        shares = zip(self._streams, self._shares.tolist(), strict=True)
        return sum(
            stream.source_tokens_before(position * share // ROUND_POSITIONS) for stream, share in shares if share
        )

    def position_after(self, num_source_tokens: int) -> int:
        """Return the first position with at least this many source tokens before it (`dataset.skip_tokens`)."""
        upper = 1
        while self.source_tokens_before(upper) < num_source_tokens:
            upper *= 2
        return bisect.bisect_left(range(upper), True, key=lambda at: self.source_tokens_before(at) >= num_source_tokens)


def rounded_shares(weights: Sequence[float], *, num_corpora: int) -> NDArray[np.int64]:
    """Return the positions that each corpus gets in a round. The largest remainders are rounded up."""
    if len(weights) != num_corpora or min(weights) < 0 or sum(weights) <= 0:
        raise ConfigError(
            f"weights {list(weights)} for {num_corpora} corpora; give each corpus a number of 0 or more, not all 0"
        )
    exact = np.array(weights, np.float64) / sum(weights) * ROUND_POSITIONS
    shares = np.floor(exact).astype(np.int64)
    for corpus in np.argsort(shares - exact, kind="stable")[: ROUND_POSITIONS - int(shares.sum())].tolist():
        shares[corpus] += 1
    return shares


@lru_cache(maxsize=4)
def _round_pattern(seed: int, number: int, shares: tuple[int, ...]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the stream of each position in a round, and how many earlier positions of the round have that stream."""
    pattern = _generator(seed, number, 2).permutation(np.repeat(np.arange(len(shares)), shares))
    counts = np.empty_like(pattern)
    for stream, share in enumerate(shares):
        counts[pattern == stream] = np.arange(share)
    return pattern, counts
