"""Scoring a corpus with Ray Data: shard by shard, exactly once, from any number of interruptions.

`plan.json` fixes the input files and cuts them into shards before anything is scored. One row of the data set is one
shard; an actor reads it, scores it and commits it as one part, under a temporary name that is then renamed. What is
done is what is listed: resuming skips the shards whose part exists, no document is remembered, and a worker that
outlives its driver does no harm. Price: a shard that was being scored is scored again.

Scorers that need a GPU form a second stage with a pool of its own; between the stages a shard rests under `_tmp/`.
"""

import contextlib
import itertools
import json
import logging
import os
import platform
import posixpath
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from typing import Any, Protocol

import ray
from ray.data import ActorPoolStrategy, DataContext
from ray.util.metrics import Counter as MetricCounter
from ray.util.metrics import Gauge as MetricGauge

from phf_ray import corpus, sources
from phf_ray.config import Config, GpuPoolConfig, PoolConfig, Pools
from phf_ray.corpus import Manifest, PartWriter, Stats
from phf_ray.errors import ConfigError, DataError, IncompleteError, PhfError
from phf_ray.pipelines.scoring_process import Outcome, ScoringProcess, Setup, Task, on_cpus
from phf_ray.records import Document, Rejected, ScorerIdentity
from phf_ray.sources import InputFile, Piece, Record, Segmented

log = logging.getLogger(__name__)

_BATCH_CHARACTERS = 64 << 10
_BATCH_DOCUMENTS = 1024
_JUDGED = 1000
"""Failures are judged from this number of segments or records on, or at the end."""
_TOLERATED_RECORDS = 10
"""So many rejected records never stop a job, unless they are more than half of all."""


@dataclass(frozen=True, slots=True)
class ScoreProgress:
    """Where a job stands. Counts include what earlier runs of the same job did; the rate is this run's."""

    stats: Stats
    """Documents, segments, characters, rejected records and failures so far."""
    shards_done: int
    shards: int
    bytes_left: int
    bytes_here: int
    """Done by this run."""
    elapsed_s: float

    @property
    def bytes_per_s(self) -> float:
        return self.bytes_here / max(self.elapsed_s, 1e-9)

    @property
    def eta_s(self) -> float | None:
        return self.bytes_left / self.bytes_per_s if self.bytes_here else None


# --------------------------------------------------------------------------------------------------------------- plan


@dataclass(frozen=True, slots=True)
class Plan:
    """What is scored, with what, in which shards."""

    key: Mapping[str, Any]
    """Everything of the configuration that can change a row of the output."""
    identities: tuple[dict[str, Any], ...]
    files: tuple[InputFile, ...]
    shards: tuple[tuple[Piece, ...], ...]
    reuse: Mapping[str, Mapping[str, tuple[str, str]]] = field(default_factory=dict)
    """Input root -> scorer -> columns of scores and errors that hold what this scorer would compute."""

    def to_json(self) -> dict[str, Any]:
        roots = sorted({file.root for file in self.files})
        return {
            "format": 1,
            "key": dict(self.key),
            "identities": list(self.identities),
            "reuse": self.reuse,
            "roots": roots,
            "files": [[roots.index(file.root), file.path, file.kind, file.size, file.stamp] for file in self.files],
            "shards": [[piece.to_json() for piece in shard] for shard in self.shards],
        }

    def row(self, shard: int) -> dict[str, Any]:
        """What a worker needs to score a shard."""
        entries = [
            {
                "file": astuple(self.files[piece.file]),
                "piece": piece.to_json(),
                "reuse": self.reuse.get(self.files[piece.file].root, {}),
            }
            for piece in self.shards[shard]
        ]
        return {
            "shard": shard,
            "digest": self.digest(shard),
            "pieces": json.dumps(entries),
            "staged": "",
            "stats": "",
        }

    def digest(self, shard: int) -> str:
        """Of all that decides the content of a part, so that another's part is not taken for ours."""
        pieces = [(astuple(self.files[piece.file])[1:], piece.to_json()[2:]) for piece in self.shards[shard]]
        return corpus.fingerprint([self.key, self.identities, pieces])

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Plan":
        return cls(
            key=values["key"],
            identities=tuple(values["identities"]),
            reuse=values["reuse"],
            files=tuple(InputFile(values["roots"][root], *rest) for root, *rest in values["files"]),
            shards=tuple(tuple(Piece.from_json(piece) for piece in shard) for shard in values["shards"]),
        )


@dataclass(frozen=True, slots=True)
class Request:
    """What a user asks to be scored, and how."""

    config: Config
    inputs: Sequence[str]
    limit: int | None = None
    """Records in all."""
    text_column: str | None = None
    shard_bytes: int | None = None
    """Text per shard; None: from the size of the corpus."""
    scorer_factory: str = "phf_ray.scorers:build_scorer"
    """`module:function` that builds a scorer from its configuration, in every process that scores."""

    def setup(self) -> Setup:
        return Setup(
            scorers=scorer_configs(self.config),
            segmenter=self.config.scoring.segmenter,
            text_timeout_s=self.config.scoring.text_timeout_s,
            factory=self.scorer_factory,
        )

    def key(self) -> dict[str, Any]:
        """What must stay the same for a job to be resumed."""
        return {
            "scoring.scorers": [dict(scorer) for scorer in scorer_configs(self.config)],
            "scoring.segmenter": self.config.scoring.segmenter,
            "--limit": self.limit,
            "--text-column": self.text_column,
        }

    def find(self) -> tuple[InputFile, ...]:
        found = sources.find_files(self.inputs)
        if found.ignored:
            others = ", ".join(
                f"{count} {suffix or 'without suffix'}" for suffix, count in found.ignored.most_common(5)
            )
            log.info("%d files are read; of other kinds and left out: %s", len(found.files), others)
        sources.check_columns(found.files, text_column=self.text_column)
        return found.files

    def target(self, files: Sequence[InputFile]) -> int:
        return self.shard_bytes or sources.shard_bytes(sum(file.text_bytes for file in files))


