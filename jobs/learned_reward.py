"""Learn a reward from noisy comparisons, and train on its scores (`make learned-reward`).

Who has a rule, such as pycodestyle, scores every line with it. Who has only people that compare lines, and err, learns
a reward model from their comparisons, which then scores the corpus. This job does so on the demo's corpus: pycodestyle
judges 3,000 pairs of lines, and is misquoted in a quarter of them. A reward model learns from that and scores the
corpus, a model is trained conditionally on its scores, and pycodestyle judges what it writes, beside the demo's models
by maximum likelihood and by conditional training on true scores. Each has one training run.

The job reuses the demo's results in the same folder, and skips a stage if its output exists.
"""

import argparse
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs import cli, demo
from jobs.commands import job_parser
from phf_ray.errors import ConfigError
from phf_ray.storage.files import write_text

if TYPE_CHECKING:
    from jobs.line_pairs import DrawnPairs, JudgedLine, LinePair

REWARD, METHOD = "reward_model", "learned_conditional"
GOOD, BAD = f"{METHOD}:good", f"{METHOD}:bad"
NUM_COMPARISONS = 3000
ERROR_RATE = 0.25
NUM_HELD_OUT_PAIRS = 2000
HELD_OUT_FRACTION = 0.2
"""Share of the files of which no line is compared for the training; pairs of their lines test the reward model."""
SMALL_COMPARISONS = 100
FEW = ("generation.scenario_configs=[]", "dataset.held_out_fraction=0")
"""A reward model writes no samples, and held-out prompts would be all or none, because all are empty."""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)

    from jobs.line_pairs import read_lines
    from phf_ray.config import load_config

    overrides = [*(demo.SMALL if arguments.small else ()), *arguments.override]
    task = load_config(demo.TASK, None, overrides)
    started = time.monotonic()
    output = demo.output_folder(arguments.output)
    learned = output / "learned"
    if arguments.restart:
        for part in (learned, output / "runs" / REWARD, output / "runs" / METHOD):
            shutil.rmtree(part, ignore_errors=True)
    learned.mkdir(exist_ok=True)
    demo.say(f"output: {arguments.output}")

    cli.start_ray()
    corpus, tokenizer = demo.prepare_corpus(
        output, task=task, overrides=overrides, stages=8, started=started, small=arguments.small
    )
    with demo.stage("3/8 train on true scores", started):
        demo.train_models(demo.METHODS, corpus, tokenizer, output=output, overrides=overrides)
    with demo.stage("4/8 compare lines", started):
        lines = list(read_lines(corpus))
        comparisons = compare(lines, learned, number=SMALL_COMPARISONS if arguments.small else NUM_COMPARISONS)
    with demo.stage("5/8 learn a reward", started):
        # From the weights of maximum likelihood, as reward models begin with a language model.
        start, fewer = output / "runs" / demo.MLE, [*overrides, *FEW]
        demo.train_models((REWARD,), comparisons, tokenizer, output=output, overrides=fewer, start=start)
    with demo.stage("6/8 score with the reward", started):
        by_reward = [*overrides, _scorers(output / "runs" / REWARD)]
        scored = _score(corpus, learned / "corpus", overrides=by_reward)
        accuracy = _judge_reward(lines, scored)
    with demo.stage("7/8 train on learned scores", started):
        demo.train_models((METHOD,), scored, tokenizer, output=output, overrides=by_reward)
    with demo.stage("8/8 serve and evaluate", started):
        report = _evaluate(output, overrides=overrides)
    figures = {"accuracy": accuracy, "effect": effect(learned / "report")}
    write_text(str(learned / "figures.json"), json.dumps(figures, indent=1) + "\n")
    return _say_result(report, figures, output=Path(arguments.output))


def parser() -> argparse.ArgumentParser:
    parser = job_parser("learned_reward", __doc__, examples=("", "--small --output out/small"))
    demo.add_arguments_of_what_follows(parser)
    return parser


# -- The judge, and the reward that is learned from it -----------------------------------------------------------------


def compare(lines: "Sequence[JudgedLine]", learned: Path, *, number: int) -> Path:
    """Draw pairs of lines, let the judge compare them, and prepare the comparisons. Return the feedback corpus."""
    from jobs import prepare_feedback
    from jobs.line_pairs import draw_pairs

    drawn = draw_pairs(lines, at_most=number, held_out=False, held_out_fraction=HELD_OUT_FRACTION)
    _say_drawn(drawn)
    file = learned / "comparisons.jsonl"
    content = "".join(json.dumps(_record(pair)) + "\n" for pair in drawn.pairs)
    if not file.exists():
        write_text(str(file), content)
    elif file.read_text(encoding="utf-8") != content:
        raise ConfigError(f"{file} holds comparisons of another corpus, or of another number; --restart discards them")
    demo.run_job(
        prepare_feedback, ["--input", str(file), "--output", str(learned / "comparisons"), "--format", "plain"]
    )
    return learned / "comparisons"


def _say_drawn(drawn: "DrawnPairs") -> None:
    num_wrong = sum(pair.said_better(ERROR_RATE) != pair.better for pair in drawn.pairs)
    demo.say(
        f"{len(drawn.pairs):,} comparisons, {num_wrong:,} of them wrong; left out: {drawn.num_ties:,} pairs with "
        f"equally many violations, {drawn.num_equal:,} of the same text"
    )


def _record(pair: "LinePair") -> dict[str, Any]:
    # A scorer judges a line as the answer to nothing.
    return {
        "prompt": "",
        "output_1": pair.first.text,
        "output_2": pair.second.text,
        "preference": pair.said_better(ERROR_RATE),
    }


