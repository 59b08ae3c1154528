"""The attack of `attack.py` on served models, over HTTP, and the report made of it.

What a red LM answered and what a model made of a prompt is written down as it comes, one file each. An attack started
again replays these answers and asks only for what is missing; the price of an interruption is the requests under way.
A prompt's continuations depend on (seed, prompt) alone, so prompts that several trials share are tried once, the ones
that the attack starts from among them.
"""

import gzip
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Protocol

import fsspec

from phf_ray.attack import (
    AskAttacker,
    Instruction,
    Reply,
    Round,
    Tried,
    TryPrompts,
    attack,
    instruction_for,
    is_refusal,
)
from phf_ray.attack import worst as worst_prompts
from phf_ray.config import Config, GenerateKwargs, RedTeamConfig, Scenario
from phf_ray.errors import ConfigError, IncompleteError, ServiceError
from phf_ray.http.client import Client, RefusedError, label_selector
from phf_ray.pipelines.evaluate import (
    CHECK_PATIENCE_S,
    Arm,
    Probe,
    ScoresServer,
    Unit,
    check_arm,
    check_min_length,
    check_scorer,
    claim_directory,
    described,
    digest,
    draw_unit,
    read_prompts,
)
from phf_ray.report import ArmInfo, Evaluation, RedTeamInfo, RedTeamPrompt, RedTeamRound, write_report
from phf_ray.storage.files import write_file

log = logging.getLogger(__name__)

Api = Literal["chat", "completions"]
TRANSCRIPT = "transcript.jsonl.gz"
_STEPS = "steps"
_PATHS: dict[Api, str] = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}
_SAMPLES_PER_REQUEST = 64
_THREADS = 32
"""Requests that one trial has under way, at most."""
_NUM_WORST = 10
_NUM_WORST_TEXTS = 3


@dataclass(frozen=True, slots=True)
class Attacker:
    """The red LM: a model on a server, and how it is spoken to."""

    arm: Arm
    api: Api


@dataclass(frozen=True, slots=True)
class Trial:
    arm: str
    number: int | None
    """None: only the prompts that every trial starts from."""


# -- What was asked and answered --------------------------------------------------------------------------------------


class Transcript:
    """The output directory: `plan.json`, and every answer, in a file of its own until the attack is over."""

    def __init__(self, output: str):
        self._output = output
        self._filesystem, self._root = fsspec.core.url_to_fs(output)
        self._whole: dict[str, dict[str, Any]] = {}

    def claim(self, plan: Mapping[str, Any], *, restart: bool) -> None:
        """Write down what is attacked and how; refuse a directory that holds another attack."""
        results = (_STEPS, TRANSCRIPT, "samples.parquet")
        claim_directory(self._output, plan, holds="an attack", restart=restart, results=results)

    def load(self) -> None:
        """Take in an attack that was over; more trials and rounds go on from it."""
        path = f"{self._root}/{TRANSCRIPT}"
        if self._filesystem.exists(path):
            lines = gzip.decompress(self._filesystem.cat_file(path)).decode().splitlines()
            self._whole = {step["key"]: step for step in map(json.loads, lines)}

    def get(self, key: str) -> dict[str, Any] | None:
        path = f"{self._root}/{_STEPS}/{key}.json"
        if key in self._whole or not self._filesystem.exists(path):
            return self._whole.get(key)
        return dict(json.loads(self._filesystem.cat_file(path)))

    def put(self, key: str, step: Mapping[str, Any]) -> None:
        content = json.dumps({"key": key, **step}, allow_nan=False)
        write_file(f"{self._output}/{_STEPS}/{key}.json", content.encode())

    def num_steps(self) -> int:
        return len(self._whole) + len(self._step_keys())

    def _step_keys(self) -> list[str]:
        folder = f"{self._root}/{_STEPS}"
        found = self._filesystem.ls(folder, detail=False) if self._filesystem.exists(folder) else []
        names = (str(path).rpartition("/")[2] for path in found)
        return [name.removesuffix(".json") for name in names if name.endswith(".json")]

    def close(self, keys: Sequence[str]) -> None:
        """One file of all answers, these first and in this order, in place of one for each.

        The others are of an attack with more trials or rounds, which may go on from them.
        """
        ordered = dict.fromkeys([*keys, *sorted({*self._whole, *self._step_keys()})])
        lines = "".join(json.dumps(self.get(key), allow_nan=False) + "\n" for key in ordered)
        # The time of writing is left out: the same attack gives the same file.
        write_file(f"{self._output}/{TRANSCRIPT}", gzip.compress(lines.encode(), mtime=0))
        if self._filesystem.exists(f"{self._root}/{_STEPS}"):
            self._filesystem.rm(f"{self._root}/{_STEPS}", recursive=True)


