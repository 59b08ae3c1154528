"""Run the stages of a pipeline: commands of `phf` one after the other, each with the outputs of those before.

The file names the stages. If you run the same command again, it goes on at the first unfinished stage. A stage that has
changed since it finished, or that comes from one that has, is refused until --redo discards its output.
"""

import argparse
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs import cli
from jobs.commands import job_parser
from jobs.stage_process import StageRunner
from jobs.stage_record import RECORD, PipelineRecord, StageState
from jobs.stages import WHOLE, Stage, missing_files, stages_of, with_settings
from phf_ray.config import PipelineConfig, parse_section, pipeline_path, read_yaml
from phf_ray.errors import ConfigError, IncompleteError
from phf_ray.storage.one_at_a_time import only_command

RunStage = Callable[[str, Sequence[str]], int]
"""Runs a command with its arguments, and returns its exit code."""


def main(argv: Sequence[str] | None = None, *, run_stage: RunStage | None = None) -> int:
    """Run the job. `run_stage`: in place of a process for each stage."""
    arguments = parser().parse_args(argv)
    file = pipeline_path(arguments.file)
    pipeline = parse_section(PipelineConfig, read_yaml(file), str(arguments.file))
    pipeline = with_settings(pipeline, values=arguments.set, overrides=arguments.override)
    output = str(arguments.output or pipeline.output or f"out/{_name_of(file)}").rstrip("/")
    stages = stages_of(pipeline, output=output)
    asked = _Asked.of(arguments, stages)
    _refuse_missing_files(asked, PipelineRecord(output))
    with nullcontext() if arguments.dry_run else only_command(output):
        record = PipelineRecord(output)
        doomed = record.to_discard(arguments.redo, stages, folder=output)
        record.forget(doomed)
        if arguments.dry_run:
            for told in _discarded(doomed, "would discard"):
                print(told)
            return _print_plan(asked, record, output=output)
        states = [record.state(stage) for stage in asked.stages]
        # Before anything is discarded.
        _refuse_problems(asked, states, record)
        record.discard(doomed)
        for told in _discarded(doomed, "discarded"):
            print(told)
        left = [(state.stage.command, state.stage.argv) for state in states if not state.is_finished]
        return _run(asked, record, run_stage or StageRunner(left), output=output, go_on=_same_command(arguments))


def parser() -> argparse.ArgumentParser:
    parser = job_parser(
        "pipeline",
        __doc__,
        examples=(
            "rlhf --set prompts=beginnings.jsonl --dry-run",
            "configs/rlhf/pipeline.yml --set prompts=beginnings.jsonl --override sft.training.num_epochs=1",
            "configs/rlhf/pipeline.yml --set prompts=beginnings.jsonl --from reward --output out/rlhf",
        ),
    )
    parser.add_argument("file", metavar="NAME|FILE", help="file of the stages, or a shipped one: rlhf, pep8, alpaca")
    parser.add_argument(
        "--output", metavar="DIR", help=f"folder of the outputs and of {RECORD} (default: what the file says)"
    )
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="NAME=VALUE", help="values that the file names"
    )
    parser.add_argument(
        "--override",
        nargs="+",
        action="extend",
        default=[],
        metavar="STAGE.A.B=C",
        help="values of the configuration of a stage",
    )
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--from", dest="first", metavar="STAGE", help="leave out the stages before this one")
    chosen.add_argument("--only", metavar="STAGE", help="run this stage alone")
    parser.add_argument(
        "--redo",
        nargs="+",
        action="extend",
        default=[],
        metavar="STAGE",
        help="discard what these stages, and all that come from them, have written, and run them again",
    )
    parser.add_argument("--dry-run", action="store_true", help="check every stage, print the plan, and stop")
    return parser


@dataclass(frozen=True)
class _Asked:
    """The stages of the file, and those among them that are asked for."""

    everything: tuple[Stage, ...]
    stages: tuple[Stage, ...]

    @classmethod
    def of(cls, arguments: argparse.Namespace, stages: tuple[Stage, ...]) -> "_Asked":
        names = [stage.name for stage in stages]
        for option, given in (
            ("from", arguments.first),
            ("only", arguments.only),
            *(("redo", n) for n in arguments.redo),
        ):
            if given is not None and given not in names:
                raise ConfigError(f"--{option} {given}: the stages are {', '.join(names)}")
        if arguments.only is not None:
            return cls(stages, (stages[names.index(arguments.only)],))
        return cls(stages, stages[names.index(arguments.first) :] if arguments.first else stages)

    def title(self, stage: Stage) -> str:
        return f"{self.everything.index(stage) + 1}/{len(self.everything)} {stage.name}: {stage.command}"


def _name_of(file: Path) -> str:
    return file.resolve().parent.name if file.stem == "pipeline" else file.stem


def _discarded(doomed: Mapping[str, str | None], what: str) -> list[str]:
    return [f"{what}: stage {name}{f', {there}' * bool(there)}" for name, there in doomed.items()]


