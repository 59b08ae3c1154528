"""The stages of a pipeline, made from its file: their command lines, what they read, where they write.

Each stage is checked as its command would check it, by the command's own parser and configuration, before any runs.
"""

import argparse
import contextlib
import difflib
import hashlib
import importlib
import io
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from jobs import cli
from jobs.commands import COMMANDS, module_of, unknown
from phf_ray.config import Config, PipelineConfig, PipelineStage, filled_in, pool_path, task_path
from phf_ray.config.parsing import read_yaml
from phf_ray.config.shipped import method_path, model_path, shipped_or_own
from phf_ray.errors import ConfigError
from phf_ray.storage.files import open_filesystem
from phf_ray.storage.hashing import json_fingerprint

RUNS = ("train-lm", "train-rl")
"""Commands whose output is a run: <storage-path>/<run-name>."""
ENDLESS = ("serve", "chat", "pipeline")
REFUSED = ("help", "dry-run", "estimate", "restart", "append")
"""Options that do something else than the stage, or that would do it anew at each start."""
MARKS = {
    **dict.fromkeys(("score-corpus", "prepare-feedback", "annotate", "best-of-n"), "_SUCCESS"),
    **dict.fromkeys(("evaluate-lm", "leaderboard"), "report.html"),
    "merge-adapter": "config.json",
}
"""Command -> the file that it writes last. Of others, the output itself."""
PLACES = ("output", "storage-path", "run-name")
"""Arguments that say where a stage writes."""
WHOLE = ("merge-adapter",)
"""Commands that refuse an output that is there. It is whole or absent."""
READS = (
    *("input", "against", "pairs", "samples", "head2head", "known", "corpus", "checkpoint", "base", "checkpoint_path"),
    *(
        "model",
        "models",
        "prompts",
        "reward",
        "gold",
        "reference",
        "reference_samples",
        "comparisons",
        "outputs",
        "add",
    ),
    *("human", "red_team", "lm_eval", "annotators"),
)
"""Arguments that name what a command reads. Those that are no text, such as numbers, are passed over."""
_BY_CONTENT = 64 << 20
"""Files up to this size are known by their content, larger ones by their size."""


@dataclass(frozen=True)
class Stage:
    name: str
    command: str
    argv: tuple[str, ...]
    output: str | None
    """Folder or URL; None if the command only prints."""
    reads: tuple[str, ...]
    definition: Mapping[str, Any]
    """All that decides its output besides the outputs of other stages, as JSON values."""
    inputs: tuple[tuple[str, str], ...]
    """Earlier stages whose outputs it reads, with their identities."""
    identity: str
    """Hash of the definition and of those of all stages that it comes from."""

    @property
    def upstream(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.inputs)

    @property
    def line(self) -> str:
        """What a user would type."""
        return shlex.join(["phf", self.command, *self.argv])

    def is_there(self) -> bool:
        """Whether something is at the output."""
        return self.output is not None and _exists(self.output)

    def is_done(self) -> bool:
        """Whether its own job says that the output is finished."""
        if self.output is None:
            return False
        if self.command in RUNS:
            from phf_ray.runs.directory import RunDirectory

            return RunDirectory(self.output).read_summary().get("status") == "finished"
        # What annotators agree on is no corpus.
        mark = "agreement.json" if "--agreement" in self.argv else MARKS.get(self.command)
        return _exists(self.output if mark is None else f"{self.output.rstrip('/')}/{mark}")


def stages_of(pipeline: PipelineConfig, *, output: str) -> tuple[Stage, ...]:
    """Return the stages with everything filled in. Raises ConfigError for the first one that can't be."""
    stages: dict[str, Stage] = {}
    for given in pipeline.stages:
        try:
            stage = _stage(given, pipeline.values, stages, output=output)
        except ConfigError as error:
            raise ConfigError(f"stage {given.name}: {error}") from None
        for other in stages.values():
            if stage.output and other.output and _overlap(stage.output, other.output):
                raise ConfigError(
                    f"stage {stage.name} writes into {stage.output}, and stage {other.name} into {other.output}; give "
                    "each a folder of its own"
                )
        stages[given.name] = stage
    return tuple(stages.values())


