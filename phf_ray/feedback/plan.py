"""The request of a job that prepares feedback, and its plan: made anew, or the stored one if it still holds."""

import json
import logging
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

from phf_ray.corpus.cut import Piece, plan_shards, shard_bytes
from phf_ray.corpus.find import Found, InputFile, find_files
from phf_ray.corpus.layout import REPORT, SUCCESS
from phf_ray.corpus.output import CorpusFolder
from phf_ray.corpus.plan import CorpusPlan, added_files
from phf_ray.corpus.sources import Source, with_license
from phf_ray.corpus.splits import some_names
from phf_ray.errors import ConfigError
from phf_ray.feedback.detect import Detected, detect
from phf_ray.feedback.formats.base import Pairs
from phf_ray.feedback.formats.table import AUTO, FORMATS
from phf_ray.feedback.hindsight.settings import COH, HindsightSettings
from phf_ray.feedback.layout import STAGE, RowForm, is_feedback_corpus
from phf_ray.feedback.prepare import USES, RowSettings
from phf_ray.feedback.reader import list_feedback_parts, read_feedback_manifest

log = logging.getLogger(__name__)

_UNCUT = 1 << 62
"""Bytes of a shard that no file has: between any two records, a cut might part what belongs together."""


@dataclass(frozen=True, slots=True)
class FeedbackRequest:
    """The input of a job, and what its rows are to be."""

    inputs: Sequence[str]
    format: str = AUTO
    to: str | None = None
    as_text: bool = False
    """Keep dialogues as text."""
    pairs: Pairs = "all"
    """Of ranked answers: all pairs, or the best with each of the others."""
    hindsight: HindsightSettings | None = None
    """For `to: coh`."""
    limit: int | None = None
    """Maximum number of records in total."""
    shard_bytes: int | None = None
    """Bytes of text per shard; None: derived from the size of the input."""
    license: str | None = None
    """Licence of all inputs, in place of what their cards say."""

    def __post_init__(self) -> None:
        if self.format not in (AUTO, *FORMATS):
            raise ConfigError(f"--format {self.format} is unknown; give one of {AUTO}, {', '.join(FORMATS)}")
        if self.to not in (None, *USES):
            raise ConfigError(f"--to {self.to} is unknown; give one of {', '.join(USES)}")
        if (self.to == COH) != (self.hindsight is not None):
            raise ConfigError(f"--to {COH} and the settings of its records belong together; give both or neither")
        if self.pairs not in get_args(Pairs):
            raise ConfigError(f"--pairs {self.pairs} is unknown; give one of {', '.join(get_args(Pairs))}")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"--limit {self.limit} reads nothing; give 1 or more")

    def find(
        self,
        known: Sequence[InputFile] = (),
        sources: Mapping[str, Source] | None = None,
        *,
        option: str = "--input",
    ) -> Found:
        """Find the input files. Of a feedback corpus, these are its parts, and the sources are those that it names.

        `known`, `sources`: those of an earlier plan, which stay what they are.
        """
        ours = [one for one in self.inputs if _is_ours(one)]
        inputs = [name for one in self.inputs for name in (list_feedback_parts(one) if one in ours else [one])]
        found = find_files(inputs, text_suffixes=frozenset(), known=known, sources=sources, option=option)
        texts = [file.name for file in found.files if file.kind == "text"]
        if texts:
            raise ConfigError(
                f"feedback is read from records, and {some_names(texts, most=3)} is text; give JSON, JSON lines, "
                "Parquet or Arrow files"
            )
        if found.other_splits:
            log.info("reading the split to train on; leaving out %s", some_names(found.other_splits))
        if self.license is not None:
            return replace(found, sources=with_license(found.sources, self.inputs, self.license))
        inherited = {name: source for one in ours for name, source in _sources_of(one).items()}
        return replace(found, sources={**inherited, **found.sources})

    def detect(self, files: Sequence[InputFile]) -> Detected:
        """Tell the format of the input. Raises ConfigError if it has none that is known."""
        found = detect(files, RowSettings(self.format, self.to, self.as_text, self.pairs, self.hindsight))
        if self.as_text and not FORMATS[found.settings.format].holds_dialogues:
            raise ConfigError(
                "--as-text keeps dialogues of HH-RLHF and Nectar as text, and the input is in the format "
                f"{found.settings.format}; leave out --as-text"
            )
        return found