def make_plan(request: Request) -> Plan:
    """Finds the input and cuts it. Raises ConfigError where there is nothing to score."""
    files = request.find()
    cut = sources.plan_shards(files, shard_bytes=request.target(files), limit=request.limit)
    shards = tuple(tuple(shard) for shard in cut)
    if not shards:
        raise _nothing_to_score(request)
    identities = tuple(_as_json(identity.to_json()) for identity in identify(request))
    return Plan(
        key=request.key(),
        identities=identities,
        files=files,
        shards=shards,
        reuse=_reusable_of(files, identities),
    )


@dataclass(frozen=True, slots=True)
class Preview:
    """What a plan will be like, told without reading the input."""

    files: tuple[InputFile, ...]
    identities: tuple[dict[str, Any], ...]
    reuse: Mapping[str, Mapping[str, tuple[str, str]]]
    num_bytes: int
    """Of text, without regard to the limit."""
    num_shards: int
    """About: a plan cuts between records, and ends at the limit."""


def preview(request: Request) -> Preview:
    """Raises ConfigError as `make_plan` does, unless that takes reading the input."""
    files = request.find()
    num_bytes = sum(file.text_bytes for file in files)
    if not num_bytes:
        raise _nothing_to_score(request)
    identities = tuple(_as_json(identity.to_json()) for identity in identify(request))
    return Preview(
        files=files,
        identities=identities,
        reuse=_reusable_of(files, identities),
        num_bytes=num_bytes,
        num_shards=-(-num_bytes // request.target(files)),
    )


def _nothing_to_score(request: Request) -> ConfigError:
    return ConfigError(f"--input {' '.join(request.inputs)} holds no records; give files that are not empty")


def _as_json(values: Any) -> Any:
    """What comes back when it was written as JSON."""
    return json.loads(json.dumps(values))


def identify(request: Request) -> tuple[ScorerIdentity, ...]:
    """Builds every scorer once, in a process of its own, so errors of their configuration come before any work."""
    process = ScoringProcess(request.setup())
    process.close()
    names = Counter(identity.name for identity in process.identities)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise ConfigError(f"two scorers are called {twice[0]!r}; give one of them another `name:`")
    return process.identities


def scorer_configs(config: Config) -> tuple[dict[str, Any], ...]:
    """As `build_scorer` takes them, the one that is trained on first."""
    if not config.scoring.scorers:
        return (config.scorer,)  # which refuses a configuration without any
    dated = {"reference_date": config.scoring.reference_date}
    return tuple({**dated, **one} if one["class_name"] in _DATED else one for one in config.scoring.scorers)


_DATED = {"PIIScorer"}
"""Scorers that judge dates and ages."""


def _reusable_of(
    files: Sequence[InputFile], identities: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, tuple[str, str]]]:
    return {root: _reusable(root, identities) for root in sorted({file.root for file in files})}


def _reusable(root: str, identities: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, str]]:
    """Scorers whose scores an input corpus holds already, computed by an identical scorer."""
    if not corpus.is_scored_corpus(root):
        return {}
    stored = corpus.read_manifest(root).scorers
    columns = {
        identity["name"]: corpus.columns_of(identity["name"], is_first=index == 0)[:2]
        for index, identity in enumerate(stored)
    }
    return {identity["name"]: columns[identity["name"]] for identity in identities if identity in stored}


def input_fingerprint(plan: Plan) -> str:
    return corpus.fingerprint([[file.path, file.kind, file.size, file.stamp] for file in plan.files])


# ------------------------------------------------------------------------------------------------------------ resuming


