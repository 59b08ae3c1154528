"""Draws samples from servers, has them scored and stores them, several requests at once."""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Literal

from phf_ray.config import Scenario
from phf_ray.errors import ServiceError
from phf_ray.evaluation.arms import Arm, Asks, ScoresServer, client_of
from phf_ray.evaluation.execution import program_of, run_program
from phf_ray.evaluation.prompts import Problem
from phf_ray.evaluation.report.records import Sample
from phf_ray.evaluation.requests import SampleRequest, draw_unit
from phf_ray.evaluation.store import DRAWN_FOLDER
from phf_ray.http.client import Client, RefusedError
from phf_ray.storage.files import write_file


@dataclass(frozen=True, slots=True)
class Draw:
    """`ServerWork`: sends some requests at once, has the samples scored, and stores them."""

    takes_long: ClassVar[bool] = False

    arms: Mapping[str, Arm]
    scenarios: Mapping[str, Scenario]
    scores: ScoresServer
    output: str
    patience_s: float = 60.0
    problems: Mapping[str, Sequence[Problem]] = field(default_factory=dict)
    """Problems of the scenarios whose samples are executed."""

    @property
    def urls(self) -> list[str]:
        return [self.scores.url, *(arm.url for arm in self.arms.values())]

    def run(self, units: Sequence[SampleRequest]) -> list[dict[str, Any]]:
        """Return one outcome per unit: how many samples were stored, or why none were."""
        asked = {unit.arm for unit in units}
        clients = {name: client_of(self.arms[name], patience_s=self.patience_s) for name in asked}
        scorer = Client(self.scores.url, key=self.scores.key, patience_s=self.patience_s)
        with ThreadPoolExecutor(max_workers=len(units)) as threads:
            outcomes = threads.map(lambda unit: self._one(unit, clients[unit.arm], scorer), units)
            # Answered requests first: they show that a refusal concerns one prompt, not everything.
            return sorted(outcomes, key=lambda outcome: bool(outcome["refused"]))

    def _one(self, unit: SampleRequest, client: Asks, scorer: Client) -> dict[str, Any]:
        try:
            samples = draw_unit(
                unit,
                scenario=self.scenarios[unit.scenario],
                arm=self.arms[unit.arm],
                ask=client.post,
                score=scorer.post,
                scorer=self.scores.scorer,
            )
        except ServiceError as error:
            refused = _refusal_of(error, unit)
            return {
                "num_samples": 0,
                "num_failed": unit.count,
                "refused": refused,
                "prompt": unit.prompt if refused == "prompt" else "",
                "error": str(error),
            }
        if unit.scenario in self.problems:
            samples = [self._run_sample(sample) for sample in samples]
        content = json.dumps([asdict(sample) for sample in samples], allow_nan=False)
        write_file(f"{self.output}/{DRAWN_FOLDER}/{unit.key}.json", content.encode())
        return {"num_samples": len(samples), "num_failed": 0, "refused": "", "prompt": "", "error": ""}

    def _run_sample(self, sample: Sample) -> Sample:
        assert sample.prompt_index is not None
        problem = self.problems[sample.scenario][sample.prompt_index]
        program = program_of(problem.prompt, sample.text, test=problem.test, entry_point=problem.entry_point)
        return replace(sample, outcome=run_program(program))


def _refusal_of(error: ServiceError, unit: SampleRequest) -> Literal["", "prompt", "all"]:
    """Return what the server refuses: perhaps this prompt alone, as a content filter does, or every request."""
    if not isinstance(error, RefusedError):
        return ""
    return "prompt" if error.status == 400 and unit.prompt else "all"
