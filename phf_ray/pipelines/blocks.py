"""Token blocks of whole corpora, built by Ray tasks: one per group of consecutive corpus parts.

What a group becomes depends on the corpus, the tokenizer and the configuration alone, so the blocks are the same
whatever the number of workers, two builders at once write the same bytes, and after a crash only unfinished groups are
built again. Price: the last block of each group is padded; groups are made of parts until they hold 2 MB of Parquet,
some 2 M tokens, so at L = 1024 padding stays below 0.05%. Under compat a corpus is one group, since the original reads
it as one stream.
"""

import json
import logging
import os
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import ray
from ray.exceptions import RayTaskError
from transformers import PreTrainedTokenizerFast

from phf_ray import blocks
from phf_ray.config import Config, MLEConfig, Threshold, UnlikelihoodConfig
from phf_ray.corpus.manifest import CorpusManifest
from phf_ray.corpus.reader import list_parts, read_corpus_manifest, read_part
from phf_ray.corpus.stats import ScorerStats
from phf_ray.errors import ConfigError, DataError, PhfError
from phf_ray.measures.histogram import Histogram
from phf_ray.packing import (
    QUANTILE_RELATIVE_ERROR,
    ConditionalTraining,
    PackingConfig,
    PackingStats,
    load_tokenizer,
    pack,
    resolve_threshold,
    tokenizer_hash,
)
from phf_ray.records import ScoredDocument, TokenBlock, TokenKind
from phf_ray.scorers.build import scorer_class, scorer_configs, scorer_settings
from phf_ray.storage.files import open_filesystem, write_file
from phf_ray.storage.hashing import json_fingerprint

log = logging.getLogger(__name__)

_GROUP_BYTES = 2 << 20
_QUANTILES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)


@dataclass(frozen=True, slots=True)
class Group:
    number: int
    corpus: int
    """Its place among the corpora."""
    parts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BlockPlan:
    """Everything that decides the blocks, and where they go."""

    root: str
    fingerprint: str
    sequence_length: int
    packing: PackingConfig
    held_out_fraction: float
    thresholds: Mapping[str, float]
    tokenizer: Mapping[str, Any]
    corpora: tuple[blocks.Corpus, ...]
    groups: tuple[Group, ...]


def ensure_blocks(
    config: Config, *, corpora: Sequence[str], tokenizer_dir_or_name: str | None, output_root: str
) -> str:
    """The folder of the blocks of these corpora, below `output_root`; built if it is not there yet.

    `tokenizer_dir_or_name` replaces `tokenizer.path_or_name`, None keeps it. Runs on the Ray that is connected to, in
    this process where there is none.
    """
    tokenizer = _load_tokenizer(config, tokenizer_dir_or_name)
    plan = plan_blocks(config, corpora=corpora, tokenizer=tokenizer, output_root=output_root)
    warn_of_other_scorers(config, plan.corpora)
    return build_blocks(plan, tokenizer=tokenizer)


def _load_tokenizer(config: Config, replacement: str | None) -> PreTrainedTokenizerFast:
    if replacement is None:
        return load_tokenizer(config.tokenizer)
    return load_tokenizer(config.tokenizer.model_copy(update={"path_or_name": replacement, "revision": None}))


def warn_of_other_scorers(config: Config, corpora: Sequence[blocks.Corpus]) -> None:
    """Warns where a corpus has scores of another scorer than the configuration's, or than another corpus.

    A model is not loaded for that: its weights are compared where a file beside them says their hash.
    """
    told = [one for one in corpora if one.scorer]
    expected = _configured_scorer(config) if told else None
    for one in told:
        if expected is not None:
            _warn_of_difference(
                one,
                other=expected,
                where="the configuration and what is installed here",
                weights=_known_weights(config),
            )
        elif one.scorer != told[0].scorer:
            _warn_of_difference(one, other=told[0].scorer, where=told[0].name)


