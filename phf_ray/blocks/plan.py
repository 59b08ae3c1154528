"""Plans the token blocks of some corpora: everything that decides the blocks, and the groups in which they are built.

The blocks of a group depend only on the corpus, the tokenizer and the configuration. So they are the same for any
number of workers, two builders that run at once write the same bytes, and after a crash only unfinished groups are
built again. The price: the last block of each group is padded. A group takes parts until it holds 2 MB of Parquet, some
2 M tokens, so at L = 1024 padding stays below 0.05%. Under compat a corpus is one group, because the original reads it
as one stream.
"""

import json
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from transformers import PreTrainedTokenizerFast

from phf_ray.blocks.example_rows import ExampleSettings
from phf_ray.blocks.feedback_corpora import OpenFeedback, check_feedback, open_feedback
from phf_ray.blocks.manifest import FORMAT, SourceCorpus, UnscoredText
from phf_ray.blocks.settings import ConditionalTraining, PackingConfig
from phf_ray.blocks.shards import group_name
from phf_ray.blocks.thresholds import resolve_thresholds
from phf_ray.blocks.tokenizer import tokenizer_hash
from phf_ray.config import Config
from phf_ray.corpus.data_sets import open_data_sets
from phf_ray.corpus.find import would_read
from phf_ray.corpus.manifest import CorpusManifest
from phf_ray.corpus.sources import sources_of
from phf_ray.corpus.stored import Part, StoredCorpus
from phf_ray.errors import ConfigError
from phf_ray.feedback.layout import is_feedback_corpus
from phf_ray.storage.at_once import at_once
from phf_ray.storage.data_set_names import short_name
from phf_ray.storage.files import full_name, open_filesystem, write_file
from phf_ray.storage.hashing import json_fingerprint

_GROUP_BYTES = 2 << 20
_MEMORY = "statistics"
"""Folder next to the blocks with the statistics of data sets without a manifest."""


@dataclass(frozen=True, slots=True)
class Group:
    number: int
    corpus: int
    """Index in `BlockPlan.corpora`."""
    parts: tuple[Part, ...]


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
    corpora: tuple[SourceCorpus, ...]
    groups: tuple[Group, ...]
    manifests: tuple[CorpusManifest, ...] = ()
    """Of the corpora of text, in the order of `corpora`."""
    examples: ExampleSettings | None = None
    """None: the blocks are a stream of text."""
    max_failed_fraction: float = 0.0
    """Share of the records of a data set without scores that may be unreadable."""

    def examples_of(self, group: "Group") -> ExampleSettings | None:
        """Return the settings of a group of feedback; None for text, of which nothing is held out beside feedback."""
        return None if self.corpora[group.corpus].beside_feedback else self.examples


def plan_blocks(
    config: Config,
    *,
    corpora: Sequence[str],
    tokenizer: PreTrainedTokenizerFast,
    output_root: str,
    remembers: bool = False,
) -> BlockPlan:
    """Plan from the corpora's manifests and lists of parts.

    `remembers`: whether to keep the statistics of data sets without a manifest in `output_root`, for the next plan.
    Raises ConfigError if a data set has no scores and the configuration reads them.
    """
    if not corpora:
        raise ConfigError("no corpus to build token blocks from; give --corpus, or set dataset.datasets")
    feedback = check_feedback(config, corpora)
    opened = _open_texts(
        config,
        [path for path in corpora if not feedback or not is_feedback_corpus(path)],
        output_root=output_root,
        remembers=remembers,
    )
    if feedback:
        paths = [path for path in corpora if is_feedback_corpus(path)]
        opened_feedback = open_feedback(config, paths, feedback, tokenizer=tokenizer)
        is_text = [not is_feedback_corpus(path) for path in corpora]
        return _plan_examples(
            config, opened_feedback, opened, is_text=is_text, tokenizer=tokenizer, output_root=output_root
        )
    manifests = [corpus.manifest for corpus in opened]
    thresholds = resolve_thresholds(config, manifests=manifests)
    thresholds.pop("objective", None)  # blocks are the same for every objective
    packing = _packing_config(config, thresholds)
    identity = {
        "format": FORMAT,
        "sequence_length": config.dataset.seq_length,
        "packing": asdict(packing),
        "held_out_fraction": config.dataset.held_out_fraction,
        "tokenizer": tokenizer_hash(tokenizer),
        "corpora": [manifest.fingerprint for manifest in manifests],
        # The same documents, divided into other parts, make other groups.
        "parts": [[(posixpath.basename(part.label), part.size) for part in corpus.parts] for corpus in opened],
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
        corpora=tuple(_source(config, corpus) for corpus in opened),
        manifests=tuple(manifests),
        groups=tuple(_groups([corpus.parts for corpus in opened], is_one_stream=config.original is not None)),
        max_failed_fraction=config.scoring.max_failed_fraction,
    )


def _open_texts(config: Config, paths: Sequence[str], *, output_root: str, remembers: bool) -> Sequence[StoredCorpus]:
    if not paths:
        return []
    memory = f"{output_root.rstrip('/')}/{_MEMORY}"
    opened = open_data_sets(config, paths, memory=memory, remembers=remembers)
    for corpus in opened:
        _refuse_output_in_input(corpus, output_root)
    return opened


