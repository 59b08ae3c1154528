"""The plan of annotate: what is judged by whom, and which pairs make a part. It is fixed before anyone is asked.

Pairs are dealt to parts by a hash of the group that they must be judged in (`steps.py`), so that no row of the output
depends on the order of the input. `plan.json` says how many there are; `_tmp` holds the pairs of each part.
"""

import json
import logging
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from phf_ray.corpus.layout import PLAN, SUCCESS, TEMPORARY
from phf_ray.corpus.output import CorpusFolder
from phf_ray.errors import ConfigError, DataError
from phf_ray.feedback.duplicates import keys_from, repeats
from phf_ray.feedback.prepare import KEY_BYTES
from phf_ray.judging.pairs import Pair, pair_of
from phf_ray.judging.pool import Pool
from phf_ray.judging.served_scorers import identities_json
from phf_ray.judging.sources import JudgingSource, Row
from phf_ray.judging.steps import Steps
from phf_ray.storage.files import open_filesystem, write_file
from phf_ray.storage.hashing import digest, json_fingerprint

log = logging.getLogger(__name__)

STAGE = "judging"
_FEWEST_ROWS, _MOST_ROWS, _PARTS = 128, 4096, 64
"""Rows of a part: enough to keep an endpoint busy, few enough for several actors."""
_STAGED_BYTES = 32 << 20
"""Text in memory while pairs are dealt to parts. Larger input is read once more for each time so much."""
_encoded = json.JSONEncoder(default=str).encode
"""`json.dumps(value, default=str)`, without making an encoder each time."""


@dataclass(frozen=True, slots=True)
class AnnotateRequest:
    """What is to be judged, and by whom."""

    source: JudgingSource
    pool: Pool
    seed: int = 0
    p_label_flip: float | None = None

    @property
    def steps(self) -> Steps:
        return Steps(self.pool, seed=self.seed, p_label_flip=self.p_label_flip)

    def key(self) -> dict[str, Any]:
        """Return everything that decides the rows of the output, as JSON.

        What servers say of their scorers is part of it if they were asked (`served_scorers.identified`).
        """
        served = identities_json(self.pool)
        files = [[file.name, file.size, file.stamp] for found in self.source.find() for file in found.files]
        return {
            "input": json_fingerprint(files),
            "mode": "pairs" if self.source.pairs else "samples" if self.source.samples else "head2head",
            "all_samples": self.source.all_samples,
            "annotators": self.pool.identity,
            "seed": self.seed,
            "p_label_flip": self.steps.p_label_flip,
            **({"served": served} if served else {}),
        }


@dataclass(frozen=True, slots=True)
class AnnotatePlan:
    """What is fixed when the job begins."""

    key: Mapping[str, Any]
    num_pairs: int
    num_duplicates: int
    num_shards: int

    def digest(self, shard: int) -> str:
        return json_fingerprint([self.key, self.num_pairs, self.num_shards, shard])

    def to_json(self) -> dict[str, Any]:
        return {
            "format": 1,
            "stage": STAGE,
            "key": dict(self.key),
            "pairs": self.num_pairs,
            "duplicates": self.num_duplicates,
            "shards": self.num_shards,
        }


@dataclass(frozen=True, slots=True)
class PairsFound:
    """What one reading of the input finds."""

    num_pairs: int
    num_bytes: int
    keys: bytes
    """Of all rows, one after the other."""
    duplicates: frozenset[int]
    """Indices of rows that are later copies of a pair."""

    def key(self, index: int) -> str:
        return self.keys[index * KEY_BYTES : (index + 1) * KEY_BYTES].hex()


def survey(source: JudgingSource) -> PairsFound:
    """Read the input, and check every row. Raises DataError that names the first row that can't be judged."""
    keys, num_bytes, num_rows = bytearray(), 0, 0
    for row, pair in _pairs(source):
        keys += bytes.fromhex(pair.key)
        num_bytes += sum(len(value) for value in row.values() if isinstance(value, str))
        num_rows += 1
    if not num_rows:
        raise DataError(f"{', '.join(source.inputs)}: there is no pair to judge")
    duplicates = frozenset(repeats([keys_from(bytes(keys))])[0])
    return PairsFound(num_rows - len(duplicates), num_bytes, bytes(keys), duplicates)


