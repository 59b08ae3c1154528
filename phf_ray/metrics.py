"""What is measured on samples: scores, length, diversity, repetition, whether code parses.

Scores are higher-is-worse everywhere. A sample without a score, or one that was never drawn, is counted apart and is in
no mean. What can't be computed (a maximum over 25 samples out of 10) is None, never 0 or NaN.
"""

import ast
import math
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from phf_ray.config import MetricConfig
from phf_ray.errors import ConfigError, DataError

Floats = NDArray[np.float64]
Measures = dict[str, float | None]

Compat = Literal["korbak2023"] | None


# -- Scores -----------------------------------------------------------------------------------------------------------


def order_statistic_weights(num_samples: int, k: int) -> Floats:
    """Weight of each sample, sorted ascending, in the expected maximum of k of them: shape (num_samples,), sum 1.

    Weight of the i-th smallest (from 1): C(i - 1, k - 1) / C(n, k), 0 for i < k. Computed from the largest down, where
    it is k / n, so that no binomial coefficient overflows.
    """
    if not 1 <= k <= num_samples:
        raise DataError(f"the maximum of {k} out of {num_samples} samples is not defined; draw at least {k} samples")
    i = np.arange(num_samples, k, -1, dtype=np.float64)
    downward = k / num_samples * np.cumprod(np.concatenate([[1.0], (i - k) / (i - 1)]))
    weights = np.zeros(num_samples)
    weights[k - 1 :] = downward[::-1]
    return weights


def max_at_k(scores: Sequence[float] | Floats, k: int, *, compat: Compat = None) -> float | None:
    """Expected maximum of k samples drawn without replacement from `scores`, exactly; None for fewer than k scores.

    Of 0/1 scores it is the probability that at least one of k samples is a hit.
    """
    values = np.asarray(scores, dtype=np.float64)
    if not 1 <= k <= len(values):
        return None
    if compat == "korbak2023":
        # DIFFERS: ours exact order statistic; original mean over strided chunks of k, remainder dropped (D-4).
        whole = len(values) // k * k
        return float(values[:whole].reshape(k, -1).max(axis=0).mean())
    return float(np.sort(values) @ order_statistic_weights(len(values), k))


def grouped_max_at_k(groups: Sequence[Sequence[float]], k: int, *, compat: Compat = None) -> float | None:
    """Mean over groups (prompts) of the expected maximum of k samples of a group; groups of fewer than k have none.

    None if no group has k scores.
    """
    if compat == "korbak2023":
        return max_at_k([score for group in groups for score in group], k, compat=compat)
    known = [value for value in (max_at_k(group, k) for group in groups) if value is not None]
    return math.fsum(known) / len(known) if known else None


@dataclass(frozen=True, slots=True)
class Interval:
    """Percentile bootstrap interval [low, high]."""

    low: float
    high: float

    def overlaps(self, other: "Interval") -> bool:
        return self.low <= other.high and other.low <= self.high


_RESAMPLED_AT_ONCE = 1 << 22
"""Numbers held at once by the bootstrap: 32 MiB of indices."""


