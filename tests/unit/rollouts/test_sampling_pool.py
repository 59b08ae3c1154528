"""The pool of Ray actors without a Ray: how many there are, and how it ends."""

import logging
import threading

import pytest
import ray
from ray.exceptions import ActorDiedError
from rollout_runs import job_values, prepared, rollout_config, write_prompts

from phf_ray.errors import IncompleteError
from phf_ray.rollouts.on_ray import sampling
from phf_ray.rollouts.on_ray.sampling import RaySamplingPool, most_actors
from phf_ray.rollouts.plan import RolloutJob
from phf_ray.rollouts.shared_weights import SharedWeights


@pytest.mark.parametrize(
    ("actors", "evaluates", "most"),
    [({}, False, 6), ({}, True, 5), ({"num_cpus": 2}, True, 2), ({"max": 9}, True, 9), ({"min": 7}, True, 7)],
)
def test_actors_leave_room_for_an_evaluation(tmp_path, monkeypatch, actors, evaluates, most):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0})
    config = rollout_config(write_prompts(tmp_path), training={"num_workers": 2}, place="actors", actors=actors)
    if evaluates:
        generation = config.generation.model_copy(update={"scenario_configs": ("one",), "every_n_steps": 2})
        config = config.model_copy(update={"generation": generation})
    assert most_actors(config, num_steps=8) == most


def test_workers_that_take_a_gpu_take_no_cpu_from_the_actors(tmp_path, monkeypatch):
    """Ray Train's workers by default."""
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 2.0})
    training = {"num_workers": 2, "resources_per_worker": {}}
    config = rollout_config(write_prompts(tmp_path), training=training, place="actors", actors={})
    assert most_actors(config, num_steps=8) == 8


class Actor:
    """Its calls return their names."""

    def __getattr__(self, name):
        return type("Method", (), {"remote": staticmethod(lambda *_: name)})


def test_actors_that_the_end_of_a_run_kills_are_not_replaced(tmp_path, monkeypatch, caplog):
    made, draws, is_killed, presence = [], threading.Event(), threading.Event(), []

    def new_actor(*_):
        made.append(Actor())
        return made[-1]

    def wait(answers, timeout):
        presence.append(pool.is_anyone_there())
        if "draw" in answers:
            draws.set()
            is_killed.wait(timeout=60)
        return answers, []

    def get(answer):
        if answer == "draw":
            raise ActorDiedError
        return answer

    for name, stand_in in {
        "cluster_resources": lambda: {"CPU": 2.0},
        "put": lambda value: value,
        "wait": wait,
        "get": get,
        "kill": lambda _: is_killed.set(),
    }.items():
        monkeypatch.setattr(ray, name, stand_in)
    monkeypatch.setattr(sampling, "_new_actor", new_actor)
    config = rollout_config(write_prompts(tmp_path), place="actors")
    values = job_values(config, tmp_path / "run", prepared(config, tmp_path))
    pool = RaySamplingPool(RolloutJob(**values))
    answers = pool.start([[]], number=0, weights=SharedWeights("step-00000000", {}), with_behaviour=False)
    assert draws.wait(timeout=60)
    # One that waits for room is not there.
    assert presence == [False, True]
    assert answers.is_anyone_there()
    with caplog.at_level(logging.WARNING):
        pool.close()
        with pytest.raises(IncompleteError, match="round 0 was not drawn to its end, because the run ended"):
            answers.rows()
    assert len(made) == 1
    assert not caplog.records
