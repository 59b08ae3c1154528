"""Measures length, repetition, letters, and whether texts parse as Python."""

import ast
import warnings
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from phf_ray.measures.intervals import mean
from phf_ray.measures.metric import Measures
from phf_ray.measures.ngrams import ngrams_of


class Length:
    """Mean length in characters."""

    def __call__(self, texts: Sequence[str]) -> Measures:
        return {"length": mean([len(text) for text in texts]) if texts else None}


class Repetition:
    """Signs of degenerate text.

    - repetition: mean over samples of the share of 4-grams of words that repeat an earlier 4-gram of the sample.
    - longest_run: mean over samples of the longest run of one word, in words.
    - duplicates: share of samples whose text repeats an earlier sample's text.
    - empty: share of samples without any word.
    """

    def __call__(self, texts: Sequence[str]) -> Measures:
        if not texts:
            return dict.fromkeys(("repetition", "longest_run", "duplicates", "empty"))
        words = [text.split() for text in texts]
        repeated = [1 - len(set(ngrams)) / len(ngrams) for ngrams in (ngrams_of(ws, 4) for ws in words) if ngrams]
        return {
            "repetition": mean(repeated) if repeated else None,
            "longest_run": mean([_longest_run(ws) for ws in words]),
            "duplicates": 1 - len(set(texts)) / len(texts),
            "empty": sum(not ws for ws in words) / len(words),
        }


class Letters:
    """few_letters: share of samples with words of which letters are less than a quarter of the characters.

    Such a sample is digits, signs and white space. Letters are those of all scripts.
    """

    def __call__(self, texts: Sequence[str]) -> Measures:
        if not texts:
            return {"few_letters": None}
        few = [bool(text.strip()) and 4 * sum(map(str.isalpha, text)) < len(text) for text in texts]
        return {"few_letters": mean(few)}


def _longest_run(words: Sequence[str]) -> int:
    longest = run = min(1, len(words))
    for previous, word in pairwise(words):
        run = run + 1 if word == previous else 1
        longest = max(longest, run)
    return longest


class Compilability:
    """Share of texts that Python can parse unchanged. A sample cut at its token limit often can't be parsed.

    - compilability: share of texts for which `ast.parse` succeeds.
    - compilability_nonempty: share of texts that also have a statement. Empty texts and mere comments parse, too.
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
    """Return `parses`, `empty` (no statement), or the name of the error with which parsing fails."""
    try:
        with warnings.catch_warnings():
            # Invalid escapes and `1 is 1` warn; under `python -W error` the warning would turn into a SyntaxError.
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    # ValueError: NUL characters, lone surrogates. RecursionError, MemoryError: nesting beyond the parser's own stack.
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return type(error).__name__
    return "parses" if tree.body else "empty"
