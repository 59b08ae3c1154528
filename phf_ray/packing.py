"""Scored documents to token blocks of fixed length: tokenize, place control tokens, concatenate and cut.

Each document is tokenized once, whole, exactly as its plain text would be; scores reach tokens by character offsets. An
end-of-text token goes before each document. A document is cut where a block ends and goes on in the next one; only the
last block of a stream is padded. Price: at most L - 1 padded positions per stream.

A token that crosses the border of two segments (` Then` after `. `) belongs to the segment of its first character that
is not white space, or of its last character if it has none; a token inside one segment always belongs to it.

Special tokens spelled out in a text are text: `<|endoftext|>` in a document becomes ordinary tokens, never a separator.
"""

import bisect
import copy
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from phf_ray.config import Quantile, Threshold, TokenizerConfig
from phf_ray.errors import ConfigError, DataError
from phf_ray.records import ScoredDocument, TokenBlock, TokenKind

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

Compat = Literal["korbak2023"] | None

# Documents are tokenized together up to this many characters, so memory does not depend on the corpus.
_BATCH_CHARS = 1_000_000
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
# The original's buffer: num_of_sequences = 1024 sequences of chars_per_token = 3.6 characters a token.
_KORBAK2023_BUFFER_CHARS_PER_POSITION = 3.6 * 1024


@dataclass(frozen=True, slots=True)
class ConditionalTraining:
    """A control token before each segment, by its score (Eq. 5)."""

    threshold: float
    """Segments scoring at most this are aligned."""
    aligned_token: str = "<|aligned|>"
    misaligned_token: str = "<|misaligned|>"
    drop_fraction: float = 0.0
    """Probability, per segment, of no control token."""


@dataclass(frozen=True, slots=True)
class PackingConfig:
    """What a block depends on beside its documents, the tokenizer and the length."""

    conditional: ConditionalTraining | None = None
    filter_threshold: float | None = None
    """Documents whose average score is above this, or that have none, are dropped (Eq. 4)."""
    filter_average: Literal["segments", "tokens"] = "segments"
    """What counts alike in the average of a document."""
    per_document: bool = False
    """Each document is one segment that scores its average: one control token per document."""
    seed: int = 42
    """Of the segments that get no control token."""
    compat: Compat = None


# Scores are counted in bins whose borders grow by 2^(1/32), with a bin of its own for zero and mirrored for negative
# scores; a quantile read from them is within 1.1% of the true one.
_BINS_PER_OCTAVE = 32
# The smallest float32 is 2^-149; with this offset every bin of a positive score has a positive number.
_BIN_OFFSET = 160 * _BINS_PER_OCTAVE
QUANTILE_RELATIVE_ERROR = 2 ** (0.5 / _BINS_PER_OCTAVE) - 1


