"""Scorers against their references on one core: interleaved pairs, median ratio, spread, bound met or missed.

    python -m benchmarks.bench_score [pep8] [pii] [toxicity] [--pairs 5] [--data DIR] [--compare 20000]

References: pycodestyle.Checker; the PII detectors without shortcuts, one text at a time; for toxicity Detoxify's way
(one batch padded to the longest text), one text at a time, and length-sorted batches of fixed size. `--compare N`
compares the PII detections on N texts, half of them damaged positives, and fails on the first that differs.
"""

import argparse
import datetime
import gzip
import json
import os
import platform
import random
import statistics
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

SEED = 0
REFERENCE_DATE = datetime.date(2026, 11, 20)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "scorers", nargs="*", choices=["pep8", "pii", "toxicity", []], default=["pep8", "pii", "toxicity"]
    )
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="corpora, used where present")
    parser.add_argument("--compare", type=int, default=0, metavar="N", help="PII texts to compare")
    options = parser.parse_args()
    system = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    print(f"{system}, load {os.getloadavg()[0]:.1f}")
    scorers = {"pep8": bench_pep8, "pii": bench_pii, "toxicity": bench_toxicity}
    for name in options.scorers or scorers:
        for line in scorers[name](options.data, options.pairs):
            print(line, flush=True)
    if options.compare:
        return compare_pii(options.data, options.compare)
    return 0


def ratio_line(
    name: str, reference: Callable[[], Any], ours: Callable[[], Any], *, pairs: int, bound: float, num_chars: int
) -> str:
    """One row: ours and the reference in turn, each pair on the same machine at the same time."""
    ours()
    ratios, speeds = [], []
    for _ in range(pairs):
        reference_s = cpu_seconds(reference)
        ours_s = cpu_seconds(ours)
        ratios.append(reference_s / ours_s)
        speeds.append(num_chars / ours_s)
    median = statistics.median(ratios)
    clear = "met" if median > bound else "missed"
    verdict = "within noise" if min(ratios) <= bound <= max(ratios) else clear
    return (
        f"{name:42} {median:7.2f}x  ({min(ratios):.2f}-{max(ratios):.2f})  bound {bound:g}x: {verdict:12} "
        f"ours {statistics.median(speeds) / 1e3:,.0f} k chars/s"
    )


