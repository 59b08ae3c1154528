"""What a pipeline remembers of its stages: `pipeline.json` in its folder.

A stage is finished if the record says so, its definition and those of all stages it comes from are the same as then,
and its own job says that the output is finished.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.stages import PLACES, Stage
from phf_ray.errors import ConfigError, DataError
from phf_ray.storage.files import open_filesystem, store_errors, write_text

RECORD = "pipeline.json"
FINISHED, STARTED, FAILED = "finished", "started", "failed"


@dataclass(frozen=True)
class StageState:
    stage: Stage
    is_finished: bool
    told: str
    """In words, for the plan."""
    problem: str | None = None
    """Why it can neither be kept nor run."""
    is_usable: bool = False
    """Whether other stages may read its output: it is finished, by this pipeline or by hand."""


class PipelineRecord:
    def __init__(self, folder: str):
        self._file = f"{folder.rstrip('/')}/{RECORD}"
        self._gone: set[str] = set()
        """Outputs that are to be discarded."""
        self._stages: dict[str, dict[str, Any]] = self._read()

    def state(self, stage: Stage) -> StageState:
        known = self._stages.get(stage.name)
        is_done = stage.output not in self._gone and stage.is_done()
        if known is None:
            told = "to do; its output is there, made by hand" if is_done else "to do"
            return StageState(stage, False, told, is_usable=is_done)
        if known["identity"] == stage.identity:
            if known["status"] != FINISHED:
                ended = f", ended with exit code {known['exit_code']}" if known.get("exit_code") else ""
                return StageState(stage, False, f"unfinished{ended}")
            if is_done or stage.output is None:
                return StageState(stage, True, f"finished, {known['minutes']:.1f} min", is_usable=True)
            return StageState(stage, False, f"to do again: {stage.output} is gone, or no longer finished")
        changed = _changes(stage, known)
        same_inputs = known["inputs"] == dict(stage.inputs)
        old = _place_now(stage, known)
        if stage.output is None or not any(map(_is_there, filter(None, (stage.output, old)))):
            return StageState(stage, False, f"to do; it has changed: {changed}")
        if known["status"] != FINISHED and same_inputs:
            told = f"unfinished, and changed: {changed}; its job says whether what is there can go on"
            return StageState(stage, False, told)
        since = "it finished" if known["status"] == FINISHED else "it was started"
        problem = (
            f"stage {stage.name} has changed since {since}: {changed}. {old or stage.output} is of the old definition"
        )
        return StageState(stage, False, "changed", problem)

    def start(self, stage: Stage) -> None:
        before = self._stages.get(stage.name)
        goes_on = before is not None and before["identity"] == stage.identity and before["status"] != FINISHED
        self._stages[stage.name] = {
            "status": STARTED,
            "identity": stage.identity,
            "inputs": dict(stage.inputs),
            "definition": stage.definition,
            "output": stage.output,
            "command": stage.line,
            "minutes": before["minutes"] if before is not None and goes_on else 0.0,
            "exit_code": None,
        }
        self._write()

    def end(self, stage: Stage, *, code: int, minutes: float) -> None:
        known = self._stages[stage.name]
        status = FINISHED if code == 0 else FAILED
        known.update(status=status, exit_code=code, minutes=known["minutes"] + minutes)
        self._write()

    def minutes(self, stage: Stage) -> float | None:
        known = self._stages.get(stage.name)
        return None if known is None else float(known["minutes"])

    def was_started(self, stage: Stage) -> bool:
        """Whether the stage as it is now was started, and nothing tells how it ended."""
        known = self._stages.get(stage.name)
        return known is not None and known["identity"] == stage.identity and known["status"] == STARTED

    def to_discard(self, names: Sequence[str], stages: Sequence[Stage], *, folder: str) -> dict[str, str | None]:
        """Return the recorded stages among the named ones and all that come from them, with what is at their outputs.

        Raises ConfigError for an output that this pipeline did not make, or that is outside of its folder.
        """
        doomed: dict[str, str | None] = {}
        for stage in stages:
            if stage.name not in names and not any(one in doomed for one in stage.upstream):
                continue
            known = self._stages.get(stage.name)
            if known is None and stage.name in names and stage.is_there():
                raise ConfigError(
                    f"--redo {stage.name}: the pipeline did not make {stage.output}; remove it yourself, or give "
                    "the stage another output"
                )
            old = None if known is None else _place_now(stage, known)
            there = old if old is not None and _is_there(old) else None
            if there is not None and not _is_below(there, folder):
                raise ConfigError(
                    f"--redo {stage.name}: {there} is not below {folder}, so it is not removed here; remove it "
                    "yourself, and give the command again"
                )
            if known is not None or stage.name in names:
                doomed[stage.name] = there
        return doomed

    def discard(self, doomed: Mapping[str, str | None]) -> None:
        for output in doomed.values():
            # First the output: a record of what is gone does no harm, but what is left would be taken for new.
            if output is not None:
                path = Path(output)
                with store_errors(output):
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        self.forget(doomed)
        if doomed:
            self._write()
        self._gone.clear()

    def forget(self, doomed: Mapping[str, str | None]) -> None:
        """Take the stages for not recorded, and their outputs for gone. Only `discard` makes it so."""
        for name, output in doomed.items():
            self._stages.pop(name, None)
            if output is not None:
                self._gone.add(output)

    def _read(self) -> dict[str, dict[str, Any]]:
        filesystem, inner = open_filesystem(self._file)
        with store_errors(self._file):
            if not filesystem.exists(inner):
                return {}
            content = filesystem.cat_file(inner)
        try:
            return dict(json.loads(content)["stages"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{self._file} is no record of a pipeline: {error!r}; give another --output") from None

    def _write(self) -> None:
        write_text(self._file, json.dumps({"stages": self._stages}, indent=1) + "\n")


def _place_now(stage: Stage, known: Mapping[str, Any]) -> str | None:
    """Return where the recorded output is. The pipeline's folder may have been moved or copied since."""
    before, now = ([one["arguments"].get(key) for key in PLACES] for one in (known["definition"], stage.definition))
    found: str | None = stage.output if before == now else known["output"]
    return found


def _changes(stage: Stage, known: Mapping[str, Any]) -> str:
    old, new = dict(_flat(known["definition"])), dict(_flat(stage.definition))
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    told = [f"{key}: {_shown(old.get(key))} -> {_shown(new.get(key))}" for key in keys]
    before, now = known["inputs"], dict(stage.inputs)
    told += [f"stage {name}, which it reads" for name in {**before, **now} if before.get(name) != now.get(name)]
    return ", ".join(told)


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, one in value.items():
            yield from _flat(one, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def _shown(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_there(path: str) -> bool:
    filesystem, inner = open_filesystem(path)
    return bool(filesystem.exists(inner))


def _is_below(path: str, folder: str) -> bool:
    if "://" in path or "://" in folder:
        return False
    return Path(folder).resolve() in Path(path).resolve().parents
