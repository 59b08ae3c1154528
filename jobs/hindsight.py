"""Train by Chain of Hindsight on comparisons of code, and ask for good and for bad code (`make hindsight`).

The comparisons are of the demo's corpus: a few whole statements without violations of pycodestyle are better than
others with at least one per 67 characters. `prepare-feedback --to coh` puts them into words, and the demo's model of
maximum likelihood learns them, with files of the corpus as text beside them. Then it writes after the good marker and
after the bad one, and pycodestyle judges both. There is one training run, so the intervals show the variation of
sampling.

The job reuses the demo's results in the same folder, and skips a stage if its output exists.
"""

import argparse
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jobs import cli, demo
from jobs.code_pieces import CodePair, CodePiece, draw_piece_pairs, figures_of, pieces_of, whole_lines, why_not_shown
from jobs.commands import job_parser
from jobs.marker_preference import marker_preference
from phf_ray.errors import ConfigError
from phf_ray.storage.files import write_text

METHOD = "hindsight"
NUM_COMPARISONS, SMALL_COMPARISONS = 3000, 40
"""At most. The library of Python 3.11 makes some 1,000."""
NUM_HELD_OUT, HELD_OUT_FILES = 200, 0.08
"""Comparisons that are not learned, at most, and the share of the files that they come from."""
TEXT_FILES = 100
NUM_SAMPLES, SMALL_SAMPLES = 400, 6
MAX_TOKENS = 64
PROMPT = "Write code."


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)

    from phf_ray.config import load_config

    overrides = [*(demo.SMALL if arguments.small else ()), *arguments.override]
    task = load_config(demo.TASK, None, overrides)
    started = time.monotonic()
    output = demo.output_folder(arguments.output)
    own = output / METHOD
    if arguments.restart:
        for part in (own, output / "runs" / METHOD):
            shutil.rmtree(part, ignore_errors=True)
    own.mkdir(exist_ok=True)
    demo.say(f"output: {arguments.output}")

    cli.start_ray()
    corpus, tokenizer = demo.prepare_corpus(
        output, task=task, overrides=overrides, stages=6, started=started, small=arguments.small
    )
    with demo.stage("3/6 train by maximum likelihood", started):
        demo.train_models((demo.MLE,), corpus, tokenizer, output=output, overrides=overrides)
    with demo.stage("4/6 compare code and put it into words", started):
        number = SMALL_COMPARISONS if arguments.small else NUM_COMPARISONS
        records, held_out = compare(corpus, own, number=number)
        limit = demo.SMALL_FILES if arguments.small else TEXT_FILES
        text = demo.score(output / "source", own, overrides=overrides, limit=limit)
    with demo.stage("5/6 learn from hindsight", started):
        both = f"dataset.datasets={json.dumps([str(records), str(text)])}"
        demo.train_models(
            (METHOD,), records, tokenizer, output=output, overrides=[*overrides, both], start=output / "runs" / demo.MLE
        )
    with demo.stage("6/6 write and judge", started):
        number = SMALL_SAMPLES if arguments.small else NUM_SAMPLES
        figures = write_and_judge(output / "runs" / METHOD, number, held_out=held_out)
    write_text(str(own / "figures.json"), json.dumps(figures, indent=1) + "\n")
    return _say_result(figures, Path(arguments.output) / METHOD / "figures.json")


def parser() -> argparse.ArgumentParser:
    parser = job_parser("hindsight", __doc__, examples=("", "--small --output out/small"))
    demo.add_arguments_of_what_follows(parser)
    return parser


def compare(corpus: Path, own: Path, *, number: int) -> tuple[Path, list[CodePair]]:
    """Draw pairs of pieces of code and put them into words. Return the feedback corpus, and pairs of other files."""
    from jobs import prepare_feedback

    learned, held_out = _scored_pieces(corpus)
    pairs = draw_piece_pairs(learned, at_most=number)
    demo.say(f"{len(learned):,} pieces of code, {len(pairs):,} comparisons")
    file = own / "comparisons.jsonl"
    content = "".join(json.dumps(_record(pair)) + "\n" for pair in pairs)
    if not file.exists():
        write_text(str(file), content)
    elif file.read_text(encoding="utf-8") != content:
        raise ConfigError(f"{file} holds comparisons of another corpus, or of another number; --restart discards them")
    words = ["--to", "coh", "--include-feedback", "p,n,pn,np"]
    demo.run_job(prepare_feedback, ["--input", str(file), "--output", str(own / "records"), *words])
    return own / "records", draw_piece_pairs(held_out, at_most=NUM_HELD_OUT)


