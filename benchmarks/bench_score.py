"""Scorers against their references on one core: interleaved pairs, median ratio, spread, bound met or missed.

    python -m benchmarks.bench_score [pep8] [ruff] [pii] [toxicity] [--pairs 5] [--data DIR] [--compare 20000] [--tiny]

References: pycodestyle.Checker; for ruff PEP8Scorer; the PII detectors without shortcuts, one text at a time; for
toxicity Detoxify's way (one batch padded to the longest text), one text at a time, and length-sorted batches of fixed
size. `--compare N` compares the PII detections on N texts, half of them damaged positives, and fails on the first that
differs. `--tiny` only shows that it runs.

PII is timed cold: each text goes once through each side, in turns, and none has been seen before.

PEP8 and PII are timed in CPU seconds of one core, ruff with its processes. The toxicity model is of RoBERTa-base's
shape, 125 M parameters with random weights, on all cores and by the clock. Detoxify's way pays for padding with the
number of texts times the longest: 32 texts of which one has 512 tokens, where the others are compared on 64; its ratio
grows with that number.
"""

import argparse
import datetime
import gzip
import json
import os
import platform
import random
import resource
import statistics
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

SEED = 0
TOXICITY_CORPORA = ("tox_wikitalk", "text_web")
REFERENCE_DATE = datetime.date(2026, 11, 20)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    # The empty list is what argparse checks where none is given.
    parser.add_argument("scorers", nargs="*", choices=["pep8", "ruff", "pii", "toxicity", []], help="by default all")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="corpora, used where present")
    parser.add_argument("--compare", type=int, default=0, metavar="N", help="PII texts to compare")
    parser.add_argument("--tiny", action="store_true", help="one pair, a fiftieth of the text and a tiny model")
    options = parser.parse_args()
    print(machine(), flush=True)
    size = Size(pairs=1 if options.tiny else options.pairs, divisor=50 if options.tiny else 1)
    scorers = {"pep8": bench_pep8, "ruff": bench_ruff, "pii": bench_pii, "toxicity": bench_toxicity}
    for name in options.scorers or scorers:
        for line in scorers[name](options.data, size):
            print(line, flush=True)
    if options.compare:
        return compare_pii(options.data, options.compare)
    return 0


class Size(NamedTuple):
    pairs: int
    divisor: int
    """What corpora and models are made smaller by."""


def machine() -> str:
    """One line that says what the figures were measured on."""
    named = [line.split(":", 1)[1].strip() for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name")]
    memory = [int(line.split()[1]) / 2**20 for line in _lines(Path("/proc/meminfo")) if line.startswith("MemTotal")]
    parts = [*named[:1], platform.machine(), f"{os.cpu_count()} cores", *(f"{size:.0f} GiB" for size in memory)]
    return f"{', '.join(parts)}, Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}"


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


class Row(NamedTuple):
    name: str
    bound: float
    """How many times as fast as the reference ours must be."""
    amount: int
    unit: str
    """What ours gets through."""
    clock: Callable[[], float] = time.process_time


def ratio_line(row: Row, reference: Callable[[], Any], ours: Callable[[], Any], *, pairs: int) -> str:
    """Ours and the reference in turn, each pair on the same machine at the same time."""
    ours()
    ratios, speeds = [], []
    for _ in range(pairs):
        reference_s = seconds(reference, row.clock)
        ours_s = seconds(ours, row.clock)
        ratios.append(reference_s / ours_s)
        speeds.append(row.amount / ours_s)
    return line_of(row, ratios, speeds)


def line_of(row: Row, ratios: list[float], speeds: list[float]) -> str:
    median = statistics.median(ratios)
    clear = "met" if median > row.bound else "missed"
    verdict = "within noise" if min(ratios) <= row.bound <= max(ratios) else clear
    return (
        f"{row.name:42} {median:7.2f}x  ({min(ratios):.2f}-{max(ratios):.2f})  bound {row.bound:g}x: {verdict:12} "
        f"ours {statistics.median(speeds):,.0f} {row.unit}/s"
    )


def seconds(work: Callable[[], Any], clock: Callable[[], float]) -> float:
    started = clock()
    work()
    return clock() - started


def bench_pep8(_: Path, size: Size) -> Iterator[str]:
    import pycodestyle

    from phf_ray.corpus.segments import split_lines
    from phf_ray.scorers.pep8_checker import report

    paths = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:: 3 * size.divisor]
    files = [split_lines(path.read_text(encoding="utf-8", errors="replace")) for path in paths]
    num_chars = sum(len(line) for lines in files for line in lines)
    for path, lines in zip(paths, files, strict=True):
        if report(lines) != report(lines, checker=pycodestyle.Checker):
            raise SystemExit(f"different violations in {path}")
    yield f"PEP8: {len(files)} files of the standard library, {num_chars:,} characters; the same violations"
    yield ratio_line(
        Row("  pycodestyle.Checker", bound=1.5, amount=num_chars, unit="chars"),
        lambda: [report(lines, checker=pycodestyle.Checker) for lines in files],
        lambda: [report(lines) for lines in files],
        pairs=size.pairs,
    )


