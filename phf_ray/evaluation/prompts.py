"""Prompts of a scenario, and how the samples are divided among them."""

import json
from dataclasses import dataclass

import fsspec
import numpy as np

from phf_ray.config.shipped import shipped_or_own
from phf_ray.errors import ConfigError, DataError
from phf_ray.storage.hashing import digest


def read_prompts(path: str) -> list[str]:
    """The `text` of each line of a JSON-lines file, local, a URL, or shipped (`configs/prompts/...`)."""
    prompts = []
    try:
        with fsspec.open(shipped_or_own(path), "rt", encoding="utf-8", compression="infer") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    prompts.append(_prompt_of(line, where=f"{path}:{number}"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"prompts_path {path} can't be read ({error}); give a file of lines like {{'text': ...}}"
        ) from None
    if not prompts:
        raise DataError(f"{path} holds no prompts; write one JSON object a line, such as {{'text': 'def add(a, b):'}}")
    return prompts


def _prompt_of(line: str, *, where: str) -> str:
    """Its `text`; in RealToxicityPrompts that of its `prompt`, in HumanEval the `prompt` itself."""
    try:
        record = json.loads(line)
        text = record["text"] if "text" in record else record["prompt"]
        text = text["text"] if isinstance(text, dict) else text
        if isinstance(text, str):
            return text
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{where}: no prompt ({type(error).__name__}: {error}); write {{'text': ...}}") from None
    raise DataError(f"{where}: `text` is {text!r}; write a string")


@dataclass(frozen=True, slots=True)
class Problem:
    """How a completion of a function is tested, in HumanEval's form."""

    prompt: str
    test: str
    """Defines `check`, which takes the function and raises where it is wrong."""
    entry_point: str
    """The function's name."""


def read_problems(path: str) -> list[Problem]:
    """In the order of `read_prompts`. Raises DataError with the number of the record that is no problem."""
    with fsspec.open(shipped_or_own(path), "rt", encoding="utf-8", compression="infer") as lines:
        records = [json.loads(line) for line in lines if line.strip()]
    problems = []
    for number, record in enumerate(records, start=1):
        values = [record.get(key) for key in ("prompt", "test", "entry_point")]
        if not all(isinstance(value, str) for value in values):
            raise DataError(
                f"{path}: record {number} is no problem to execute; write "
                "{'prompt': ..., 'test': 'def check(f): ...', 'entry_point': ...}"
            )
        problems.append(Problem(*values))
    return problems


def prompt_order(num_prompts: int, *, scenario: str) -> list[int]:
    """Order in which prompts are used when there are more than samples: fixed by the scenario's name alone."""
    rng = np.random.default_rng(int(digest(scenario), 16))
    return [int(index) for index in rng.permutation(num_prompts)]


def samples_per_prompt(num_samples: int, num_prompts: int) -> list[int]:
    """As equal as possible, the first prompts one more; sums to num_samples."""
    return [num_samples // num_prompts + (number < num_samples % num_prompts) for number in range(num_prompts)]
