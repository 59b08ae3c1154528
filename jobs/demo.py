"""Score, train, serve and evaluate on one machine (`make demo`).

The corpus is the standard library of the running Python, so the demo downloads nothing. It trains two GPT-2s of 0.6 M
parameters from scratch, one by maximum likelihood and one by conditional training; everything else is equal. It serves
both with the PEP8 scorer, samples from them over HTTP and compares them. Each arm has one training run, so the
intervals show the variation of sampling, not of training; `--seeds 0,1,2` trains and compares all of it three times.

Scoring, training and evaluation are the project's own jobs. The demo skips a stage if its output exists.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs import cli, demo_seeds
from jobs.commands import job_parser, program
from phf_ray.errors import ConfigError, IncompleteError

if TYPE_CHECKING:
    from phf_ray.config import Config

TASK = "demo"
METHODS = ("mle", "conditional")
MLE, GOOD, BAD = "mle", "conditional:good", "conditional:bad"
VOCABULARY = 1022
"""Number of tokens without the two control tokens; 1,024 with them."""
SMALL = (
    "training.num_tokens=20000",
    "training.learning_rate=1e-3",
    "dataset.held_out_fraction=0",
    "generation.scenario_configs=[{name: unconditional, num_samples: 8, generate_kwargs: {max_length: 24}}]",
)
"""Settings of other jobs on this corpus, which only check that they run."""
SMALL_FILES = 40
SKIPPED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)

    from phf_ray.config import load_config

    seeds = cli.seeds_of(arguments.seeds)
    task = load_config(TASK, None, arguments.override)
    started = time.monotonic()
    output = output_folder(arguments.output)
    if arguments.restart:
        for part in ("source", "corpus", "tokenizer", "runs"):
            shutil.rmtree(output / part, ignore_errors=True)
        for folder in (output / "report", *output.glob("report_seed[0-9]*")):
            shutil.rmtree(folder, ignore_errors=True)
    say(f"output: {arguments.output}")

    cli.start_ray()
    corpus, tokenizer = prepare_corpus(output, task=task, overrides=arguments.override, stages=5, started=started)
    with stage("3/5 train", started):
        for seed in seeds:
            train_models(METHODS, corpus, tokenizer, output=output, overrides=arguments.override, seed=seed)
    with stage("4/5 serve and evaluate", started):
        for seed in seeds:
            _evaluate(output, overrides=arguments.override, seed=seed)
    with stage("5/5 judge", started):
        reports = demo_seeds.read_reports(output, "report", seeds)
        problems = judge(reports[seeds[0]]) if len(seeds) == 1 else judge_seeds(reports)

    from phf_ray.evaluation.report.table import format_table

    for seed, report in reports.items():
        page = Path(arguments.output) / demo_seeds.named("report", seed) / "report.html"
        say(f"{format_table(report)}\n\nreport: {page}")
    demo_seeds.say_spread(reports, ("score",), file=output / "report_seeds.json")
    for problem in problems:
        print(f"not shown: {problem}", file=sys.stderr)
    if not problems:
        say("shown: the good control token gives fewer violations than maximum likelihood and the bad token")
    return 1 if problems else 0


def prepare_corpus(
    output: Path, *, task: "Config", overrides: Sequence[str], stages: int, started: float, small: bool = False
) -> tuple[Path, Path]:
    """Run the first two of a job's stages: return the scored corpus and the tokenizer."""
    with stage(f"1/{stages} score", started):
        source = copy_standard_library(output / "source")
        corpus = score(source, output, overrides=overrides, limit=SMALL_FILES if small else None)
    with stage(f"2/{stages} tokenizer", started):
        return corpus, make_tokenizer(corpus, output / "tokenizer", task=task)


def parser() -> argparse.ArgumentParser:
    parser = job_parser("demo", __doc__.split("\n\n")[0], examples=("", "--output out/demo --restart"))
    parser.add_argument(
        "--output", default="out/demo", help="folder for everything that the demo makes (default: out/demo)"
    )
    parser.add_argument("--override", nargs="+", action="extend", default=[], metavar="A.B=C")
    parser.add_argument("--restart", action="store_true", help="discard earlier results and start over")
    demo_seeds.add_argument(parser)
    return parser