def prepare_feedback_plan(
    request: FeedbackRequest, output: CorpusFolder, *, append: bool = False, restart: bool = False
) -> CorpusPlan:
    """Return the plan of this output: the stored plan if it still holds, else a new or a longer one, which is stored.

    Raises ConfigError that names the changes.
    """
    output.refuse_in_input(request.inputs)
    stored = None if restart else output.read_plan()
    if stored is not None:
        _refuse_other_settings(stored, request)
        found = request.find(stored.files, stored.sources)
        added = added_files(stored, found.files, inputs=request.inputs, append=append)
        sources = {**stored.sources, **found.sources}
        if added:
            return _longer(stored, request, added, replace(found, sources=sources), output)
        # A licence that was stated when the job began need not be stated again.
        return stored if request.license is None else replace(stored, sources=sources)
    found = request.find()
    detected = request.detect(found.files)
    log.info("the input is read as %s, %s", detected, detected.reason)
    plan = CorpusPlan(
        key={"--limit": request.limit, "settings": asdict(detected.settings), "form": asdict(detected.form)},
        identities=(),
        files=found.files,
        shards=_shards(request, found.files, detected.settings.format),
        stage=STAGE,
        sources=found.sources,
    )
    if restart and output.is_ours():
        output.clear()
    output.refuse_strangers()
    output.write_plan(plan)
    return plan


def _longer(
    stored: CorpusPlan, request: FeedbackRequest, added: Sequence[InputFile], found: Found, output: CorpusFolder
) -> CorpusPlan:
    """Store and return the plan with more files. Its first shards are those that it had."""
    if request.limit is not None:
        raise ConfigError("--append and --limit can't be combined; remove one of them")
    _refuse_other_rows(stored, request.detect(added), added)
    plan = replace(
        stored,
        files=(*stored.files, *added),
        shards=(
            *stored.shards,
            *_shards(request, added, stored.key["settings"]["format"], first_file=len(stored.files)),
        ),
        sources=found.sources,
    )
    for name in (SUCCESS, REPORT):
        output.remove(name)
    output.write_plan(plan)
    return plan


def _refuse_other_rows(stored: CorpusPlan, detected: Detected, added: Sequence[InputFile]) -> None:
    settings, form = RowSettings.from_json(stored.key["settings"]), RowForm(**stored.key["form"])
    if (detected.settings, detected.form) == (settings, form):
        return
    hint = f", or give --format {settings.format}" if detected.settings.format != settings.format else ""
    raise ConfigError(
        f"{added[0].name} is {detected}, but this set is {settings.format} ({form}); prepare it apart and name both "
        f"sets in dataset.datasets{hint}"
    )


def _shards(
    request: FeedbackRequest, files: Sequence[InputFile], format: str, *, first_file: int = 0
) -> tuple[tuple[Piece, ...], ...]:
    target = request.shard_bytes or shard_bytes(sum(file.text_bytes for file in files))
    if FORMATS[format].joins is not None:
        target = _UNCUT
    cut = plan_shards(files, shard_bytes=target, limit=request.limit, first_file=first_file)
    return tuple(tuple(shard) for shard in cut)


def shard_rows(plan: CorpusPlan, output: CorpusFolder) -> list[dict[str, Any]]:
    """Return everything that a worker needs, for each shard."""
    shared = {"output": output.name(), "settings": plan.key["settings"], "form": plan.key["form"]}
    rows = (plan.row(shard) for shard in range(len(plan.shards)))
    return [{**shared, **{name: row[name] for name in ("shard", "digest", "pieces")}} for row in rows]


def text_bytes(rows: Sequence[Mapping[str, Any]]) -> int:
    """Return about how many bytes of text the shards of these rows have."""
    entries = (entry for row in rows for entry in json.loads(row["pieces"]))
    return sum(Piece.from_json(entry["piece"]).num_bytes for entry in entries)


def _is_ours(source: str) -> bool:
    return is_feedback_corpus(source.rstrip(posixpath.sep) or source)


def _sources_of(corpus: str) -> dict[str, Source]:
    """Return name -> source, of those that the manifest of a feedback corpus names."""
    named = read_feedback_manifest(corpus).sources
    return {one["name"]: Source(one["name"], "", one.get("license")) for one in named}


def _refuse_other_settings(stored: CorpusPlan, request: FeedbackRequest) -> None:
    settings = stored.key["settings"]
    now = {
        "--format": settings["format"] if request.format == AUTO else request.format,
        "--to": request.to,
        "--as-text": request.as_text,
        "--pairs": request.pairs,
        "--limit": request.limit,
        **_hindsight_flags(request.hindsight),
    }
    before = {
        "--format": settings["format"],
        "--to": settings["to"],
        "--as-text": settings["as_text"],
        "--pairs": settings.get("pairs", "all"),
        "--limit": stored.key["--limit"],
        **_hindsight_flags(RowSettings.from_json(settings).hindsight),
    }
    changes = [
        f"{name} was {before.get(name)!r}, is {now.get(name)!r}"
        for name in {**now, **before}
        if before.get(name) != now.get(name)
    ]
    if changes:
        raise ConfigError(
            f"this output was begun with another configuration: {'; '.join(changes)}; give another --output, or "
            "--restart to discard its contents"
        )


def _hindsight_flags(settings: HindsightSettings | None) -> dict[str, Any]:
    if settings is None:
        return {}
    return {
        "--include-feedback": ",".join(settings.kinds),
        "--phrases": json.loads(settings.phrases),
        "--seed": settings.seed,
        "--form": settings.form,
        "--compat": settings.compat,
    }
