"""One trial of an attack: asks the red LM and the attacked model, or reads their answers from the transcript.

A prompt's continuations depend only on (seed, prompt). So prompts that several trials share, such as those that the
attack starts from, are tried once.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol

from phf_ray.config import RedTeamConfig, Scenario
from phf_ray.errors import ConfigError, ServiceError
from phf_ray.evaluation.arms import Arm, ScoresServer, check_arm, client_of
from phf_ray.evaluation.attack.algorithm import AskAttacker, RedReply, TriedPrompt, TryPrompts, attack
from phf_ray.evaluation.attack.instructions import Instruction
from phf_ray.evaluation.attack.red_lm import Attacker, RedLM
from phf_ray.evaluation.attack.transcript import Transcript
from phf_ray.evaluation.probe import Probe
from phf_ray.evaluation.report.records import RedTeamRound
from phf_ray.evaluation.requests import SampleRequest, draw_unit
from phf_ray.http.client import Client, RefusedError
from phf_ray.storage.hashing import digest

_SAMPLES_PER_REQUEST = 64
_THREADS = 32
"""Maximum number of requests that one trial has in progress."""

_NUM_WORST_TEXTS = 3


@dataclass(frozen=True, slots=True)
class AttackTrial:
    arm: str
    number: int | None
    """None: try only the prompts that every trial starts from."""


class AttackTarget:
    """An attacked model over HTTP, with the scorer."""

    def __init__(self, arm: Arm, scores: ScoresServer, work: "AttackWork"):
        self._arm, self._scores, self._work = arm, scores, work
        self._client = client_of(arm, patience_s=work.patience_s)
        self._scorer = Client(scores.url, key=scores.key, patience_s=work.patience_s)
        self._probe = Probe(arm, check_arm(arm))
        self._scenario = work.scenario

    def units(self, prompt: str) -> list[SampleRequest]:
        """Return the requests for a prompt's continuations; none if the prompt leaves no room for one."""
        # DIFFERS: phf-ray limits the new tokens; the original's limit of 64 counts the prompt, so that a long one
        # leaves no room (D-14).
        sent, control, max_tokens = self._probe.prepare(prompt, self._scenario)
        if max_tokens < max(1, self._scenario.generate_kwargs.min_length):
            return []
        num = self._work.config.num_continuations
        return [
            SampleRequest(
                arm=self._arm.name,
                scenario=f"red_team {digest(prompt)}",
                seed=self._work.seed,
                start=first,
                count=min(_SAMPLES_PER_REQUEST, num - first),
                prompt_index=None,
                prompt=prompt,
                sent=sent,
                control=control,
                max_tokens=max_tokens,
            )
            for first in range(0, num, _SAMPLES_PER_REQUEST)
        ]

    def draw(self, unit: SampleRequest) -> list[dict[str, Any]]:
        samples = draw_unit(
            unit,
            scenario=self._scenario,
            arm=self._arm,
            ask=self._client.post,
            score=self._scorer.post,
            scorer=self._scores.scorer,
        )
        return [{"text": sample.text, "score": sample.score, "error": sample.error} for sample in samples]

    def own_score(self, prompt: str) -> float | None:
        body = {"scorer": self._scores.scorer, "input": [prompt], "segments": False}
        score = self._scorer.post("/v1/scores", body)["data"][0]["score"]
        return None if score is None else float(score)


@dataclass(frozen=True, slots=True)
class AttackWork:
    """`ServerWork`: everything that a trial needs."""

    takes_long: ClassVar[bool] = True

    arms: Mapping[str, Arm]
    attacker: Attacker
    scores: ScoresServer
    config: RedTeamConfig
    instruction: Instruction
    use_prompt_for_scoring: bool
    seeds: tuple[str, ...]
    """Prompts that the attack starts from."""
    seed: int
    output: str
    patience_s: float = 60.0

    @property
    def scenario(self) -> Scenario:
        return Scenario(
            name="red_team",
            num_samples=self.config.num_continuations,
            use_prompt_for_scoring=self.use_prompt_for_scoring,
            generate_kwargs=self.config.generate_kwargs,
        )

    @property
    def urls(self) -> list[str]:
        return [self.attacker.arm.url, self.scores.url, *(arm.url for arm in self.arms.values())]

    def run(self, trial: AttackTrial) -> list[dict[str, Any]]:
        """Ask only what the transcript lacks. A failure is a value: `error`, and whether it was a refusal."""
        transcript = Transcript(self.output)
        transcript.load()
        try:
            run_trial(self, trial, AskedAnswers(self, trial, transcript))
        except (ServiceError, ConfigError) as error:
            refused = "all" if isinstance(error, RefusedError | ConfigError) else ""
            return [{"arm": trial.arm, "trial": trial.number, "error": str(error), "refused": refused}]
        return [{"arm": trial.arm, "trial": trial.number, "error": "", "refused": ""}]


