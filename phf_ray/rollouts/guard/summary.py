"""What a run of rounds comes to: its figures, whether and why it stopped, what is wrong with it, its fits."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from phf_ray.measures.overoptimization import OveroptimizationFit, fit_overoptimization
from phf_ray.rollouts.figures import RoundFigures
from phf_ray.rollouts.guard.alarms import RoundAlarm, alarms_of
from phf_ray.rollouts.guard.stop import StopDecision, StopRules, decide, first_stop, gold_peak

_INSIDE = ("reward_by_prompt", "gold_by_prompt", "prompt_ids")
"""What figures are pooled from; report.json has no use for it."""


@dataclass(frozen=True, slots=True)
class RoundsSummary:
    name: str
    """Of the run."""
    rules: StopRules
    rounds: Sequence[RoundFigures]
    decision: StopDecision
    stop_round: int | None
    """The round after whose answers the run stopped."""
    peak: RoundFigures | None
    """The round with the highest mean gold reward."""
    alarms: Sequence[RoundAlarm]
    fits: Mapping[str, OveroptimizationFit | str]
    """Of gold and reward against KL; or why there is none."""

    def as_json(self) -> dict[str, Any]:
        return {
            "rounds": [_as_json(figures) for figures in self.rounds],
            "stop": {"rule": self.decision.rule, "round": self.stop_round, "reasons": list(self.decision.reasons)},
            "gold_peak": None if self.peak is None else {"round": self.peak.round, "weights": self.peak.weights},
            "warnings": [dataclasses.asdict(alarm) for alarm in self.alarms],
            "fits": {
                name: {"reason": fit} if isinstance(fit, str) else {**dataclasses.asdict(fit), "peak_kl": fit.peak_kl}
                for name, fit in self.fits.items()
            },
        }


def summarize(name: str, rounds: Sequence[RoundFigures], rules: StopRules) -> RoundsSummary:
    stop = first_stop(rounds, rules)
    return RoundsSummary(
        name=name,
        rules=rules,
        rounds=rounds,
        decision=decide(rounds, rules) if stop is None else stop[1],
        stop_round=None if stop is None else rounds[stop[0] - 1].round,
        peak=gold_peak(rounds),
        alarms=alarms_of(rounds, patience=rules.gold_patience),
        fits=_fits(rounds),
    )


def _fits(rounds: Sequence[RoundFigures]) -> dict[str, OveroptimizationFit | str]:
    """Empty for a run without KL."""
    fits: dict[str, OveroptimizationFit | str] = {}
    for name in ("gold", "reward"):
        points = [
            (figures.kl.mean, found.mean) for figures in rounds if figures.kl and (found := getattr(figures, name))
        ]
        if points:
            fits[name] = fit_overoptimization(*zip(*points, strict=True))
    return fits


def _as_json(figures: RoundFigures) -> dict[str, Any]:
    named = dataclasses.asdict(figures)
    return {"num_prompts": figures.num_prompts, **{key: named[key] for key in named if key not in _INSIDE}}