def plan_annotation(
    request: AnnotateRequest, place: CorpusFolder, *, restart: bool, is_alone: bool
) -> tuple[AnnotatePlan, PairsFound | None]:
    """Return the plan of this output: the stored one if it still holds, else a new one, which is stored.

    With a new plan comes what the input holds, so that it need not be read once more. `is_alone`: whether no other
    command can be at work on it. Raises ConfigError that names the changes.
    """
    place.refuse_in_input(request.source.inputs)
    key = request.key()
    stored = None if restart else read_annotate_plan(place)
    if stored is not None:
        changes = [name for name in key if stored.key.get(name) != key[name]]
        if changes and (place.has(SUCCESS) or place.committed(stored.num_shards) or not is_alone):
            named = ", ".join(f"{_FLAGS.get(name, name)}" for name in changes)
            raise ConfigError(
                f"--output {place.path} was begun with another {named}; give another --output, or --restart to discard "
                "its contents (answers of judges stay in the cache)"
            )
        if not changes:
            return stored, None
        # A command that was refused, or failed before it had judged a part, leaves its place to a corrected one.
        restart = True
    found = survey(request.source)
    rows = min(max(found.num_pairs // _PARTS, _FEWEST_ROWS), _MOST_ROWS)
    plan = AnnotatePlan(key, found.num_pairs, len(found.duplicates), max(1, found.num_pairs // rows))
    if restart and place.is_ours():
        place.clear()
    place.refuse_strangers()
    write_file(place.name(PLAN), json.dumps(plan.to_json(), indent=1).encode())
    return plan, found


_FLAGS = {
    "input": "input",
    "mode": "kind of input (--pairs, --samples, --head2head)",
    "all_samples": "--all-samples",
    "annotators": "--annotators (or its file has changed)",
    "seed": "--seed",
    "served": "scorer behind the URL (the server says so)",
    "p_label_flip": "--p-label-flip",
}


def read_annotate_plan(place: CorpusFolder) -> AnnotatePlan | None:
    if not place.is_ours():
        return None
    filesystem, path = open_filesystem(place.name(PLAN))
    values = json.loads(filesystem.cat_file(path))
    if values.get("stage") != STAGE:
        raise ConfigError(f"--output {place.path} holds a corpus of another job; give a new or empty folder")
    return AnnotatePlan(values["key"], values["pairs"], values["duplicates"], values["shards"])


def staged_file(place: CorpusFolder, plan: AnnotatePlan, shard: int) -> str:
    return place.name(TEMPORARY, f"pairs-{plan.digest(shard)[:16]}-{shard:05d}.jsonl")


def read_staged(file: str) -> list[tuple[Row, Pair]]:
    """Return the rows of a part, and their pairs."""
    filesystem, path = open_filesystem(file)
    # As text: of bytes, json would find out the encoding line by line.
    lines = filesystem.cat_file(path).decode().split("\n")
    return [(row, _checked_pair(row, key)) for key, row in map(json.loads, filter(None, lines))]


def stage_pairs(
    request: AnnotateRequest,
    place: CorpusFolder,
    plan: AnnotatePlan,
    shards: Sequence[int],
    *,
    found: PairsFound | None = None,
) -> None:
    """Write the pairs of these parts where workers find them. Those that are there already stay.

    `found`: what the input holds; None: find out.
    """
    filesystem, _ = open_filesystem(place.name())
    missing = [shard for shard in shards if not filesystem.exists(open_filesystem(staged_file(place, plan, shard))[1])]
    if not missing:
        return
    found = survey(request.source) if found is None else found
    if found.num_pairs != plan.num_pairs:
        raise ConfigError(
            f"the input has {found.num_pairs} pairs, and had {plan.num_pairs} when the job began; give another "
            "--output, or --restart"
        )
    steps = request.steps
    at_once = max(1, plan.num_shards * _STAGED_BYTES // max(1, found.num_bytes))
    for begin in range(0, len(missing), at_once):
        lines: dict[int, list[str]] = {shard: [] for shard in missing[begin : begin + at_once]}
        for index, row in enumerate(request.source.rows()):
            if index in found.duplicates:
                continue
            key = found.key(index)
            shard = _shard_of(steps, plan, _checked_pair(row, key))
            if shard in lines:
                lines[shard].append(_encoded([key, row]))
        for shard, some in lines.items():
            write_file(staged_file(place, plan, shard), "\n".join(some).encode())


def _checked_pair(row: Row, key: str) -> Pair:
    """Return the pair of a row that the survey has seen."""
    return Pair(row["instruction"], row.get("input") or "", row["output_1"], row["output_2"]).with_key(key)


def _shard_of(steps: Steps, plan: AnnotatePlan, pair: Pair) -> int:
    annotator = steps.annotator_of(pair)
    if annotator.batch_size == 1:
        return int(pair.key, 16) % plan.num_shards
    group = steps.group_among(annotator, pair, num_pairs=plan.num_pairs)
    return int(digest(["part", group], size=8), 16) % plan.num_shards


def _pairs(source: JudgingSource) -> Iterator[tuple[Row, Pair]]:
    for number, row in enumerate(source.rows(), start=1):
        try:
            yield row, pair_of(row, number=number)
        except DataError as error:
            raise DataError(f"{posixpath.basename(source.inputs[0])}, {error}") from None