class Output:
    """The folder that a job writes."""

    def __init__(self, path: str):
        self.path = path
        self._filesystem, self._root = corpus.open_filesystem(path)

    def name(self, *parts: str) -> str:
        return posixpath.join(corpus.full_name(self._filesystem, self._root), *parts)

    def part(self, shard: int) -> str:
        return self.name(corpus.part_name(shard))

    def rejects(self, shard: int) -> str:
        return self.name(corpus.REJECTED, corpus.part_name(shard))

    def has(self, name: str) -> bool:
        with corpus.store_errors(f"--output {self.path}"):
            return bool(self._filesystem.exists(posixpath.join(self._root, name)))

    def committed(self, num_shards: int) -> set[int]:
        names = {corpus.part_name(shard): shard for shard in range(num_shards)}
        return {names[name] for name in self._names() if name in names}

    def _names(self, folder: str = "") -> list[str]:
        """What is in the output, or in a folder of it. By listing: a glob would read signs in the path as its own."""
        path = posixpath.join(self._root, folder).rstrip("/")
        if not self._filesystem.exists(path):
            return []
        return [posixpath.basename(str(name)) for name in self._filesystem.ls(path, detail=False, refresh=True)]

    def stats_of(self, shard: int, *, digest: str) -> Stats | None:
        """Of a committed part, if it is of the shard with this digest."""
        if not self.has(corpus.part_name(shard)):
            return None
        footer = corpus.read_footer(self.part(shard))
        return Stats.from_json(footer["stats"]) if footer is not None and footer["shard"] == digest else None

    def read_plan(self) -> Plan | None:
        if not self.is_ours():
            return None
        try:
            return Plan.from_json(json.loads(self._filesystem.cat_file(posixpath.join(self._root, corpus.PLAN))))
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise DataError(f"{self.name(corpus.PLAN)} can't be read: {error!r}; start anew with --restart") from None

    def write_plan(self, plan: Plan) -> None:
        self._filesystem.makedirs(self._root, exist_ok=True)
        content = json.dumps(plan.to_json(), separators=(",", ":"))
        corpus.write_file(self._filesystem, posixpath.join(self._root, corpus.PLAN), content.encode())

    def is_ours(self) -> bool:
        """Whether a job like this one has begun here: a plan of somebody else gives no right to clear the folder."""
        with corpus.store_errors(f"--output {self.path}"):
            return corpus.has_ours(self._filesystem, self._root, corpus.PLAN)

    def write_summary(self, values: Mapping[str, Any]) -> None:
        """At the very end of a job: in a finished corpus nothing temporary is left behind."""
        content = json.dumps(values, indent=2) + "\n"
        corpus.write_file(self._filesystem, posixpath.join(self._root, "summary.json"), content.encode())
        if self.has(corpus.SUCCESS):
            self.remove(corpus.TEMPORARY)

    def refuse_strangers(self) -> None:
        """A folder with files that are not ours is not written into. Ours before there is a plan is only `_tmp`."""
        if set(self._names()) - {corpus.TEMPORARY}:
            raise ConfigError(f"--output {self.path} is not empty and not of this job; give a new or an empty folder")

    def remove(self, name: str) -> None:
        path = posixpath.join(self._root, name)
        with contextlib.suppress(FileNotFoundError):
            if self._filesystem.isdir(path):
                self._filesystem.rm(path, recursive=True)
            else:
                self._filesystem.rm_file(path)

    def remove_strangers(self, num_shards: int) -> None:
        """Parts that belong to no shard would count as data."""
        ours = {corpus.part_name(shard) for shard in range(num_shards)}
        for folder in ("", corpus.REJECTED):
            for name in self._names(folder):
                if corpus.is_part(name) and name not in ours:
                    log.warning("%s is of none of the %d shards; it is removed", self.name(folder, name), num_shards)
                    self.remove(posixpath.join(folder, name))

    def clear(self) -> None:
        """Remove everything that this job writes: the mark of success first, the plan, which says so, last."""
        *others, plan = corpus.FILES
        parts = [name for name in self._names() if corpus.is_part(name)]
        for name in (*others, corpus.REJECTED, corpus.TEMPORARY, *parts, plan):
            self.remove(name)


def prepare(request: Request, output: Output, *, append: bool, restart: bool) -> Plan:
    """The plan of this output: the one that is there, if it still holds, or a new one, which is written.

    Raises ConfigError that names what changed.
    """
    _refuse_output_in_input(request, output)
    stored = None if restart else output.read_plan()
    if stored is None:
        plan = make_plan(request)
        if restart and output.is_ours():
            output.clear()
        output.refuse_strangers()
        output.write_plan(plan)
        return plan
    _refuse_other_configuration(stored, request)
    added = _added_files(stored, request.find(), append=append)
    if not added:
        return stored
    if request.limit is not None:
        raise ConfigError("--append and --limit together are not defined; leave out one of them")
    new_shards = sources.plan_shards(added, shard_bytes=request.target(added), first_file=len(stored.files))
    new_roots = {file.root for file in added} - set(stored.reuse)
    plan = replace(
        stored,
        files=(*stored.files, *added),
        shards=(*stored.shards, *(tuple(shard) for shard in new_shards)),
        reuse={**stored.reuse, **{root: _reusable(root, stored.identities) for root in sorted(new_roots)}},
    )
    output.remove(corpus.SUCCESS)
    output.write_plan(plan)
    return plan


def _refuse_output_in_input(request: Request, output: Output) -> None:
    """What is written would be read as input by the next run."""
    for source in request.inputs:
        if sources.would_read(source, output.name(), names=(*corpus.FILES, corpus.part_name(0))):
            raise ConfigError(
                f"--output {output.path} lies in --input {source} and would be read as input; give an output elsewhere"
            )


def _refuse_other_configuration(stored: Plan, request: Request) -> None:
    changes = [
        f"{name} was {stored.key.get(name)!r}, is {value!r}"
        for name, value in _as_json(request.key()).items()
        if stored.key.get(name) != value
    ]
    if not changes:
        identities = [_as_json(identity.to_json()) for identity in identify(request)]
        changes = [
            f"scorer {old['name']}: {name} was {old.get(name)!r}, is {new.get(name)!r}"
            for old, new in zip(stored.identities, identities, strict=True)
            for name in new
            if old.get(name) != new[name]
        ]
    if changes:
        raise ConfigError(
            "this output was begun with another configuration: "
            + "; ".join(changes)
            + "; give another --output, or --restart to discard what is there"
        )