def _scored_pieces(corpus: Path) -> tuple[list[CodePiece], list[CodePiece]]:
    """Return the pieces of code to learn, and those of held-out files that no other file has."""
    from phf_ray.blocks.held_out import is_held_out
    from phf_ray.corpus.reader import read_corpus

    texts: dict[bool, dict[str, None]] = {True: {}, False: {}}
    for document in read_corpus(str(corpus)):
        texts[is_held_out(document.id, HELD_OUT_FILES)].update(dict.fromkeys(pieces_of(document.text)))
    others = [text for text in texts[True] if text not in texts[False]]
    return list(_with_scores(list(texts[False]))), list(_with_scores(others))


def _with_scores(texts: Sequence[str]) -> Iterator[CodePiece]:
    for text, score in zip(texts, _scores(texts), strict=True):
        if score is not None:
            yield CodePiece(text, score)


def _record(pair: CodePair) -> dict[str, Any]:
    return {"prompt": PROMPT, "chosen": pair.better.text, "rejected": pair.worse.text}


def _scores(texts: Sequence[str]) -> list[float | None]:
    from phf_ray.scorers.build import SHORT_NAMES, build_scorer

    return list(build_scorer({"class_name": SHORT_NAMES["pep8"]}).score_texts(list(texts)))


def write_and_judge(run: Path, num_samples: int, *, held_out: Sequence[CodePair]) -> dict[str, Any]:
    """Draw samples after each marker, and return what they are like, and what the markers do to other code."""
    from phf_ray.config import load_phrases
    from phf_ray.generation.engine import generate
    from phf_ray.generation.load import load_engine
    from phf_ray.generation.requests import GenerationRequest
    from phf_ray.runs.checkpoints import find_checkpoint

    engine = load_engine(find_checkpoint(run, option="the trained model"))
    markers = load_phrases().markers
    prompts = {
        name: f"{markers.user} {PROMPT} {marker}" for name, marker in (("good", markers.good), ("bad", markers.bad))
    }
    figures: dict[str, Any] = {}
    for name, prompt in prompts.items():
        requests = [
            GenerationRequest(prompt=prompt, max_tokens=MAX_TOKENS, temperature=0.7, top_p=0.9, seed=seed)
            for seed in range(num_samples)
        ]
        samples = [whole_lines(one.text, is_ended=one.finish_reason == "stop") for one in generate(engine, requests)]
        figures[name] = figures_of(samples, _scores(samples)) | {"examples": samples[:5]}
    figures["held_out"] = marker_preference(engine, held_out, **prompts)
    return figures


def _say_result(figures: dict[str, Any], file: Path) -> int:
    for name in ("good", "bad"):
        row = figures[name]
        shown = ", ".join(
            f"{what} {_number(row[key])}{_range(row.get(f'{key}_ci'))}"
            for key, what in (
                ("score", "violations per character"),
                ("code_score", "of samples with code"),
                ("length", "characters"),
                ("distinct_2", "distinct-2"),
                ("empty", "empty"),
                ("comments", "lines that are comments"),
            )
        )
        demo.say(f"after the {name} marker ({row['num_samples']} samples): {shown}")
    _say_preference(figures["held_out"])
    demo.say(f"figures: {file}")
    problems = list(why_not_shown(figures["good"], figures["bad"]))
    for problem in problems:
        demo.say(f"not shown: {problem}")
    if not problems:
        demo.say("shown: code after the good marker has fewer violations than after the bad one")
    return 1 if problems else 0


def _say_preference(row: dict[str, Any]) -> None:
    share, more = (f"{_number(row[key])}{_range(row[f'{key}_ci'])}" for key in ("prefers", "loss_difference"))
    demo.say(
        f"{row['num_pairs']} comparisons that were not learned: in {share} of them the better answer gains more from "
        f"the good marker; the answers cost {_number(row['loss'])} nats per token, and {more} more after the other one"
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _range(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f" [{interval[0]:.3g}, {interval[1]:.3g}]"


if __name__ == "__main__":
    cli.run(main)
