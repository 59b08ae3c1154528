"""Builds the manifest of finished token blocks from the shards and counts of each group."""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict

from phf_ray.blocks.example_rows import ExampleSettings
from phf_ray.blocks.manifest import FORMAT, BlockManifest, CorpusTokens, HeldOutShard, Shard, SourceCorpus, TokenScores
from phf_ray.blocks.plan import BlockPlan, contributions
from phf_ray.blocks.stats import PackingStats
from phf_ray.corpus.stats import CorpusStats
from phf_ray.measures.histogram import Histogram
from phf_ray.records import TokenKind

log = logging.getLogger(__name__)


_QUANTILES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)


def summarize_blocks(plan: BlockPlan, *, read: Mapping[int, CorpusStats]) -> BlockManifest:
    """`read`: what was read of the data sets without scores, by their number in the plan."""
    stats = PackingStats()
    by_corpus = [PackingStats() for _ in plan.corpora]
    shards: list[Shard] = []
    held_out: list[HeldOutShard] = []
    described = contributions(plan, [group.number for group in plan.groups])
    for group, contribution in zip(plan.groups, described, strict=True):
        own = PackingStats.from_json(contribution["stats"])
        stats.merge(own)
        by_corpus[group.corpus].merge(own)
        held_out += [HeldOutShard(**shard) for shard in contribution.get("held_out", [])]
        shards += [
            Shard(
                **shard,
                corpus=group.corpus,
                group=group.number,
                num_source_tokens=round(shard["num_content_tokens"] * _source_ratio(own)),
            )
            for shard in contribution["shards"]
        ]
    return BlockManifest(
        format=FORMAT,
        fingerprint=plan.fingerprint,
        sequence_length=plan.sequence_length,
        tokenizer=dict(plan.tokenizer),
        packing=asdict(plan.packing),
        thresholds=dict(plan.thresholds),
        held_out_fraction=plan.held_out_fraction,
        corpora=tuple(_with_counts(corpus, read.get(place)) for place, corpus in enumerate(plan.corpora)),
        num_groups=len(plan.groups),
        shards=tuple(shards),
        documents={"kept": stats.num_documents_kept, "dropped": dict(sorted(stats.num_documents_dropped.items()))},
        segments=dict(sorted(stats.num_segments.items())),
        tokens={
            **{kind.name.lower(): stats.num_tokens[kind.name.lower()] for kind in TokenKind},
            "all": stats.num_tokens.total() - stats.num_tokens["pad"],
        },
        token_scores=TokenScores(
            mean=stats.scores.mean,
            std=stats.scores.std,
            quantiles={str(q): stats.scores.quantile(q) for q in _QUANTILES} if stats.scores.count else {},
            quantile_relative_error=round(Histogram.RATIO - 1, 6),
        ),
        examples=None if plan.examples is None else asdict(plan.examples),
        cut=dict(sorted(stats.num_cut.items())),
        held_out_shards=tuple(held_out),
        by_corpus=tuple(corpus_tokens(one) for one in by_corpus),
    )


def _with_counts(corpus: SourceCorpus, read: CorpusStats | None) -> SourceCorpus:
    if corpus.unscored is None or read is None:
        return corpus
    losses = read.losses
    counts = {
        "documents": read.documents,
        "rejected": dict(sorted(read.rejected.items())),
        "lost": {"files": len(losses.files), "bytes": losses.num_bytes, "records": losses.records} if losses else {},
    }
    return corpus.model_copy(update={"unscored": corpus.unscored.model_copy(update=counts)})


def corpus_tokens(stats: PackingStats) -> CorpusTokens:
    return CorpusTokens(
        num_blocks=stats.num_blocks,
        num_content_tokens=stats.num_content_tokens,
        num_tokens=stats.num_tokens.total() - stats.num_tokens["pad"],
        num_scored_tokens=stats.num_tokens["content"],
        score_mean=stats.scores.mean,
        score_std=stats.scores.std,
    )


def _source_ratio(stats: PackingStats) -> float:
    """Estimate, from characters, the ratio of the tokens before filtering to the tokens after it."""
    dropped = stats.num_characters_dropped["filtered"] + stats.num_characters_dropped["unscored"]
    return 1 + dropped / stats.num_characters_kept if stats.num_characters_kept else 1.0


def report_blocks(manifest: BlockManifest) -> None:
    log.info(
        "%d token blocks of %d tokens: %d tokens of text; documents %s",
        manifest.num_blocks,
        manifest.sequence_length,
        manifest.num_content_tokens,
        json.dumps(manifest.documents),
    )
    for corpus in manifest.corpora:
        if corpus.unscored is not None:
            rejected = corpus.unscored.rejected
            log.log(
                logging.WARNING if rejected else logging.INFO,
                "%s: text without scores, %d documents, %d records rejected%s",
                corpus.name,
                corpus.unscored.documents,
                sum(rejected.values()),
                f" {json.dumps(rejected)}" if rejected else "",
            )
    if manifest.examples is not None:
        _warn_of_dropped_rows(manifest)
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


_LONGER = "raise dataset.max_length, or dataset.seq_length where that is not set"
_REMEDIES = {
    "template_cannot_hold_it": "choose another dataset.prompt_template, one that holds several turns",
    "prompt_has_no_room": _LONGER,
    "no_margin": "give each pair a number in column margin, or set objective.margin: preference or a number",
    "too_long": _LONGER,
    "no_other_prompt": "KTO needs answers to at least two prompts",
    "special_token_in_text": "their words spell out special tokens of the tokenizer",
    "tokenizer_has_no_bos": "their fields name <|bos|>, which the tokenizer lacks; leave it out",
}


def remedies(manifest: BlockManifest) -> list[tuple[str, str]]:
    """Return the reasons for which rows were left out and what to do, as far as something can be done."""
    return [(reason, remedy) for reason, remedy in _REMEDIES.items() if manifest.documents["dropped"].get(reason)]


def row_settings(examples: ExampleSettings, manifest: BlockManifest) -> str:
    """Return which settings decide what becomes a row, where none is left."""
    if {reason for reason, count in manifest.documents["dropped"].items() if count} == {"held_out"}:
        fraction = manifest.held_out_fraction
        return f"change dataset.held_out_fraction ({fraction:g}): rows with the same prompt are held out together"
    if examples.prompts == "fields":
        return f"change the fields of the records, or dataset.seq_length ({examples.row_length} tokens for a record)"
    return f"change dataset.prompt_template ({examples.template}) or dataset.max_length ({examples.row_length})"


def _warn_of_dropped_rows(manifest: BlockManifest) -> None:
    dropped = manifest.documents["dropped"]
    total = manifest.documents["kept"] + sum(dropped.values())
    for reason, remedy in _REMEDIES.items():
        if dropped.get(reason, 0) > 0.05 * total:
            log.warning("%d of %d rows are left out (%s): %s", dropped[reason], total, reason, remedy)
