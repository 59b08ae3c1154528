"""The plan of a stored corpus: the input files, cut into shards, fixed before any work begins."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field
from typing import Any

from phf_ray.corpus.cut import Piece
from phf_ray.corpus.find import InputFile, read_by
from phf_ray.corpus.sources import Source
from phf_ray.errors import ConfigError
from phf_ray.storage.hashing import json_fingerprint


@dataclass(frozen=True, slots=True)
class CorpusPlan:
    """The input files, the scorers that score them if any do, and the shards."""

    key: Mapping[str, Any]
    """Every setting that can change a row of the output."""
    identities: tuple[dict[str, Any], ...]
    files: tuple[InputFile, ...]
    shards: tuple[tuple[Piece, ...], ...]
    reuse: Mapping[str, Mapping[str, tuple[str, str]]] = field(default_factory=dict)
    """Input root -> scorer -> columns that already hold the scores and errors that this scorer would compute."""
    cut_alike: tuple[str, ...] = ()
    """Input roots that are scored corpora, cut by the segmenter of this plan."""
    stage: str = ""
    """The stage that stores the corpus; empty: scoring, whose plans alone have `identities` and `reuse`."""
    sources: Mapping[str, Source] = field(default_factory=dict)
    """Input -> the data set that it is, at one commit, and its licence."""

    def to_json(self) -> dict[str, Any]:
        roots = sorted({file.root for file in self.files})
        places = {root: place for place, root in enumerate(roots)}
        alike = {"cut_alike": list(self.cut_alike)} if self.cut_alike else {}
        scoring = {"identities": list(self.identities), "reuse": self.reuse, **alike}
        return {
            "format": 1,
            "key": dict(self.key),
            **({"stage": self.stage} if self.stage else scoring),
            **({"sources": {source: asdict(one) for source, one in self.sources.items()}} if self.sources else {}),
            "roots": roots,
            "files": [[places[file.root], file.path, file.kind, file.size, file.stamp] for file in self.files],
            "shards": [[piece.to_json() for piece in shard] for shard in self.shards],
        }

    def row(self, shard: int) -> dict[str, Any]:
        """Return everything that a worker needs to score a shard."""
        entries = [
            {
                "file": astuple(self.files[piece.file]),
                "piece": piece.to_json(),
                "reuse": self.reuse.get(self.files[piece.file].root, {}),
                "is_cut_alike": self.files[piece.file].root in self.cut_alike,
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
        """Hash everything that decides the content of a part, so that another job's part is not mistaken for ours."""
        pieces = [(astuple(self.files[piece.file])[1:], piece.to_json()[2:]) for piece in self.shards[shard]]
        return json_fingerprint([self.key, self.identities, pieces])

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "CorpusPlan":
        return cls(
            key=values["key"],
            identities=() if "stage" in values else tuple(values["identities"]),
            reuse={} if "stage" in values else values["reuse"],
            cut_alike=tuple(values.get("cut_alike", ())),
            stage=values.get("stage", ""),
            sources={source: Source(**one) for source, one in values.get("sources", {}).items()},
            files=tuple(InputFile(values["roots"][root], *rest) for root, *rest in values["files"]),
            shards=tuple(tuple(Piece.from_json(piece) for piece in shard) for shard in values["shards"]),
        )


def as_stored_json(values: Any) -> Any:
    """Return the values as they would be read back from a JSON file."""
    return json.loads(json.dumps(values))


def input_fingerprint(plan: CorpusPlan) -> str:
    return json_fingerprint([[file.path, file.kind, file.size, file.stamp] for file in plan.files])


def added_files(
    stored: CorpusPlan, found: Sequence[InputFile], *, inputs: Sequence[str], append: bool
) -> tuple[InputFile, ...]:
    """Return the new files. Raises ConfigError if planned files changed or are missing, or new ones lack `append`.

    With `append`, only those files can be missing that `inputs` include: the new input may be given alone.
    """
    now = {file.name: file for file in found}
    known = {file.name for file in stored.files}
    roots = {file.root for file in found}
    lost = [file for file in stored.files if file.name not in now]
    if append and lost:
        lost = read_by(inputs, [file for file in lost if file.root in roots])
    missing = [file.path for file in lost]
    changed = [file.path for file in stored.files if file.name in now and now[file.name] != file]
    added = [file for file in found if file.name not in known]
    problems = [
        f"{len(paths)} input file(s) {what} since the job began ({_some(paths)})"
        for what, paths in (("changed", changed), ("are missing", missing))
        if paths
    ]
    if problems:
        joins = ", or add --append if the new input is to join the old" if added and not append else ""
        raise ConfigError(f"{'; '.join(problems)}; restore them, or use --restart to do all of the input again{joins}")
    if added and not append:
        paths = [file.path for file in added]
        raise ConfigError(
            f"{len(added)} input file(s) were added since the job began ({_some(paths)}); add --append to take them in"
        )
    return tuple(added)


def _some(paths: Sequence[str]) -> str:
    return ", ".join(paths[:5]) + (", ..." if len(paths) > 5 else "")