@dataclass(slots=True)
class PackingStats:
    """Counts of what was packed. Sums of two parts are the counts of both (`merge`)."""

    num_blocks: int = 0
    num_documents_kept: int = 0
    num_documents_dropped: Counter[str] = field(default_factory=Counter)
    """By reason: empty, lone_surrogate, filtered, unscored, special_token_in_text, held_out."""
    num_characters_kept: int = 0
    num_characters_dropped: Counter[str] = field(default_factory=Counter)
    """By reason, as the documents."""
    num_segments: Counter[str] = field(default_factory=Counter)
    """aligned and misaligned by the conditional threshold, dropped_control among them, unscored. Segments that own no
    token are not counted."""
    num_tokens: Counter[str] = field(default_factory=Counter)
    """By lower-case name of TokenKind."""
    score_sum: float = 0.0
    score_square_sum: float = 0.0
    score_min: float = math.inf
    score_max: float = -math.inf
    score_bins: Counter[int] = field(default_factory=Counter)
    """Scores of content tokens (kind 0), in log bins."""

    @property
    def num_content_tokens(self) -> int:
        """Tokens of text, scored or not."""
        return self.num_tokens["content"] + self.num_tokens["unscored"]

    @property
    def mean(self) -> float | None:
        """Mean score of the content tokens that have one; None without any."""
        scored = self.num_tokens["content"]
        return self.score_sum / scored if scored else None

    @property
    def std(self) -> float | None:
        """Population standard deviation of the scores of content tokens."""
        scored = self.num_tokens["content"]
        if not scored:
            return None
        mean = self.score_sum / scored
        return math.sqrt(max(0.0, self.score_square_sum / scored - mean * mean))

    def quantile(self, q: float) -> float | None:
        """The score that a share q of the content tokens does not exceed, within QUANTILE_RELATIVE_ERROR."""
        remaining = q * self.num_tokens["content"]
        for number in sorted(self.score_bins):
            remaining -= self.score_bins[number]
            if remaining <= 0:
                return min(max(_bin_middle(number), self.score_min), self.score_max)
        return self.score_max if self.score_bins else None

    def drop(self, document: ScoredDocument, *, reason: str) -> None:
        self.num_documents_dropped[reason] += 1
        self.num_characters_dropped[reason] += sum(map(len, document.texts))

    def keep(self, document: ScoredDocument) -> None:
        self.num_documents_kept += 1
        self.num_characters_kept += sum(map(len, document.texts))

    def add_block(self, block: TokenBlock) -> None:
        self.num_blocks += 1
        for kind, count in enumerate(np.bincount(block.token_kinds).tolist()):
            if count:
                self.num_tokens[TokenKind(kind).name.lower()] += count
        values, counts = np.unique(block.token_scores[block.token_kinds == TokenKind.CONTENT], return_counts=True)
        if not len(values):
            return
        scores = values.astype(np.float64)
        self.score_sum += float(scores @ counts)
        self.score_square_sum += float((scores * scores) @ counts)
        self.score_min = min(self.score_min, float(scores[0]))
        self.score_max = max(self.score_max, float(scores[-1]))
        for number, count in zip(_bins(scores).tolist(), counts.tolist(), strict=True):
            self.score_bins[number] += count

    def merge(self, other: "PackingStats") -> None:
        self.num_blocks += other.num_blocks
        self.num_documents_kept += other.num_documents_kept
        self.score_sum += other.score_sum
        self.score_square_sum += other.score_square_sum
        self.score_min = min(self.score_min, other.score_min)
        self.score_max = max(self.score_max, other.score_max)
        self.num_characters_kept += other.num_characters_kept
        for mine, others in (
            (self.num_documents_dropped, other.num_documents_dropped),
            (self.num_characters_dropped, other.num_characters_dropped),
            (self.num_segments, other.num_segments),
            (self.num_tokens, other.num_tokens),
        ):
            mine.update(others)
        self.score_bins.update(other.score_bins)

    def to_json(self) -> dict[str, Any]:
        """All counts, from which `from_json` makes an equal object. JSON has no infinity: no score, no range."""
        return {
            "num_blocks": self.num_blocks,
            "num_documents_kept": self.num_documents_kept,
            "num_documents_dropped": dict(sorted(self.num_documents_dropped.items())),
            "num_characters_kept": self.num_characters_kept,
            "num_characters_dropped": dict(sorted(self.num_characters_dropped.items())),
            "num_segments": dict(sorted(self.num_segments.items())),
            "num_tokens": dict(sorted(self.num_tokens.items())),
            "score_sum": self.score_sum,
            "score_square_sum": self.score_square_sum,
            "score_range": [self.score_min, self.score_max] if self.score_bins else None,
            "score_bins": {str(number): count for number, count in sorted(self.score_bins.items())},
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "PackingStats":
        low, high = values["score_range"] or (math.inf, -math.inf)
        return cls(
            num_blocks=values["num_blocks"],
            num_documents_kept=values["num_documents_kept"],
            num_documents_dropped=Counter(values["num_documents_dropped"]),
            num_characters_kept=values["num_characters_kept"],
            num_characters_dropped=Counter(values["num_characters_dropped"]),
            num_segments=Counter(values["num_segments"]),
            num_tokens=Counter(values["num_tokens"]),
            score_sum=values["score_sum"],
            score_square_sum=values["score_square_sum"],
            score_min=low,
            score_max=high,
            score_bins=Counter({int(number): count for number, count in values["score_bins"].items()}),
        )


def load_tokenizer(config: TokenizerConfig) -> "PreTrainedTokenizerFast":
    """The tokenizer with `special_tokens` added to it: those that are new get ids from the end of the vocabulary."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast  # imports torch where it is installed

    try:
        tokenizer = AutoTokenizer.from_pretrained(config.path_or_name, revision=config.revision)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"tokenizer.path_or_name={config.path_or_name!r} could not be loaded: {reason}; give a folder with "
            "tokenizer.json, or a hub name that is in the cache or can be downloaded"
        ) from None
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ConfigError(
            f"tokenizer.path_or_name={config.path_or_name!r} is a {type(tokenizer).__name__}, which has no "
            "character offsets; use one with a tokenizer.json"
        )
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            f"tokenizer.path_or_name={config.path_or_name!r} has no end-of-text token, which separates documents; "
            "set eos_token in its tokenizer_config.json"
        )
    if config.special_tokens:
        tokenizer.add_special_tokens(
            {"extra_special_tokens": list(config.special_tokens)}, replace_extra_special_tokens=False
        )
    return tokenizer


def tokenizer_hash(tokenizer: "PreTrainedTokenizerFast") -> str:
    """Equal for tokenizers that make the same tokens of every text, with the same structural tokens."""
    structure = [tokenizer.eos_token, tokenizer.eos_token_id, tokenizer.pad_token_id]
    text = json.dumps([_text_only_backend(tokenizer).to_str(), structure])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def resolve_threshold(
    threshold: Threshold | None, *, quantile_of: Callable[[float], float | None], compat: Compat
) -> float | None:
    """The threshold as a number; None stays None. `quantile_of` reads the corpus manifest.

    Under `compat: korbak2023` a quantile gives the paper's number, which belongs to the paper's corpora.
    """
    if not isinstance(threshold, Quantile):
        return threshold
    if compat == "korbak2023":
        if threshold.korbak2023 is None:
            raise ConfigError(
                f"threshold {{quantile: {threshold.quantile}}} has no number of the paper, which compat: korbak2023 "
                "asks for; write the threshold as a number"
            )
        return threshold.korbak2023
    resolved = quantile_of(threshold.quantile)
    if resolved is None:
        raise DataError(
            f"threshold {{quantile: {threshold.quantile}}} can't be read from a corpus without a single score; "
            "see `errors` in its parts and run jobs.score_corpus again"
        )
    return resolved


def pack(
    documents: Iterable[ScoredDocument],
    tokenizer: "PreTrainedTokenizerFast",
    *,
    sequence_length: int,
    config: PackingConfig | None = None,
    stats: PackingStats | None = None,
) -> Iterator[TokenBlock]:
    """Blocks of `sequence_length` tokens, in the order of the documents; memory does not grow with their number.

    `stats`, where given, is added to as blocks are yielded. The tokenizer is left as it is.

    Raises ConfigError at once if the tokenizer lacks the tokens that the config names.
    """
    config = config or PackingConfig()
    if sequence_length < 2:
        raise ConfigError(f"sequence_length={sequence_length} leaves nothing to predict; use 2 or more")
    structure = _Structure.of(tokenizer, config=config)
    stats = PackingStats() if stats is None else stats
    if config.compat == "korbak2023":
        buffers = _korbak2023_buffers(documents, tokenizer, length=sequence_length, config=config, stats=stats)
        streams = (_korbak2023_tokens(buffer, tokenizer, structure=structure) for buffer in buffers)
        # DIFFERS: ours pads the last block of a stream; original drops the tail of each buffer of 3.6 x 1024 x L
        # characters, about 0.05% of all tokens, and cuts a document in two there.
        blocks: Iterable[TokenBlock] = chain.from_iterable(
            _cut(stream, length=sequence_length, pad_id=None) for stream in streams
        )
    else:
        tokens = _document_tokens(documents, tokenizer, structure=structure, config=config, stats=stats)
        blocks = _cut(tokens, length=sequence_length, pad_id=structure.pad_id)
    return _counted(blocks, stats)


def _counted(blocks: Iterable[TokenBlock], stats: PackingStats) -> Iterator[TokenBlock]:
    for block in blocks:
        stats.add_block(block)
        yield block


@dataclass(frozen=True, slots=True)
class _Structure:
    """Ids of the tokens that are not text."""

    end_of_text_id: int
    pad_id: int
    aligned_id: int | None
    misaligned_id: int | None

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerFast", *, config: PackingConfig) -> "_Structure":
        end_of_text = tokenizer.eos_token_id
        if end_of_text is None:
            raise ConfigError("the tokenizer has no eos_token, which separates documents; set one")
        pad = end_of_text if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        conditional = config.conditional
        if conditional is None:
            return cls(end_of_text, pad, None, None)
        return cls(
            end_of_text,
            pad,
            _token_id(tokenizer, conditional.aligned_token),
            _token_id(tokenizer, conditional.misaligned_token),
        )

    def ids(self) -> list[int]:
        return [number for number in (self.end_of_text_id, self.aligned_id, self.misaligned_id) if number is not None]


def _token_id(tokenizer: "PreTrainedTokenizerFast", token: str) -> int:
    number = tokenizer.convert_tokens_to_ids(token)
    if not isinstance(number, int) or (number == tokenizer.unk_token_id and token != tokenizer.unk_token):
        raise ConfigError(
            f"the tokenizer has no token {token!r} of conditional training; add it to tokenizer.special_tokens"
        )
    return number


@dataclass(frozen=True, slots=True)
class _Tokens:
    """Arrays as in TokenBlock, of any length."""

    ids: NDArray[np.int32]
    scores: NDArray[np.float32]
    kinds: NDArray[np.uint8]


def _cut(parts: Iterable[_Tokens], *, length: int, pad_id: int | None) -> Iterator[TokenBlock]:
    """Blocks of the concatenated parts; the incomplete last one is padded, or dropped if there is no `pad_id`."""
    held: list[_Tokens] = []
    size = 0
    for part in parts:
        held.append(part)
        size += len(part.ids)
        if size < length:
            continue
        joined = _join(held)
        whole = size // length * length
        for begin in range(0, whole, length):
            span = slice(begin, begin + length)
            yield TokenBlock(joined.ids[span].copy(), joined.scores[span].copy(), joined.kinds[span].copy())
        # A copy, so that a long document is not kept alive by its last few tokens.
        held = [_Tokens(joined.ids[whole:].copy(), joined.scores[whole:].copy(), joined.kinds[whole:].copy())]
        size -= whole
    if size and pad_id is not None:
        missing = length - size
        held.append(
            _Tokens(
                np.full(missing, pad_id, np.int32),
                np.zeros(missing, np.float32),
                np.full(missing, TokenKind.PAD, np.uint8),
            )
        )
        joined = _join(held)
        yield TokenBlock(joined.ids, joined.scores, joined.kinds)


def _join(parts: Sequence[_Tokens]) -> _Tokens:
    return _Tokens(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.kinds for part in parts]),
    )


def _kept(
    documents: Iterable[ScoredDocument], *, config: PackingConfig, stats: PackingStats
) -> Iterator[ScoredDocument]:
    for document in documents:
        reason = _reason_to_drop(document, config)
        if reason is None:
            yield _as_one_segment(document) if config.per_document else document
        else:
            stats.drop(document, reason=reason)


def _reason_to_drop(document: ScoredDocument, config: PackingConfig) -> str | None:
    if not any(document.texts):
        return "empty"
    if any(_LONE_SURROGATE.search(text) for text in document.texts):
        return "lone_surrogate"
    # DIFFERS: ours decides document by document; original lets documents through until a token counter has passed
    # skip_tokens, and some more after it.
    if config.filter_average == "segments":
        return _reason_to_filter(document.avg_score, config)
    return None


def _reason_to_filter(average: float | None, config: PackingConfig) -> str | None:
    if config.filter_threshold is None:
        return None
    if average is None or not math.isfinite(average):
        return "unscored"
    return "filtered" if average > config.filter_threshold else None


def _as_one_segment(document: ScoredDocument) -> ScoredDocument:
    # DIFFERS: ours gives a document that is not split one control token, by its average score; original gives it
    # none.
    average = document.avg_score
    error = None if average is not None else "no segment of the document has a score"
    return ScoredDocument(document.id, (document.text,), (average,), (error,), document.meta)


def _document_tokens(
    documents: Iterable[ScoredDocument],
    tokenizer: "PreTrainedTokenizerFast",
    *,
    structure: _Structure,
    config: PackingConfig,
    stats: PackingStats,
) -> Iterator[_Tokens]:
    # DIFFERS: ours tokenizes the document whole; original tokenizes each segment on its own, which turns `. Then` into
    # `.`, ` `, `Then`.
    backend = _text_only_backend(tokenizer)
    for batch in _batches(_kept(documents, config=config, stats=stats)):
        encodings = backend.encode_batch([document.text for document in batch], add_special_tokens=False)
        for document, encoding in zip(batch, encodings, strict=True):
            ids = np.array(encoding.ids, dtype=np.int32)
            if not len(ids):
                stats.drop(document, reason="empty")
            elif np.isin(ids, structure.ids()).any():
                # A tokenizer whose ordinary vocabulary spells out a special token: nothing tells it from a real one.
                stats.drop(document, reason="special_token_in_text")
            else:
                owners = _owners(encoding, document.texts)
                if config.filter_average == "tokens":
                    reason = _reason_to_filter(_average_of_tokens(document, owners), config)
                    if reason is not None:
                        stats.drop(document, reason=reason)
                        continue
                stats.keep(document)
                yield _with_structure(ids, owners, document=document, structure=structure, config=config, stats=stats)


def _average_of_tokens(document: ScoredDocument, owners: NDArray[np.int64]) -> float | None:
    """Mean over the tokens that have a score; None without any."""
    scores = _scores_of_segments(document)[owners]
    scores = scores[np.isfinite(scores)]
    return float(scores.mean()) if len(scores) else None


def _scores_of_segments(document: ScoredDocument) -> NDArray[np.float64]:
    return np.array([math.nan if score is None else score for score in document.scores], np.float64)


def _text_only_backend(tokenizer: "PreTrainedTokenizerFast") -> "Tokenizer":
    """A copy of the tokenizer's engine that takes special tokens in a text as text and adds nothing, nor truncates."""
    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    backend.encode_special_tokens = True
    # It adds special tokens, and some trim the spaces off the offsets, which makes them useless for tokens of spaces.
    backend.post_processor = None
    backend.no_padding()
    backend.no_truncation()
    return backend


def _batches(documents: Iterable[ScoredDocument]) -> Iterator[list[ScoredDocument]]:
    batch: list[ScoredDocument] = []
    num_chars = 0
    for document in documents:
        batch.append(document)
        num_chars += sum(map(len, document.texts))
        if num_chars >= _BATCH_CHARS:
            yield batch
            batch, num_chars = [], 0
    if batch:
        yield batch


def _owners(encoding: Any, texts: Sequence[str]) -> NDArray[np.int64]:
    """The number of the segment that each token belongs to, non-decreasing."""
    if len(texts) == 1:
        return np.zeros(len(encoding.ids), np.int64)
    segment_begins = list(accumulate(map(len, texts[:-1]), initial=0))
    text = "".join(texts)
    offsets = np.fromiter(chain.from_iterable(encoding.offsets), np.int64, 2 * len(encoding.ids)).reshape(-1, 2)
    # Some tokenizers give a token of white space the empty range at its end, which for the last one is past the text.
    begins = np.minimum(offsets[:, 0], len(text) - 1)
    ends = np.maximum(offsets[:, 1], begins + 1)
    owners: NDArray[np.int64] = np.searchsorted(segment_begins, begins, side="right") - 1
    crossing = owners != np.searchsorted(segment_begins, ends - 1, side="right") - 1
    for token in np.flatnonzero(crossing).tolist():
        begin, end = int(begins[token]), int(ends[token])
        blank = end - begin - len(text[begin:end].lstrip())
        owners[token] = bisect.bisect_right(segment_begins, min(begin + blank, end - 1)) - 1
    # A character of several bytes can be several tokens, even with a neighbor's bytes in them: all follow the first,
    # so that nothing is ever inserted inside a character.
    reached = np.maximum.accumulate(ends)
    is_fresh = np.ones(len(begins), bool)
    is_fresh[1:] = begins[1:] >= reached[:-1]
    first_of_group = np.maximum.accumulate(np.where(is_fresh, np.arange(len(begins)), 0))
    return np.maximum.accumulate(owners[first_of_group])


def _with_structure(
    ids: NDArray[np.int32],
    owners: NDArray[np.int64],
    *,
    document: ScoredDocument,
    structure: _Structure,
    config: PackingConfig,
    stats: PackingStats,
) -> _Tokens:
    """The document's tokens after an end-of-text token, with control tokens where segments begin."""
    scores = _scores_of_segments(document)[owners]
    is_scored = np.isfinite(scores)
    kinds = np.where(is_scored, TokenKind.CONTENT, TokenKind.UNSCORED).astype(np.uint8)
    scores = np.where(is_scored, scores, 0.0).astype(np.float32)
    at, inserted = [0], [structure.end_of_text_id]
    for position in [0, *(np.flatnonzero(np.diff(owners)) + 1).tolist()]:
        segment = int(owners[position])
        control = _control_id(document, segment, structure=structure, config=config, stats=stats)
        if control is not None:
            at.append(position)
            inserted.append(control)
    # DIFFERS: ours gives end-of-text and control tokens the neutral score 0 and kinds of their own; original gives
    # them the score of the segment that follows.
    structure_kinds = [TokenKind.END_OF_TEXT] + [TokenKind.CONTROL] * (len(inserted) - 1)
    return _Tokens(np.insert(ids, at, inserted), np.insert(scores, at, 0.0), np.insert(kinds, at, structure_kinds))


def _control_id(
    document: ScoredDocument, segment: int, *, structure: _Structure, config: PackingConfig, stats: PackingStats
) -> int | None:
    score = document.scores[segment]
    if score is None or not math.isfinite(score):
        stats.num_segments["unscored"] += 1
        return None
    if config.conditional is None:
        return None
    is_aligned = score <= config.conditional.threshold
    stats.num_segments["aligned" if is_aligned else "misaligned"] += 1
    if is_control_dropped(document.id, segment, seed=config.seed, fraction=config.conditional.drop_fraction):
        stats.num_segments["dropped_control"] += 1
        return None
    return structure.aligned_id if is_aligned else structure.misaligned_id


def is_control_dropped(document_id: str, segment: int, *, seed: int, fraction: float) -> bool:
    """Whether this segment goes without a control token, with probability `fraction`."""
    # DIFFERS: ours hashes (seed, document, segment), the same everywhere and after every restart; original draws from
    # the global random state, which any other draw shifts (C-3).
    if fraction <= 0:
        return False
    digest = hashlib.blake2b(f"{seed}\0{document_id}\0{segment}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


def _korbak2023_buffers(
    documents: Iterable[ScoredDocument],
    tokenizer: "PreTrainedTokenizerFast",
    *,
    length: int,
    config: PackingConfig,
    stats: PackingStats,
) -> Iterator[list[tuple[str, float | None]]]:
    """Segments with the strings of their structural tokens before them, and their scores, by the original's buffers."""
    buffer: list[tuple[str, float | None]] = []
    num_chars = 0
    for document in _kept(documents, config=config, stats=stats):
        stats.keep(document)
        for segment, (text, score) in enumerate(zip(document.texts, document.scores, strict=True)):
            separator = str(tokenizer.eos_token) if segment == 0 else ""
            prefixed = separator + _korbak2023_prefix(document, segment, config=config, stats=stats) + text
            buffer.append((prefixed, score))
            num_chars += len(prefixed)
        if num_chars >= length * _KORBAK2023_BUFFER_CHARS_PER_POSITION:
            yield buffer
            buffer, num_chars = [], 0
    if buffer:
        yield buffer


def _korbak2023_prefix(document: ScoredDocument, segment: int, *, config: PackingConfig, stats: PackingStats) -> str:
    # Ids are of no use here: the strings are tokenized together with the text.
    numbered = _Structure(end_of_text_id=-1, pad_id=-1, aligned_id=1, misaligned_id=0)
    control = _control_id(document, segment, structure=numbered, config=config, stats=stats)
    if control is None or config.conditional is None:
        return ""
    return config.conditional.aligned_token if control == 1 else config.conditional.misaligned_token


def _korbak2023_tokens(
    buffer: Sequence[tuple[str, float | None]], tokenizer: "PreTrainedTokenizerFast", *, structure: _Structure
) -> list[_Tokens]:
    """As the original: each segment tokenized on its own, its score on all of its tokens, structural ones too (A-3)."""
    encoded = tokenizer([text for text, _ in buffer], truncation=False, verbose=False)["input_ids"]
    parts = []
    for row, (_, score) in zip(encoded, buffer, strict=True):
        ids = np.array(row, np.int32)
        kinds = np.full(len(ids), TokenKind.CONTENT if score is not None else TokenKind.UNSCORED, np.uint8)
        kinds[ids == structure.end_of_text_id] = TokenKind.END_OF_TEXT
        kinds[np.isin(ids, structure.ids()[1:])] = TokenKind.CONTROL
        parts.append(_Tokens(ids, np.full(len(ids), 0.0 if score is None else score, np.float32), kinds))
    return parts


def _bins(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """Number of each score's bin; bins are ordered as scores are."""
    magnitude = np.abs(scores)
    exponent = np.log2(magnitude, out=np.zeros_like(magnitude), where=magnitude > 0)
    numbers = np.floor(exponent * _BINS_PER_OCTAVE) + _BIN_OFFSET
    return np.where(magnitude > 0, np.sign(scores) * numbers, 0).astype(np.int64)


def _bin_middle(number: int) -> float:
    if number == 0:
        return 0.0
    return math.copysign(2.0 ** ((abs(number) - _BIN_OFFSET + 0.5) / _BINS_PER_OCTAVE), number)
