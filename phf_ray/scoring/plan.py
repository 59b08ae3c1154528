"""Plans a scoring job: makes a new plan, or reuses the stored one if it still holds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from phf_ray.corpus.cut import plan_shards
from phf_ray.corpus.find import InputFile
from phf_ray.corpus.layout import SUCCESS, columns_of, is_scored_corpus
from phf_ray.corpus.manifest import CorpusManifest
from phf_ray.corpus.output import CorpusFolder
from phf_ray.corpus.plan import CorpusPlan, added_files, as_stored_json
from phf_ray.corpus.reader import read_corpus_manifest
from phf_ray.corpus.segments import SEGMENTER_VERSIONS, SEGMENTERS, segmenter_versions
from phf_ray.corpus.sources import Source
from phf_ray.errors import ConfigError
from phf_ray.scoring.request import ScoringRequest, identify_scorers
from phf_ray.storage.at_once import at_once


def plan_scoring(request: ScoringRequest) -> CorpusPlan:
    """Find the input and cut it into shards. Raises ConfigError if there is nothing to score."""
    found = request.find()
    files = found.files
    manifests = _manifests_of(files)
    alike = _cut_alike(manifests, request)
    cut = plan_shards(files, shard_bytes=request.target(files), limit=request.limit)
    shards = tuple(tuple(shard) for shard in cut)
    if not shards:
        raise _nothing_to_score(request)
    identities = tuple(as_stored_json(identity.to_json()) for identity in identify_scorers(request))
    return CorpusPlan(
        key=request.key(),
        identities=identities,
        files=files,
        shards=shards,
        reuse=_reusable_of(manifests, identities),
        cut_alike=alike,
        sources=found.sources,
    )


@dataclass(frozen=True, slots=True)
class ScoringPreview:
    """A forecast of a plan, made without reading the input."""

    files: tuple[InputFile, ...]
    identities: tuple[dict[str, Any], ...]
    reuse: Mapping[str, Mapping[str, tuple[str, str]]]
    num_bytes: int
    """Bytes of text, ignoring the limit."""
    num_shards: int
    """Approximate: a plan cuts between records and ends at the limit."""
    sources: Mapping[str, Source] = field(default_factory=dict)


def preview_scoring(request: ScoringRequest) -> ScoringPreview:
    """Forecast a plan. Raises the ConfigErrors of `plan_scoring` that can be found without reading the input."""
    found = request.find()
    files = found.files
    num_bytes = sum(file.text_bytes for file in files)
    if not num_bytes:
        raise _nothing_to_score(request)
    identities = tuple(as_stored_json(identity.to_json()) for identity in identify_scorers(request))
    manifests = _manifests_of(files)
    _cut_alike(manifests, request)
    return ScoringPreview(
        files=files,
        identities=identities,
        reuse=_reusable_of(manifests, identities),
        num_bytes=num_bytes,
        num_shards=-(-num_bytes // request.target(files)),
        sources=found.sources,
    )


def _nothing_to_score(request: ScoringRequest) -> ConfigError:
    return ConfigError(f"--input {' '.join(request.inputs)} holds no records; give files that are not empty")


def _manifests_of(files: Sequence[InputFile]) -> dict[str, CorpusManifest | None]:
    """Return input root -> its manifest; None if the root is no scored corpus."""
    roots = sorted({file.root for file in files})
    manifests = at_once(lambda root: read_corpus_manifest(root) if is_scored_corpus(root) else None, roots)
    return dict(zip(roots, manifests, strict=True))


def _reusable_of(
    manifests: Mapping[str, CorpusManifest | None], identities: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, tuple[str, str]]]:
    return {root: _reusable(manifest, identities) for root, manifest in manifests.items()}


def _reusable(manifest: CorpusManifest | None, identities: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, str]]:
    """Return scorer -> its two columns in an input corpus, for scores that an identical scorer has already computed."""
    if manifest is None:
        return {}
    stored = manifest.scorers
    columns = {
        identity["name"]: columns_of(identity["name"], is_first=index == 0)[:2] for index, identity in enumerate(stored)
    }
    return {identity["name"]: columns[identity["name"]] for identity in identities if identity in stored}


def _cut_alike(manifests: Mapping[str, CorpusManifest | None], request: ScoringRequest) -> tuple[str, ...]:
    """Return the roots that are scored corpora with segments of the segmenter that is asked for.

    Raises ConfigError for one with other segments: they are kept, so the result would not be what it says.
    """
    wanted, alike = request.config.scoring.segmenter, []
    for root, manifest in manifests.items():
        if manifest is None:
            continue
        segmenter = manifest.segmenter
        if segmenter in SEGMENTERS and segmenter != wanted:
            raise ConfigError(
                f"{root} was cut into {segmenter}, and keeps its segments, but scoring.segmenter is {wanted}; set "
                f"scoring.segmenter={segmenter}, or score the input from which {root} was made"
            )
        if segmenter == wanted:
            alike.append(root)
    return tuple(alike)


def prepare_output(request: ScoringRequest, output: CorpusFolder, *, append: bool, restart: bool) -> CorpusPlan:
    """Return the plan of this output: the stored plan if it still holds, else a new one, which is stored.

    Raises ConfigError that names the changes.
    """
    output.refuse_in_input(request.inputs)
    stored = None if restart else output.read_plan()
    if stored is None:
        plan = plan_scoring(request)
        if restart and output.is_ours():
            output.clear()
        output.refuse_strangers()
        output.write_plan(plan)
        return plan
    _refuse_other_configuration(stored, request)
    found = request.find(stored.files, stored.sources)
    added = added_files(stored, found.files, inputs=request.inputs, append=append)
    sources = {**stored.sources, **found.sources}
    if not added:
        return replace(stored, sources=sources)
    if request.limit is not None:
        raise ConfigError("--append and --limit can't be combined; remove one of them")
    new_shards = plan_shards(added, shard_bytes=request.target(added), first_file=len(stored.files))
    manifests = _manifests_of(added)
    new = {root: manifest for root, manifest in manifests.items() if root not in stored.reuse}
    plan = replace(
        stored,
        files=(*stored.files, *added),
        shards=(*stored.shards, *(tuple(shard) for shard in new_shards)),
        reuse={**stored.reuse, **_reusable_of(new, stored.identities)},
        cut_alike=tuple(sorted({*stored.cut_alike, *_cut_alike(manifests, request)})),
        sources=sources,
    )
    output.remove(SUCCESS)
    output.write_plan(plan)
    return plan


def _refuse_other_configuration(stored: CorpusPlan, request: ScoringRequest) -> None:
    now = as_stored_json(request.key())
    if SEGMENTER_VERSIONS in now:
        # An older plan does not say them, or lacks a rule that it goes on without.
        asked = segmenter_versions(request.setup_of(stored.key).segmenter)
        now[SEGMENTER_VERSIONS] = asked if SEGMENTER_VERSIONS in stored.key else None
    before = {SEGMENTER_VERSIONS: None, **stored.key}
    changed = [name for name in {**now, **before} if before.get(name) != now.get(name)]
    changes = [f"{name} was {before.get(name)!r}, is {now.get(name)!r}" for name in changed]
    if changed in ([], ["scoring.scorers"]):
        identities = [as_stored_json(identity.to_json()) for identity in identify_scorers(request)]
        if identities == list(stored.identities):
            # Settings that scores do not depend on, or defaults written out: `mode: paper` names what once had no name.
            changes = []
        elif not changes:
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
            + "; give another --output, or --restart to discard its contents"
        )
