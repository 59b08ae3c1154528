"""Refuses a scorer that the models were not trained on."""

import logging
from collections.abc import Sequence
from typing import Any

from phf_ray.errors import ConfigError, ServiceError
from phf_ray.evaluation.arms import CHECK_PATIENCE_S, Arm, ScoresServer
from phf_ray.http.client import Client

log = logging.getLogger(__name__)


def check_scorer(scores: ScoresServer, arms: Sequence[Arm], *, allow_other: bool) -> dict[str, Any]:
    """Return the identity of the served scorer, which must be the one that the checkpoints were trained on."""
    client = Client(scores.url, key=scores.key, patience_s=CHECK_PATIENCE_S)
    answer = client.post("/v1/scores", {"scorer": scores.scorer, "input": ["x"], "segments": False})
    identity = answer.get("scorer")
    if not isinstance(identity, dict) or "data" not in answer:
        raise ServiceError(f"{scores.url}/v1/scores did not return a scorer and data; is this a server of jobs.serve?")
    for arm in arms:
        trained = None if arm.checkpoint is None else arm.checkpoint.scorer
        if trained is None or trained == identity:
            continue
        changed = sorted(key for key in {*trained, *identity} if trained.get(key) != identity.get(key))
        shown = "; ".join(
            f"{key}: trained on {trained.get(key)!r}, evaluated with {identity.get(key)!r}" for key in changed
        )
        # Users choose the name, and another version of a package may well score the same.
        if set(changed) - {"name", "versions"} and not allow_other:
            raise ConfigError(
                f"{arm.name} was trained on another scorer ({shown}); give that scorer, or --allow-other-scorer"
            )
        log.warning("%s: THE SCORER IS NOT THE ONE IT WAS TRAINED ON. %s", arm.name, shown)
    return identity