def bench_ruff(_: Path, size: Size) -> Iterator[str]:
    from phf_ray.scorers.build import build_scorer

    paths = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:: size.divisor]
    files = [path.read_text(encoding="utf-8", errors="replace") for path in paths]
    pep8, ruff = (build_scorer({"class_name": name}) for name in ("PEP8Scorer", "RuffScorer"))
    num_chars = sum(map(len, files))
    agreement = rank_correlation(pep8.score_texts(files), ruff.score_texts(files))
    yield f"ruff: {len(files)} files, {num_chars:,} characters; rank correlation by file {agreement:.3f}"
    yield ratio_line(
        Row("  PEP8Scorer", bound=10, amount=num_chars, unit="chars", clock=cpu_of_processes),
        lambda: pep8.score_all(files),
        lambda: ruff.score_all(files),
        pairs=size.pairs,
    )


def rank_correlation(ours: list[float | None], theirs: list[float | None]) -> float:
    """Spearman's, over the texts that both scored."""
    from scipy.stats import spearmanr

    both = [pair for pair in zip(ours, theirs, strict=True) if None not in pair]
    return float(spearmanr([one for one, _ in both], [other for _, other in both]).statistic)


def cpu_of_processes() -> float:
    """CPU seconds of this process and of the children that have ended."""
    # os.times() counts in hundredths of a second, which a few files do not take.
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def bench_pii(data: Path, size: Size) -> Iterator[str]:
    from phf_ray.corpus.segments import build_segmenter
    from phf_ray.scorers.pii_detectors import fast_scrubber
    from phf_ray.scorers.pii_reference import reference_scrubber

    fast = fast_scrubber(locale="en_US", reference_date=REFERENCE_DATE)
    slow = reference_scrubber(locale="en_US", reference_date=REFERENCE_DATE)
    for scrubber in (fast, slow):
        list(scrubber.iter_filth("Born on 4 March 1950, 12 Main St, Springfield, IL 62701; skype ada_l1"))
    split = build_segmenter("sentences")
    for corpus in ("text_peps", "text_web", "pii_anon"):
        documents = read_corpus(data, corpus, max_chars=200_000 // size.divisor)
        if not documents and corpus != "text_peps":
            continue
        documents = documents or python_manual(200_000 // size.divisor)
        name = corpus if data.is_dir() else "Python manual"
        # Other documents for the sentences: those of the first half have been seen whole.
        sentences = [sentence for document in documents[1::2] or documents for sentence in split(document)]
        for unit, texts in (("documents", documents[::2]), ("sentences", sentences)):
            row = Row(f"PII: {name}, {len(texts)} {unit}", bound=10, amount=sum(map(len, texts)), unit="chars")
            yield cold_line(row, slow, fast, texts, pairs=size.pairs)


def cold_line(row: Row, slow: Any, fast: Any, texts: list[str], *, pairs: int) -> str:
    """Each pair has texts of its own, which neither side has seen; which side comes first changes.

    One more part of the texts fills the caches with other texts before.
    """
    parts = [part for first in range(pairs + 1) if (part := texts[first :: pairs + 1])]
    ratios: list[float] = []
    speeds: list[float] = []
    for index, part in enumerate(parts):
        found: dict[Any, list[Any]] = {}
        taken_s: dict[Any, float] = {}
        for side in (slow, fast) if index % 2 else (fast, slow):
            started = row.clock()
            found[side] = detections(side, part)
            taken_s[side] = row.clock() - started
        if found[slow] != found[fast]:
            raise SystemExit(f"different detections in {row.name}")
        if index or len(parts) == 1:
            ratios.append(taken_s[slow] / taken_s[fast])
            speeds.append(sum(map(len, part)) / taken_s[fast])
    return line_of(row, ratios, speeds)


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
    from phf_ray.scorers.pii_reference import reference_scrubber
    from tests.support.pii_texts import texts_with_personal_data

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


def bench_toxicity(data: Path, size: Size) -> Iterator[str]:
    import torch
    import transformers

    from phf_ray.scorers.classifier import TextClassifier

    torch.manual_seed(SEED)
    torch.set_num_threads(os.cpu_count() or 1)
    tokenizer = byte_tokenizer(data)
    config = transformers.RobertaConfig(num_labels=16, max_position_embeddings=514, type_vocab_size=1)
    if size.divisor > 1:
        config.num_hidden_layers, config.hidden_size, config.intermediate_size = 2, 96, 96
    model = transformers.RobertaForSequenceClassification(config).eval()

    @torch.no_grad()
    def predict(batch: list[str]) -> Any:
        return model(**tokenizer(batch, return_tensors="pt", truncation=True, padding=True, max_length=512))[0]

    def in_batches(texts: list[str], count: int) -> None:
        for first in range(0, len(texts), count):
            predict(texts[first : first + count])

    classifier = TextClassifier(model, tokenizer, device="cpu", precision="fp32", tokens_per_batch=None)
    # A scoring process takes twice as many at once; a batch padded to the longest would take minutes with them.
    few, many = (mixed_lengths(data, max(8, count // size.divisor)) for count in (64, 256))
    by_length = sorted(many, key=len)
    references: dict[str, tuple[list[str], Callable[[], Any], float]] = {
        "Detoxify: one batch padded to the longest": (few, lambda: predict(few), 10.0),
        "one text at a time": (many, lambda: in_batches(many, 1), 2.0),
        "sorted by length, 16 at a time": (many, lambda: in_batches(by_length, 16), 1.0),
    }
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    yield f"toxicity: RoBERTa shape, {num_parameters:,} random weights, fp32, {torch.get_num_threads()} threads"
    for name, (texts, reference, bound) in references.items():
        lengths = [len(ids) for ids in tokenizer(texts, truncation=True, max_length=512)["input_ids"]]
        yield f"  {len(texts)} texts, {sum(lengths):,} tokens, the longest {max(lengths)}"
        yield ratio_line(
            Row(f"  {name}", bound=bound, amount=sum(lengths), unit="tokens", clock=time.perf_counter),
            reference,
            lambda texts=texts: classifier.logits(texts),
            pairs=size.pairs,
        )
    if torch.cuda.is_available():
        yield on_gpu(model, tokenizer, mixed_lengths(data, 128) * 32)


def on_gpu(model: Any, tokenizer: Any, texts: list[str]) -> str:
    """The same code on a GPU, in bf16; tokenization included."""
    import torch

    from phf_ray.scorers.classifier import TextClassifier

    classifier = TextClassifier(model, tokenizer, device="cuda", precision="bf16", tokens_per_batch=None)
    num_tokens = sum(len(ids) for ids in tokenizer(texts, truncation=True, max_length=512)["input_ids"])
    classifier.logits(texts)
    speeds = [num_tokens / seconds(lambda: classifier.logits(texts), time.perf_counter) for _ in range(5)]
    name = torch.cuda.get_device_name()
    return f"  {name}, bf16, {len(texts)} texts: {statistics.median(speeds):,.0f} tokens/s"


def byte_tokenizer(data: Path) -> Any:
    """Trained here, on the texts' own kind: short sentences have about 30 tokens, as with RoBERTa's tokenizer."""
    import tokenizers
    import transformers

    trained = tokenizers.ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    texts = [text for name in TOXICITY_CORPORA for text in read_corpus(data, name, max_chars=1_000_000)]
    trained.train_from_iterator(
        texts + python_manual(300_000), vocab_size=20_000, special_tokens=special, show_progress=False
    )
    vocabulary = trained.get_vocab()
    merges = [tuple(merge) for merge in json.loads(trained.to_str())["model"]["merges"]]
    return transformers.RobertaTokenizer(vocab=vocabulary, merges=merges, model_max_length=512)


def mixed_lengths(data: Path, count: int) -> list[str]:
    """Sentences, mostly short, and one text of the greatest length."""
    rng = random.Random(SEED)
    found = [text for name in TOXICITY_CORPORA for text in read_corpus(data, name, max_chars=100_000)]
    source = found or python_manual(200_000)
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
