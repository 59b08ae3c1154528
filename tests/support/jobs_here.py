"""Lets the jobs work in this process: trainings, rounds, scoring and servers need no Ray then."""

import contextlib
from pathlib import Path

from evaluation_server import listening

from phf_ray.blocks.build import build_here
from phf_ray.checkpoint import fingerprint
from phf_ray.corpus.overlap import overlaps_here
from phf_ray.evaluation.asking import run_here
from phf_ray.generation.conversations import conversations_of
from phf_ray.generation.load import load_engine
from phf_ray.rollouts.in_process import fit_rollouts_here
from phf_ray.scoring.executor import InProcessScoring
from phf_ray.training.in_process import fit_here
from serve.api.application import build_app
from serve.backends import Backend
from serve.engines.local import LocalModel
from serve.engines.scorer import LocalScorer
from serve.schemas import HealthResponse
from serve.settings import ServedScorer


def work_here(monkeypatch) -> None:
    """Put what works in this process in the place of what works on Ray, for the time of a test."""
    for name, stands_in in {
        "jobs.cli.start_ray": lambda: None,
        "jobs.train_lm.start_ray": lambda: None,
        "jobs.train_rl.start_ray": lambda: None,
        "phf_ray.scoring.on_ray.RayScoring": lambda start: InProcessScoring(),
        "phf_ray.evaluation.on_ray.run_on_ray": run_here,
        "jobs.serve.serving": served_here,
        "phf_ray.blocks.on_ray.build_groups": build_here,
        "phf_ray.blocks.on_ray.overlaps_on_ray": overlaps_here,
        "phf_ray.training.on_ray.fit_on_ray": fit_here,
        "phf_ray.rollouts.on_ray.train.fit_rollouts_on_ray": fit_rollouts_here,
        "phf_ray.evaluation.on_ray.evaluation_resources": lambda config: {},
    }.items():
        monkeypatch.setattr(name, stands_in)


async def healthy() -> HealthResponse:
    return HealthResponse(status="ok", deployments={})


@contextlib.contextmanager
def served_here(models, scorers=(), **_):
    """As `jobs.serve.serving`, in threads of this process."""
    served = {}
    for name, model in models.items():
        engine = load_engine(model["path"], control=model["control"])
        conversations = conversations_of(engine.strings, engine.info, chosen=model.get("chat_template"))
        served[name] = LocalModel(engine, conversations=conversations, fingerprint=fingerprint(Path(model["path"])))
    asked = {one.name: one for one in (LocalScorer(ServedScorer(scorer=dict(scorer))) for scorer in scorers)}
    try:
        with listening(build_app(Backend(served, asked, healthy), access_log=False)) as url:
            yield url
    finally:
        for one in served.values():
            one.thread.close()
        for one in asked.values():
            one.close()