def _added_files(stored: Plan, found: Sequence[InputFile], *, append: bool) -> tuple[InputFile, ...]:
    """Raises ConfigError where planned files changed or are gone, or new ones came without `append`."""
    now = {file.name: file for file in found}
    known = {file.name for file in stored.files}
    roots = {file.root for file in found}
    # With --append the new input may be given alone.
    expected = [file for file in stored.files if not append or file.root in roots]
    missing = [file.path for file in expected if file.name not in now]
    changed = [file.path for file in expected if file.name in now and now[file.name] != file]
    added = [file for file in found if file.name not in known]
    problems = [
        f"{len(paths)} input file(s) {what} since the job began ({_some(paths)})"
        for what, paths in (("changed", changed), ("are missing", missing))
        if paths
    ]
    if problems:
        raise ConfigError(f"{'; '.join(problems)}; restore them, or --restart to score all of the input anew")
    if added and not append:
        paths = [file.path for file in added]
        raise ConfigError(
            f"{len(added)} input file(s) were added since the job began ({_some(paths)}); --append scores them too"
        )
    return tuple(added)


def _some(paths: Sequence[str]) -> str:
    return ", ".join(paths[:5]) + (", ..." if len(paths) > 5 else "")


# ---------------------------------------------------------------------------------------------------------- one shard


@dataclass(frozen=True, slots=True)
class Stage:
    """One pool of actors and what it does to a shard."""

    setup: Setup
    """With the scorers of this stage only."""
    identities: tuple[dict[str, Any], ...]
    scorers_before: tuple[str, ...]
    """Names of the scorers whose scores a shard brings along, from the input or from the stage before."""
    scorers: tuple[str, ...]
    """All names in the order of the columns."""
    output: str
    text_column: str | None
    is_first: bool
    is_last: bool

    @property
    def scorers_after(self) -> tuple[str, ...]:
        """In the order of the columns."""
        mine = {*self.scorers_before, *(identity["name"] for identity in self.identities)}
        return tuple(name for name in self.scorers if name in mine)


def score_records(
    records: Iterable[Record], process: ScoringProcess, writer: PartWriter, *, counted: Callable[[Stats], None]
) -> None:
    """Documents of a shard through the scorers into its part. While one batch is scored the next is read.

    `counted` is called now and then with the writer's statistics.
    """
    scored: list[tuple[Document | Segmented, Task]] | None = None
    for batch in _batches(records, writer):
        if scored is not None:
            answer = process.collect()
            process.submit([task for _, task in batch])
            _write(scored, answer.outcomes, truncated=answer.truncated, writer=writer)
            counted(writer.stats)
        else:
            process.submit([task for _, task in batch])
        scored = batch
    if scored is not None:
        answer = process.collect()
        _write(scored, answer.outcomes, truncated=answer.truncated, writer=writer)


def _batches(records: Iterable[Record], writer: PartWriter) -> Iterator[list[tuple[Document | Segmented, Task]]]:
    batch: list[tuple[Document | Segmented, Task]] = []
    characters = 0
    for record in records:
        if isinstance(record, Rejected):
            writer.reject(record)
            continue
        if isinstance(record, Document):
            task = Task(text=record.text)
            characters += len(record.text)
        else:
            task = Task(texts=record.texts, scores=record.scores)
            characters += sum(map(len, record.texts))
        batch.append((record, task))
        if characters >= _BATCH_CHARACTERS or len(batch) >= _BATCH_DOCUMENTS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _write(
    batch: Sequence[tuple[Document | Segmented, Task]],
    outcomes: Sequence[Outcome],
    *,
    truncated: Mapping[str, int],
    writer: PartWriter,
) -> None:
    for (record, _), outcome in zip(batch, outcomes, strict=True):
        if outcome.problem is not None:
            origin = json.loads(record.meta)
            writer.reject(
                Rejected(str(origin.get("source", record.id)), int(origin.get("record", 0)), *outcome.problem)
            )
        else:
            writer.add(record.id, outcome.texts, scores=outcome.scores, meta=record.meta)
    for name, count in truncated.items():
        writer.stats.scorers[name].truncated += count


class ShardScorer:
    """One scoring process, one shard a call."""

    def __init__(self, stage: Stage):
        self._stage = stage
        self._process = ScoringProcess(stage.setup)
        identities = tuple(_as_json(identity.to_json()) for identity in self._process.identities)
        if identities != stage.identities:
            raise ConfigError(
                f"{platform.node()} would score differently: {identities}, the job began with {stage.identities}; "
                "install the same versions on all nodes"
            )

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        stage, output = self._stage, Output(self._stage.output)
        shard, staged = int(row["shard"]), str(row["staged"])
        if stage.is_last and (done := output.stats_of(shard, digest=row["digest"])) is not None:
            # Ray may ask again when a node dies after the commit; what the stage before left is gone by then.
            if staged:
                corpus.remove_file(staged)
            return {**row, "staged": "", "stats": json.dumps(done.to_json())}
        between = output.name(corpus.TEMPORARY, f"stage-{shard}-{os.urandom(8).hex()}.parquet")
        path = output.part(shard) if stage.is_last else between
        writer = PartWriter(
            path,
            rejects=output.rejects(shard) if stage.is_first else None,
            scorers=stage.scorers_after,
            footer={"shard": row["digest"]},
        )
        try:
            if stage.is_first:
                pieces = json.loads(row["pieces"])
                records: Iterable[Record] = read_shard(pieces, text_column=stage.text_column)
                count_reused(pieces, writer)
            else:
                records = read_staged(staged, scorers=stage.scorers_before, writer=writer)
            score_records(records, self._process, writer, counted=self.count)
            stats = writer.commit()
            self.count(stats)
        finally:
            writer.abandon()
        if staged:
            corpus.remove_file(staged)
        return {**row, "staged": "" if stage.is_last else path, "stats": json.dumps(stats.to_json())}

    def close(self) -> None:
        self._process.close()

    def count(self, stats: Stats) -> None:
        """Called with the statistics of the shard in work, now and then and at its end."""


