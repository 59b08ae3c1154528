"""Prompts of a scenario, and how the samples are divided among them."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from phf_ray.config.shipped import shipped_or_own
from phf_ray.corpus.data_set_rows import rows_of
from phf_ray.corpus.streams import UNREADABLE, text_lines
from phf_ray.errors import ConfigError, DataError
from phf_ray.storage.data_sets import open_data_set
from phf_ray.storage.hashing import digest


def read_prompts(path: str) -> list[str]:
    """Read the `text` of each record of a JSON-lines file (here, at a URL, or shipped) or of a data set by name."""
    prompts = [_prompt_of(record, where=where) for where, record in prompt_records(path)]
    if not prompts:
        raise DataError(
            f"{path} holds no prompts; write one JSON object per line, such as {{'text': 'def add(a, b):'}}"
        )
    return prompts


def check_prompts(paths: Iterable[str | None]) -> None:
    """Open the data sets among some `prompts_path`, so that a wrong name is an error before any server starts."""
    for path in paths:
        if path is not None:
            open_data_set(shipped_or_own(path), option="prompts_path")


def prompt_records(path: str) -> Iterator[tuple[str, Any]]:
    """Yield each record, after its place for error messages."""
    path = shipped_or_own(path)
    data_set = open_data_set(path, option="prompts_path")
    try:
        if data_set is not None:
            for number, record in enumerate(rows_of(data_set), start=1):
                yield f"{path}, record {number}", record
            return
        for number, line in enumerate(text_lines(path), start=1):
            if line.strip():
                yield f"{path}:{number}", _parsed(line, where=f"{path}:{number}")
    except UNREADABLE as error:
        raise ConfigError(
            f"prompts_path {path} can't be read ({error}); give a file of lines like {{'text': ...}}, or a data set"
        ) from None


def _parsed(line: str, *, where: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: no prompt ({type(error).__name__}: {error}); write {{'text': ...}}") from None


def _prompt_of(record: Any, *, where: str) -> str:
    """Return the record's `text`; in RealToxicityPrompts the `text` of its `prompt`, in HumanEval its `prompt`."""
    if isinstance(record, dict) and "messages" in record and not {"text", "prompt"} & record.keys():
        raise DataError(f"{where}: a conversation, which only --api chat can ask; or write {{'text': ...}}")
    try:
        text = record["text"] if "text" in record else record["prompt"]
        text = text["text"] if isinstance(text, dict) else text
    except (KeyError, TypeError) as error:
        raise DataError(f"{where}: no prompt ({type(error).__name__}: {error}); write {{'text': ...}}") from None
    if not isinstance(text, str):
        raise DataError(f"{where}: `text` is {text!r}; write a string")
    return text


@dataclass(frozen=True, slots=True)
class Problem:
    """The test of a completed function, in HumanEval's form."""

    prompt: str
    test: str
    """Defines `check`, which takes the function and raises if it is wrong."""
    entry_point: str
    """The function's name."""


def read_problems(path: str) -> list[Problem]:
    """Read problems in the order of `read_prompts`. Raises DataError with the number of a record that is not one."""
    problems = []
    for number, (_, record) in enumerate(prompt_records(path), start=1):
        values = [record.get(key) for key in ("prompt", "test", "entry_point")]
        if not all(isinstance(value, str) for value in values):
            raise DataError(
                f"{path}: record {number} is not a problem to execute; write "
                "{'prompt': ..., 'test': 'def check(f): ...', 'entry_point': ...}"
            )
        problems.append(Problem(*values))
    return problems


def prompt_order(num_prompts: int, *, scenario: str) -> list[int]:
    """Return the order in which to use prompts if there are more than samples; only the scenario's name decides."""
    rng = np.random.default_rng(int(digest(scenario), 16))
    return [int(index) for index in rng.permutation(num_prompts)]


def samples_per_prompt(num_samples: int, num_prompts: int) -> list[int]:
    """Divide samples among prompts as equally as possible; the first prompts get one more. Sums to num_samples."""
    return [num_samples // num_prompts + (number < num_samples % num_prompts) for number in range(num_prompts)]
