"""What the ingress does with the calls of a deployment's handle; the handle is a fake, and there is no Ray."""

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from ray.exceptions import RayActorError
from ray.serve import metrics
from tiny_models import write_checkpoint

from phf_ray.errors import ConfigError
from phf_ray.runs.directory import RunDirectory
from serve.app import build
from serve.backends import Completed
from serve.deployments import ATTEMPTS, Ingress, ModelMetrics, ModelReplica, RemoteModel
from serve.errors import ApiError
from serve.schemas import CompletionRequest, Usage

REQUEST = CompletionRequest(model="mle", prompt="def", seed=7)


class Call:
    """The answer of a replica: a value or an error, at once or never; for a stream, one piece and then that."""

    def __init__(self, outcome: Any = None):
        self.is_cancelled = False
        self._outcome = outcome
        self._num_pieces = 0

    async def _answer(self) -> Any:
        if self._outcome is None:
            await asyncio.Event().wait()
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome

    def __await__(self):
        return self._answer().__await__()

    def __aiter__(self) -> "Call":
        return self

    async def __anext__(self) -> Any:
        self._num_pieces += 1
        return "piece" if self._num_pieces == 1 else await self._answer()

    def cancel(self) -> None:
        self.is_cancelled = True


class Handle:
    """Gives out `calls` one after the other, whatever is asked."""

    def __init__(self, *calls: Call):
        self._left = list(calls)
        self.asked: list[tuple[Any, ...]] = []
        self.complete = self.stream = self

    def options(self, **_: Any) -> "Handle":
        return self

    def remote(self, *arguments: Any) -> Call:
        self.asked.append(arguments)
        return self._left.pop(0)


async def given_up(wait: Callable[[], Any]) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await wait()


def test_a_request_that_is_given_up_is_given_up_by_the_replica_too():
    call = Call()
    asyncio.run(given_up(lambda: RemoteModel(Handle(call)).complete(REQUEST)))
    assert call.is_cancelled


def test_a_stream_that_is_left_is_given_up_by_the_replica_too():
    waits, left = Call(), Call()

    async def read_all():
        async for _ in RemoteModel(Handle(waits)).stream(REQUEST):
            pass

    async def leave_after_one_piece():
        pieces = RemoteModel(Handle(left)).stream(REQUEST)
        assert await anext(pieces) == "piece"
        await pieces.aclose()

    asyncio.run(given_up(read_all))
    asyncio.run(leave_after_one_piece())
    assert (waits.is_cancelled, left.is_cancelled) == (True, True)


def test_a_request_is_sent_once_more_and_unchanged_when_its_replica_is_lost():
    handle = Handle(Call(RayActorError()), Call("answered"))
    assert asyncio.run(RemoteModel(handle).complete(REQUEST)) == "answered"
    assert handle.asked == [(REQUEST,), (REQUEST,)]


def test_a_request_that_loses_every_replica_is_answered_503():
    handle = Handle(*[Call(RayActorError()) for _ in range(ATTEMPTS)])
    with pytest.raises(ApiError, match="the replica that worked on the request was lost; try again") as caught:
        asyncio.run(RemoteModel(handle).complete(REQUEST))
    assert caught.value.status == 503
    assert len(handle.asked) == ATTEMPTS


def test_an_answered_request_is_not_given_up():
    call = Call("answered")
    asyncio.run(RemoteModel(Handle(call)).complete(REQUEST))
    assert not call.is_cancelled


class Recorded:
    """A metric of Ray that keeps its values: by name, and tags where there are some."""

    values: dict[Any, float] = {}

    def __init__(self, name: str, *, tag_keys: Any = (), **options: Any):
        self.name, self._tag_keys, self.options = name, tag_keys, options

    def set(self, value: float) -> None:
        self.values[self.name] = value

    def inc(self, value: float = 1.0, tags: Any = None) -> None:
        # As Ray has it.
        assert value > 0
        assert set(tags or ()) == set(self._tag_keys)
        key = (self.name, *tags.values()) if tags else self.name
        self.values[key] = self.values.get(key, 0.0) + value

    def observe(self, value: float, tags: Any = None) -> None:
        assert 0 < value < self.options["boundaries"][-1]
        self.inc(tags=tags)


@pytest.fixture
def recorded(monkeypatch) -> dict[Any, float]:
    monkeypatch.setattr(Recorded, "values", {})
    for kind in ("Counter", "Gauge", "Histogram"):
        monkeypatch.setattr(metrics, kind, Recorded)
    return Recorded.values


class Busy:
    """A model in the middle of a long request."""

    num_unfinished, num_steps = 3, (40, 110)

    def check_health(self) -> None: ...


def test_what_the_engine_does_is_seen_while_a_long_request_runs(recorded):
    replica = object.__new__(ModelReplica.func_or_class)
    replica._model, replica._metrics = Busy(), ModelMetrics()
    for _ in range(2):
        asyncio.run(replica.check_health())
        assert recorded == {"phf_model_unfinished": 3, "phf_engine_steps": 40, "phf_engine_sequence_steps": 110}