class ScoreShard(ShardScorer):
    """Ray Data actor: a ShardScorer that tells Ray's metrics what it did."""

    def __init__(self, stage: Stage):
        super().__init__(stage)
        self._told: Counter[str] = Counter()
        self._counters = {
            name: MetricCounter(f"phf_{name}", description=f"{name.replace('_', ' ')} of jobs.score_corpus")
            for name in ("documents", "segments", "characters", "failed_segments", "rejected_records")
        }

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        self._told.clear()
        return super().__call__(row)

    def count(self, stats: Stats) -> None:
        if not self._stage.is_last:
            return
        now = Counter(
            documents=stats.documents,
            segments=stats.segments,
            characters=stats.characters,
            failed_segments=stats.num_failed,
            rejected_records=stats.rejected.total(),
        )
        for name, value in (now - self._told).items():
            self._counters[name].inc(value)
        self._told = now


def read_shard(pieces: Sequence[Mapping[str, Any]], *, text_column: str | None) -> Iterator[Record]:
    for entry in pieces:
        yield from sources.read_piece(
            InputFile(*entry["file"]),
            Piece.from_json(entry["piece"]),
            text_column=text_column,
            reuse={name: (scores, errors) for name, (scores, errors) in entry["reuse"].items()},
        )


def count_reused(pieces: Sequence[Mapping[str, Any]], writer: PartWriter) -> None:
    """Texts that were cut when the scores that are taken over were computed.

    Known for each part of the input: it counts for the shard that has the part's first row, whole also under --limit.
    """
    for entry in pieces:
        reused = set(entry["reuse"]) & set(writer.stats.scorers)
        if reused and Piece.from_json(entry["piece"]).begin == 0:
            footer = corpus.read_footer(InputFile(*entry["file"]).name)
            before = Stats.from_json(footer["stats"]) if footer is not None else Stats()
            for name in reused & set(before.scorers):
                writer.stats.scorers[name].truncated += before.scorers[name].truncated


def read_staged(path: str, *, scorers: Sequence[str], writer: PartWriter) -> Iterator[Segmented]:
    """What the stage before left; what it counted beside documents goes to `writer` at once."""
    footer = corpus.read_footer(path)
    assert footer is not None, path
    before = Stats.from_json(footer["stats"])
    writer.stats.rejected += before.rejected
    columns = {name: corpus.columns_of(name, is_first=index == 0)[:2] for index, name in enumerate(scorers)}
    for name in scorers:
        writer.stats.scorers[name].truncated += before.scorers[name].truncated
    for row in corpus.read_rows(path):
        known = {name: (row[scores], row[errors]) for name, (scores, errors) in columns.items()}
        yield Segmented(id=row["id"], texts=tuple(row["texts"]), meta=row["meta"], scores=known)


# ----------------------------------------------------------------------------------------------------------- estimate


@dataclass(frozen=True, slots=True)
class Estimate:
    """Time of a sample, and what follows for the whole."""

    documents: int
    characters: int
    elapsed_s: float
    sample_bytes: int
    total_bytes: int
    """Of all files; estimated for compressed ones, and under --limit."""

    @property
    def cpu_hours(self) -> float:
        return self.elapsed_s * self.total_bytes / max(1, self.sample_bytes) / 3600


