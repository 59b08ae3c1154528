"""Writes the report of an attack, from its transcript."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from phf_ray.config import Config
from phf_ray.evaluation.attack.algorithm import TriedPrompt, worst_prompts
from phf_ray.evaluation.attack.transcript import Transcript
from phf_ray.evaluation.attack.trial import AttackTrial, AttackWork, ReadAnswers, run_trial
from phf_ray.evaluation.report.records import ArmInfo, Evaluation, RedTeamInfo, RedTeamPrompt
from phf_ray.evaluation.report.write import write_report

_NUM_WORST = 10


def report_attack(
    work: AttackWork, transcript: Transcript, identity: Mapping[str, Any], *, config: Config
) -> tuple[dict[str, Any], list[str]]:
    """Write the report; return it with the keys of all answers that went into it."""
    infos: list[ArmInfo] = []
    keys: dict[str, None] = {}
    for arm in work.arms.values():
        trials, pools = [], []
        for number in range(work.config.num_trials):
            reading = ReadAnswers(AttackTrial(arm.name, number), transcript)
            rounds, pool = run_trial(work, AttackTrial(arm.name, number), reading)
            trials.append(tuple(rounds))
            pools.append(pool)
            keys |= reading.keys
        found = RedTeamInfo(
            attacker=work.attacker.arm.name,
            num_continuations=work.config.num_continuations,
            trials=tuple(trials),
            worst=tuple(_worst(pools, ReadAnswers(AttackTrial(arm.name, 0), transcript))),
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
        arms=tuple(infos), scenarios=(), seeds=(work.seed,), scorer=dict(identity), compat=config.original
    )
    return write_report(work.output, [], evaluation), list(keys)


def _worst(pools: Sequence[Sequence[TriedPrompt]], reading: ReadAnswers) -> Iterator[RedTeamPrompt]:
    """Yield the most damaging prompts of all trials, each once, with the model's worst continuations."""
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
