"""The folder that a job writes: its plan, its committed parts, and checks that protect files of others."""

import contextlib
import json
import logging
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from phf_ray.corpus.find import would_read
from phf_ray.corpus.footers import read_footer, read_footers
from phf_ray.corpus.layout import (
    FILES,
    KEYS,
    OWN_KEYS,
    PLAN,
    REJECTED,
    SUCCESS,
    TEMPORARY,
    has_ours,
    is_part,
    part_name,
    part_sizes,
    write_corpus_file,
)
from phf_ray.corpus.plan import CorpusPlan
from phf_ray.corpus.stats import CorpusStats
from phf_ray.errors import ConfigError, DataError
from phf_ray.storage.at_once import at_once
from phf_ray.storage.files import full_name, open_filesystem, store_errors

log = logging.getLogger(__name__)


class CorpusFolder:
    """The folder that a job writes."""

    def __init__(self, path: str, *, keys: Mapping[str, set[str]] = OWN_KEYS):
        """`keys`: what tells our plan from the files of others; by default that of a scored corpus."""
        self.path = path
        self._keys = keys
        self._filesystem, self._root = open_filesystem(path)

    def name(self, *parts: str) -> str:
        return posixpath.join(full_name(self._filesystem, self._root), *parts)

    def part(self, shard: int) -> str:
        return self.name(part_name(shard))

    def rejects(self, shard: int) -> str:
        return self.name(REJECTED, part_name(shard))

    def has(self, name: str) -> bool:
        with store_errors(f"--output {self.path}"):
            return bool(self._filesystem.exists(posixpath.join(self._root, name)))

    def committed(self, num_shards: int) -> dict[int, int]:
        """Return shard -> bytes of its part, in order, for those of the first `num_shards` that have one."""
        sizes = part_sizes(self._filesystem, self._root)
        names = ((shard, part_name(shard)) for shard in range(num_shards))
        return {shard: sizes[name] for shard, name in names if name in sizes}

    def footers(self, shards: Mapping[int, int]) -> Iterator[tuple[int, dict[str, Any] | None]]:
        """Yield the footers of what `committed` found, in its order. None: the part is torn or of another program."""
        footers = read_footers((self.part(shard), size) for shard, size in shards.items())
        return zip(shards, footers, strict=True)

    def _names(self, folder: str = "") -> list[str]:
        """List the names in the output or a folder in it. A glob would misread wildcard characters in the path."""
        path = posixpath.join(self._root, folder).rstrip("/")
        if not self._filesystem.exists(path):
            return []
        return [posixpath.basename(str(name)) for name in self._filesystem.ls(path, detail=False, refresh=True)]

    def stats_of(self, shard: int, *, digest: str) -> CorpusStats | None:
        """Return the statistics of a committed part. None if it is missing or its shard has another digest."""
        footer = self.footer_of(shard, digest=digest)
        return None if footer is None else CorpusStats.from_json(footer["stats"])

    def footer_of(self, shard: int, *, digest: str) -> dict[str, Any] | None:
        """Return the footer of a committed part. None if it is missing or its shard has another digest."""
        with store_errors(f"--output {self.path}"):
            try:
                footer = read_footer(self.part(shard))
            except FileNotFoundError:
                return None
        return footer if footer is not None and footer["shard"] == digest else None

    def read_plan(self) -> CorpusPlan | None:
        if not self.is_ours():
            return None
        try:
            return CorpusPlan.from_json(json.loads(self._filesystem.cat_file(posixpath.join(self._root, PLAN))))
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise DataError(f"{self.name(PLAN)} can't be read: {error!r}; start over with --restart") from None

    def write_plan(self, plan: CorpusPlan) -> None:
        self._filesystem.makedirs(self._root, exist_ok=True)
        content = json.dumps(plan.to_json(), separators=(",", ":"))
        write_corpus_file(self._filesystem, posixpath.join(self._root, PLAN), content.encode())

    def is_ours(self) -> bool:
        """Whether a phf-ray job started here. A plan.json of another program must not get the folder cleared."""
        with store_errors(f"--output {self.path}"):
            return has_ours(self._filesystem, self._root, PLAN, keys=self._keys)

    def write_summary(self, values: Mapping[str, Any]) -> None:
        """Write the summary, as the last step of a job. If the corpus is finished, remove the temporary folder."""
        content = json.dumps(values, indent=2) + "\n"
        write_corpus_file(self._filesystem, posixpath.join(self._root, "summary.json"), content.encode())
        if self.has(SUCCESS):
            self.remove(TEMPORARY)

    def refuse_in_input(self, inputs: Sequence[str]) -> None:
        """Refuse an output that the next run would read as input."""
        names = (*FILES, part_name(0))
        reads = at_once(lambda source: would_read(source, self.name(), names=names), inputs)
        for source, would in zip(inputs, reads, strict=True):
            if would:
                raise ConfigError(
                    f"--output {self.path} lies in --input {source} and would be read as input; give an output "
                    "elsewhere"
                )

    def refuse_strangers(self) -> None:
        """Refuse a non-empty folder. Before a plan exists, only `_tmp` can be ours."""
        if set(self._names()) - {TEMPORARY}:
            raise ConfigError(
                f"--output {self.path} is not empty and has no plan of this job; give a new or empty folder"
            )

    def remove(self, name: str) -> None:
        path = posixpath.join(self._root, name)
        with contextlib.suppress(FileNotFoundError):
            if self._filesystem.isdir(path):
                self._filesystem.rm(path, recursive=True)
            else:
                self._filesystem.rm_file(path)

    def remove_strangers(self, num_shards: int) -> None:
        """Remove parts that belong to no shard; they would count as data."""
        ours = {part_name(shard) for shard in range(num_shards)}
        for folder in ("", REJECTED):
            for name in self._names(folder):
                if is_part(name) and name not in ours:
                    log.warning("%s belongs to none of the %d shards; removing it", self.name(folder, name), num_shards)
                    self.remove(posixpath.join(folder, name))

    def clear(self) -> None:
        """Remove everything that this job writes: `_SUCCESS` first, and last the plan, which makes it ours."""
        *others, plan = FILES
        parts = [name for name in self._names() if is_part(name)]
        for name in (*others, REJECTED, KEYS, TEMPORARY, *parts, plan):
            self.remove(name)
