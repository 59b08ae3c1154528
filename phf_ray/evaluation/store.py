"""The output directory while samples are drawn."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import fsspec

from phf_ray.errors import ConfigError
from phf_ray.evaluation.arms import Arm
from phf_ray.evaluation.plan import EvaluationPlan
from phf_ray.evaluation.report.records import Sample
from phf_ray.evaluation.report.samples import SAMPLES, read_samples
from phf_ray.evaluation.requests import SampleRequest
from phf_ray.storage.files import write_file
from phf_ray.storage.hashing import digest

DRAWN_FOLDER = "drawn"


def claim_directory(
    output: str,
    plan: Mapping[str, Any],
    *,
    holds: str,
    restart: bool,
    results: Sequence[str],
    check: Callable[[], None] | None = None,
) -> None:
    """Write the plan to `output`. A directory that holds another plan is refused, or emptied with `restart`.

    A directory that has files of these names but no plan of this kind is refused even with `restart`.

    `holds`: what the directory holds, for messages. `results`: names of the result files besides the report. `check` is
    called once the directory is accepted and before anything in it changes; it may raise.
    """
    filesystem, root = fsspec.core.url_to_fs(output)
    names = (*results, "report.json", "report.html", "summary.json", "plan.json")
    there = [name for name in names if filesystem.exists(f"{root}/{name}")]
    theirs = json.loads(filesystem.cat_file(f"{root}/plan.json")) if "plan.json" in there else {}
    if there and set(theirs) != set(plan):
        raise ConfigError(
            f"{output} holds {', '.join(there)}, but not from {holds} that this version wrote; choose another --output"
        )
    changed = [key for key in theirs if json.loads(json.dumps(plan[key])) != theirs[key]]
    if changed and not restart:
        raise ConfigError(
            f"{output} holds {holds} with other {', '.join(changed)}; choose another --output, or --restart to "
            "delete it"
        )
    if check is not None:
        check()
    if restart:
        for name in there:
            filesystem.rm(f"{root}/{name}", recursive=True)
    write_file(f"{output}/plan.json", (json.dumps(plan, indent=1) + "\n").encode())


class SampleStore:
    """The output directory while samples are drawn: `plan.json`, and one file for each answered request."""

    def __init__(self, output: str):
        self._output = output
        self._filesystem, self._root = fsspec.core.url_to_fs(output)

    def claim(
        self,
        plan: EvaluationPlan,
        arms: Sequence[Arm],
        *,
        scorer: Mapping[str, Any],
        restart: bool,
        check: Callable[[], None] | None = None,
    ) -> None:
        """Write the plan of the evaluation; refuse a directory that holds another evaluation."""
        ours = {
            "arms": {a.name: [a.source or a.url, a.model, a.control, a.fingerprint] for a in arms},
            "scorer": dict(scorer),
            "scenarios": {name: config.model_dump(mode="json") for name, config in plan.scenario_configs.items()},
            "requests": digest([asdict(unit) for unit in plan.units]),
        }
        results = (DRAWN_FOLDER, SAMPLES)
        claim_directory(self._output, ours, holds="an evaluation", restart=restart, results=results, check=check)

    def missing(self, units: Sequence[SampleRequest]) -> list[SampleRequest]:
        if self._is_over():
            return []
        done = self._parts()
        return [unit for unit in units if unit.key not in done]

    def samples(self, units: Sequence[SampleRequest]) -> list[Sample]:
        if self._is_over():
            return read_samples(self._output)[0]
        done = self._parts()
        found = []
        for unit in units:
            if unit.key in done:
                content = self._filesystem.cat_file(f"{self._root}/{DRAWN_FOLDER}/{unit.key}.json")
                found += [Sample(**values) for values in json.loads(content)]
        return found

    def tidy(self) -> None:
        """Remove the parts: the samples file has everything now."""
        if self._filesystem.exists(f"{self._root}/{DRAWN_FOLDER}"):
            self._filesystem.rm(f"{self._root}/{DRAWN_FOLDER}", recursive=True)

    def _is_over(self) -> bool:
        """Whether the samples file has everything. Any parts beside it then only await removal."""
        summary = f"{self._root}/summary.json"
        if not self._filesystem.exists(f"{self._root}/{SAMPLES}") or not self._filesystem.exists(summary):
            return False
        return bool(json.loads(self._filesystem.cat_file(summary))["complete"])

    def _parts(self) -> set[str]:
        folder = f"{self._root}/{DRAWN_FOLDER}"
        if not self._filesystem.exists(folder):
            return set()
        names = (str(path).rpartition("/")[2] for path in self._filesystem.ls(folder, detail=False))
        return {name.removesuffix(".json") for name in names if name.endswith(".json")}