def _scorers(reward: Path) -> str:
    """Return the setting by which the reward model scores, and the true scores stay beside its own."""
    from phf_ray.runs.checkpoints import find_checkpoint
    from phf_ray.scorers.build import SHORT_NAMES

    model = {"class_name": SHORT_NAMES["reward"], "path": str(find_checkpoint(reward, option="the reward model"))}
    return f"scoring.scorers={json.dumps([model, {'class_name': SHORT_NAMES['pep8']}])}"


def _score(corpus: Path, scored: Path, *, overrides: Sequence[str]) -> Path:
    from jobs import score_corpus

    command = ["--task", demo.TASK, "--input", str(corpus), "--output", str(scored)]
    demo.run_job(score_corpus, [*command, *demo.as_override(overrides)])
    return scored


def _judge_reward(lines: "Sequence[JudgedLine]", scored: Path) -> dict[str, Any]:
    from jobs.line_pairs import accuracies, draw_pairs
    from phf_ray.corpus.reader import read_corpus

    drawn = draw_pairs(lines, at_most=NUM_HELD_OUT_PAIRS, held_out=True, held_out_fraction=HELD_OUT_FRACTION)
    wanted = {line.place for pair in drawn.pairs for line in (pair.first, pair.second)}
    scores = {
        (document.id, number): score
        for document in read_corpus(str(scored))
        for number, score in enumerate(document.scores)
        if (document.id, number) in wanted
    }
    return accuracies(drawn.pairs, scores, error_rate=ERROR_RATE)


# -- What the scores bring ---------------------------------------------------------------------------------------------


def _evaluate(output: Path, *, overrides: Sequence[str]) -> dict[str, Any]:
    from jobs import evaluate_lm

    command = [
        "--task",
        demo.TASK,
        "--model",
        *(f"{name}={output / 'runs' / name}" for name in (*demo.METHODS, METHOD)),
    ]
    command += [
        "--arm",
        demo.MLE,
        demo.GOOD,
        GOOD,
        BAD,
        "--seeds",
        "0,1,2",
        "--output",
        str(output / "learned" / "report"),
    ]
    # One model was trained on the reward model's scores, and all are judged by the true ones.
    demo.run_job(evaluate_lm, [*command, "--allow-other-scorer", *demo.as_override(overrides)])
    report: dict[str, Any] = json.loads((output / "learned" / "report" / "report.json").read_text(encoding="utf-8"))
    return report


def effect(report: Path) -> dict[str, Any]:
    """Return the part of the effect of true scores that learned scores have, with its interval over samples."""
    from phf_ray.evaluation.report.samples import read_samples
    from phf_ray.measures.intervals import bootstrap_share

    samples, _ = read_samples(str(report))
    of_arm = {
        arm: [sample.score for sample in samples if sample.arm == arm and sample.score is not None]
        for arm in (demo.MLE, demo.GOOD, GOOD)
    }
    found = bootstrap_share(of_arm[GOOD], start=of_arm[demo.MLE], goal=of_arm[demo.GOOD])
    if found is None:
        return {"share": None, "ci": None, "reason": "true scores had no clear effect of which this could be a part"}
    share, interval = found
    return {"share": share, "ci": [interval.low, interval.high]}


def judge(report: dict[str, Any]) -> list[str]:
    """Return why the report does not show that learned scores work; empty if it does."""
    from phf_ray.evaluation.report.degenerate import check_not_degenerate

    rows = {row["arm"]: row for row in report["table"]}
    problems = list(check_not_degenerate(report, arm=GOOD, baseline=demo.MLE))
    if rows[GOOD]["score_ci"] is None or rows[demo.MLE]["score_ci"] is None:
        return [*problems, "an arm has too few scored samples"]
    return [*problems, *demo.not_below(rows[GOOD], rows[demo.MLE])]


def _say_result(report: dict[str, Any], figures: dict[str, Any], *, output: Path) -> int:
    from phf_ray.evaluation.report.table import format_table

    demo.say(f"\n{format_accuracy(figures['accuracy'])}\n\n{format_table(report)}")
    share = figures["effect"]
    if share["share"] is None:
        demo.say(f"\nshare of the effect of true scores: none; {share['reason']}")
    else:
        low, high = share["ci"]
        demo.say(f"\nshare of the effect of true scores: {share['share']:.0%} [{low:.0%}, {high:.0%}]")
    demo.say(f"figures: {output / 'learned' / 'figures.json'}; report: {output / 'learned' / 'report' / 'report.html'}")
    problems = judge(report)
    for problem in problems:
        demo.say(f"not shown: {problem}")
    if not problems:
        demo.say("shown: the good token of learned scores gives fewer violations than maximum likelihood")
    return 1 if problems else 0


def format_accuracy(accuracy: dict[str, Any]) -> str:
    """Return a line for the reward model, one for the rule of length, and one where that rule is wrong."""
    shown = [f"{accuracy['num_pairs']:,} pairs of lines of files that were held out:"]
    for name, title in (
        ("reward", "reward model"),
        ("shorter_line", "the shorter line is better"),
        ("reward_where_longer_is_better", "reward model, where the longer line is better"),
    ):
        row = accuracy[name]
        parts = [f"{label} {_percent(row, label)}" for label in ("truth", "judge")]
        shown.append(f"  {title} ({row['num_pairs']:,} pairs): agrees with {', with '.join(parts)}")
    return "\n".join(shown)


def _percent(row: dict[str, Any], label: str) -> str:
    if row[label] is None:
        return "-"
    interval = row[f"{label}_ci"]
    return f"{row[label]:.1%}" + ("" if interval is None else f" [{interval[0]:.1%}, {interval[1]:.1%}]")


if __name__ == "__main__":
    cli.run(main)