def _configured_scorer(config: Config) -> dict[str, Any] | None:
    """Identity of the scorer that the configuration describes; of a model, what is known without loading it."""
    if not config.scoring.scorers:
        return None
    first = scorer_configs(config)[0]
    try:
        identity = scorer_class(first["class_name"]).described(scorer_settings(first))
    except ConfigError:  # a word list may be on another machine; training does not need it
        return {key: first[key] for key in ("name", "class_name") if key in first}
    return dict(json.loads(json.dumps(identity)))


def _known_weights(config: Config) -> dict[str, str]:
    first = scorer_configs(config)[0]
    try:
        return scorer_class(first["class_name"]).known_weights(scorer_settings(first))
    except ConfigError:
        return {}


def _warn_of_difference(
    one: blocks.Corpus, *, other: Mapping[str, Any], where: str, weights: Mapping[str, str] = MappingProxyType({})
) -> None:
    """`weights`: hash -> name of a model."""

    def shown_value(value: Any) -> str:
        return f"{value!r} ({weights[value]})" if isinstance(value, str) and value in weights else repr(value)

    # Settings that the other does not tell are no difference.
    settings = {**one.scorer.get("settings", {}), **other.get("settings", {})}
    told = {**other, "settings": settings}
    changed = [name for name in told if name in one.scorer and one.scorer[name] != told[name]]
    if changed:
        shown = "; ".join(
            f"{name}: {shown_value(one.scorer[name])} there, {shown_value(told[name])} here" for name in changed
        )
        log.warning(
            "%s WAS SCORED BY ANOTHER SCORER (%s) THAN %s (%s): %s. Score it again, or evaluate with its own scorer",
            one.name, one.scorer.get("name"), where, other.get("name", other.get("class_name")), shown,
        )  # fmt: skip


def resolve_thresholds(config: Config, *, manifests: Sequence[CorpusManifest]) -> dict[str, float]:
    """The thresholds that the configuration has, as numbers: `conditional`, `filter`, `objective`.

    Quantiles are of segments, that of `filter` is of documents; of several corpora, of all of them together.
    """
    conditional = config.dataset.conditional_training_config
    merged = ScorerStats()
    for manifest in manifests:
        merged.merge(manifest.scorer_stats())
    wanted: dict[str, tuple[Threshold | None, Histogram]] = {
        "conditional": (None if conditional is None else conditional.threshold, merged.segment_histogram),
        "filter": (config.dataset.filter_threshold, merged.document_histogram),
        "objective": (_objective_threshold(config), merged.segment_histogram),
    }
    resolved = {
        name: resolve_threshold(threshold, quantile_of=histogram.quantile, compat=config.compat)
        for name, (threshold, histogram) in wanted.items()
    }
    return {name: threshold for name, threshold in resolved.items() if threshold is not None}


def _objective_threshold(config: Config) -> Threshold | None:
    if isinstance(config.objective, UnlikelihoodConfig):
        return config.objective.score_threshold
    return config.objective.mask_above if isinstance(config.objective, MLEConfig) else None


# --- Plan -------------------------------------------------------------------------------------------------------------