def _plan_examples(
    config: Config,
    opened: OpenFeedback,
    texts: Sequence[StoredCorpus],
    *,
    is_text: Sequence[bool],
    tokenizer: PreTrainedTokenizerFast,
    output_root: str,
) -> BlockPlan:
    """`is_text`: of each corpus in their order, whether it is one of `texts`."""
    packing = PackingConfig()
    feedback_left, texts_left = iter(zip(opened.corpora, opened.parts, strict=True)), iter(texts)
    corpora: list[SourceCorpus] = []
    parts: list[Sequence[Part]] = []
    for one_is_text in is_text:
        if one_is_text:
            text = next(texts_left)
            corpora.append(_source(config, text).model_copy(update={"beside_feedback": True}))
            parts.append(text.parts)
        else:
            source, own = next(feedback_left)
            corpora.append(source)
            parts.append(own)
    settings = asdict(opened.settings) | {"template": None}
    del settings["prompts"]
    identity = {
        "format": FORMAT,
        "sequence_length": config.dataset.seq_length,
        "examples": settings,
        "held_out_fraction": config.dataset.held_out_fraction,
        "tokenizer": tokenizer_hash(tokenizer),
        "corpora": [corpus.fingerprint for corpus in corpora],
        "parts": [[(posixpath.basename(part.label), part.size) for part in own] for own in parts],
    }
    fingerprint = json_fingerprint(identity)
    return BlockPlan(
        root=f"{output_root.rstrip('/')}/blocks-{fingerprint[:16]}",
        fingerprint=fingerprint,
        sequence_length=config.dataset.seq_length,
        packing=packing,
        held_out_fraction=config.dataset.held_out_fraction,
        thresholds={},
        tokenizer=_describe_tokenizer(tokenizer, packing=packing),
        corpora=tuple(corpora),
        examples=opened.settings,
        groups=tuple(_groups(parts, is_one_stream=False)),
        manifests=tuple(text.manifest for text in texts),
        max_failed_fraction=config.scoring.max_failed_fraction,
    )


def _refuse_output_in_input(corpus: StoredCorpus, output_root: str) -> None:
    """Refuse blocks that the next plan would read as text."""
    if corpus.manifest.is_scored:
        return
    folder = full_name(*open_filesystem(output_root))
    if would_read(corpus.path, folder, names=("a.parquet", "a.json", "a.jsonl")):
        raise ConfigError(
            f"the token blocks in {output_root} would lie in data set {corpus.path} and be read as text; give another "
            "folder for them, or name the data set's own folder or files"
        )


def _source(config: Config, corpus: StoredCorpus) -> SourceCorpus:
    unscored = None
    if not corpus.manifest.is_scored:
        unscored = UnscoredText(
            unit=config.dataset.text_unit,
            column=config.dataset.text_column,
            num_files=corpus.num_files,
            num_bytes=corpus.num_bytes,
        )
    return SourceCorpus(
        name=short_name(corpus.path),
        fingerprint=corpus.manifest.fingerprint,
        scorer=corpus.manifest.scorer,
        segmenter=corpus.manifest.segmenter,
        unscored=unscored,
        sources=sources_of(corpus.path, corpus.manifest),
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
        # Nothing else depends on the seed, so runs with different seeds share blocks.
        seed=config.training.seed if draws else 0,
        compat=config.original,
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


def _groups(corpora: Sequence[Sequence[Part]], *, is_one_stream: bool) -> Iterator[Group]:
    number = 0
    for place, parts in enumerate(corpora):
        held: list[Part] = []
        num_bytes = 0
        for part in parts:
            held.append(part)
            num_bytes += part.size
            if num_bytes >= _GROUP_BYTES and not is_one_stream:
                yield Group(number, place, tuple(held))
                number += 1
                held, num_bytes = [], 0
        if held:
            yield Group(number, place, tuple(held))
            number += 1


def exists_in(plan: BlockPlan, name: str) -> bool:
    filesystem, inner = open_filesystem(f"{plan.root}/{name}")
    return bool(filesystem.exists(inner))


def names_in(plan: BlockPlan) -> set[str]:
    """Return the names of all files of the blocks, with one listing."""
    filesystem, inner = open_filesystem(plan.root)
    if not filesystem.exists(inner):
        return set()
    return {posixpath.basename(str(name)) for name in filesystem.ls(inner, detail=False, refresh=True)}


def contributions(plan: BlockPlan, groups: Iterable[int]) -> Iterator[dict[str, Any]]:
    """Yield the descriptions of finished groups, in the order of their numbers as given."""
    filesystem, root = open_filesystem(plan.root)
    files = (posixpath.join(root, group_name(group)) for group in groups)
    return at_once(lambda file: dict(json.loads(filesystem.cat_file(file))), files)


def write_in(plan: BlockPlan, name: str, content: bytes) -> None:
    write_file(f"{plan.root}/{name}", content)
