"""The commands of `phf`, in the order of the flow, and the parser of each. Light: `phf --help` imports nothing else."""

import argparse
import difflib
import sys
from pathlib import Path

COMMANDS = {
    "fetch-models": "fetch published scorer models, for machines that have no internet",
    "score-corpus": "score a corpus segment by segment",
    "thresholds": "print which score a given share of a corpus does not exceed",
    "calibrate": "carry a threshold or scores over from an old scorer to a new one",
    "build-blocks": "build the token blocks ahead of the training that reads them",
    "train-lm": "train a language model on scored corpora",
    "make-prompts": "write function headers of Python's library as prompts",
    "evaluate-lm": "draw samples from models, score them, and write a report",
    "red-team": "attack models with prompts that a red LM writes",
    "serve": "serve models and scorers over HTTP",
    "demo": "run the whole story on one machine, in about ten minutes",
    "pareto": "train the paper's six objectives: misalignment against KL",
}
"""Command -> what it does; its module is `jobs.<command>`, with underscores."""


def help_text() -> str:
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:{width}}{does}" for name, does in COMMANDS.items()]
    return "\n".join(
        [
            "usage: phf COMMAND [ARGUMENTS]",
            "",
            "Language models that learn from human preferences, on Ray. Each command resumes when it is started again.",
            "",
            *lines,
            "",
            "phf --help           this list",
            "phf COMMAND --help   arguments and examples",
            "phf --configs        folder of the configurations that come along (--task pep8 is its pep8/pretrain.yml)",
            "phf --version",
        ]
    )


def module_of(command: str) -> str:
    return f"jobs.{command.replace('-', '_')}"


def unknown(command: str) -> str:
    """What is wrong with a command that there is not, in one line."""
    near = difflib.get_close_matches(command.replace("_", "-"), COMMANDS, n=1)
    guess = f"did you mean `phf {near[0]}`? " if near else ""
    return f"there is no command {command!r}; {guess}`phf --help` lists them"


def program(job: str) -> str:
    """How the user started the job: `phf score-corpus`, or `python -m jobs.score_corpus`."""
    by_phf = Path(sys.argv[0]).stem == "phf"
    return f"phf {job.replace('_', '-')}" if by_phf else f"python -m jobs.{job}"


def job_parser(job: str, description: str, *, examples: tuple[str, ...]) -> argparse.ArgumentParser:
    """An empty parser whose help ends with the examples, which are given without the program: `--task pep8 ...`."""
    shown = "\n".join(f"  {program(job)} {example}" for example in examples)
    return argparse.ArgumentParser(
        prog=program(job),
        description=description,
        epilog=f"examples:\n{shown}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
