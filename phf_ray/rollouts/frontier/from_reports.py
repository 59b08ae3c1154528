"""Reads reports of trained models: those against their base (`phf rounds`), and those of `phf evaluate-lm`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from phf_ray.errors import DataError
from phf_ray.evaluation.report.samples import SAMPLES
from phf_ray.rollouts.frontier.methods import FrontierMethod, FrontierPoint, Measurement
from phf_ray.rollouts.frontier.rewards_told import reward_claims
from phf_ray.rollouts.frontier.stored_json import stored_json
from phf_ray.rollouts.rounds import SAMPLES as ROUND_SAMPLES
from phf_ray.runs.directory import ROLLOUTS
from phf_ray.storage.hashing import digest

REPORT = "report.json"
_NORMAL = 1.959964
"""Standard errors in half of a 95% interval."""


# -- Against their base ------------------------------------------------------------------------------------------------


def read_comparison(folder: Path, *, source: str) -> list[FrontierMethod]:
    """Return the models of a report against their base, which is the first of them."""
    rows = stored_json(folder / REPORT)["models"]
    claims, prompts = _asked(folder)
    try:
        return [
            _compared(row, is_base=number == 0, source=source, claims=claims, prompts=prompts)
            for number, row in enumerate(rows)
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(folder, error) from None


def _compared(
    row: Mapping[str, Any], *, is_base: bool, source: str, claims: Mapping[Any, Any], prompts: frozenset[str]
) -> FrontierMethod:
    bound = row["kl_upper_bound"]
    point = FrontierPoint(
        "",
        kl=_estimate(row["kl"]),
        kl_at_most=None if bound is None else float(bound),
        gold=_estimate(row["gold"]),
        is_base=is_base,
    )
    notes = []
    if row["num_without_gold"]:
        notes.append(
            f"{row['num_without_gold']:,} of {row['num_answers']:,} answers have no gold reward, and enter no mean"
        )
    if not is_base and row.get("against"):
        notes.append(f"it does not beat the base: {'; '.join(row['against'])}")
    return FrontierMethod(
        name=str(row["name"]),
        kind="base" if is_base else "model",
        source=source,
        points=[point],
        claims=claims,
        prompts=prompts,
        minutes=None if row["minutes"] is None else float(row["minutes"]),
        notes=tuple(notes),
    )


def _estimate(found: Mapping[str, Any] | None) -> Measurement | None:
    if found is None:
        return None
    interval = None if found["interval"] is None else (float(found["interval"][0]), float(found["interval"][1]))
    return Measurement(float(found["mean"]), interval, int(found["num_prompts"]))


def _asked(folder: Path) -> tuple[dict[Any, dict[str, str]], frozenset[str]]:
    """Return what the stored answers say of base, gold and prompts."""
    answers = next(iter(sorted(folder.glob("answers/*/asked.json"))), None)
    if answers is None:
        return {}, frozenset()
    asked = stored_json(answers)
    base = {"weights": str(asked["base"])} if asked.get("base") else {}
    claims = {"base": base, "gold": reward_claims(asked.get("gold"), told_by="rewarder")}
    return claims, _prompts_in(answers.parent / ROLLOUTS / "round-00000" / ROUND_SAMPLES)


# -- Of evaluate-lm ----------------------------------------------------------------------------------------------------


def read_evaluation(folder: Path, *, source: str) -> list[FrontierMethod]:
    """Return each arm in each scenario. A score is higher for worse texts, so gold is minus the score."""
    report = stored_json(folder / REPORT)
    texts = _prompts_by_scenario(folder / SAMPLES)
    try:
        return [_arm(row, report, source=source, texts=texts) for row in report["table"]]
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(folder, error) from None


def _arm(
    row: Mapping[str, Any], report: Mapping[str, Any], *, source: str, texts: Mapping[str, frozenset[str]]
) -> FrontierMethod:
    arms = {arm["name"]: arm for arm in report["arms"]}
    scenarios = {one["name"]: one for one in report["scenarios"]}
    arm, scenario = arms[row["arm"]], scenarios[row["scenario"]]
    prompts = texts.get(row["scenario"], frozenset())
    kl, checkpoint = arm.get("kl"), arm.get("checkpoint") or {}
    is_base = kl is not None and kl["reference"] == row["arm"]
    by_prompt = bool(scenario.get("use_prompt_for_scoring"))
    notes = ["its gold is minus the score; its KL is that of the reference from it, on texts of the reference"]
    if row["num_unscored"]:
        notes.append(f"{row['num_unscored']:,} of {row['num_samples']:,} samples have no score, and enter no mean")
    if kl is not None and kl["num_impossible"]:
        notes.append(f"its KL leaves out {kl['num_impossible']:,} texts of the reference that it can't produce")
    if kl is not None and kl.get("failures"):
        reasons = ", ".join(f"{reason} x {count:,}" for reason, count in sorted(kl["failures"].items()))
        notes.append(f"its KL leaves out texts that the reference gave no log-probability of ({reasons})")
    if kl is not None and kl.get("note"):
        notes.append(f"of its KL: {kl['note']}")
    tokens = checkpoint.get("tokens_seen")
    return FrontierMethod(
        name=row["arm"] if len(scenarios) == 1 else f"{row['arm']}, {row['scenario']}",
        kind="base" if is_base else "model",
        source=source,
        points=[FrontierPoint("", kl=_forward_kl(kl), gold=_minus_score(row), is_base=is_base)],
        distance="of the reference",
        claims={
            "base": {} if kl is None else _reference_claim(kl["reference"], arms),
            "gold": reward_claims(
                {"scorer": report["scorer"], "use_prompt_for_scoring": by_prompt}, told_by="rewarder"
            ),
            # Without prompts, all scenarios ask for nothing, and their settings tell them apart.
            "prompts": {"scenario": digest([scenario.get("generate_kwargs"), sorted(prompts)])},
        },
        prompts=prompts,
        tokens_learned=int(tokens) if tokens else None,
        notes=tuple(notes),
    )


def _forward_kl(kl: Mapping[str, Any] | None) -> Measurement | None:
    if kl is None:
        return None
    mean, error = kl["per_sequence"]
    half = _NORMAL * float(error)
    return Measurement(float(mean), (float(mean) - half, float(mean) + half))


def _minus_score(row: Mapping[str, Any]) -> Measurement | None:
    if row["score"] is None:
        return None
    interval = None if row["score_ci"] is None else (-float(row["score_ci"][1]), -float(row["score_ci"][0]))
    return Measurement(-float(row["score"]), interval)


def _reference_claim(reference: str, arms: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    known = arms.get(reference, {}).get("checkpoint")
    return {"checkpoint": digest(known)} if known else {"name": reference}


def _prompts_by_scenario(path: Path) -> dict[str, frozenset[str]]:
    found: dict[str, set[str]] = {}
    for row in _table(path, ["scenario", "prompt"]).to_pylist() if path.exists() else ():
        found.setdefault(row["scenario"], set()).add(row["prompt"])
    return {scenario: frozenset(prompts - {""}) for scenario, prompts in found.items()}


def _prompts_in(path: Path) -> frozenset[str]:
    if not path.exists():
        return frozenset()
    return frozenset(_table(path, ["prompt"])["prompt"].unique().to_pylist())


def _table(path: Path, columns: Sequence[str]) -> pa.Table:
    try:
        return pq.read_table(path, columns=list(columns))
    except (OSError, KeyError, pa.ArrowException) as error:
        raise DataError(f"{path} can't be read ({type(error).__name__}: {error}); put the file back") from None


def _damaged(folder: Path, error: Exception) -> DataError:
    return DataError(
        f"{folder / REPORT} is not what the job writes ({type(error).__name__}: {error}); run its command again"
    )