def _stage(given: PipelineStage, values: Mapping[str, Any], earlier: Mapping[str, Stage], *, output: str) -> Stage:
    parser = _parser_of(given.command)
    raw = {key.replace("_", "-"): value for key, value in given.arguments.items()}
    _check_options(raw, parser, command=given.command)
    raw = {**raw, **{key: value for key, value in _places(given, parser).items() if key not in raw}}
    used: list[str] = []

    def place(name: str) -> Any:
        return _looked_up(name, values, earlier, output=output, used=used)

    def symbol(name: str) -> Any:
        return _looked_up(name, values, earlier) if name.startswith("values.") else f"${{{name}}}"

    arguments, overrides = _filled(raw, place), filled_in(given.overrides, place)
    argv = _argv(arguments, overrides)
    parsed = _parsed(parser, argv)
    config = _checked(given.command, parsed)
    written = _output_of(given.command, parsed)
    if written is not None and _overlap(output, written, below_is_fine=True):
        raise ConfigError(f"it writes into {written}, where the pipeline keeps its record; give it a folder below")
    reads = tuple(dict.fromkeys(_reads(parsed, config if given.command in RUNS else None, parser)))
    upstream = [name for name in earlier if name in used or _comes_from(reads, earlier[name])]
    outside = [text for text in reads if not any(_comes_from([text], earlier[name]) for name in upstream)]
    definition = {
        "command": given.command,
        "arguments": _filled(raw, symbol),
        "overrides": filled_in(given.overrides, symbol),
        "files": _contents(parsed, outside),
    }
    definition = json.loads(json.dumps(definition, default=str))
    inputs = tuple((name, earlier[name].identity) for name in upstream)
    identity = json_fingerprint([definition, inputs])
    return Stage(given.name, given.command, argv, written, reads, definition, inputs, identity)


# -- The command line --------------------------------------------------------------------------------------------------


def _parser_of(command: str) -> argparse.ArgumentParser:
    if command not in COMMANDS:
        raise ConfigError(unknown(command))
    if command in ENDLESS:
        told = "is a pipeline itself" if command == "pipeline" else "runs until it is stopped"
        raise ConfigError(f"{command} {told}, so it is no stage; remove it")
    parser: argparse.ArgumentParser = importlib.import_module(module_of(command)).parser()
    return parser


def _check_options(raw: Mapping[str, Any], parser: argparse.ArgumentParser, *, command: str) -> None:
    known = {option.removeprefix("--") for option in _options(parser)}
    for key in raw:
        if key in REFUSED:
            raise ConfigError(f"{key} has no place in a pipeline; remove it, or give the command by hand")
        if key == "override":
            raise ConfigError("write what --override says under `overrides:`, as KEY: VALUE")
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            guess = f"; did you mean {near[0]}?" if near else f"; `phf {command} --help` lists them"
            raise ConfigError(f"{command} has no option --{key}{guess}")


def _options(parser: argparse.ArgumentParser) -> list[str]:
    return [option for action in parser._actions for option in action.option_strings if option.startswith("--")]


