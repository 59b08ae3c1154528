"""Reads a run of `phf train-rl`: a point for each round, computed from the rows that the run has stored."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from phf_ray.errors import PhfError
from phf_ray.model_folder import weights_fingerprint
from phf_ray.rollouts.figures import RoundFigures, round_figures
from phf_ray.rollouts.frontier.methods import FrontierMethod, FrontierPoint, GuardStop, measured_mean
from phf_ray.rollouts.frontier.rewards_told import reward_claims, rewards_claims, spec_identities
from phf_ray.rollouts.frontier.stored_json import stored_json
from phf_ray.rollouts.guard import first_stop, stop_rules_of
from phf_ray.rollouts.guard.read import read_round, read_weighed, stored_rounds
from phf_ray.rollouts.guard.stop import StopDecision, StopRules
from phf_ray.rollouts.guard.summary import RoundsSummary, summarize
from phf_ray.runs.directory import ROLLOUTS, RunDirectory

_PATIENCE = 3
"""Of the guard, for a run whose own rules watch neither KL nor gold."""


def read_rounds(run: Path, *, name: str, source: str) -> FrontierMethod:
    figures: list[RoundFigures] = []
    prompts: set[str] = set()
    num_tokens = 0
    for number in stored_rounds(run):
        rows = read_round(run, number)
        figures.append(round_figures(number, rows, weighed=read_weighed(run, number)))
        prompts.update(row.prompt for row in rows)
        num_tokens += sum(row.num_tokens for row in rows)
    rules = stop_rules_of(run)
    summary = summarize(name, figures, rules)
    told = RunDirectory(run).read_summary()
    seconds = told.get("wall_s_of_last_start")
    learned = (told.get("metrics") or {}).get("train/tokens_seen")
    stop, stop_note = _stop(summary)
    return FrontierMethod(
        name=name,
        kind="rounds",
        source=source,
        points=[_point(one) for one in figures],
        claims=_claims(run),
        prompts=frozenset(prompts),
        minutes=None if seconds is None else float(seconds) / 60,
        tokens_drawn=num_tokens,
        tokens_learned=None if learned is None else int(learned),
        stop=stop,
        fits={"proxy" if of == "reward" else of: fit for of, fit in summary.fits.items()},
        notes=(*_notes(figures, is_finished=told.get("status") == "finished"), *stop_note),
    )


def _point(figures: RoundFigures) -> FrontierPoint:
    return FrontierPoint(
        f"round {figures.round}",
        kl=measured_mean(figures.kl),
        gold=measured_mean(figures.gold),
        proxy=measured_mean(figures.reward),
        is_base=figures.is_reference is True,
    )


def _stop(summary: RoundsSummary) -> tuple[GuardStop | None, list[str]]:
    """Return where the run's own rules stopped it; without such rules, where a watch over gold would have."""
    rules = summary.rules
    if rules.kl is not None or rules.gold_patience is not None:
        if summary.stop_round is None or summary.decision.learns:
            return None, ["its rules (rollouts.stop) did not stop it before its last round"]
        return _guard_stop(summary.stop_round, summary.decision, happened=True), []
    if all(figures.gold is None for figures in summary.rounds):
        return None, ["without gold, nothing says where a guard would have stopped it"]
    found = first_stop(summary.rounds, StopRules(gold_patience=_PATIENCE))
    told = f"rollouts.stop has no rule of kl or gold_patience; one of gold_patience {_PATIENCE} would"
    if found is None:
        return None, [f"{told} not have stopped it"]
    stop = _guard_stop(summary.rounds[found[0] - 1].round, found[1], happened=False)
    return stop, [f"{told} have stopped it at {stop.where}: {stop.reason}"]


def _guard_stop(number: int, decision: StopDecision, *, happened: bool) -> GuardStop:
    return GuardStop(f"round {number}", str(decision.rule), happened, decision.reasons[0])


def _notes(rounds: Sequence[RoundFigures], *, is_finished: bool) -> list[str]:
    notes = [] if is_finished else [f"the run has not finished: {len(rounds)} rounds so far"]
    answers = sum(figures.num_answers for figures in rounds)
    for what, missing in (
        ("reward", sum(figures.num_without_reward for figures in rounds)),
        ("gold reward", sum(figures.num_without_gold for figures in rounds)),
        ("finite KL", sum(figures.num_without_kl for figures in rounds)),
    ):
        if missing:
            notes.append(f"{missing:,} of {answers:,} answers have no {what}, and enter no mean of it")
    return notes


def _claims(run: Path) -> dict[Any, Mapping[str, str]]:
    plan, rewards = stored_json(run / "plan.json"), stored_json(run / ROLLOUTS / "rewards.json")
    section = RunDirectory(run).read_config().get("rollouts") or {}
    base: dict[str, str] = {}
    if plan.get("checkpoint_path"):
        base |= weights_claim(str(plan["checkpoint_path"]))
    if plan.get("start"):
        base["start"] = str(plan["start"])
    return {
        "base": base,
        "prompts": {"plan": str(plan["prompts_hash"])} if plan.get("prompts_hash") else {},
        "gold": reward_claims(rewards.get("gold"), told_by="rewarder") | _spec_claims(section.get("gold")),
        "proxy": rewards_claims(rewards.get("rewards"), told_by="rewarder")
        | rewards_claims(spec_identities(section.get("reward") or []), told_by="spec"),
    }


def _spec_claims(gold: Mapping[str, Any] | None) -> dict[str, str]:
    found = None if gold is None else spec_identities([gold])
    return reward_claims(next(iter(found.values())), told_by="spec") if found else {}


def weights_claim(folder: str) -> dict[str, str]:
    """Return the hash of a model's weights, if they are still there."""
    path = Path(folder)
    try:
        return {"weights": weights_fingerprint(path)} if path.is_dir() else {}
    except (OSError, PhfError):
        return {}