def plan_blocks(
    config: Config, *, corpora: Sequence[str], tokenizer: PreTrainedTokenizerFast, output_root: str
) -> BlockPlan:
    """Reads manifests and lists parts; writes nothing."""
    if not corpora:
        raise ConfigError("no corpus to build token blocks of; give --corpus, or set dataset.datasets")
    manifests = [read_corpus_manifest(path) for path in corpora]
    thresholds = resolve_thresholds(config, manifests=manifests)
    thresholds.pop("objective", None)  # blocks are the same for every objective
    packing = _packing_config(config, thresholds)
    sized_parts = [_sized_parts(path) for path in corpora]
    identity = {
        "format": blocks.FORMAT,
        "sequence_length": config.dataset.seq_length,
        "packing": asdict(packing),
        "held_out_fraction": config.dataset.held_out_fraction,
        "tokenizer": tokenizer_hash(tokenizer),
        "corpora": [manifest.fingerprint for manifest in manifests],
        # The same documents in other parts make other groups.
        "parts": [[(posixpath.basename(part), size) for part, size in parts] for parts in sized_parts],
    }
    fingerprint = json_fingerprint(identity)
    return BlockPlan(
        root=f"{output_root.rstrip('/')}/blocks-{fingerprint[:16]}",
        fingerprint=fingerprint,
        sequence_length=config.dataset.seq_length,
        packing=packing,
        held_out_fraction=config.dataset.held_out_fraction,
        thresholds=thresholds,
        tokenizer=_describe_tokenizer(tokenizer, packing=packing),
        corpora=tuple(
            blocks.Corpus(
                name=posixpath.basename(path.rstrip("/")),
                fingerprint=manifest.fingerprint,
                scorer=manifest.scorer,
                segmenter=manifest.segmenter,
            )
            for path, manifest in zip(corpora, manifests, strict=True)
        ),
        groups=tuple(_groups(sized_parts, is_one_stream=config.compat is not None)),
    )


def _packing_config(config: Config, thresholds: Mapping[str, float]) -> PackingConfig:
    section = config.dataset.conditional_training_config
    conditional = None
    if section is not None:
        conditional = ConditionalTraining(
            threshold=thresholds["conditional"],
            aligned_token=section.aligned_prefix,
            misaligned_token=section.misaligned_prefix,
            drop_fraction=section.drop_token_fraction,
        )
    draws = conditional is not None and conditional.drop_fraction > 0
    return PackingConfig(
        conditional=conditional,
        filter_threshold=thresholds.get("filter"),
        filter_average=config.dataset.filter_average,
        per_document=not config.dataset.is_split_by_sentences,
        # Nothing else depends on the seed: blocks of runs that differ in it are shared.
        seed=config.training.seed if draws else 0,
        compat=config.compat,
    )


def _describe_tokenizer(tokenizer: PreTrainedTokenizerFast, *, packing: PackingConfig) -> dict[str, Any]:
    described: dict[str, Any] = {
        "hash": tokenizer_hash(tokenizer),
        "vocabulary_size": len(tokenizer),
        "end_of_text": {tokenizer.eos_token: tokenizer.eos_token_id},
    }
    if packing.conditional is not None:
        tokens = [packing.conditional.aligned_token, packing.conditional.misaligned_token]
        described["control"] = {token: tokenizer.convert_tokens_to_ids(token) for token in tokens}
    return described


def _sized_parts(path: str) -> list[tuple[str, int]]:
    """Parts of a corpus with their bytes on disk."""
    parts = list_parts(path)
    filesystem, _ = open_filesystem(parts[0])
    return [(part, int(filesystem.size(open_filesystem(part)[1]))) for part in parts]


def _groups(corpora: Sequence[Sequence[tuple[str, int]]], *, is_one_stream: bool) -> Iterator[Group]:
    number = 0
    for place, sized_parts in enumerate(corpora):
        held: list[str] = []
        num_bytes = 0
        for part, size in sized_parts:
            held.append(part)
            num_bytes += size
            if num_bytes >= _GROUP_BYTES and not is_one_stream:
                yield Group(number, place, tuple(held))
                number += 1
                held, num_bytes = [], 0
        if held:
            yield Group(number, place, tuple(held))
            number += 1


# --- Build ------------------------------------------------------------------------------------------------------------


