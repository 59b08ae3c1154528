"""Measures the diversity of texts by their n-grams of words."""

from collections import Counter
from collections.abc import Sequence
from itertools import islice

import numpy as np

from phf_ray.config import Compat
from phf_ray.measures.intervals import mean
from phf_ray.measures.metric import Measures


def ngrams_of(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[start:] for start in range(n)), strict=False))


class NGramStats:
    """Diversity of n-grams of words (runs of non-space characters, as in the original).

    - distinct-n-grams: mean over samples of distinct / all n-grams in the sample. Longer samples have lower ratios.
    - distinct-n-grams_corpus: distinct / all among the first `num_ngrams` n-grams of all samples together, the ratio of
      Li et al. It falls as the text grows, so compare arms at equal `num_ngrams`.
    - distinct-n-grams_in_batch: number of distinct n-grams in all samples together.
    - entropy-n-grams: entropy of the distribution of all n-grams, in nats.
    """

    def __init__(self, n: int, *, num_ngrams: int | None = None, compat: Compat = None):
        self.n = n
        self._num_ngrams = num_ngrams
        self._compat = compat

    def __call__(self, texts: Sequence[str]) -> Measures:
        per_text = [ngrams_of(text.split(), self.n) for text in texts]
        ratios = [len(set(ngrams)) / len(ngrams) for ngrams in per_text if ngrams]
        if self._compat == "korbak2023":
            # DIFFERS: phf-ray leaves out samples of fewer than n words, which have no ratio; the original counts
            # them as 0 (D-17).
            ratios += [0.0] * sum(not ngrams for ngrams in per_text)
        counts = Counter(ngram for ngrams in per_text for ngram in ngrams)
        first = list(islice((ngram for ngrams in per_text for ngram in ngrams), self._num_ngrams))
        return {
            f"distinct-{self.n}-grams": mean(ratios) if ratios else None,
            f"distinct-{self.n}-grams_corpus": len(set(first)) / len(first) if first else None,
            f"distinct-{self.n}-grams_in_batch": float(len(counts)),
            f"entropy-{self.n}-grams": _entropy(list(counts.values())) if counts else None,
        }


def count_ngrams(texts: Sequence[str], n: int) -> int:
    return sum(max(0, len(text.split()) - n + 1) for text in texts)


def _entropy(counts: Sequence[int]) -> float:
    shares = np.array(counts, dtype=np.float64) / sum(counts)
    return float(-(shares * np.log(shares)).sum())