def estimate(request: Request, *, documents: int = 1000) -> Estimate:
    """Scores about so many documents, spread evenly over the input, on one core. Needs no Ray and writes nothing.

    The input is not read through: its size is that of the files, compressed ones taken for a few times as large.
    """
    files = request.find()
    wanted = documents if request.limit is None else min(documents, request.limit)
    sample = [
        record
        for one in sources.plan_sample(files, num_records=wanted)
        for record in itertools.islice(_read(files, one.piece, request), one.num_records)
        if not isinstance(record, Rejected)
    ]
    if not sample:
        raise DataError(f"no document could be read from --input {' '.join(request.inputs)}")
    texts = [record.text if isinstance(record, Document) else "".join(record.texts) for record in sample]
    process = ScoringProcess(_on_one_core(request.setup()))
    try:
        process.submit([Task(text=text) for text in texts[:1]])
        process.collect()
        begin = time.monotonic()
        process.submit([Task(text=text) for text in texts])
        process.collect()
        elapsed = time.monotonic() - begin
    finally:
        process.close()
    sample_bytes = sum(len(text.encode()) for text in texts)
    total_bytes = sum(file.text_bytes for file in files)
    if request.limit is not None:
        total_bytes = min(total_bytes, request.limit * sample_bytes // len(sample))
    return Estimate(
        documents=len(sample),
        characters=sum(map(len, texts)),
        elapsed_s=elapsed,
        sample_bytes=sample_bytes,
        total_bytes=total_bytes,
    )


def _on_one_core(setup: Setup) -> Setup:
    """Also on a machine with a GPU, so that hours of CPUs are told."""
    return replace(on_cpus(setup), num_threads=1)


def _read(files: Sequence[InputFile], piece: Piece, request: Request) -> Iterator[Record]:
    return sources.read_piece(files[piece.file], piece, text_column=request.text_column)


# ---------------------------------------------------------------------------------------------------------------- job


def score_corpus(  # noqa: PLR0913  the arguments of the command line
    config: Config,
    *,
    inputs: Sequence[str],
    output: str,
    limit: int | None = None,
    text_column: str | None = None,
    append: bool = False,
    restart: bool = False,
    progress: Callable[[ScoreProgress], None] | None = None,
) -> Manifest:
    """`run` with the defaults of the command line. Ray must be running."""
    request = Request(config, inputs=inputs, limit=limit, text_column=text_column)
    return run(request, output, append=append, restart=restart, progress=progress)


def run(
    request: Request,
    output: str,
    *,
    append: bool = False,
    restart: bool = False,
    progress: Callable[[ScoreProgress], None] | None = None,
    executor: "Executor | None" = None,
) -> Manifest:
    """Score what is asked for into the folder or URL `output`. Called again it does what is missing.

    `executor` is by default the Ray that runs. Raises ConfigError for what can't be scored or does not fit what
    `output` holds, DataError where no document could be read, IncompleteError where more than
    `scoring.max_failed_fraction` of the segments could not be scored.
    """
    executor = executor or OnRay()
    place = Output(output)
    plan = prepare(request, place, append=append, restart=restart)
    if place.has(corpus.SUCCESS):
        log.info("%s is complete; nothing to do", output)
        return corpus.read_manifest(output)
    scoring = request.config.scoring
    tracker = _Tracker(plan, place, progress=progress, max_failed_fraction=scoring.max_failed_fraction)
    # Large shards first: none of them is then left alone at the end.
    sizes = [-sum(piece.num_bytes for piece in shard) for shard in plan.shards]
    todo = sorted(set(range(len(plan.shards))) - tracker.done, key=lambda shard: (sizes[shard], shard))
    if todo:
        executor.start()
        tracker.start_clock()
        executor.tell(tracker.progress())
        rows = [plan.row(shard) for shard in todo]
        pools = _pools(request, plan, output=place.name(), has_gpus=_takes_gpu_pool(scoring.pools, executor))
        for row in executor.score(pools, rows):
            tracker.shard_done(int(row["shard"]), Stats.from_json(json.loads(row["stats"])))
            executor.tell(tracker.progress())
    return _finish(plan, place, tracker=tracker, segmenter=scoring.segmenter)


def _finish(plan: Plan, place: Output, *, tracker: "_Tracker", segmenter: str) -> Manifest:
    missing = len(plan.shards) - len(place.committed(len(plan.shards)))
    if missing:
        raise IncompleteError(f"{missing} of {len(plan.shards)} shards have no part in {place.path}")
    if not tracker.stats.documents:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in sorted(tracker.stats.rejected.items()))
        raise DataError(
            f"no document could be read from the input ({reasons}); {place.name(corpus.REJECTED)} names each record; "
            "mend the input and give --restart"
        )
    tracker.judge(final=True)
    place.remove_strangers(len(plan.shards))
    return corpus.finish(
        place.name(),
        shards=[plan.digest(shard) for shard in range(len(plan.shards))],
        scorers=[ScorerIdentity(**identity) for identity in plan.identities],
        segmenter=segmenter,
        config=plan.key,
        input_fingerprint=input_fingerprint(plan),
    )