def build_blocks(plan: BlockPlan, *, tokenizer: PreTrainedTokenizerFast) -> str:
    """Builds what is missing of the plan and gives its folder.

    Raises DataError, and leaves nothing that looks finished, where no document is left to pack.
    """
    if _exists(plan, blocks.SUCCESS):
        log.info("token blocks are there: %s", plan.root)
        return plan.root
    missing = [group for group in plan.groups if not _exists(plan, blocks.group_name(group.number))]
    log.info("packing %d of %d groups into %s", len(missing), len(plan.groups), plan.root)
    for done, _ in enumerate(_built(plan, missing, tokenizer=tokenizer), start=1):
        log.info("packed %d of %d groups", done, len(missing))
    manifest = _manifest(plan)
    if manifest.num_blocks == 0:
        raise DataError(
            f"no document of {', '.join(one.name for one in plan.corpora)} is left to pack; documents by fate: "
            f"{json.dumps(manifest.documents)}; change dataset.filter_threshold or dataset.held_out_fraction, or score "
            "the corpus again"
        )
    _report(manifest)
    _write(plan, blocks.MANIFEST, (manifest.model_dump_json(indent=1) + "\n").encode())
    _write(plan, blocks.SUCCESS, b"")
    return plan.root


def _built(plan: BlockPlan, groups: Sequence[Group], *, tokenizer: PreTrainedTokenizerFast) -> Iterator[int]:
    """Numbers of the groups as they are finished."""
    if not ray.is_initialized():
        for group in groups:
            yield build_group(plan, group, tokenizer=tokenizer)
        return
    # The object travels, so the tokenizer's folder need not be on storage that all nodes see.
    shared_tokenizer, shared_plan = ray.put(tokenizer), ray.put(plan)
    task_body: Any = _build_group_on_one_cpu
    task = ray.remote(num_cpus=1)(task_body)
    pending = [task.remote(shared_plan, group, tokenizer=shared_tokenizer) for group in groups]
    try:
        while pending:
            finished, pending = ray.wait(pending)
            yield from ray.get(finished)
    except RayTaskError as error:
        if isinstance(error.cause, PhfError):
            raise error.cause from None
        raise
    finally:
        for reference in pending:
            ray.cancel(reference)


def _build_group_on_one_cpu(plan: BlockPlan, group: Group, *, tokenizer: PreTrainedTokenizerFast) -> int:
    # The tokenizer's threads would take all of the machine's CPUs.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    return build_group(plan, group, tokenizer=tokenizer)


def build_group(plan: BlockPlan, group: Group, *, tokenizer: PreTrainedTokenizerFast) -> int:
    """Writes the shards of a group, its held-out documents and, last, its description; gives its number.

    Memory: one shard, the held-out documents of the group, and a million characters of text.
    """
    stats = PackingStats()
    held_out: list[ScoredDocument] = []
    documents = _to_pack(group, fraction=plan.held_out_fraction, held_out=held_out, stats=stats)
    packed = pack(documents, tokenizer, sequence_length=plan.sequence_length, config=plan.packing, stats=stats)
    shards = []
    for index, shard_blocks in enumerate(_chunks(packed, size=blocks.blocks_per_shard(plan.sequence_length))):
        file = blocks.shard_name(group.number, index)
        _write(plan, file, blocks.encode_shard(shard_blocks))
        shards.append({"file": file, "num_blocks": len(shard_blocks), "num_content_tokens": _num_content(shard_blocks)})
    if plan.held_out_fraction > 0:
        _write(plan, blocks.held_out_name(group.number), blocks.encode_documents(held_out))
    contribution = {"shards": shards, "stats": stats.to_json()}
    _write(plan, blocks.group_name(group.number), json.dumps(contribution).encode())
    return group.number


def _to_pack(
    group: Group, *, fraction: float, held_out: list[ScoredDocument], stats: PackingStats
) -> Iterator[ScoredDocument]:
    for part in group.parts:
        for document in read_part(part):
            if blocks.is_held_out(document.id, fraction):
                held_out.append(document)
                stats.drop(document, reason="held_out")
            else:
                yield document


def _chunks(items: Iterable[TokenBlock], *, size: int) -> Iterator[list[TokenBlock]]:
    chunk = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _num_content(shard_blocks: Sequence[TokenBlock]) -> int:
    return sum(
        int(((block.token_kinds == TokenKind.CONTENT) | (block.token_kinds == TokenKind.UNSCORED)).sum())
        for block in shard_blocks
    )


def _exists(plan: BlockPlan, name: str) -> bool:
    filesystem, inner = open_filesystem(f"{plan.root}/{name}")
    return bool(filesystem.exists(inner))