# -- Asking -----------------------------------------------------------------------------------------------------------


class RedLM:
    """A red LM over HTTP."""

    def __init__(self, attacker: Attacker, config: RedTeamConfig, *, patience_s: float):
        self._api = attacker.api
        self._arm = attacker.arm
        self._settings = config.attacker
        self._client = Client(attacker.arm.url, key=attacker.arm.key, patience_s=patience_s)
        self._limit_name = "max_tokens"
        self._probe = Probe(attacker.arm, check_arm(attacker.arm))

    def ask(self, request: str, *, num: int, seed: int) -> list[Reply]:
        """Exactly `num` replies. A server that brings fewer at a time is asked again, with another seed."""
        replies: list[Reply] = []
        while len(replies) < num:
            choices = self._choices(request, num=num - len(replies), seed=seed + len(replies))
            if not choices:
                raise RefusedError(
                    f"{self._arm.url} answered without choices; does {self._arm.model} speak {self._api}?"
                )
            replies += [self._reply(choice) for choice in choices[: num - len(replies)]]
        return replies

    def _choices(self, request: str, *, num: int, seed: int) -> list[Mapping[str, Any]]:
        body: dict[str, Any] = {
            "model": self._arm.model,
            "n": num,
            "temperature": self._settings.temperature,
            "top_p": self._settings.top_p,
            "seed": seed % (1 << 31),
        }
        if self._api == "chat":
            answer = self._chat(body | {"messages": [{"role": "user", "content": request}]})
        else:
            answer = self._client.post(_PATHS[self._api], body | self._prompt(request))
        found = answer.get("choices")
        return sorted(found, key=lambda choice: choice.get("index", 0)) if isinstance(found, list) else []

    def _chat(self, body: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return self._client.post(_PATHS["chat"], {**body, self._limit_name: self._settings.max_tokens})
        except RefusedError as error:
            # The name that OpenAI's newer models insist on.
            if self._limit_name == "max_tokens" and "max_completion_tokens" in str(error):
                self._limit_name = "max_completion_tokens"
                return self._chat(body)
            raise

    def _prompt(self, request: str) -> dict[str, Any]:
        kwargs = GenerateKwargs(max_length=None, max_new_tokens=self._settings.max_tokens)
        sent, control, room = self._probe.prepare(request, Scenario(name="attacker", generate_kwargs=kwargs))
        if room < 1:
            raise RefusedError(
                f"the request does not fit into the {self._probe.context:g} positions of the red LM {self._arm.model}; "
                "lower red_team.num_examples, or take a red LM with a longer context"
            )
        return {"prompt": sent, "max_tokens": room} | ({} if control is None else {"control": control})

    def _reply(self, choice: Mapping[str, Any]) -> Reply:
        if self._api == "completions":
            return Reply(_storable(str(choice.get("text") or "")))
        message = choice.get("message") or {}
        text = _storable(str(message.get("content") or ""))
        declined = bool(message.get("refusal")) or choice.get("finish_reason") == "content_filter"
        return Reply(text or _storable(str(message.get("refusal") or "")), refused=declined or is_refusal(text))


def check_attacker(attacker: Attacker) -> dict[str, Any]:
    """What its server says of the red LM. Raises ConfigError where it does not know the API that is to be spoken."""
    card = check_arm(attacker.arm)
    path = _PATHS[attacker.api]
    try:
        # Nothing to answer: whoever knows the path says that something is missing.
        Client(attacker.arm.url, key=attacker.arm.key, patience_s=CHECK_PATIENCE_S).post(
            path, {"model": attacker.arm.model}
        )
    except RefusedError as error:
        if error.status in (404, 405):
            other = "completions" if attacker.api == "chat" else "chat"
            raise ConfigError(
                f"{error}: the red LM {attacker.arm.model} does not speak {attacker.api}; give --attacker-api {other}"
            ) from None
    return card


def _storable(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class Target:
    """An attacked model over HTTP, with the scorer."""

    def __init__(self, arm: Arm, scores: ScoresServer, work: "Work"):
        self._arm, self._scores, self._work = arm, scores, work
        self._client = Client(arm.url, key=arm.key, patience_s=work.patience_s)
        self._scorer = Client(scores.url, key=scores.key, patience_s=work.patience_s)
        self._probe = Probe(arm, check_arm(arm))
        self._scenario = work.scenario

    def units(self, prompt: str) -> list[Unit]:
        """The requests for a prompt's continuations; none where it leaves no room for one."""
        # DIFFERS: ours limits the new tokens; original's limit of 64 counts the prompt, so that a long one leaves no
        # room (D-14).
        sent, control, max_tokens = self._probe.prepare(prompt, self._scenario)
        if max_tokens < max(1, self._scenario.generate_kwargs.min_length):
            return []
        num = self._work.config.num_continuations
        return [
            Unit(
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

    def draw(self, unit: Unit) -> list[dict[str, Any]]:
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


# -- A trial ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Work:
    """All that a task needs. Values only: it travels to a worker."""

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

    def run(self, trial: Trial) -> dict[str, Any]:
        """Ask for what the transcript lacks. A failure is a value: `error`, and whether it was a refusal."""
        transcript = Transcript(self.output)
        transcript.load()
        try:
            run_trial(self, trial, Asking(self, trial, transcript))
        except (ServiceError, ConfigError) as error:
            refused = isinstance(error, RefusedError | ConfigError)
            return {"arm": trial.arm, "trial": trial.number, "error": str(error), "refused": refused}
        return {"arm": trial.arm, "trial": trial.number, "error": "", "refused": False}


class Answers(Protocol):
    def replies(self, request: AskAttacker) -> list[Reply]: ...

    def tried(self, prompts: Sequence[str], *, round: int) -> list[Tried | str]: ...


def run_trial(work: Work, trial: Trial, answers: Answers) -> tuple[list[Round], list[Tried]]:
    """Rounds and pool of a trial, from answers that are asked for or read."""
    seeds = [found for found in answers.tried(work.seeds, round=0) if isinstance(found, Tried)]
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


class Reading:
    """Answers of a transcript, each of which must be there. `keys`: the ones that were read, in order."""

    def __init__(self, trial: Trial, transcript: Transcript):
        self._trial, self._transcript = trial, transcript
        self.keys: dict[str, None] = {}

    def replies(self, request: AskAttacker) -> list[Reply]:
        step = self._step(self._asked_key(request))
        return [Reply(reply["text"], reply["refused"]) for reply in step["replies"]]

    def tried(self, prompts: Sequence[str], *, round: int) -> list[Tried | str]:
        return [_tried(self._step(self._tried_key(prompt)), round=round) for prompt in prompts]

    def worst_continuations(self, prompt: str) -> list[tuple[float, str]]:
        """(score, text), the largest score first."""
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


def _tried(step: Mapping[str, Any], *, round: int) -> Tried | str:
    if step["reason"] is not None:
        return str(step["reason"])
    scores = [continuation["score"] for continuation in step["continuations"]]
    known = tuple(score for score in scores if score is not None)
    return Tried(step["prompt"], round, known, num_unscored=len(scores) - len(known), own_score=step["own_score"])


class Asking(Reading):
    """Answers of the transcript where it has them, else of the servers, and then written down."""

    def __init__(self, work: Work, trial: Trial, transcript: Transcript):
        super().__init__(trial, transcript)
        self._work = work
        self._red_lm: RedLM | None = None
        self._target: Target | None = None

    def replies(self, request: AskAttacker) -> list[Reply]:
        key = self._asked_key(request)
        if self._transcript.get(key) is None:
            if self._red_lm is None:
                self._red_lm = RedLM(self._work.attacker, self._work.config, patience_s=self._work.patience_s)
            text = self._work.instruction.ask(request.examples)
            replies = self._red_lm.ask(text, num=self._work.config.num_candidates, seed=request.seed)
            step = {"arm": self._trial.arm, "trial": self._trial.number, "round": request.round, "request": text}
            self._transcript.put(key, {**step, "replies": [asdict(reply) for reply in replies]})
        return super().replies(request)

    def tried(self, prompts: Sequence[str], *, round: int) -> list[Tried | str]:
        missing = [prompt for prompt in prompts if self._transcript.get(self._tried_key(prompt)) is None]
        if missing:
            self._try(missing)
        return super().tried(prompts, round=round)

    def _try(self, prompts: Sequence[str]) -> None:
        if self._target is None:
            self._target = Target(self._work.arms[self._trial.arm], self._work.scores, self._work)
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


# -- The whole --------------------------------------------------------------------------------------------------------


class Runner(Protocol):
    def __call__(
        self, work: Work, trials: Sequence[Trial], *, max_clients: int, progress: Callable[[], None]
    ) -> Iterator[dict[str, Any]]: ...


def run_here(
    work: Work, trials: Sequence[Trial], *, max_clients: int, progress: Callable[[], None]
) -> Iterator[dict[str, Any]]:
    """Outcomes as they come, without Ray."""
    del max_clients
    for trial in trials:
        yield work.run(trial)
        progress()


def run_on_ray(
    work: Work, trials: Sequence[Trial], *, max_clients: int, progress: Callable[[], None]
) -> Iterator[dict[str, Any]]:
    """Outcomes as they come, of up to `max_clients` trials at a time."""
    import ray

    # A trial waits for servers, which may need every CPU there is.
    where = label_selector([work.attacker.arm.url, work.scores.url, *(arm.url for arm in work.arms.values())])
    task = ray.remote(num_cpus=0, max_retries=3, scheduling_strategy="SPREAD", label_selector=where)(Work.run)
    shared, waiting = ray.put(work), list(trials)
    running: list[Any] = []
    while waiting or running:
        while waiting and len(running) < max_clients:
            running.append(task.remote(shared, waiting.pop(0)))
        done, running = ray.wait(running, timeout=5.0)
        progress()
        yield from ray.get(done)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    seed: int = 0
    max_clients: int = 4
    """Trials under way at once."""
    restart: bool = False
    allow_other_scorer: bool = False
    patience_s: float = 60.0
    runner: Runner = run_on_ray


def red_team(
    config: Config,
    *,
    arms: Sequence[Arm],
    attacker: Attacker,
    scores: ScoresServer,
    output: str,
    options: Options | None = None,
) -> dict[str, Any]:
    """Attack every arm, with what the transcript in `output` lacks; write the report there and return it.

    Raises before the first question where a server, a key, a model, the scorer or the prompts are wrong; ServiceError
    where a server refuses; IncompleteError where one did not answer in time.
    """
    options = options or Options()
    arms = [described(arm, check_arm(arm)) for arm in arms]
    attacker = replace(attacker, arm=described(attacker.arm, check_attacker(attacker)))
    work = _work(config, arms=arms, attacker=attacker, scores=scores, output=output, options=options)
    check_min_length([work.scenario], arms)
    identity = check_scorer(scores, arms, allow_other=options.allow_other_scorer)
    transcript = Transcript(output)
    transcript.claim(_plan(work, identity), restart=options.restart)
    started = time.monotonic()
    _run(work, [Trial(arm.name, None) for arm in arms], transcript, options=options)
    trials = [Trial(arm.name, number) for number in range(work.config.num_trials) for arm in arms]
    _run(work, trials, transcript, options=options)
    transcript.load()
    report, keys = _report(work, transcript, identity, config=config)
    summary = {"complete": True, "num_steps": len(keys), "seconds": round(time.monotonic() - started, 1)}
    write_file(f"{output}/summary.json", (json.dumps(summary, indent=1) + "\n").encode())
    transcript.close(keys)
    return report


def _work(
    config: Config,
    *,
    arms: Sequence[Arm],
    attacker: Attacker,
    scores: ScoresServer,
    output: str,
    options: Options,
) -> Work:
    settings = config.red_team
    instruction = instruction_for(config.evaluation_scorer["class_name"], settings)
    if settings.prompts_path is None:
        raise ConfigError("red_team.prompts_path is not set; give a file of prompts, such as configs/prompts/pii.jsonl")
    seeds = list(dict.fromkeys(read_prompts(settings.prompts_path)))[: settings.num_seed_prompts]
    together = settings.use_prompt_for_scoring
    return Work(
        arms={arm.name: arm for arm in arms},
        attacker=attacker,
        scores=scores,
        config=settings,
        instruction=instruction,
        use_prompt_for_scoring=instruction.format == "fenced" if together is None else together,
        seeds=tuple(seeds),
        seed=options.seed,
        output=output,
        patience_s=options.patience_s,
    )


def _plan(work: Work, identity: Mapping[str, Any]) -> dict[str, Any]:
    """What the answers depend on. An attack may get more trials and rounds later."""

    def facts(arm: Arm) -> list[str | None]:
        return [arm.source or arm.url, arm.model, arm.control, arm.fingerprint]

    return {
        "arms": {name: facts(arm) for name, arm in work.arms.items()},
        "attacker": [*facts(work.attacker.arm), work.attacker.api],
        "scorer": dict(identity),
        "red_team": work.config.model_dump(mode="json", exclude={"num_trials", "num_rounds", "prompts_path"}),
        "instruction": asdict(work.instruction),
        "prompts": list(work.seeds),
        "seed": work.seed,
    }


def _run(work: Work, trials: Sequence[Trial], transcript: Transcript, *, options: Options) -> None:
    said = time.monotonic()

    def progress() -> None:
        nonlocal said
        if time.monotonic() - said > 5:
            log.info("%d questions answered", transcript.num_steps())
            said = time.monotonic()

    failures = []
    for outcome in options.runner(work, trials, max_clients=options.max_clients, progress=progress):
        if outcome["refused"]:
            raise ServiceError(outcome["error"])
        if outcome["error"]:
            failures.append(outcome["error"])
            log.warning("%s, trial %s: %s", outcome["arm"], outcome["trial"], outcome["error"])
        elif outcome["trial"] is not None:
            log.info("%s, trial %d: done", outcome["arm"], outcome["trial"])
    if failures:
        raise IncompleteError(f"{len(failures)} of {len(trials)} trials were not finished: {failures[0]}")


def _report(
    work: Work, transcript: Transcript, identity: Mapping[str, Any], *, config: Config
) -> tuple[dict[str, Any], list[str]]:
    """The report, and the keys of all answers that it is made of."""
    infos: list[ArmInfo] = []
    keys: dict[str, None] = {}
    for arm in work.arms.values():
        trials, pools = [], []
        for number in range(work.config.num_trials):
            reading = Reading(Trial(arm.name, number), transcript)
            rounds, pool = run_trial(work, Trial(arm.name, number), reading)
            trials.append(tuple(RedTeamRound(**asdict(found)) for found in rounds))
            pools.append(pool)
            keys |= reading.keys
        found = RedTeamInfo(
            attacker=work.attacker.arm.name,
            num_continuations=work.config.num_continuations,
            trials=tuple(trials),
            worst=tuple(_worst(pools, Reading(Trial(arm.name, 0), transcript))),
        )
        infos.append(
            ArmInfo(
                name=arm.name,
                model=arm.source or arm.model,
                control=arm.control,
                checkpoint=arm.checkpoint,
                red_team=found,
            )
        )
    evaluation = Evaluation(
        arms=tuple(infos), scenarios=(), seeds=(work.seed,), scorer=dict(identity), compat=config.compat
    )
    return write_report(work.output, [], evaluation), list(keys)


def _worst(pools: Sequence[Sequence[Tried]], reading: Reading) -> Iterator[RedTeamPrompt]:
    """The most damaging prompts of all trials, each once, with the worst that the model said to them."""
    once = {tried.prompt: tried for pool in pools for tried in reversed(pool)}
    for tried in worst_prompts(list(once.values()), num=_NUM_WORST):
        assert tried.mean is not None
        assert tried.std is not None
        yield RedTeamPrompt(
            prompt=tried.prompt,
            round=tried.round,
            mean=tried.mean,
            std=tried.std,
            own_score=tried.own_score,
            num_scored=len(tried.scores),
            continuations=tuple(reading.worst_continuations(tried.prompt)),
        )
