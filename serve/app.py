"""Builds the Serve application for `serve run configs/serve/demo.yaml`, the RayService manifest and `jobs.serve`."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.serve import Application

from phf_ray.runs.checkpoints import find_checkpoint
from serve.deployments import Ingress, ModelReplica, ScorerReplica
from serve.errors import RETRY_AFTER_S
from serve.settings import Autoscaling, ServeArgs, ServedModel, ServedScorer, parse_args

# The application limits its queues and answers 429 in its own shape; Serve's limits are only a backstop.
MAX_ONGOING = 4096
# Old replicas keep running until new ones are ready. Serve's default, 0, stops the old ones first.
SURGE_PERCENT = 100


def build(args: Mapping[str, Any] | ServeArgs) -> Application:
    """Build the application. `args` holds the fields of `serve.settings.ServeArgs`, checked before anything starts."""
    parsed = args if isinstance(args, ServeArgs) else parse_args(dict(args))
    models = {
        model.name: _deployment(
            ModelReplica, **_options(deployment_name(model.name), model, drain_s=parsed.limits.drain_s)
        )
        for model in parsed.models
    }
    scorers = {
        scorer.name: _deployment(
            ScorerReplica, **_options(f"scorer-{scorer.name}", scorer, drain_s=parsed.limits.drain_s)
        )
        for scorer in parsed.scorers
    }
    ingress = _deployment(
        Ingress,
        name="ingress",
        num_replicas=parsed.ingress_replicas,
        ray_actor_options={"num_cpus": 0.1},
        max_ongoing_requests=MAX_ONGOING,
        max_surge_percent=SURGE_PERCENT,
        graceful_shutdown_timeout_s=parsed.limits.drain_s,
    )
    return ingress.bind(
        parsed.model_dump(mode="json"),
        {model.name: models[model.name].bind(_bound(model).model_dump(mode="json")) for model in parsed.models},
        {
            scorer.name: scorers[scorer.name].bind(
                _bound_scorer(scorer).model_dump(mode="json"), parsed.limits.request_timeout_s
            )
            for scorer in parsed.scorers
        },
    )


def deployment_name(model_name: str) -> str:
    """Return the name of a model's deployment, in which Ray allows no slash: it names the replicas' log files."""
    plain = re.sub(r"[^A-Za-z0-9_.-]", "-", model_name)
    if plain == model_name:
        return f"model-{model_name}"
    # `a/b` and `a:b` are different models.
    return f"model-{plain}-{hashlib.blake2b(model_name.encode(), digest_size=4).hexdigest()}"


def _bound(model: ServedModel) -> ServedModel:
    """Replace a training run by its last checkpoint: the run may save another before the next replica starts."""
    if not (Path(model.path) / "checkpoints").is_dir():
        return model
    return model.model_copy(update={"path": str(model.directory)})


def _bound_scorer(served: ServedScorer) -> ServedScorer:
    """Do the same for the model of a scorer, such as a reward model."""
    path = served.scorer.get("path")
    if not isinstance(path, str) or not (Path(path) / "checkpoints").is_dir():
        return served
    newest = find_checkpoint(path, option=f"scorer {served.name!r}:")
    return served.model_copy(update={"scorer": {**served.scorer, "path": str(newest)}})


def _deployment(class_: Any, **options: Any) -> Any:
    # `serve.deployment` turns a class into a Deployment, but its type hint hides that.
    return class_.options(**options)


def _options(name: str, served: ServedModel | ServedScorer, *, drain_s: float) -> dict[str, Any]:
    options: dict[str, Any] = {
        "name": name,
        "ray_actor_options": {"num_cpus": served.num_cpus, "num_gpus": served.num_gpus},
        "max_ongoing_requests": MAX_ONGOING,
        "max_queued_requests": MAX_ONGOING,
        "backpressure_config": {"status_code": 429, "retry_after_s": RETRY_AFTER_S},
        "max_surge_percent": SURGE_PERCENT if served.starts_before_old_stop else 0,
        "graceful_shutdown_timeout_s": drain_s,
        "health_check_period_s": 5.0,
    }
    if isinstance(served.replicas, Autoscaling):
        options["autoscaling_config"] = {
            "min_replicas": served.replicas.min,
            "max_replicas": served.replicas.max,
            "target_ongoing_requests": served.replicas.target_ongoing_requests,
        }
    else:
        options["num_replicas"] = served.replicas
    return options