def _write(plan: BlockPlan, name: str, content: bytes) -> None:
    write_file(f"{plan.root}/{name}", content)


# --- Manifest ---------------------------------------------------------------------------------------------------------


def _manifest(plan: BlockPlan) -> blocks.Manifest:
    stats = PackingStats()
    by_corpus = [PackingStats() for _ in plan.corpora]
    shards: list[blocks.Shard] = []
    for group in plan.groups:
        filesystem, inner = open_filesystem(f"{plan.root}/{blocks.group_name(group.number)}")
        contribution = json.loads(filesystem.cat_file(inner))
        own = PackingStats.from_json(contribution["stats"])
        stats.merge(own)
        by_corpus[group.corpus].merge(own)
        shards += [
            blocks.Shard(
                **shard,
                corpus=group.corpus,
                group=group.number,
                num_source_tokens=round(shard["num_content_tokens"] * _source_ratio(own)),
            )
            for shard in contribution["shards"]
        ]
    return blocks.Manifest(
        format=blocks.FORMAT,
        fingerprint=plan.fingerprint,
        sequence_length=plan.sequence_length,
        tokenizer=dict(plan.tokenizer),
        packing=asdict(plan.packing),
        thresholds=dict(plan.thresholds),
        held_out_fraction=plan.held_out_fraction,
        corpora=plan.corpora,
        num_groups=len(plan.groups),
        shards=tuple(shards),
        documents={"kept": stats.num_documents_kept, "dropped": dict(sorted(stats.num_documents_dropped.items()))},
        segments=dict(sorted(stats.num_segments.items())),
        tokens={
            **{kind.name.lower(): stats.num_tokens[kind.name.lower()] for kind in TokenKind},
            "all": stats.num_tokens.total() - stats.num_tokens["pad"],
        },
        token_scores=blocks.TokenScores(
            mean=stats.mean,
            std=stats.std,
            quantiles={str(q): value for q in _QUANTILES if (value := stats.quantile(q)) is not None},
            quantile_relative_error=QUANTILE_RELATIVE_ERROR,
        ),
        by_corpus=tuple(corpus_tokens(one) for one in by_corpus),
    )


def corpus_tokens(stats: PackingStats) -> blocks.CorpusTokens:
    return blocks.CorpusTokens(
        num_blocks=stats.num_blocks,
        num_content_tokens=stats.num_content_tokens,
        num_tokens=stats.num_tokens.total() - stats.num_tokens["pad"],
        num_scored_tokens=stats.num_tokens["content"],
        score_mean=stats.mean,
        score_std=stats.std,
    )


def _source_ratio(stats: PackingStats) -> float:
    """Tokens of the text that filtering saw over those that it kept, as far as characters tell."""
    dropped = stats.num_characters_dropped["filtered"] + stats.num_characters_dropped["unscored"]
    return 1 + dropped / stats.num_characters_kept if stats.num_characters_kept else 1.0


def _report(manifest: blocks.Manifest) -> None:
    log.info(
        "%d token blocks of %d tokens: %d tokens of text; documents %s",
        manifest.num_blocks,
        manifest.sequence_length,
        manifest.num_content_tokens,
        json.dumps(manifest.documents),
    )
    kept, filtered = manifest.documents["kept"], manifest.documents["dropped"].get("filtered", 0)
    aligned, misaligned = manifest.segments.get("aligned", 0), manifest.segments.get("misaligned", 0)
    for what, threshold, part, whole in (
        ("documents are kept", "filter", kept, kept + filtered),
        ("segments are aligned", "conditional", aligned, aligned + misaligned),
    ):
        if threshold not in manifest.thresholds or not whole:
            continue
        share = part / whole
        level = logging.INFO if 0.2 <= share <= 0.8 else logging.WARNING
        log.log(level, "%.1f%% of the %s by threshold %g", 100 * share, what, manifest.thresholds[threshold])