# Without what Serve wraps around it.
INGRESS = Ingress.func_or_class.__mro__[1]


class Answers:
    async def complete(self, _: CompletionRequest) -> Completed:
        return Completed([], Usage(prompt_tokens=0, completion_tokens=5, total_tokens=5))


def test_ray_counts_what_the_ingress_answers(recorded):
    ingress = INGRESS({"scorers": [{"scorer": {"class_name": "PEP8Scorer"}}]}, {"mle": Handle()}, {})
    ingress._backend.models["mle"] = Answers()
    app = ingress.__serve_build_asgi_app__()

    async def ask() -> list[int]:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            answer = await client.post("/v1/completions", json={"model": "mle", "prompt": "def"})
            return [answer.status_code, (await client.get("/nothing/like/this")).status_code]

    assert asyncio.run(ask()) == [200, 404]
    assert recorded == {
        ("phf_http_requests", "/v1/completions", "200"): 1,
        ("phf_http_requests", "other", "404"): 1,
        ("phf_http_request_seconds", "/v1/completions"): 1,
        ("phf_http_request_seconds", "other"): 1,
        ("phf_tokens", "mle", "completion"): 5,
    }


def test_compatible_endpoints_get_the_first_scorer_of_their_kind():
    toxicity = {"class_name": "DetoxifyToxicityScorer"}
    scorers = [
        {"class_name": "PEP8Scorer"},
        {**toxicity, "name": "world", "model": "multilingual"},
        {**toxicity, "name": "english"},
    ]
    backend = INGRESS({"scorers": [{"scorer": scorer} for scorer in scorers]}, {}, {})._backend
    assert (backend.toxicity, backend.pii) == ("world", None)
    assert "tr" in backend.toxicity_languages
    backend = INGRESS({"scorers": [{"scorer": {"class_name": "PIIScorer", "mode": "strict"}}]}, {}, {})._backend
    assert backend.pii == "pii"
    assert "ip_address" in backend.pii_types
    assert "spacy_entity" not in backend.pii_types


def test_application_has_one_deployment_per_model_and_scorer():
    models = [
        {"name": "mle", "path": "x", "replicas": {"min": 0, "max": 4}},
        {"name": "cond", "path": "y", "replicas": 3},
    ]
    replicas = {"min": 2, "max": 5, "target_ongoing_requests": 3.5}
    application = build({"models": models, "scorers": [{"scorer": {"class_name": "PEP8Scorer"}, "replicas": replicas}]})
    ingress = application._bound_deployment
    _, bound_models, bound_scorers = ingress.init_args
    names = {app._bound_deployment.name for app in [*bound_models.values(), *bound_scorers.values()]}
    assert names == {"model-mle", "model-cond", "scorer-pep8"}
    mle, cond, pep8 = (
        app._bound_deployment._deployment_config
        for app in (bound_models["mle"], bound_models["cond"], bound_scorers["pep8"])
    )

    def scaling(config):
        found = config.autoscaling_config
        return found.min_replicas, found.max_replicas, found.target_ongoing_requests

    assert scaling(mle) == (0, 4, 16.0)
    assert scaling(pep8) == (2, 5, 3.5)
    assert (cond.autoscaling_config, cond.num_replicas) == (None, 3)
    with pytest.raises(ConfigError, match="nothing to serve"):
        build({})


def test_a_model_named_as_on_a_hub_has_a_deployment_whose_name_can_be_a_file():
    names = ["mle", "a/b", "a:b", "Qwen/Qwen2.5-0.5B"]
    application = build({"models": [{"name": name, "path": "x"} for name in names]})
    _, bound, _ = application._bound_deployment.init_args
    assert list(bound) == names
    deployed = [app._bound_deployment.name for app in bound.values()]
    assert deployed[0] == "model-mle"
    assert len(set(deployed)) == 4
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+", name) for name in deployed)


def test_what_a_training_run_makes_is_served_from_its_last_checkpoint(tmp_path):
    for name, steps in (("ppo", (5, 10)), ("reward", (8, 16))):
        for step in steps:
            RunDirectory(tmp_path / name).commit_checkpoint(step, write_checkpoint, keep=None)
    args = {
        "models": [{"name": "chat", "path": str(tmp_path / "ppo")}],
        "scorers": [{"scorer": {"class_name": "RewardModelScorer", "path": str(tmp_path / "reward")}}],
    }
    _, models, scorers = build(args)._bound_deployment.init_args
    (model,) = models["chat"]._bound_deployment.init_args
    served, _ = scorers["reward"]._bound_deployment.init_args
    assert Path(model["path"]) == tmp_path / "ppo" / "checkpoints" / "step-00000010"
    assert Path(served["scorer"]["path"]) == tmp_path / "reward" / "checkpoints" / "step-00000016"