class _Tracker:
    """Adds up what shards report, and stops the job when too much fails. Memory does not grow with the corpus."""

    def __init__(
        self,
        plan: Plan,
        place: Output,
        *,
        progress: Callable[[ScoreProgress], None] | None,
        max_failed_fraction: float,
    ):
        self._sizes = [sum(piece.num_bytes for piece in shard) for shard in plan.shards]
        self.done = place.committed(len(plan.shards))
        self._place = place
        self._progress = progress
        self._limit = max_failed_fraction
        self._bytes_here = self._bytes_done = 0
        self._bytes = sum(self._sizes)
        self._begin = time.monotonic()
        self.stats = Stats()
        listed = sorted(self.done)
        for shard, footer in zip(listed, corpus.read_footers([place.part(shard) for shard in listed]), strict=True):
            if footer is None or footer["shard"] != plan.digest(shard):
                log.warning("%s is of another job or damaged; it is written anew", place.part(shard))
                self.done.remove(shard)
            else:
                self.stats.merge(Stats.from_json(footer["stats"]))
                self._bytes_done += self._sizes[shard]
        self.judge(final=False)
        self._tell()

    def start_clock(self) -> None:
        """The rate is of scoring, not of starting Ray."""
        self._begin = time.monotonic()

    def shard_done(self, shard: int, stats: Stats) -> None:
        self.done.add(shard)
        self.stats.merge(stats)
        self._bytes_here += self._sizes[shard]
        self._bytes_done += self._sizes[shard]
        self._tell()
        self.judge(final=False)

    def judge(self, *, final: bool) -> None:
        self._judge_records(final=final)
        if self.stats.segments < _JUDGED and not final:
            return
        for name, scorer in self.stats.scorers.items():
            failed = scorer.failed.total()
            if failed > self._limit * self.stats.segments:
                what = f"{name} could not score {failed} of {self.stats.segments} segments"
                raise self._too_many(what, scorer.failed, remedy="mend the scorer")

    def _judge_records(self, *, final: bool) -> None:
        # That a file is empty is no failure.
        rejected = self.stats.rejected - Counter(empty=self.stats.rejected["empty"])
        records = self.stats.documents + rejected.total()
        if records < _JUDGED and not final:
            return
        if rejected.total() > max(self._limit * records, min(_TOLERATED_RECORDS, records / 2)):
            what = f"{rejected.total()} of {records} records could not be read"
            raise self._too_many(
                what, rejected, remedy=f"mend the input ({self._place.name(corpus.REJECTED)} names it)"
            )

    def _too_many(self, what: str, failed: Counter[str], *, remedy: str) -> IncompleteError:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in failed.most_common(5))
        return IncompleteError(
            f"{what} ({reasons}), more than scoring.max_failed_fraction={self._limit}; stopped after "
            f"{len(self.done)} of {len(self._sizes)} shards, which stay in {self._place.path}; raise that fraction to "
            f"go on, or {remedy} and give --restart"
        )

    def _tell(self) -> None:
        if self._progress is not None:
            self._progress(self.progress())

    def progress(self) -> ScoreProgress:
        return ScoreProgress(
            stats=self.stats,
            shards_done=len(self.done),
            shards=len(self._sizes),
            bytes_left=self._bytes - self._bytes_done,
            bytes_here=self._bytes_here,
            elapsed_s=time.monotonic() - self._begin,
        )


@dataclass(frozen=True, slots=True)
class Pool:
    """Actors that all do one stage."""

    stage: Stage
    config: PoolConfig


def _takes_gpu_pool(pools: Pools, executor: "Executor") -> bool:
    """Whether what the GPU pool asks for exists, or was asked for by the user and may come.

    A cluster that has no GPU when the job begins may get some; nobody waits for them unasked.
    """
    return executor.has(pools.gpu) or ("gpu" in pools.model_fields_set and executor.may_grow())


def _pools(request: Request, plan: Plan, *, output: str, has_gpus: bool) -> list[Pool]:
    """Scorers on CPUs first, then those that want a GPU, if the cluster has what the GPU pool asks for.

    A scorer whose scores all of the input has is not asked, and its model is not loaded.
    """
    names = tuple(identity["name"] for identity in plan.identities)
    roots = {file.root for file in plan.files}
    known = [all(name in plan.reuse.get(root, {}) for root in roots) for name in names]
    configs = request.config.scoring.pools
    models = {index for index, identity in enumerate(plan.identities) if "torch" in identity["versions"]}
    cpu = [index for index in range(len(names)) if not known[index] and not (has_gpus and index in models)]
    gpu = [index for index in range(len(names)) if not known[index] and index not in cpu]
    if slow := models & set(cpu):
        log.log(
            logging.WARNING if "gpu" in configs.model_fields_set else logging.INFO,
            "%s: on CPUs, as nothing here has %s; on a cluster whose GPU nodes come when asked for, "
            "set scoring.pools.gpu, for example {max: 4}",
            ", ".join(names[index] for index in sorted(slow)),
            _resources(configs.gpu),
        )
    used = [(config, indices) for config, indices in ((configs.cpu, cpu), (configs.gpu, gpu)) if indices]
    used = used or [(configs.cpu, [])]
    brought = [index for index, is_known in enumerate(known) if is_known]
    setup = request.setup()
    return [
        Pool(
            Stage(
                setup=replace(setup, scorers=tuple(setup.scorers[index] for index in indices)),
                identities=tuple(plan.identities[index] for index in indices),
                scorers_before=tuple(
                    names[index]
                    for index in sorted([*brought, *(index for _, before in used[:number] for index in before)])
                ),
                scorers=names,
                output=output,
                text_column=plan.key["--text-column"],
                is_first=number == 0,
                is_last=number == len(used) - 1,
            ),
            config,
        )
        for number, (config, indices) in enumerate(used)
    ]


# ---------------------------------------------------------------------------------------------------------- executors