def _same_command(arguments: argparse.Namespace) -> str:
    """Return the command that goes on. It discards nothing."""
    words = ["phf", "pipeline", arguments.file]
    for option, given in (("output", arguments.output), ("from", arguments.first), ("only", arguments.only)):
        words += [] if given is None else [f"--{option}", given]
    for option in ("set", "override"):
        given = getattr(arguments, option)
        words += [f"--{option}", *given] if given else []
    return shlex.join(words)


# -- What can be refused before anything runs --------------------------------------------------------------------------


def _refuse_missing_files(asked: _Asked, record: PipelineRecord) -> None:
    for stage in asked.stages:
        if record.state(stage).is_finished:
            continue
        for path in missing_files(stage, asked.everything):
            raise ConfigError(f"stage {stage.name}: {path}, which it reads, does not exist")


def _problems(asked: _Asked, states: Sequence[StageState], record: PipelineRecord) -> list[str]:
    problems = [state.problem for state in states if state.problem is not None]
    if problems:
        bad = {state.stage.name for state in states if state.problem is not None}
        roots = [
            one.stage.name for one in states if one.problem is not None and not bad.intersection(one.stage.upstream)
        ]
        return [
            *problems,
            f"add --redo {' '.join(roots)} to discard these outputs and make them anew; or give another --output, or "
            "undo the change",
        ]
    chosen = {stage.name for stage in asked.stages}
    for state in states:
        for other in asked.everything:
            if state.is_finished or other.name in chosen or other.name not in state.stage.upstream:
                continue
            before = record.state(other)
            if before.problem is not None:
                problems.append(f"{before.problem}, and stage {state.stage.name} reads it; add --redo {other.name}")
            elif not before.is_usable:
                problems.append(
                    f"stage {state.stage.name} reads the output of {other.name}, which is {before.told}; run that first"
                )
    return problems


def _refuse_problems(asked: _Asked, states: Sequence[StageState], record: PipelineRecord) -> None:
    problems = _problems(asked, states, record)
    if problems:
        raise ConfigError("\n".join(problems))


def _print_plan(asked: _Asked, record: PipelineRecord, *, output: str) -> int:
    print(f"{len(asked.stages)} of {len(asked.everything)} stages, recorded in {output}/{RECORD}")
    states = [record.state(stage) for stage in asked.stages]
    for state in states:
        stage = state.stage
        print(f"\n{asked.title(stage)}\n  state   {state.told}")
        _print_places(stage)
        print(f"  command {stage.line}")
    _refuse_problems(asked, states, record)
    return 0


def _print_places(stage: Stage) -> None:
    after = f" (of {', '.join(stage.upstream)})" if stage.upstream else ""
    print(f"  reads   {', '.join(stage.reads) or 'nothing'}{after}")
    print(f"  writes  {stage.output or 'nothing'}")


# -- The run -----------------------------------------------------------------------------------------------------------


def _run(asked: _Asked, record: PipelineRecord, run_stage: RunStage, *, output: str, go_on: str) -> int:
    begin = time.monotonic()
    rows = []
    for stage in asked.stages:
        state = record.state(stage)
        if state.is_finished:
            _say(f"\n== {asked.title(stage)}: {state.told}; nothing to do")
            rows.append(_row(stage, record, ran=False))
            continue
        _say(f"\n== {asked.title(stage)} ({state.told})")
        _print_places(stage)
        code = _run_one(stage, record, run_stage)
        _say(
            f"== {asked.title(stage)}: {record.minutes(stage) or 0:.1f} min, "
            f"{(time.monotonic() - begin) / 60:.1f} min in total"
        )
        if code:
            _say(f"\nstage {stage.name} ended with exit code {code}, so the pipeline stops; what is finished stays.")
            _say(f"To go on: {go_on}")
            return code
        rows.append(_row(stage, record, ran=True))
        if getattr(run_stage, "stopped_by", None) is not None and stage is not asked.stages[-1]:
            # No error, because after one the user is told to give the same command again, which may discard.
            _say(f"\nstopped after stage {stage.name}, which is finished.\nTo go on: {go_on}")
            return IncompleteError.exit_code
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    _say("")
    for row in rows:
        _say("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    _say(f"\n{output}/{RECORD}")
    return 0


def _run_one(stage: Stage, record: PipelineRecord, run_stage: RunStage) -> int:
    if stage.command in WHOLE and record.was_started(stage) and stage.is_done():
        # It was killed between its last step and the record's. The command would refuse what it finds.
        record.end(stage, code=0, minutes=0.0)
        return 0
    record.start(stage)
    _say(f"$ {stage.line}")
    begin = time.monotonic()
    code = run_stage(stage.command, stage.argv)
    if code == 0 and stage.output is not None and not stage.is_done():
        _say(f"{stage.command} ended without an error, but {stage.output} is not finished")
        code = IncompleteError.exit_code
    record.end(stage, code=code, minutes=(time.monotonic() - begin) / 60)
    return code


def _row(stage: Stage, record: PipelineRecord, *, ran: bool) -> tuple[str, ...]:
    return (
        stage.name,
        f"{record.minutes(stage) or 0:.1f} min" + ("" if ran else ", before"),
        f"read {', '.join(stage.reads) or 'nothing'}",
        f"wrote {stage.output or 'nothing'}",
    )


def _say(text: Any) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    cli.run(main)
