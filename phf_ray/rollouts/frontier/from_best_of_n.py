"""Reads a finished `phf best-of-n`: its stored curve over n, at the upper bound of the KL."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from phf_ray.corpus.layout import MANIFEST, SUCCESS
from phf_ray.errors import ConfigError, DataError, PhfError
from phf_ray.measures.overoptimization import OveroptimizationFit, fit_overoptimization
from phf_ray.rollouts.best_of_n.plan import CURVE, SAMPLES
from phf_ray.rollouts.frontier.from_rounds import weights_claim
from phf_ray.rollouts.frontier.methods import FrontierMethod, FrontierPoint, Measurement
from phf_ray.rollouts.frontier.rewards_told import reward_claims, rewards_claims
from phf_ray.rollouts.frontier.stored_json import stored_json
from phf_ray.rollouts.rewards.identities import model_identity


def read_best_of_n(folder: Path, *, name: str, source: str) -> FrontierMethod:
    """Raises ConfigError if the run is not finished, or has rewarded nothing."""
    if not (folder / SUCCESS).exists():
        raise ConfigError(f"{source} holds a best-of-n that is not finished; run its command again, and then this one")
    manifest, curve = stored_json(folder / MANIFEST), stored_json(folder / CURVE)
    if not curve:
        raise ConfigError(
            f"{source} holds answers without rewards (--mode decode); reward them with phf best-of-n --mode rerank, "
            "and give its output"
        )
    try:
        points = [_point(point) for point in curve["points"]]
        told = manifest["settings"]
        num_prompts = int(curve["num_prompts"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{folder / CURVE} or {MANIFEST} is not what best-of-n writes ({error!r}); make it anew with --restart"
        ) from None
    prompts, num_tokens, tokens_note = _samples(folder / SAMPLES)
    return FrontierMethod(
        name=name,
        kind="best of n",
        source=source,
        points=points,
        claims={
            "base": _base_claims(told.get("model"), manifest.get("model")),
            "gold": reward_claims(told.get("gold"), told_by="spec"),
            "proxy": rewards_claims(told.get("reward"), told_by="spec"),
        },
        prompts=prompts,
        tokens_drawn=num_tokens,
        fits={of: fit for of in ("gold", "proxy") if (fit := _fit(points, of)) is not None},
        notes=(*_fewer_prompts(points, num_prompts), *_narrowed(told.get("sampling") or {}), *tokens_note),
    )


def _point(point: Mapping[str, Any]) -> FrontierPoint:
    return FrontierPoint(
        f"n = {point['n']}",
        kl_at_most=float(point["kl_upper_bound"]),
        gold=_measurement(point["gold"]),
        proxy=_measurement(point["proxy"]),
        is_base=point["n"] == 1,
    )


def _measurement(found: Mapping[str, Any] | None) -> Measurement | None:
    if found is None:
        return None
    low_high = found["interval"]
    interval = None if low_high is None else (float(low_high[0]), float(low_high[1]))
    return Measurement(float(found["mean"]), interval, int(found["num_prompts"]))


def _fit(points: list[FrontierPoint], of: str) -> OveroptimizationFit | str | None:
    known = [(point.kl_at_most, found.mean) for point in points if (found := getattr(point, of)) is not None]
    return fit_overoptimization(*zip(*known, strict=True), form="best of n") if known else None


def _fewer_prompts(points: list[FrontierPoint], num_prompts: int) -> list[str]:
    """Prompts that have fewer than n rewarded samples do not count, which may be a choice among prompts."""
    counts = [found.num_prompts for point in points for found in (point.gold or point.proxy,) if found is not None]
    fewest = min((count for count in counts if count is not None), default=num_prompts)
    if fewest == num_prompts:
        return []
    return [f"its points rest on {fewest:,} to {num_prompts:,} prompts: the others lack rewards of n samples"]


def _narrowed(sampling: Mapping[str, Any]) -> list[str]:
    """The bound is the distance from what was sampled from. Other methods are measured from the whole distribution."""
    whole = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}
    changed = [f"{name} {sampling[name]:g}" for name, usual in whole.items() if sampling.get(name, usual) != usual]
    if not changed:
        return []
    return [f"its answers were drawn with {', '.join(changed)}, and the bound is that of the KL from such answers"]


def _samples(path: Path) -> tuple[frozenset[str], int | None, list[str]]:
    """Return the prompts and the tokens of all samples, and what has to be said of the tokens."""
    try:
        table = pq.read_table(path, columns=["prompt", "completion", "completion_ids"])
    except (OSError, KeyError, pa.ArrowException) as error:
        raise DataError(
            f"{path} can't be read ({type(error).__name__}: {error}); make it anew with phf best-of-n --restart"
        ) from None
    ids = table["completion_ids"].to_pylist()
    drawn = [one is not None for one in table["completion"].to_pylist()]
    untold = sum(is_drawn and own is None for is_drawn, own in zip(drawn, ids, strict=True))
    prompts = frozenset(prompt for prompt in table["prompt"].unique().to_pylist() if prompt is not None)
    if untold:
        return prompts, None, [f"nothing says how many tokens {untold:,} of its answers have"]
    return prompts, sum(len(own) for own in ids if own is not None), []


def _base_claims(identity: Any, place: Any) -> dict[str, str]:
    """`identity`: of the model, as it was sampled from. Its folder says more, if it is there and still the same."""
    if not isinstance(identity, str):
        return {} if identity is None else {"server": f"{identity.get('url')} {identity.get('model')}"}
    claims = {"files": identity}
    try:
        is_same = isinstance(place, str) and Path(place).is_dir() and model_identity(place) == identity
    except (OSError, PhfError):
        return claims
    return weights_claim(place) | claims if is_same else claims
