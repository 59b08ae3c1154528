"""Memory of a process that reads token blocks of 39 data sets in turns, with all shards in memory and as it is done.

python -m benchmarks.scale_memory [--data-sets 39] [--shard-mb 16]
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from phf_ray.blocks import reader
from phf_ray.blocks.manifest import FORMAT, BlockManifest, Shard, SourceCorpus, TokenScores
from phf_ray.blocks.order import BlockOrder
from phf_ray.blocks.shards import BYTES_PER_TOKEN, encode_shard, shard_name
from phf_ray.records import TokenBlock

LENGTH = 1024
BATCH = 64
SHARDS = 2
"""Of each data set: a third would take the place of the first."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scale_memory", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--data-sets", type=int, default=39, metavar="N")
    parser.add_argument("--shard-mb", type=int, default=16, metavar="MB", help="of a shard in memory")
    parser.add_argument("--blocks", metavar="DIR", help=argparse.SUPPRESS)
    parser.add_argument("--held-mb", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    manifest = _manifest(arguments.data_sets, num_blocks=(arguments.shard_mb << 20) // (BYTES_PER_TOKEN * LENGTH))
    if arguments.blocks is not None:
        _read(arguments.blocks, manifest, held_bytes=arguments.held_mb << 20)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder), manifest)
        print(
            f"{arguments.data_sets} data sets x {SHARDS} shards of {arguments.shard_mb} MiB, batches of {BATCH} blocks"
        )
        shown = ["--data-sets", str(arguments.data_sets), "--shard-mb", str(arguments.shard_mb), "--blocks", folder]
        for held in (1 << 20, reader.HELD_BYTES >> 20):
            command = [sys.executable, "-m", "benchmarks.scale_memory", *shown, "--held-mb", str(held)]
            subprocess.run(command, check=True)
    return 0


def _manifest(num_corpora: int, *, num_blocks: int) -> BlockManifest:
    numbers = {"num_blocks": num_blocks, "num_content_tokens": LENGTH, "num_source_tokens": LENGTH}
    return BlockManifest(
        format=FORMAT,
        fingerprint="0" * 32,
        sequence_length=LENGTH,
        tokenizer={},
        packing={},
        thresholds={},
        held_out_fraction=0.0,
        corpora=tuple(
            SourceCorpus(name=str(number), fingerprint=str(number), scorer={}, segmenter="lines")
            for number in range(num_corpora)
        ),
        num_groups=num_corpora * SHARDS,
        shards=tuple(
            Shard(file=shard_name(group, 0), corpus=group // SHARDS, group=group, **numbers)
            for group in range(num_corpora * SHARDS)
        ),
        documents={},
        segments={},
        tokens={},
        token_scores=TokenScores(mean=None, std=None, quantiles={}, quantile_relative_error=0.0),
    )


def _write(folder: Path, manifest: BlockManifest) -> None:
    ids = np.random.default_rng(0).integers(0, 50_000, (manifest.shards[0].num_blocks, LENGTH), np.int32)
    scores, kinds = np.zeros(LENGTH, np.float32), np.zeros(LENGTH, np.uint8)
    first = folder / manifest.shards[0].file
    first.write_bytes(encode_shard([TokenBlock(row, scores, kinds) for row in ids]))
    for shard in manifest.shards[1:]:
        os.link(first, folder / shard.file)


def _read(root: str, manifest: BlockManifest, *, held_bytes: int) -> None:
    reader.HELD_BYTES = held_bytes
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    order = BlockOrder(manifest, seed=0, weights=[1.0] * len(manifest.corpora))
    blocks = reader.BlockReader(root, order=order)
    # In the first and in the second shard of each data set. The time is that of the second pass: all is held.
    places = [first + BATCH * batch for first in (0, manifest.num_blocks * 11 // 20) for batch in range(8)]
    for _ in range(2):
        begin = time.process_time()
        for position in places:
            blocks.read(position, position + BATCH)
        seconds = time.process_time() - begin
    num_blocks = len(places) * BATCH
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    name = "all in memory" if held_bytes >> 40 else f"{held_bytes >> 20} MiB in memory"
    print(
        f"{name:<22}peak {peak:,.0f} MB, of which {before:,.0f} before; {seconds / num_blocks * 1e3:.3f} ms CPU a block"
    )


if __name__ == "__main__":
    sys.exit(main())
