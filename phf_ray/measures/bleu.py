"""Self-BLEU: how similar a model's samples are to each other."""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from phf_ray.config import Compat
from phf_ray.measures.intervals import mean
from phf_ray.measures.metric import Measures
from phf_ray.measures.ngrams import ngrams_of


class SelfBLEU:
    """Mean BLEU-n of each sample against other samples (Zhu et al. 2018): 1 if all samples are equal.

    Tokens are words. Each hypothesis is compared with `num_references` other samples, drawn with its own seed. If there
    are more than `num_hypotheses` samples, that many are drawn with the seed. Smoothing: no hits count as 0.1 hits
    (method 1 of Chen and Cherry), as in the original.
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
            # DIFFERS: phf-ray compares words and draws references with a seed; the original compares characters and
            # always takes the first 200 samples as references (D-3).
            corpus = BleuCorpus([list(text) for text in texts], self.n)
            drawn = [(i, [j for j in range(min(len(texts), 201)) if j != i][:200]) for i in range(len(texts))]
        else:
            corpus = BleuCorpus([text.split() for text in texts], self.n)
            drawn = [(i, self._references(i, len(texts))) for i in self._hypotheses(len(texts))]
        scores = [corpus.bleu(i, references) for i, references in drawn if references]
        return {f"Self-BLEU-{self.n}": mean(scores) if scores else None}

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
    """Computes BLEU of one text in a corpus against other texts; equals nltk's `sentence_bleu` with uniform weights.

    It counts n-grams once for the corpus, not once per pair of texts.
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
        """Return the largest count of the n-gram in any chosen text."""
        holders = self._holders[ngram]
        if len(holders) < len(chosen):
            return max((count for index, count in holders.items() if index in chosen), default=0)
        return max((holders.get(index, 0) for index in chosen), default=0)