def _resampled_means(groups: Sequence[Sequence[float]], draws: Callable[[int], NDArray[np.int64]], num: int) -> Floats:
    sums = np.array([math.fsum(group) for group in groups])
    counts = np.array([len(group) for group in groups], dtype=np.float64)
    rows = max(1, _RESAMPLED_AT_ONCE // len(groups))
    means = [
        sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
        for drawn in (draws(min(rows, num - start)) for start in range(0, num, rows))
    ]
    return np.concatenate(means)


def _interval(values: Floats, level: float) -> Interval:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def bootstrap_mean(
    groups: Sequence[Sequence[float]], *, seed: int = 0, num_resamples: int = 2000, level: float = 0.95
) -> Interval | None:
    """Interval of the mean over all values, where groups are drawn with replacement.

    A group is what was drawn independently: a single sample, or all samples of one prompt. None for fewer than 2
    groups, from which nothing can be said about the spread.
    """
    groups = [group for group in groups if len(group)]
    if len(groups) < 2:
        return None
    rng = np.random.default_rng(seed)
    num_groups = len(groups)
    return _interval(
        _resampled_means(groups, lambda rows: rng.integers(num_groups, size=(rows, num_groups)), num_resamples), level
    )


def bootstrap_difference(
    first: Mapping[Hashable, Sequence[float]],
    second: Mapping[Hashable, Sequence[float]],
    *,
    paired: bool,
    seed: int = 0,
    num_resamples: int = 2000,
    level: float = 0.95,
) -> tuple[float, Interval] | None:
    """Mean of `first` minus mean of `second`, and its interval; both map a group's key to its values.

    Paired: the groups (prompts) that both have are drawn once for both. Otherwise each side draws its own.
    None where a side has fewer than 2 groups.
    """
    if paired:
        keys: list[Hashable] = [key for key in first if first[key] and second.get(key)]
        first, second = {key: first[key] for key in keys}, {key: second[key] for key in keys}
    sides = [[values for values in side.values() if values] for side in (first, second)]
    if min(len(side) for side in sides) < 2:
        return None
    means = []
    for offset, side in enumerate(sides):
        rng = np.random.default_rng(seed if paired else [seed, offset])
        num_groups = len(side)

        def draw(rows: int, rng: np.random.Generator = rng, num_groups: int = num_groups) -> NDArray[np.int64]:
            return rng.integers(num_groups, size=(rows, num_groups))

        means.append(_resampled_means(side, draw, num_resamples))
    difference = _mean(_flat(sides[0])) - _mean(_flat(sides[1]))
    return difference, _interval(means[0] - means[1], level)


def bootstrap_max_at_k(
    scores: Sequence[float], ks: Sequence[int], *, seed: int = 0, num_resamples: int = 500, level: float = 0.95
) -> list[Interval]:
    """Interval of `max_at_k(scores, k)` for each k, all from the same resamples."""
    values = np.asarray(scores, dtype=np.float64)
    rng = np.random.default_rng(seed)
    weights = np.stack([order_statistic_weights(len(values), k) for k in ks], axis=1)
    rows = max(1, _RESAMPLED_AT_ONCE // len(values))
    maxima = np.concatenate(
        [
            np.sort(values[rng.integers(len(values), size=(min(rows, num_resamples - start), len(values)))], axis=1)
            @ weights
            for start in range(0, num_resamples, rows)
        ]
    )
    return [_interval(maxima[:, column], level) for column in range(len(ks))]


def pareto_front(points: Sequence[tuple[str, float, float]]) -> list[str]:
    """Names of the (name, x, y) that no other one is below in one and not above in the other."""

    def is_beaten(mine: tuple[str, float, float]) -> bool:
        return any(theirs[1] <= mine[1] and theirs[2] <= mine[2] and theirs[1:] != mine[1:] for theirs in points)

    return [point[0] for point in points if not is_beaten(point)]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _flat(groups: Sequence[Sequence[float]]) -> list[float]:
    return [value for group in groups for value in group]


# -- Texts ------------------------------------------------------------------------------------------------------------


class Metric(Protocol):
    def __call__(self, texts: Sequence[str]) -> Measures:
        """Measures of the texts by name; None where the texts do not define it."""
        ...


class Length:
    """Mean length in characters."""

    def __call__(self, texts: Sequence[str]) -> Measures:
        return {"length": _mean([len(text) for text in texts]) if texts else None}


def ngrams_of(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[start:] for start in range(n)), strict=False))


