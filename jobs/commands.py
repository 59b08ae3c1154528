"""The commands of `phf` in the order of the flow, and their parsers. Light, because `phf --help` imports it."""

import argparse
import difflib
import sys
from pathlib import Path

COMMANDS = {
    "fetch-models": "fetch published scorer models, for machines without internet",
    "score-corpus": "score a corpus segment by segment",
    "thresholds": "print the score that a given share of a corpus does not exceed",
    "calibrate": "carry a threshold or scores over from an old scorer to a new one",
    "prepare-feedback": "turn published examples and comparisons into a feedback corpus",
    "annotate": "have judges say which of two answers is better",
    "build-blocks": "build token blocks ahead of training",
    "train-lm": "train a language model on scored corpora",
    "train-rl": "train a language model on rewards of its own answers",
    "rollouts-report": "draw the page of a run of rounds: gold, reward, KL, samples",
    "best-of-n": "sample answers, reward them, and keep the best",
    "frontier": "draw gold and proxy against KL for any runs and results on one page",
    "merge-adapter": "merge an adapter into its base model, as a model of its own",
    "recover": "recover AlpacaFarm's models from LLaMA and their weight differences",
    "make-prompts": "write prompts from the function headers of Python's library",
    "evaluate-reward": "measure a reward model on comparisons, such as RewardBench's",
    "evaluate-lm": "draw samples from models, score them, and write a report",
    "openai-baselines": "have a reference model behind a URL answer prompts, as AlpacaFarm did",
    "leaderboard": "rank models by what judges or humans said of their answers",
    "tutorial-models": "train three tiny models for the tutorial of judges",
    "red-team": "attack models with prompts that a red LM writes",
    "serve": "serve models and scorers over HTTP",
    "chat": "talk to served models on a page, and say which answer is better",
    "pipeline": "run the stages of a file, each with the outputs of those before",
    "demo": "score, train, serve and evaluate on one machine, in about ten minutes",
    "learned-reward": "learn a reward from noisy comparisons, and train on its scores",
    "hindsight": "learn from comparisons put into words, and ask for good and for bad code",
    "rounds": "show best of n, expert iteration, RLOO and PPO against the demo's model",
    "align": "align the demo's model with annotators who err, by every method, and compare them",
    "pareto": "train the paper's six objectives, and plot misalignment against KL",
}
"""Command -> its line in the help. Its module is `jobs.<command>`, with underscores."""


def help_text() -> str:
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:{width}}{does}" for name, does in COMMANDS.items()]
    return "\n".join(
        [
            "usage: phf COMMAND [ARGUMENTS]",
            "",
            "Language models that learn from human preferences, on Ray. A command resumes if you run it again.",
            "",
            *lines,
            "",
            "phf --help           this list",
            "phf COMMAND --help   arguments and examples",
            "phf --configs        folder of the shipped configurations (--task pep8 is pep8/pretrain.yml in it)",
            "phf --version",
        ]
    )


def module_of(command: str) -> str:
    return f"jobs.{command.replace('-', '_')}"


def unknown(command: str) -> str:
    """Return a one-line error for an unknown command."""
    near = difflib.get_close_matches(command.replace("_", "-"), COMMANDS, n=1)
    guess = f"did you mean `phf {near[0]}`? " if near else ""
    return f"there is no command {command!r}; {guess}`phf --help` lists them"


def program(job: str) -> str:
    """Return how the user started the job: `phf score-corpus`, or `python -m jobs.score_corpus`."""
    by_phf = Path(sys.argv[0]).stem == "phf"
    return f"phf {job.replace('_', '-')}" if by_phf else f"python -m jobs.{job}"


def job_parser(job: str, description: str, *, examples: tuple[str, ...]) -> argparse.ArgumentParser:
    """Return an empty parser whose help ends with the examples. Give them without the program: `--task pep8 ...`."""
    shown = "\n".join(f"  {program(job)} {example}" for example in examples)
    return argparse.ArgumentParser(
        prog=program(job),
        description=description,
        epilog=f"examples:\n{shown}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