def cpu_seconds(work: Callable[[], Any]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def bench_pep8(_: Path, pairs: int) -> Iterator[str]:
    import pycodestyle

    from phf_ray.scorers.pep8_checker import report
    from phf_ray.segments import split_lines

    paths = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[::3]
    files = [split_lines(path.read_text(encoding="utf-8", errors="replace")) for path in paths]
    num_chars = sum(len(line) for lines in files for line in lines)
    for path, lines in zip(paths, files, strict=True):
        if report(lines) != report(lines, checker=pycodestyle.Checker):
            raise SystemExit(f"different violations in {path}")
    yield f"PEP8: {len(files)} files of the standard library, {num_chars:,} characters; the same violations"
    yield ratio_line(
        "  pycodestyle.Checker",
        lambda: [report(lines, checker=pycodestyle.Checker) for lines in files],
        lambda: [report(lines) for lines in files],
        pairs=pairs,
        bound=1.5,
        num_chars=num_chars,
    )


def bench_pii(data: Path, pairs: int) -> Iterator[str]:
    from phf_ray.scorers.pii_detectors import fast_scrubber
    from phf_ray.scorers.pii_reference import reference_scrubber
    from phf_ray.segments import build_segmenter

    fast = fast_scrubber(locale="en_US", reference_date=REFERENCE_DATE)
    slow = reference_scrubber(locale="en_US", reference_date=REFERENCE_DATE)
    for scrubber in (fast, slow):
        list(scrubber.iter_filth("Born on 4 March 1950, 12 Main St, Springfield, IL 62701; skype ada_l1"))
    split = build_segmenter("sentences")
    for corpus in ("text_peps", "text_web", "pii_anon"):
        documents = read_corpus(data, corpus, max_chars=100_000)
        if not documents and corpus != "text_peps":
            continue
        documents = documents or python_manual(100_000)
        sentences = [sentence for document in documents for sentence in split(document)]
        for unit, texts in (("documents", documents), ("sentences", sentences)):
            num_chars = sum(map(len, texts))
            if detections(slow, texts) != detections(fast, texts):
                raise SystemExit(f"different detections in {corpus} by {unit}")
            yield ratio_line(
                f"PII: {corpus if data.is_dir() else 'Python manual'}, {len(texts)} {unit}",
                lambda texts=texts: detections(slow, texts),
                lambda texts=texts: detections(fast, texts),
                pairs=pairs,
                bound=10,
                num_chars=num_chars,
            )


def detections(scrubber: Any, texts: list[str]) -> list[Any]:
    found: list[Any] = []
    for text in texts:
        try:
            found.append([(filth.beg, filth.end) for filth in scrubber.iter_filth(text, run_post_processors=False)])
        except Exception as error:  # noqa: BLE001  both must fail in the same way
            found.append(type(error).__name__)
    return found


def compare_pii(data: Path, count: int) -> int:
    from phf_ray.scorers.pii_detectors import fast_scrubber
    from phf_ray.scorers.pii_reference import reference_scrubber, texts_with_personal_data

    fast = fast_scrubber(locale="en_US", reference_date=REFERENCE_DATE)
    slow = reference_scrubber(locale="en_US", reference_date=REFERENCE_DATE)
    background = [
        text for name in ("text_peps", "text_web", "pii_anon") for text in read_corpus(data, name, max_chars=300_000)
    ]
    num_found = 0
    for text in texts_with_personal_data(count, seed=SEED, background=background + python_manual(400_000)):
        expected, found = detections(slow, [text]), detections(fast, [text])
        num_found += len(expected[0]) if isinstance(expected[0], list) else 0
        if expected != found:
            print(f"different detections: {expected} and {found} in {text!r}")
            return 1
    print(f"PII: the same {num_found} detections in {count} texts, half of them damaged positives")
    return 0


def bench_toxicity(data: Path, pairs: int) -> Iterator[str]:
    import torch
    import transformers

    from phf_ray.scorers.classifier import TextClassifier

    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    tokenizer = byte_tokenizer()
    config = transformers.RobertaConfig(num_labels=16, max_position_embeddings=514, type_vocab_size=1)
    model = transformers.RobertaForSequenceClassification(config).eval()
    texts = mixed_lengths(data, 48)
    num_tokens = sum(len(ids) for ids in tokenizer(texts, truncation=True, max_length=512)["input_ids"])
    classifier = TextClassifier(model, tokenizer, device="cpu", precision="fp32", tokens_per_batch=None)

    @torch.no_grad()
    def predict(batch: list[str]) -> Any:
        return model(**tokenizer(batch, return_tensors="pt", truncation=True, padding=True, max_length=512))[0]

    by_length = sorted(texts, key=len)
    references = {
        "one batch padded to the longest": (lambda: predict(texts), 10.0),
        "one text at a time": (lambda: [predict([text]) for text in texts], 2.0),
        "sorted, 16 at a time": (lambda: [predict(by_length[i : i + 16]) for i in range(0, len(texts), 16)], 1.0),
    }
    yield f"toxicity: RoBERTa-base shape, random weights, fp32, {len(texts)} texts, {num_tokens} tokens"
    for name, (reference, bound) in references.items():
        yield ratio_line(
            f"  {name}",
            reference,
            lambda: classifier.logits(texts),
            pairs=pairs if bound < 10 else min(pairs, 2),
            bound=bound,
            num_chars=sum(map(len, texts)),
        )


def byte_tokenizer() -> Any:
    """A tokenizer of bytes in words: about as many tokens as RoBERTa's would make of a quarter of the text."""
    import tokenizers
    import transformers

    trained = tokenizers.ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained.train_from_iterator(python_manual(300_000), vocab_size=5000, special_tokens=special, show_progress=False)
    vocabulary = trained.get_vocab()
    merges = [tuple(merge) for merge in json.loads(trained.to_str())["model"]["merges"]]
    return transformers.RobertaTokenizer(vocab=vocabulary, merges=merges, model_max_length=512)


def mixed_lengths(data: Path, count: int) -> list[str]:
    """Sentences, mostly short, and one text of the greatest length."""
    rng = random.Random(SEED)
    source = read_corpus(data, "tox_wikitalk", max_chars=200_000) or python_manual(200_000)
    sentences = [piece.strip() for text in source for piece in text.split(". ") if piece.strip()]
    long_text = " ".join(python_manual(5_000))
    return [*rng.sample([text[:600] for text in sentences], count - 1), long_text]


def read_corpus(data: Path, name: str, *, max_chars: int) -> list[str]:
    """The first documents of a corpus, none where it is not there."""
    path = data / name / "dev.jsonl.gz"
    texts: list[str] = []
    if not path.is_file():
        return texts
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            texts.append(json.loads(line)["text"])
            if sum(map(len, texts)) > max_chars:
                break
    return texts


def python_manual(max_chars: int) -> list[str]:
    from pydoc_data.topics import topics

    texts: list[str] = []
    for _, text in sorted(topics.items()):
        texts.append(text)
        if sum(map(len, texts)) > max_chars:
            break
    return texts


if __name__ == "__main__":
    sys.exit(main())