class NGramStats:
    """Diversity of n-grams of words (runs of non-space characters, as in the original).

    - distinct-n-grams: mean over samples of distinct / all n-grams of the sample. Longer samples have lower ratios.
    - distinct-n-grams_corpus: distinct / all over the first `num_ngrams` n-grams of all samples together, the ratio of
      Li et al. It falls with the amount of text, so arms are compared at equal `num_ngrams`.
    - distinct-n-grams_in_batch: how many different n-grams all samples have.
    - entropy-n-grams: of their distribution, in nats.
    """

    def __init__(self, n: int, *, num_ngrams: int | None = None, compat: Compat = None):
        self.n = n
        self._num_ngrams = num_ngrams
        self._compat = compat

    def __call__(self, texts: Sequence[str]) -> Measures:
        per_text = [ngrams_of(text.split(), self.n) for text in texts]
        ratios = [len(set(ngrams)) / len(ngrams) for ngrams in per_text if ngrams]
        if self._compat == "korbak2023":
            # DIFFERS: ours leaves out samples of fewer than n words, which have no ratio; original counts 0 (D-17).
            ratios += [0.0] * sum(not ngrams for ngrams in per_text)
        counts = Counter(ngram for ngrams in per_text for ngram in ngrams)
        first = list(islice((ngram for ngrams in per_text for ngram in ngrams), self._num_ngrams))
        return {
            f"distinct-{self.n}-grams": _mean(ratios) if ratios else None,
            f"distinct-{self.n}-grams_corpus": len(set(first)) / len(first) if first else None,
            f"distinct-{self.n}-grams_in_batch": float(len(counts)),
            f"entropy-{self.n}-grams": _entropy(list(counts.values())) if counts else None,
        }


def count_ngrams(texts: Sequence[str], n: int) -> int:
    return sum(max(0, len(text.split()) - n + 1) for text in texts)


def _entropy(counts: Sequence[int]) -> float:
    shares = np.array(counts, dtype=np.float64) / sum(counts)
    return float(-(shares * np.log(shares)).sum())


class Repetition:
    """Signs of degenerate text.

    - repetition: mean over samples of the share of 4-grams of words that the sample has had before.
    - longest_run: mean over samples of the longest run of one word, in words.
    - duplicates: share of samples whose text an earlier sample has.
    - empty: share of samples with no word at all.
    """

    def __call__(self, texts: Sequence[str]) -> Measures:
        if not texts:
            return dict.fromkeys(("repetition", "longest_run", "duplicates", "empty"))
        words = [text.split() for text in texts]
        repeated = [1 - len(set(ngrams)) / len(ngrams) for ngrams in (ngrams_of(ws, 4) for ws in words) if ngrams]
        return {
            "repetition": _mean(repeated) if repeated else None,
            "longest_run": _mean([_longest_run(ws) for ws in words]),
            "duplicates": 1 - len(set(texts)) / len(texts),
            "empty": sum(not ws for ws in words) / len(words),
        }


def _longest_run(words: Sequence[str]) -> int:
    longest = run = min(1, len(words))
    for previous, word in pairwise(words):
        run = run + 1 if word == previous else 1
        longest = max(longest, run)
    return longest


class SelfBLEU:
    """Mean BLEU-n of each sample against other samples (Zhu et al. 2018): 1 when all are alike.

    Tokens are words. Every hypothesis has `num_references` others, drawn with a seed of its own; more than
    `num_hypotheses` samples are cut to that many, drawn with the seed. Smoothing: 0.1 hits where there is none (method
    1 of Chen and Cherry), as in the original.
    """

    def __init__(
        self,
        n: int = 5,
        *,
        num_references: int = 200,
        num_hypotheses: int = 1000,
        seed: int = 0,
        compat: Compat = None,
    ):
        self.n = n
        self._num_references = num_references
        self._num_hypotheses = num_hypotheses
        self._seed = seed
        self._compat = compat

    def __call__(self, texts: Sequence[str]) -> Measures:
        if self._compat == "korbak2023":
            # DIFFERS: ours words and references drawn with a seed; original characters, and always the first 200 (D-3).
            corpus = BleuCorpus([list(text) for text in texts], self.n)
            drawn = [(i, [j for j in range(min(len(texts), 201)) if j != i][:200]) for i in range(len(texts))]
        else:
            corpus = BleuCorpus([text.split() for text in texts], self.n)
            drawn = [(i, self._references(i, len(texts))) for i in self._hypotheses(len(texts))]
        scores = [corpus.bleu(i, references) for i, references in drawn if references]
        return {f"Self-BLEU-{self.n}": _mean(scores) if scores else None}

    def _hypotheses(self, num_texts: int) -> list[int]:
        if num_texts <= self._num_hypotheses:
            return list(range(num_texts))
        rng = np.random.default_rng(self._seed)
        return sorted(rng.choice(num_texts, size=self._num_hypotheses, replace=False).tolist())

    def _references(self, hypothesis: int, num_texts: int) -> list[int]:
        rng = np.random.default_rng([self._seed, hypothesis])
        others = rng.choice(num_texts - 1, size=min(self._num_references, num_texts - 1), replace=False)
        return sorted((others + (others >= hypothesis)).tolist())