def _places(given: PipelineStage, parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Return where a stage writes if it does not say so: a folder with its name."""
    if given.command in RUNS:
        return {"run-name": given.name, "storage-path": "${output}/runs"}
    return {"output": f"${{output}}/{given.name}"} if "--output" in _options(parser) else {}


def _looked_up(
    name: str,
    values: Mapping[str, Any],
    earlier: Mapping[str, Stage],
    *,
    output: str = "",
    used: list[str] | None = None,
) -> Any:
    kind, _, rest = name.partition(".")
    if name == "output":
        return output
    if kind == "values":
        if rest not in values:
            raise ConfigError(f"${{{name}}}: `values:` has {', '.join(values) or 'nothing'}, and no {rest}")
        return values[rest]
    stage, _, what = rest.rpartition(".")
    if kind != "stages" or what != "output":
        raise ConfigError(f"${{{name}}} stands for nothing; write output, values.NAME or stages.NAME.output")
    if stage not in earlier:
        raise ConfigError(
            f"${{{name}}}: no stage before it is called {stage}; those are {', '.join(earlier) or 'none'}"
        )
    if earlier[stage].output is None:
        raise ConfigError(f"${{{name}}}: {earlier[stage].command} writes nothing")
    if used is not None:
        used.append(stage)
    return earlier[stage].output


def _filled(raw: Mapping[str, Any], lookup: Any) -> dict[str, Any]:
    """Fill in the arguments. Those that come to null are left out."""
    found = {key: filled_in(value, lookup) for key, value in raw.items()}
    return {key: value for key, value in found.items() if value is not None}


def _argv(arguments: Mapping[str, Any], overrides: Mapping[str, Any]) -> tuple[str, ...]:
    words: list[str] = []
    for key, value in arguments.items():
        if isinstance(value, bool):
            words += [f"--{key}"] if value else []
        elif isinstance(value, list):
            words += [f"--{key}", *map(_word, value)]
        else:
            word = _word(value)
            # argparse takes a word that begins with a dash for an option.
            words += [f"--{key}={word}"] if word.startswith("-") else [f"--{key}", word]
    if overrides:
        words.append("--override")
        # As JSON, because YAML could read a bare path as something else.
        words += [f"{key}={json.dumps(value, default=str)}" for key, value in overrides.items()]
    return tuple(words)


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _parsed(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            return parser.parse_args(argv)
    except SystemExit:
        told = said.getvalue().strip().splitlines() or ["its arguments can't be read"]
        raise ConfigError(told[-1].partition("error: ")[2] or told[-1]) from None


def _checked(command: str, parsed: argparse.Namespace) -> Config | None:
    """Check what the command can check without a file. Return the configuration, if it has one."""
    config = cli.config_from(parsed) if hasattr(parsed, "task") else None
    check = getattr(importlib.import_module(module_of(command)), "check", None)
    if check is not None:
        check(parsed) if config is None else check(parsed, config)
    return config


def _output_of(command: str, parsed: argparse.Namespace) -> str | None:
    if command in RUNS:
        return f"{parsed.storage_path.rstrip('/')}/{parsed.run_name}"
    found = getattr(parsed, "output", None)
    return None if found is None else str(found)


# -- What it reads -----------------------------------------------------------------------------------------------------


def _reads(parsed: argparse.Namespace, config: Config | None, parser: argparse.ArgumentParser) -> Iterator[str]:
    # One of a few words, as prepare-feedback's --pairs, is no place.
    words = {action.dest for action in parser._actions if action.choices is not None}
    for name in READS:
        value = None if name in words else getattr(parsed, name, None)
        for one in value if isinstance(value, list | tuple) else [value]:
            # A reference may be one of the models by its name.
            is_model = name == "reference" and any(f"{one}=" in text for text in getattr(parsed, "models", ()))
            if isinstance(one, str | Path) and not is_model:
                yield str(one)
    if config is None:
        return
    yield from config.dataset.datasets
    yield from config.dataset.eval_datasets.values()
    if hasattr(parsed, "checkpoint_path") and parsed.checkpoint_path is None and not config.model.from_scratch:
        yield str(config.model.path_or_name)
    if config.rollouts is not None:
        yield from config.rollouts.prompts
        gold = [] if config.rollouts.gold is None else [config.rollouts.gold]
        for spec in (*config.rollouts.reward, *gold):
            judged = None if spec.annotators is None else spec.annotators.reference
            yield from filter(None, (spec.model, (spec.scorer or {}).get("path"), judged))
    critic = getattr(config.algorithm, "critic", None)
    if critic is not None:
        yield critic.model


def missing_files(stage: Stage, stages: Sequence[Stage]) -> list[str]:
    """Return what a stage reads that must be a file here, is none, and comes from no other stage."""
    found = []
    for text in stage.reads:
        path = _path_in(text)
        is_file = path.startswith(("/", "./", "../")) or Path(path).suffix in (".json", ".jsonl", ".parquet", ".yml")
        odd = "://" in path or any(mark in path for mark in "*?[{:@")
        is_made = any(_comes_from([text], other) for other in stages if other is not stage)
        if is_file and not odd and not is_made and not _exists(shipped_or_own(path)):
            found.append(path)
    return found


def _path_in(text: str) -> str:
    """Return the path of NAME=PATH, or the text."""
    name, equals, path = text.partition("=")
    return path if equals and "/" not in name else text


def _comes_from(texts: Sequence[str], stage: Stage) -> bool:
    """Whether one of the texts names a stage's output, or what is in it."""
    if stage.output is None:
        return False
    # In the YAML of a reward, the output stands among other words.
    named = re.compile(rf"(?<![\w./-]){re.escape(stage.output)}(?![\w.-])")
    return any(named.search(text) or _overlap(stage.output, _path_in(text), one_way=True) for text in texts)


def _overlap(first: str, second: str, *, below_is_fine: bool = False, one_way: bool = False) -> bool:
    """Whether one folder is the other, or lies in it. `one_way`: only the second in the first."""
    if cli.is_url(first) or cli.is_url(second):
        here, there = f"{first.rstrip('/')}/", f"{second.rstrip('/')}/"
    else:
        here, there = (f"{Path(path).resolve()}/" for path in (first, second))
    if below_is_fine:
        return here.startswith(there)
    return there.startswith(here) or (not one_way and here.startswith(there))


def _exists(path: str) -> bool:
    filesystem, inner = open_filesystem(path)
    return bool(filesystem.exists(inner))


# -- Files that are part of the definition -----------------------------------------------------------------------------


def _contents(parsed: argparse.Namespace, outside: Sequence[str]) -> dict[str, Any]:
    """Return the contents of the stage's configuration files, and hashes of the other files that it names."""
    found: dict[str, Any] = {}
    for name, path in _configurations(parsed).items():
        values = read_yaml(path)
        found[name] = values
        for text in _texts(values):
            if len(text) < 200 and "\n" not in text and (path.parent / text).is_file():
                found[f"{name}: {text}"] = _digest(path.parent / text)
    for text in outside:
        path = Path(shipped_or_own(_path_in(text)))
        with contextlib.suppress(OSError):
            if path.is_file():
                found[text] = _digest(path)
    return found


def _configurations(parsed: argparse.Namespace) -> dict[str, Path]:
    files: dict[str, Path] = {}
    if hasattr(parsed, "task"):
        files["task"] = task_path(parsed.task)
        if getattr(parsed, "method", None) is not None:
            files["method"] = method_path(parsed.method, task=files["task"])
        if getattr(parsed, "shape", None) is not None:
            files["model"] = model_path(parsed.shape)
    if getattr(parsed, "annotators", None) is not None:
        files["annotators"] = pool_path(parsed.annotators)
    return files


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _texts(one)
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)