class Executor(Protocol):
    """Where shards are scored."""

    def start(self) -> None:
        """Called once it is known that there is work."""

    def has(self, pool: PoolConfig) -> bool:
        """Whether the resources that the actors of a pool ask for exist."""

    def may_grow(self) -> bool:
        """Whether resources that do not exist may come."""

    def tell(self, progress: ScoreProgress) -> None:
        """Called when it has started, and after each shard."""

    def score(self, pools: Sequence[Pool], rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Takes each row through all pools; in any order."""


class InProcess:
    """One shard after the other, without Ray."""

    def start(self) -> None:
        pass

    def has(self, pool: PoolConfig) -> bool:
        return not pool.num_gpus and not pool.resources

    def may_grow(self) -> bool:
        return False

    def tell(self, progress: ScoreProgress) -> None:
        pass

    def score(self, pools: Sequence[Pool], rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        with contextlib.ExitStack() as stack:
            scorers = [stack.enter_context(contextlib.closing(ShardScorer(pool.stage))) for pool in pools]
            for row in rows:
                for scorer in scorers:
                    row = scorer(row)
                yield row


class OnRay:
    """Ray Data: a pool of actors for each stage, which grows and shrinks between its limits."""

    def __init__(self, start: Callable[[], None] | None = None):
        self._start = start
        self._gauges: dict[str, MetricGauge] = {}

    def start(self) -> None:
        if self._start is not None:
            self._start()
        self._gauges = {
            name: MetricGauge(f"phf_{name}", description=f"{name.replace('_', ' ')} of the jobs.score_corpus that runs")
            for name in ("shards", "shards_done", "eta_seconds")
        }

    def has(self, pool: PoolConfig) -> bool:
        available = ray.cluster_resources()
        return all(available.get(name, 0) >= amount for name, amount in _resources(pool).items())

    def may_grow(self) -> bool:
        return _may_grow()

    def tell(self, progress: ScoreProgress) -> None:
        values = {"shards": progress.shards, "shards_done": progress.shards_done, "eta_seconds": progress.eta_s}
        for name, gauge in self._gauges.items():
            gauge.set(values[name])  # None, where nothing is known yet, sets nothing

    def score(self, pools: Sequence[Pool], rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for pool in pools:
            if self.has(pool.config):
                continue
            if not self.may_grow():
                raise _never_fits(pool.config)
            log.warning("waiting for nodes with %s, which the cluster does not have yet", _resources(pool.config))
        with _data_settings(), _own_errors():
            # One block is one shard. Items lie in the object store: no reading task waits for a CPU behind the actors.
            data: ray.data.Dataset = ray.data.from_items(list(rows), override_num_blocks=len(rows))
            for pool in pools:
                data = _through(data, pool, most=min(len(rows), pool.config.max or _room_for(pool.config) or len(rows)))
            yield from data.iter_rows()


def _through(data: "ray.data.Dataset", pool: Pool, *, most: int) -> "ray.data.Dataset":
    # Ray hides no GPU from an actor that asks for none.
    stage = pool.stage if pool.config.num_gpus else replace(pool.stage, setup=on_cpus(pool.stage.setup))
    return data.map(
        ScoreShard,  # type: ignore[arg-type]
        fn_constructor_args=(stage,),
        compute=ActorPoolStrategy(min_size=min(pool.config.min, most), max_size=most, max_tasks_in_flight_per_actor=2),
        num_cpus=pool.config.num_cpus,
        num_gpus=pool.config.num_gpus or None,
        resources=pool.config.resources or None,
    )


def _resources(pool: PoolConfig) -> dict[str, float]:
    """What one actor asks for."""
    wanted = {"CPU": pool.num_cpus, "GPU": pool.num_gpus, **pool.resources}
    return {name: amount for name, amount in wanted.items() if amount}


def _never_fits(pool: PoolConfig) -> ConfigError:
    name = "gpu" if isinstance(pool, GpuPoolConfig) else "cpu"
    wanted, available = _resources(pool), ray.cluster_resources()
    there = {resource: available.get(resource, 0.0) for resource in wanted}
    return ConfigError(
        f"scoring.pools.{name}: an actor asks for {wanted}, and all there is here is {there}: none would ever start; "
        "ask for less, or set RAY_ADDRESS to a cluster that has it"
    )


def _room_for(pool: PoolConfig) -> int | None:
    """Actors that this machine alone has room for; None on a cluster, which may grow.

    A machine may have been given more CPUs than it has: more actors than cores take memory and gain nothing.
    """
    if _may_grow():
        return None
    available = ray.cluster_resources()
    available["CPU"] = min(available.get("CPU", 0), os.cpu_count() or 1)
    room = min((int(available.get(name, 0) / amount) for name, amount in _resources(pool).items()), default=1)
    return max(pool.min, room) if room else None


def _may_grow() -> bool:
    """Whether this is more than the Ray that a job starts on its own machine.

    The number of nodes does not tell: a cluster whose workers start from zero is one head. Nor does Ray tell whether
    an autoscaler runs: nodes that are all there are taken for some that may get company.
    """
    if os.environ.get("RAY_ADDRESS", "local") != "local" or sum(node["Alive"] for node in ray.nodes()) > 1:
        return True
    # RAY_ADDRESS says nothing of a cluster that a program named in ray.init(address=...).
    own = ray._private.worker._global_node
    return own is None or not own.is_head()


@contextlib.contextmanager
def _data_settings() -> Iterator[None]:
    """This job shows its own progress, and wants the errors of its workers as they are."""
    context, logger = DataContext.get_current(), logging.getLogger("ray.data")
    before = context.enable_progress_bars, context.raise_original_map_exception, logger.level
    context.enable_progress_bars, context.raise_original_map_exception = False, True
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        context.enable_progress_bars, context.raise_original_map_exception, level = before
        logger.setLevel(level)


@contextlib.contextmanager
def _own_errors() -> Iterator[None]:
    """An error of ours, raised in a worker, arrives wrapped; the user should see its message."""
    try:
        yield
    except PhfError:
        raise
    except Exception as error:
        inner: BaseException | None = error
        while inner is not None:
            if isinstance(inner, PhfError):
                raise type(inner)(*inner.args) from error
            inner = getattr(inner, "cause", None) or inner.__cause__
        raise
