"""PII by mode: recall and precision by entity on labelled corpora, and the cost of a character, each text seen once.

    python -m benchmarks.bench_pii_modes [--data DIR] [--every 1] [--tiny]

A label is recalled if a detection of its entity covers half of it; a detection is precise if it overlaps such a label.
The corpora do not label all that is in them: of pii_anon's phone numbers and MAC addresses some have no label, which
lowers every detector's precision alike. If presidio-analyzer is installed, its patterns are measured beside, without a
model of names. The cost is CPU time of one core; the modes take turns, ten texts at a time, so that the machine is the
same for both and no text is cached. The ratios are by document, then in sentences.
"""

import argparse
import gzip
import itertools
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.bench_score import machine, python_manual, read_corpus

LABELS = {
    "ADDRESS": "address",
    "API_KEY": "api_key",
    "CREDIT_CARD": "credit_card",
    "CREDIT_CARD_NUMBER": "credit_card",
    "CRYPTOCURRENCY_ADDRESS": "crypto_wallet",
    "DATE_OF_BIRTH": "date_of_birth",
    "DOMAIN_NAME": "url",
    "EMAIL_ADDRESS": "email",
    "IBAN": "iban",
    "IP_ADDRESS": "ip_address",
    "MAC_ADDRESS": "mac_address",
    "PASSWORD": "credential",
    "PHONE_NUMBER": "phone",
    "SOCIAL_SECURITY_NUMBER": "social_security_number",
    "STREET_ADDRESS": "address",
    "URL": "url",
    "US_SSN": "social_security_number",
}
"""The corpora's labels that a detector looks for -> the detector."""

