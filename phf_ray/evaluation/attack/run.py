"""Runs an attack on served models, and writes its report."""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from phf_ray.config import Config
from phf_ray.errors import ConfigError, IncompleteError, ServiceError
from phf_ray.evaluation.arms import Arm, ScoresServer, check_arm, check_min_length, described
from phf_ray.evaluation.asking import AskRunner
from phf_ray.evaluation.attack.instructions import instruction_for
from phf_ray.evaluation.attack.red_lm import Attacker, check_attacker
from phf_ray.evaluation.attack.summary import report_attack
from phf_ray.evaluation.attack.transcript import Transcript
from phf_ray.evaluation.attack.trial import AttackTrial, AttackWork
from phf_ray.evaluation.prompts import read_prompts
from phf_ray.evaluation.scorer_check import check_scorer
from phf_ray.storage.files import write_file

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackOptions:
    seed: int = 0
    max_clients: int = 4
    """Trials in progress at once."""
    restart: bool = False
    allow_other_scorer: bool = False
    patience_s: float = 60.0


def run_attack(  # noqa: PLR0913  (one attack needs them all)
    config: Config,
    *,
    arms: Sequence[Arm],
    attacker: Attacker,
    scores: ScoresServer,
    output: str,
    runner: AskRunner,
    options: AttackOptions | None = None,
) -> dict[str, Any]:
    """Attack every arm, asking only what the transcript in `output` lacks; write the report there and return it.

    Raises before the first question if a server, a key, a model, the scorer or the prompts are wrong. Raises
    ServiceError if a server refuses, IncompleteError if a server does not answer in time.
    """
    options = options or AttackOptions()
    arms = [described(arm, check_arm(arm)) for arm in arms]
    attacker = replace(attacker, arm=described(attacker.arm, check_attacker(attacker)))
    work = _work(config, arms=arms, attacker=attacker, scores=scores, output=output, options=options)
    check_min_length([work.scenario], arms)
    identity = check_scorer(scores, arms, allow_other=options.allow_other_scorer)
    transcript = Transcript(output)
    transcript.claim(_plan(work, identity), restart=options.restart)
    started = time.monotonic()
    _run(
        work, [AttackTrial(arm.name, None) for arm in arms], transcript, runner=runner, max_clients=options.max_clients
    )
    trials = [AttackTrial(arm.name, number) for number in range(work.config.num_trials) for arm in arms]
    _run(work, trials, transcript, runner=runner, max_clients=options.max_clients)
    transcript.load()
    report, keys = report_attack(work, transcript, identity, config=config)
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
    options: AttackOptions,
) -> AttackWork:
    settings = config.red_team
    instruction = instruction_for(config.evaluation_scorer["class_name"], settings)
    if settings.prompts_path is None:
        raise ConfigError("red_team.prompts_path is not set; give a file of prompts, such as configs/prompts/pii.jsonl")
    seeds = list(dict.fromkeys(read_prompts(settings.prompts_path)))[: settings.num_seed_prompts]
    together = settings.use_prompt_for_scoring
    return AttackWork(
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


def _plan(work: AttackWork, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything that the answers depend on. Trials and rounds are not in it: an attack may get more later."""

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


def _run(
    work: AttackWork, trials: Sequence[AttackTrial], transcript: Transcript, *, runner: AskRunner, max_clients: int
) -> None:
    said = time.monotonic()

    def progress() -> None:
        nonlocal said
        if time.monotonic() - said > 5:
            log.info("%d questions answered", transcript.num_steps())
            said = time.monotonic()

    failures = []
    for outcome in runner(work, trials, max_clients=max_clients, progress=progress):
        if outcome["refused"]:
            raise ServiceError(outcome["error"])
        if outcome["error"]:
            failures.append(outcome["error"])
            log.warning("%s, trial %s: %s", outcome["arm"], outcome["trial"], outcome["error"])
        elif outcome["trial"] is not None:
            log.info("%s, trial %d: done", outcome["arm"], outcome["trial"])
    if failures:
        raise IncompleteError(f"{len(failures)} of {len(trials)} trials were not finished: {failures[0]}")
