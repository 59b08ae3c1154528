"""Cutting sentences, beside spaCy's tokenizer over all of the text. Each text is timed once: none was seen before.

python -m benchmarks.bench_sentences
python -m benchmarks.bench_sentences --compare 20000      # the same sentences in as many hard texts
"""

import argparse
import random
import statistics
import sys
import time
from pathlib import Path

from benchmarks.bench_score import machine, python_manual, read_corpus
from phf_ray.corpus.sentences import SentenceSplitter
from tests.support.sentence_texts import SpacySentences, nasty_text

CORPORA = ("text_web", "text_peps", "text_sotu", "text_wikitext2", "tox_civil", "tox_tweets", "pii_anon")
BOUND = 4.0
SEED = 20261201


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="corpora, used where present")
    parser.add_argument("--rounds", type=int, default=5, help="parts of each corpus, each timed once")
    parser.add_argument("--characters", type=int, default=300_000, help="of each corpus")
    parser.add_argument("--compare", type=int, default=0, metavar="N", help="hard texts to compare")
    options = parser.parse_args()
    print(machine(), flush=True)
    if options.compare:
        return compare(options.compare)
    corpora = {name: read_corpus(options.data, name, max_chars=options.characters) for name in CORPORA}
    corpora = {name: texts for name, texts in corpora.items() if texts}
    for name, texts in (corpora or {"Python manual": python_manual(options.characters)}).items():
        print(line(name, texts, rounds=options.rounds), flush=True)
    return 0


def line(name: str, texts: list[str], *, rounds: int) -> str:
    spacy, ours = SpacySentences(), SentenceSplitter(east_asian=False)
    for splitter in (spacy, ours):
        splitter("A first call builds what later ones need. It is not timed.")
    ratios, speeds = [], []
    for part in range(min(rounds, len(texts))):
        unseen = texts[part::rounds]
        begin = time.process_time()
        expected = [spacy(text) for text in unseen]
        middle = time.process_time()
        found = [ours(text) for text in unseen]
        end = time.process_time()
        if found != expected:
            raise SystemExit(f"different sentences in {name}")
        ratios.append((middle - begin) / (end - middle))
        speeds.append(sum(map(len, unseen)) / (end - middle))
    median = statistics.median(ratios)
    verdict = "met" if median >= BOUND else "within noise" if max(ratios) >= BOUND else "missed"
    return (
        f"sentences: {name:15} {len(texts):5} texts {median:6.2f}x  ({min(ratios):.2f}-{max(ratios):.2f})  "
        f"bound {BOUND:g}x: {verdict:12} ours {statistics.median(speeds):,.0f} chars/s"
    )


def compare(count: int) -> int:
    spacy, ours, rng = SpacySentences(), SentenceSplitter(east_asian=False), random.Random(SEED)
    cut = 0
    for number in range(count):
        text = nasty_text(rng)
        expected = spacy(text)
        if ours(text) != expected:
            raise SystemExit(f"text {number} of seed {SEED} has other sentences than spaCy's: {text!r}")
        cut += len(expected)
    print(f"{count:,} hard texts: the same {cut:,} sentences", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