Found = Iterable[tuple[str, int, int]]
"""Detectors and character offsets [begin, end)."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="corpora, used where present")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="every Nth labelled document")
    parser.add_argument("--chars", type=int, default=300_000, help="characters of a corpus to time")
    parser.add_argument("--tiny", action="store_true", help="every hundredth document, 5,000 characters")
    options = parser.parse_args()
    every, chars = (100, 5_000) if options.tiny else (options.every, options.chars)
    print(machine(), flush=True)
    for line in itertools.chain(speeds(options.data, chars), qualities(options.data, every)):
        print(line, flush=True)
    return 0


def scorer(mode: str) -> Any:
    from phf_ray.scorers.build import build_scorer

    return build_scorer({"class_name": "PIIScorer", "mode": mode, "reference_date": "2026-11-20"})


def speeds(data: Path, chars: int) -> Iterator[str]:
    from phf_ray.corpus.segments import build_segmenter

    paper, strict = scorer("paper"), scorer("strict")
    for one in (paper, strict):  # load dictionaries and patterns
        one.score_all(["Born on 4 March 1950, 12 Main St, Springfield, IL 62701; +1 212 555 0147; skype ada_l1"])
    split = build_segmenter("sentences")
    corpora = {name: read_corpus(data, name, max_chars=chars) for name in ("text_peps", "text_web", "pii_anon")}
    for name, documents in {**corpora, "Python manual": [] if any(corpora.values()) else python_manual(chars)}.items():
        # Half of the documents by document and the others by sentence, because each text may be seen only once.
        yield from _ratios(f"{name}, documents", documents[::2], paper, strict)
        yield from _ratios(
            f"{name}, sentences", [part for text in documents[1::2] for part in split(text)], paper, strict
        )


def _ratios(name: str, texts: list[str], paper: Any, strict: Any) -> Iterator[str]:
    seconds: dict[str, list[float]] = {"paper": [], "strict": []}
    size = max(len(texts) // 10, 1)
    for begin in range(0, len(texts), size):
        for mode, one in (("paper", paper), ("strict", strict)):
            started = time.process_time()
            one.score_all(texts[begin : begin + size])
            seconds[mode].append(time.process_time() - started)
    if texts:
        num_chars = sum(map(len, texts))
        ratios = [p / s for p, s in zip(seconds["paper"], seconds["strict"], strict=True) if s]
        speed = {mode: num_chars / sum(took) for mode, took in seconds.items()}
        yield (
            f"{name:28} paper / strict {statistics.median(ratios):5.2f} ({min(ratios):.2f}-{max(ratios):.2f}); "
            f"strict {speed['strict']:,.0f}, paper {speed['paper']:,.0f} chars/s"
        )


class Quality(NamedTuple):
    labels: Counter[str]
    recalled: Counter[str]
    detections: Counter[str]
    precise: Counter[str]


def qualities(data: Path, every: int) -> Iterator[str]:
    finders: dict[str, Callable[[str], Found] | None] = {
        "strict": _finder("strict"), "paper": _finder("paper"), "Presidio": _presidio(),
    }  # fmt: skip
    for corpus in ("pii_presidio", "pii_anon"):
        documents = list(_labelled(data, corpus))[::every]
        measured = {name: measure(find, documents) for name, find in finders.items() if find is not None and documents}
        for entity in sorted({entity for one in measured.values() for entity in one.labels}):
            figures = "; ".join(f"{name} {_shown(one, entity)}" for name, one in measured.items())
            num_labels = measured["strict"].labels[entity]
            yield f"{corpus} {entity:22} {num_labels:5} labels; recall, precision: {figures}"


def measure(find: Callable[[str], Found], documents: Iterable[tuple[str, list[tuple[str, int, int]]]]) -> Quality:
    quality = Quality(Counter(), Counter(), Counter(), Counter())
    for text, labels in documents:
        found = sorted({*find(text)})
        for entity, begin, end in labels:
            covered = [min(end, e) - max(begin, b) for kind, b, e in found if kind == entity]
            quality.labels[entity] += 1
            quality.recalled[entity] += max(covered, default=0) * 2 >= end - begin
        for entity, begin, end in found:
            quality.detections[entity] += 1
            quality.precise[entity] += any(kind == entity and min(end, e) > max(begin, b) for kind, b, e in labels)
    return quality


def _shown(quality: Quality, entity: str) -> str:
    recall = quality.recalled[entity] / quality.labels[entity]
    if not quality.detections[entity]:
        return f"{recall:.3f}, none found"
    return f"{recall:.3f}, {quality.precise[entity] / quality.detections[entity]:.3f}"


def _labelled(data: Path, corpus: str) -> Iterator[tuple[str, list[tuple[str, int, int]]]]:
    path = data / corpus / "dev.jsonl.gz"
    if not path.is_file():
        return
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            spans = [(LABELS.get(span["type"]), span["start"], span["end"]) for span in row["meta"]["spans"]]
            yield row["text"], [(kind, begin, end) for kind, begin, end in spans if kind is not None]


def _finder(mode: str) -> Callable[[str], Found]:
    one = scorer(mode)
    return lambda text: [(kind, span.begin, span.end) for span in one.spans(text) for kind in span.type.split("+")]


def _presidio() -> Callable[[str], Found] | None:
    """Presidio's recognizers of patterns for English; spaCy only cuts the text into words. None: not installed."""
    try:
        from presidio_analyzer import predefined_recognizers as recognizers
        from presidio_analyzer.nlp_engine import NlpArtifacts, SpacyNlpEngine
    except ImportError:
        return None
    import spacy

    from serve.compat.presidio import PRESIDIO_ENTITIES

    engine, blank = SpacyNlpEngine(), spacy.blank("en")
    engine.nlp = {"en": blank}
    names = ("CreditCard", "Crypto", "Email", "Iban", "Ip", "MacAddress", "Phone", "Url", "UsSsn")
    chosen = [getattr(recognizers, f"{name}Recognizer")() for name in names]
    detectors = {entity: detector for detector, entity in PRESIDIO_ENTITIES.items()}

    def find(text: str) -> Found:
        words = blank(text)
        offsets, lemmas = [word.idx for word in words], [word.text.lower() for word in words]
        artifacts = NlpArtifacts([], words, offsets, lemmas, engine, "en")
        for recognizer in chosen:
            for result in recognizer.analyze(text, recognizer.supported_entities, artifacts) or ():
                if result.score > 0:
                    yield detectors[result.entity_type], result.start, result.end

    return find


if __name__ == "__main__":
    sys.exit(main())
