"""The manifest, which describes a folder of token blocks without reading them.

    shard-00000-000.parquet  blocks of group 0 (some consecutive parts of a corpus): input_ids int32[L],
                             token_scores float32[L], token_kinds uint8[L], and named numbers float32[L] where the
                             objective learns from them: `label`, `margin` (see `phf_ray.records`)
    rejected-00000.parquet   records of group 0 that could not be read, if any: source, record, reason, detail
    held-out-00000.parquet   documents of group 0 that are never packed: id, texts, scores
    group-00000.json         shards and counts of group 0; written last, so a group is either complete or built again
    manifest.json            shards and counts of all groups, and what they were made from
    _SUCCESS                 written last

The folder is named after the hash of everything that decides the blocks.
"""

from typing import Any

import fsspec
from pydantic import BaseModel, ConfigDict, ValidationError

from phf_ray.errors import DataError
from phf_ray.storage.licenses import licenses_of

FORMAT = 1
MANIFEST = "manifest.json"
SUCCESS = "_SUCCESS"


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Shard(_Entry):
    file: str
    corpus: int
    """Index in `corpora`."""
    group: int
    num_blocks: int
    num_content_tokens: int
    num_source_tokens: int
    """Tokens of corpus text that this shard covers, including those that filtering dropped, estimated from their
    characters. Source tokens measure positions in the stream, so that positions do not depend on filtering."""


class UnscoredText(_Entry):
    """A data set without scores, and what could be read of it."""

    unit: str
    """Document of a text file: `document`, the whole file, or `line`."""
    column: str | None
    """Column of the text in JSON lines and tables, if the user named it."""
    num_files: int
    num_bytes: int
    """On disk."""
    documents: int = 0
    rejected: dict[str, int] = {}
    """Records that could not be read, by reason."""
    lost: dict[str, int] = {}
    """Known to be missing because files could not be read to their end: `files`, `bytes`, `records`."""


class SourceCorpus(_Entry):
    name: str
    fingerprint: str
    scorer: dict[str, Any]
    segmenter: str
    unscored: UnscoredText | None = None
    """None: the corpus has scores, or is feedback."""
    beside_feedback: bool = False
    """Whether it is text in blocks whose other corpora are feedback."""
    sources: tuple[dict[str, str], ...] = ()
    """The data sets that the documents come from, with commit and licence if known; see `CorpusManifest.sources`."""


class TokenScores(_Entry):
    """Scores of the content tokens that have one, each token counted once."""

    mean: float | None
    std: float | None
    """Population standard deviation."""
    quantiles: dict[str, float]
    quantile_relative_error: float


class CorpusTokens(_Entry):
    """Counts and scores of the blocks of one corpus."""

    num_blocks: int
    num_content_tokens: int
    num_tokens: int
    """Without padding."""
    num_scored_tokens: int
    """Content tokens that have a score."""
    score_mean: float | None
    score_std: float | None


class HeldOutShard(_Entry):
    file: str
    num_blocks: int


class BlockManifest(_Entry):
    """Description of a folder of blocks, available without reading the blocks."""

    format: int
    fingerprint: str
    """Hash of everything that decides the blocks; the folder is named after it."""
    sequence_length: int
    tokenizer: dict[str, Any]
    packing: dict[str, Any]
    thresholds: dict[str, float]
    """`conditional` and `filter` as numbers."""
    held_out_fraction: float
    corpora: tuple[SourceCorpus, ...]
    num_groups: int
    """Includes groups without blocks."""
    shards: tuple[Shard, ...]
    documents: dict[str, Any]
    """`kept`: a number; `dropped`: numbers by reason."""
    segments: dict[str, int]
    tokens: dict[str, int]
    """By kind; `all` is everything but padding."""
    token_scores: TokenScores
    examples: dict[str, Any] | None = None
    """Settings of blocks that hold whole examples (`ExampleSettings`); None: a stream of text."""
    cut: dict[str, int] = {}
    """Rows of examples of which a part was cut: `prompts`, `completions`."""
    held_out_shards: tuple[HeldOutShard, ...] = ()
    """Held-out examples, packed like the others."""
    by_corpus: tuple[CorpusTokens, ...] = ()
    """In the order of `corpora`; empty if an older version built the blocks."""

    @property
    def unscored(self) -> list[str]:
        """Names of the data sets without scores."""
        return [corpus.name for corpus in self.corpora if corpus.unscored is not None]

    @property
    def texts_beside_feedback(self) -> tuple[int, ...]:
        """Indices of the corpora that are text while others are feedback."""
        return tuple(place for place, corpus in enumerate(self.corpora) if corpus.beside_feedback)

    @property
    def licenses(self) -> tuple[str, ...]:
        """Licences of the data, as far as known, each once."""
        return licenses_of(one for corpus in self.corpora for one in corpus.sources)

    @property
    def num_blocks(self) -> int:
        return sum(shard.num_blocks for shard in self.shards)

    @property
    def num_content_tokens(self) -> int:
        """Tokens of text, scored or not."""
        return sum(shard.num_content_tokens for shard in self.shards)

    def whole(self) -> CorpusTokens:
        """Return the counts and scores of all corpora together."""
        return CorpusTokens(
            num_blocks=self.num_blocks,
            num_content_tokens=self.num_content_tokens,
            num_tokens=self.tokens["all"],
            num_scored_tokens=self.tokens["content"],
            score_mean=self.token_scores.mean,
            score_std=self.token_scores.std,
        )


def read_block_manifest(root: str) -> BlockManifest:
    if not _exists(f"{root}/{SUCCESS}"):
        raise DataError(f"{root} holds no finished token blocks ({SUCCESS} is missing); run jobs.build_blocks again")
    try:
        manifest = BlockManifest.model_validate_json(read_block_file(f"{root}/{MANIFEST}"))
    except ValidationError as error:
        raise DataError(f"{root}/{MANIFEST} is not a manifest of token blocks: {error}; build them again") from None
    if manifest.format != FORMAT:
        raise DataError(f"{root} has block format {manifest.format}, but this version reads {FORMAT}; build them again")
    return manifest


def read_block_file(path: str) -> bytes:
    filesystem, inner = fsspec.core.url_to_fs(path)
    try:
        return bytes(filesystem.cat_file(inner))
    except OSError as error:
        raise DataError(f"{path} can't be read: {error}; build the blocks again") from None


def _exists(path: str) -> bool:
    filesystem, inner = fsspec.core.url_to_fs(path)
    return bool(filesystem.exists(inner))