def _digest(path: Path) -> str:
    size = path.stat().st_size
    if size > _BY_CONTENT:
        return f"{size} bytes"
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


# -- The pipeline's own options ----------------------------------------------------------------------------------------


def with_settings(pipeline: PipelineConfig, *, values: Sequence[str], overrides: Sequence[str]) -> PipelineConfig:
    """Return the pipeline with `--set NAME=VALUE` and `--override STAGE.KEY=VALUE`."""
    changed = dict(pipeline.values)
    for text in values:
        name, value = _assignment(text, option="--set", example="NAME=VALUE")
        if name not in changed:
            raise ConfigError(f"--set {text}: the pipeline has no value {name}; it has {', '.join(changed) or 'none'}")
        changed[name] = value
    stages = {stage.name: stage for stage in pipeline.stages}
    for text in overrides:
        place, value = _assignment(text, option="--override", example="STAGE.KEY=VALUE")
        name, _, key = place.partition(".")
        if name not in stages or not key:
            raise ConfigError(f"--override {text}: write STAGE.KEY=VALUE, with one of the stages {', '.join(stages)}")
        kept = {old: given for old, given in stages[name].overrides.items() if not old.startswith(f"{key}.")}
        stages[name] = stages[name].model_copy(update={"overrides": {**kept, key: value}})
    return pipeline.model_copy(update={"values": changed, "stages": tuple(stages.values())})


def _assignment(text: str, *, option: str, example: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise ConfigError(f"{option} {text}: write {example}")
    try:
        return name.strip(), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"{option} {text}: the value is not valid YAML: {error}") from None