class AttackAnswers(Protocol):
    def replies(self, request: AskAttacker) -> list[RedReply]: ...

    def tried(self, prompts: Sequence[str], *, round: int) -> list[TriedPrompt | str]: ...


def run_trial(
    work: AttackWork, trial: AttackTrial, answers: AttackAnswers
) -> tuple[list[RedTeamRound], list[TriedPrompt]]:
    """Return the rounds and the pool of a trial, from answers that are asked for or read."""
    seeds = [found for found in answers.tried(work.seeds, round=0) if isinstance(found, TriedPrompt)]
    if trial.number is None:
        return [], seeds
    running = attack(seeds, work.config, instruction=work.instruction, seed=work.seed, trial=trial.number)
    try:
        request = next(running)
        while True:
            if isinstance(request, AskAttacker):
                request = running.send(answers.replies(request))
            else:
                assert isinstance(request, TryPrompts)
                request = running.send(answers.tried(request.prompts, round=request.round))
    except StopIteration as stop:
        rounds, pool = stop.value
        return rounds, pool


class ReadAnswers:
    """Reads answers from a transcript, which must have them all. `keys`: keys of the answers read, in order."""

    def __init__(self, trial: AttackTrial, transcript: Transcript):
        self._trial, self._transcript = trial, transcript
        self.keys: dict[str, None] = {}

    def replies(self, request: AskAttacker) -> list[RedReply]:
        step = self._step(self._asked_key(request))
        return [RedReply(reply["text"], reply["refused"]) for reply in step["replies"]]

    def tried(self, prompts: Sequence[str], *, round: int) -> list[TriedPrompt | str]:
        return [_tried(self._step(self._tried_key(prompt)), round=round) for prompt in prompts]

    def worst_continuations(self, prompt: str) -> list[tuple[float, str]]:
        """Return (score, text) pairs, the largest score first."""
        said = self._step(self._tried_key(prompt))["continuations"]
        scored = [(one["score"], one["text"]) for one in said if one["score"] is not None]
        return sorted(scored, key=lambda pair: -pair[0])[:_NUM_WORST_TEXTS]

    def _step(self, key: str) -> dict[str, Any]:
        step = self._transcript.get(key)
        assert step is not None, f"the transcript lacks {key} of {self._trial}"
        self.keys[key] = None
        return step

    def _asked_key(self, request: AskAttacker) -> str:
        return f"asked-{digest([self._trial.arm, self._trial.number, request.round])}"

    def _tried_key(self, prompt: str) -> str:
        return f"tried-{digest([self._trial.arm, prompt])}"


def _tried(step: Mapping[str, Any], *, round: int) -> TriedPrompt | str:
    if step["reason"] is not None:
        return str(step["reason"])
    scores = [continuation["score"] for continuation in step["continuations"]]
    known = tuple(score for score in scores if score is not None)
    return TriedPrompt(step["prompt"], round, known, num_unscored=len(scores) - len(known), own_score=step["own_score"])


class AskedAnswers(ReadAnswers):
    """Reads answers from the transcript; if one is missing, asks the servers and stores their answer."""

    def __init__(self, work: AttackWork, trial: AttackTrial, transcript: Transcript):
        super().__init__(trial, transcript)
        self._work = work
        self._red_lm: RedLM | None = None
        self._target: AttackTarget | None = None

    def replies(self, request: AskAttacker) -> list[RedReply]:
        key = self._asked_key(request)
        if self._transcript.get(key) is None:
            if self._red_lm is None:
                self._red_lm = RedLM(self._work.attacker, self._work.config, patience_s=self._work.patience_s)
            text = self._work.instruction.ask(request.examples)
            replies = self._red_lm.ask(text, num=self._work.config.num_candidates, seed=request.seed)
            step = {"arm": self._trial.arm, "trial": self._trial.number, "round": request.round, "request": text}
            self._transcript.put(key, {**step, "replies": [asdict(reply) for reply in replies]})
        return super().replies(request)

    def tried(self, prompts: Sequence[str], *, round: int) -> list[TriedPrompt | str]:
        missing = [prompt for prompt in prompts if self._transcript.get(self._tried_key(prompt)) is None]
        if missing:
            self._try(missing)
        return super().tried(prompts, round=round)

    def _try(self, prompts: Sequence[str]) -> None:
        if self._target is None:
            self._target = AttackTarget(self._work.arms[self._trial.arm], self._work.scores, self._work)
        target = self._target
        with ThreadPoolExecutor(_THREADS) as threads:
            units = list(threads.map(target.units, prompts))
            own = list(threads.map(target.own_score, prompts))
            drawn = threads.map(target.draw, [unit for some in units for unit in some])
            for prompt, some, own_score in zip(prompts, units, own, strict=True):
                continuations = [one for _ in some for one in next(drawn)]
                step = {
                    "arm": self._trial.arm,
                    "prompt": prompt,
                    "own_score": own_score,
                    "reason": None if some else "no room",
                    "continuations": continuations,
                }
                self._transcript.put(self._tried_key(prompt), step)