class BleuCorpus:
    """BLEU of one text of a corpus against others of it, equal to nltk's `sentence_bleu` with uniform weights.

    N-grams are counted once for the corpus, not once per pair of texts.
    """

    def __init__(self, tokens: Sequence[Sequence[str]], max_order: int):
        self._lengths = [len(text) for text in tokens]
        self._max_order = max_order
        self._counts = [[Counter(ngrams_of(text, order)) for order in range(1, max_order + 1)] for text in tokens]
        self._holders: dict[tuple[str, ...], dict[int, int]] = defaultdict(dict)
        for index, orders in enumerate(self._counts):
            for counts in orders:
                for ngram, count in counts.items():
                    self._holders[ngram][index] = count

    def bleu(self, hypothesis: int, references: Sequence[int]) -> float:
        chosen = set(references)
        precisions: list[float] = []
        for counts in self._counts[hypothesis]:
            hits = sum(min(count, self._most(ngram, chosen)) for ngram, count in counts.items())
            if not precisions and not hits:
                return 0.0
            precisions.append((hits or 0.1) / max(1, counts.total()))
        length = self._lengths[hypothesis]
        closest = min((self._lengths[index] for index in references), key=lambda other: (abs(other - length), other))
        brevity = 1.0 if length > closest else math.exp(1 - closest / length)
        return brevity * math.exp(math.fsum(map(math.log, precisions)) / self._max_order)

    def _most(self, ngram: tuple[str, ...], chosen: set[int]) -> int:
        """Largest count of the n-gram in a chosen text."""
        holders = self._holders[ngram]
        if len(holders) < len(chosen):
            return max((count for index, count in holders.items() if index in chosen), default=0)
        return max((holders.get(index, 0) for index in chosen), default=0)


class Compilability:
    """Share of texts that Python parses, as they are: a sample cut at its token limit often does not.

    - compilability: share for which `ast.parse` succeeds.
    - compilability_nonempty: share that also holds a statement; an empty text or comments alone parse, too.
    """

    def __call__(self, texts: Sequence[str]) -> Measures:
        if not texts:
            return {"compilability": None, "compilability_nonempty": None}
        outcomes = Counter(parse_outcome(text) for text in texts)
        return {
            "compilability": (outcomes["parses"] + outcomes["empty"]) / len(texts),
            "compilability_nonempty": outcomes["parses"] / len(texts),
        }


def parse_outcome(text: str) -> str:
    """`parses`, `empty` (no statement), or why Python can't parse the text: the name of the error."""
    try:
        with warnings.catch_warnings():
            # Invalid escapes and `1 is 1` warn; under `python -W error` the warning would turn into a SyntaxError.
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    # ValueError: NUL characters, lone surrogates. RecursionError, MemoryError: nesting beyond the parser's own stack.
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return type(error).__name__
    return "parses" if tree.body else "empty"


def build_metric(config: MetricConfig, *, compat: Compat = None) -> Metric:
    match config.class_name:
        case "Length":
            return Length()
        case "NGramStats":
            if config.n is None:
                raise ConfigError(
                    "generation.metrics_configs: NGramStats needs n; write {class_name: NGramStats, n: 1}"
                )
            return NGramStats(config.n, compat=compat)
        case "SelfBLEU" | "SelfBlEU":
            return SelfBLEU(5 if config.n is None else config.n, compat=compat)
        case "Compilability":
            return Compilability()
