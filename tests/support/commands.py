"""Checks command lines in documents and manifests against the jobs that they start, without running them."""

import contextlib
import importlib
import io
import re
import shlex
from typing import Any

from places import ROOT

from jobs.commands import module_of
from jobs.model_arguments import parse_arms, parse_models
from jobs.serve import _models, _scorers
from jobs.stages import Stage, stages_of, with_settings
from phf_ray.checkpoint import parse_control
from phf_ray.config import PipelineConfig, load_config, parse_section, pipeline_path, read_yaml
from phf_ray.errors import PhfError

APP = "/app/"
"""Folder of the repository in the image."""


def job_words(command: str) -> tuple[dict[str, str], list[str]] | None:
    """Return the variables set in front, and the words after `python -m`; None if the command starts no job.

    `phf` counts as `python -m` with the job's module.
    """
    words = shlex.split(command)
    if words[:1] == ["env"]:
        words = words[1:]
    environment = {}
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        name, _, value = words.pop(0).partition("=")
        environment[name] = value
    if words[:1] == ["phf"] and not words[1].startswith("--"):
        return environment, [module_of(words[1]), *words[2:]]
    if len(words) < 3 or not re.fullmatch(r"(\S+/)?python3?", words[0]) or words[1] != "-m":
        return None
    return environment, words[2:]


def problem_of(module: str, arguments: list[str]) -> str | None:
    """Return why the job would refuse these arguments, judging by them and the repository's files; else None."""
    if not (ROOT / f"{module.replace('.', '/')}.py").is_file():
        return f"there is no job {module}"
    arguments = [word.replace(APP, f"{ROOT}/", 1) if word.startswith(APP) else word for word in arguments]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            parsed = importlib.import_module(module).parser().parse_args(arguments)
        _check_values(module, parsed)
    except SystemExit as end:
        return None if end.code == 0 else said.getvalue().strip().splitlines()[-1]
    except PhfError as error:
        return str(error)
    return None


def _check_values(module: str, parsed: Any) -> None:
    """Check the values that argparse can't judge. Raises PhfError if one is wrong."""
    task = getattr(parsed, "task", None)
    if task is not None:
        with contextlib.chdir(ROOT):
            load_config(task, getattr(parsed, "method", None), getattr(parsed, "override", []))
    if module == "jobs.serve":
        _models(parsed.model, dict(map(parse_control, parsed.control)))
        _scorers(parsed.scorers, task=None, finds_models=False)
    if module == "jobs.pipeline":
        pipeline_stages(parsed)
    models = getattr(parsed, "model", None)
    if module in ("jobs.evaluate_lm", "jobs.red_team") and all("://" in model for model in models):
        parse_arms(parsed.arm, parse_models(models))


def pipeline_stages(parsed: Any) -> tuple[Stage, ...]:
    """Return the stages of a command `pipeline`. Raises PhfError if one of them would be refused."""
    with contextlib.chdir(ROOT):
        file = pipeline_path(parsed.file)
        given = with_settings(
            parse_section(PipelineConfig, read_yaml(file), parsed.file), values=parsed.set, overrides=parsed.override
        )
        return stages_of(given, output=str(parsed.output or given.output or f"out/{parsed.file}"))
