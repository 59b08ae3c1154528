"""Finishes a stored corpus when all of its parts are there: their footers are checked, and `_SUCCESS` comes last."""

import contextlib
import json
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from phf_ray.corpus.footers import read_footers
from phf_ray.corpus.layout import CARD, MANIFEST, SUCCESS, TEMPORARY, part_name, part_sizes, write_corpus_file
from phf_ray.errors import IncompleteError
from phf_ray.storage.files import full_name, open_filesystem


def checked_footers(directory: str, shards: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the footers of all parts in order. `shards`: the digest that each must have in `shard`.

    Raises IncompleteError if a part belongs to another job or is torn.
    """
    filesystem, root = open_filesystem(directory)
    parts = [posixpath.join(root, part_name(shard)) for shard in range(len(shards))]
    sizes = part_sizes(filesystem, root)
    footers = read_footers((full_name(filesystem, part), sizes.get(posixpath.basename(part), 0)) for part in parts)
    for path, shard, footer in zip(parts, shards, footers, strict=True):
        if footer is None or footer["shard"] != shard:
            raise IncompleteError(f"{path} is damaged or from another job; run the same command again to rewrite it")
        yield footer


def write_end(directory: str, *, manifest: Mapping[str, Any], card: str) -> None:
    """Write the manifest and the data card, remove the temporary folder, and write `_SUCCESS` last."""
    filesystem, root = open_filesystem(directory)
    content = json.dumps(manifest, indent=2, ensure_ascii=True) + "\n"
    write_corpus_file(filesystem, posixpath.join(root, MANIFEST), content.encode())
    write_corpus_file(filesystem, posixpath.join(root, CARD), card.encode())
    with contextlib.suppress(FileNotFoundError):
        filesystem.rm(posixpath.join(root, TEMPORARY), recursive=True)
    filesystem.touch(posixpath.join(root, SUCCESS))