def add_arguments_of_what_follows(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of a job that goes on from the demo, in its folder."""
    parser.add_argument(
        "--output",
        default="out/demo",
        help="folder of the demo, and of everything that the job adds (default: out/demo)",
    )
    parser.add_argument("--small", action="store_true", help="a hundredth of everything, to check that the job runs")
    parser.add_argument("--override", nargs="+", action="extend", default=[], metavar="A.B=C")
    parser.add_argument(
        "--restart", action="store_true", help="discard what the job made earlier, but not the demo's results"
    )


def output_folder(given: str) -> Path:
    output = Path(given).resolve()
    try:
        output.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ConfigError(f"--output {given} is a file, or is below one; give a folder") from None
    return output


def say(text: str) -> None:
    print(text, flush=True)


@contextmanager
def stage(name: str, started: float) -> Iterator[None]:
    begin = time.monotonic()
    say(f"\n== {name}")
    yield
    now = time.monotonic()
    say(f"== {name}: {now - begin:.0f} s, {now - started:.0f} s in total")


# -- Corpus and tokenizer ---------------------------------------------------------------------------------------------


def copy_standard_library(target: Path) -> Path:
    """Copy the running Python's library without its tests, so that document ids do not depend on where Python is."""
    if target.exists():
        return target
    library = Path(sysconfig.get_paths()["stdlib"])
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for path in sorted(library.rglob("*.py")):
        relative = path.relative_to(library)
        if not SKIPPED_FOLDERS.intersection(relative.parts):
            (partial / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, partial / relative)
    if not partial.exists():
        raise ConfigError(f"{library} holds no Python files; run the demo with a Python whose library is in files")
    partial.rename(target)
    return target


def score(source: Path, output: Path, *, overrides: Sequence[str], limit: int | None = None) -> Path:
    """Score the source, or only its first `limit` files. Return the folder of the corpus."""
    from jobs import score_corpus

    corpus = output / "corpus"
    limited = [] if limit is None else ["--limit", str(limit)]
    command = ["--task", TASK, "--input", str(source), "--output", str(corpus), *limited, *as_override(overrides)]
    run_job(score_corpus, command)
    return corpus


def make_tokenizer(corpus: Path, target: Path, *, task: "Config") -> Path:
    """Train a byte-level BPE on the corpus without its held-out documents. Return the tokenizer's folder."""
    if target.exists():
        return target
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from phf_ray.blocks.held_out import is_held_out
    from phf_ray.corpus.reader import read_corpus

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        (
            document.text
            for document in read_corpus(str(corpus))
            if not is_held_out(document.id, task.dataset.held_out_fraction)
        ),
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=["<|endoftext|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    end_of_text = "<|endoftext|>"
    partial = target.with_name(target.name + ".partial")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=end_of_text, eos_token=end_of_text, clean_up_tokenization_spaces=False
    ).save_pretrained(partial)
    partial.rename(target)
    return target


# -- Training, evaluation ---------------------------------------------------------------------------------------------


def train_models(  # noqa: PLR0913  (everything that several runs share)
    methods: Sequence[str],
    corpus: Path,
    tokenizer: Path,
    *,
    output: Path,
    overrides: Sequence[str],
    start: Path | None = None,
    seed: int = 0,
) -> None:
    """Train by all methods at the same time, each in a run named after it and with an equal share of the cores.

    Two small models on one core each train faster than one after the other on two cores. `start`: the run from whose
    weights they start; None: from scratch. `seed`: is added to `training.seed`.
    """
    import ray

    # Quoted, because YAML could read an unquoted path as something else.
    paths = [f"dataset.datasets=[{json.dumps(str(corpus))}]", f"tokenizer.path_or_name={json.dumps(str(tokenizer))}"]
    environment = {
        **os.environ,
        "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
        "OMP_NUM_THREADS": str(_threads_of_each(len(methods))),
    }
    children = {}
    for method in methods:
        name = demo_seeds.named(method, seed)
        command = ["--task", TASK, "--method", method, "--run-name", name, "--storage-path", str(output / "runs")]
        command += [] if start is None else ["--checkpoint-path", str(start)]
        own = [*paths, *overrides, *demo_seeds.override_of(TASK, method, overrides, seed)]
        command = cli.command_of("train-lm", [*command, *as_override(own)])
        children[name] = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    try:
        _relay(children)
    finally:
        for child in children.values():
            child.terminate()
            child.wait()
    failed = [f"{name} (exit code {child.returncode})" for name, child in children.items() if child.returncode != 0]
    if failed:
        raise IncompleteError(f"training failed: {', '.join(failed)}; see above")


def _threads_of_each(num_methods: int) -> int:
    """Return an equal share of the cores; at most what OMP_NUM_THREADS says, for machines with other work to do."""
    share = max(1, (os.cpu_count() or 1) // num_methods)
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(share, max(1, int(asked))) if asked.isdigit() else share


def _relay(children: dict[str, "subprocess.Popen[str]"]) -> None:
    """Print the children's lines as they come, each with the child's name in front."""
    import threading

    def pump(name: str, child: "subprocess.Popen[str]") -> None:
        assert child.stdout is not None
        for line in child.stdout:
            print(f"[{name}] {line}", end="", flush=True)

    pumps = [threading.Thread(target=pump, args=item, daemon=True) for item in children.items()]
    for thread in pumps:
        thread.start()
    for child in children.values():
        child.wait()
    for thread in pumps:
        thread.join()


def _evaluate(output: Path, *, overrides: Sequence[str], seed: int) -> None:
    from jobs import evaluate_lm

    models = [f"{name}={output / 'runs' / demo_seeds.named(name, seed)}" for name in METHODS]
    arguments = ["--task", TASK, "--model", *models]
    arguments += ["--arm", MLE, GOOD, BAD, "--seeds", "0,1,2", "--output"]
    arguments += [str(output / demo_seeds.named("report", seed))]
    run_job(evaluate_lm, [*arguments, *as_override(overrides)])


def as_override(overrides: Sequence[str]) -> list[str]:
    return ["--override", *overrides] if overrides else []


def run_job(job: Any, arguments: list[str]) -> None:
    """Run a job in this process, on the running Ray. Prints its command as a user would type it."""
    from phf_ray.runs.directory import ANOTHER_RUN

    say(f"$ {program(job.__name__.rpartition('.')[2])} {subprocess.list2cmdline(arguments)}")
    try:
        code = job.main(arguments)
    except ConfigError as error:
        # Whoever gave the command that runs this job has no such option.
        raise ConfigError(str(error).replace(ANOTHER_RUN, "choose another --output")) from None
    if code:
        raise IncompleteError(f"{job.__name__} ended with exit code {code}; see above")


# -- The verdict ------------------------------------------------------------------------------------------------------


def judge(report: dict[str, Any]) -> list[str]:
    """Return why the report does not show that the control tokens work; empty if it does."""
    from phf_ray.evaluation.report.degenerate import check_not_degenerate

    rows = {row["arm"]: row for row in report["table"]}
    problems = list(check_not_degenerate(report, arm=GOOD, baseline=MLE))
    good, bad, mle = rows[GOOD], rows[BAD], rows[MLE]
    if good["score"] is None or mle["score"] is None or bad["score"] is None:
        return [*problems, "an arm has no scored sample"]
    problems += not_below(good, mle)
    if not good["score"] < bad["score"]:
        problems.append(f"the bad token {bad['score']:.4g} is not worse than the good one {good['score']:.4g}")
    return problems


def judge_seeds(reports: Mapping[int, dict[str, Any]]) -> list[str]:
    """Return why the mean over several training seeds does not show it; empty if it does.

    No seed may win by degenerate text. The intervals are over seeds, whose samples are drawn apart, so they hold what
    sampling adds.
    """
    from phf_ray.evaluation.report.degenerate import check_not_degenerate

    problems = [
        f"seed {seed}: {problem}"
        for seed, report in reports.items()
        for problem in check_not_degenerate(report, arm=GOOD, baseline=MLE)
    ]
    for other in (MLE, BAD):
        found = demo_seeds.difference(reports, GOOD, other, "score")
        if found is None:
            problems.append(f"a seed has no scored sample of {GOOD} or {other}")
        elif found.interval is None or not found.interval.high < 0:
            shown = "" if found.interval is None else f" [{found.interval.low:.4g}, {found.interval.high:.4g}]"
            problems.append(
                f"violations per character with the good token minus those of {other}, {found.mean:+.4g}{shown} over "
                f"{found.num} training seeds, are not below 0"
            )
    return problems


def not_below(good: dict[str, Any], mle: dict[str, Any]) -> list[str]:
    """Return why a row's score is not clearly below that of maximum likelihood; empty if it is."""
    if good["score_ci"] is None or mle["score_ci"] is None:
        return ["the samples of an arm all have the same score, so there is no interval to compare"]
    if good["score_ci"][1] < mle["score_ci"][0]:
        return []
    return [
        f"violations per character with the good token, {good['score']:.4g} {_interval(good)}, are not below those "
        f"of maximum likelihood, {mle['score']:.4g} {_interval(mle)}, with separate 95% intervals"
    ]


def _interval(row: dict[str, Any]) -> str:
    low, high = row["score_ci"]
    return f"[{low:.4g}, {high:.4g}]"


if __name__ == "__main__":
    cli.run(main)
