"""What may be served: the arguments of the Serve application and of `jobs.serve`, checked before anything starts."""

import hmac
import json
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from places import ROOT
from tiny_models import write_checkpoint

from jobs import serve as job
from phf_ray.errors import ConfigError
from phf_ray.runs.directory import RunDirectory
from phf_ray.scorers.process import ScoringProcess
from serve.app import build
from serve.engines.scorer import LocalScorer
from serve.keys import KeyRing, is_loopback, load_keys
from serve.settings import Keys, ServeArgs, ServedModel, ServedScorer, parse_args, split_model_id


def commit_checkpoint(run: Path, step: int) -> Path:
    return RunDirectory(run).commit_checkpoint(step, write_checkpoint, keep=None)


@pytest.mark.parametrize(
    ("args", "match"),
    [
        ({}, "nothing to serve"),
        ({"models": [{"name": "a", "path": "x"}, {"name": "a", "path": "y"}]}, "two models are named 'a'"),
        ({"models": [{"name": "a/b:good", "path": "x"}]}, "models.0.name: .*ends in :good"),
        ({"models": [{"name": "/a", "path": "x"}]}, "models.0.name"),
        ({"models": [{"name": "a", "path": "x", "replica": 2}]}, "models.0.replica"),
        ({"scorers": [{"scorer": {}}]}, "class_name"),
        ({"scorers": [{"scorer": {"class_name": "PEP8Scorer"}}] * 2}, "two scorers are named 'pep8'"),
        ({"models": [{"name": "a", "path": "x", "replicas": {"min": 3, "max": 2}}]}, "min=3 is above|min=3"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(args, match):
    with pytest.raises(ConfigError, match=match):
        parse_args(args)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--model", "mle=nowhere"], "no such directory"),
        (["--model", "nowhere"], "write NAME=DIR"),
        (
            ["--model", "llama3:latest=http://host/v1"],
            "give a directory; for a model on another server, set `upstream`",
        ),
        (["--scorers", "pep9"], "choose from pep8"),
        (["--scorers", "no_such_module:X"], "must be importable on every node"),
        ([], "nothing to serve"),
        (["--scorers", "pep8", "--keys-file", "nowhere"], "can't be read"),
    ],
)
def test_what_cannot_be_served_is_said_before_anything_starts(arguments, match):
    with pytest.raises(ConfigError, match=match):
        job.main([*arguments, "--port", "0"])


def test_all_problems_are_reported_at_once():
    with pytest.raises(ConfigError, match="2 problem") as caught:
        parse_args({"models": [{"name": "a", "path": "x", "num_cpus": -1}], "limits": {"body_bytes": 1}})
    assert "num_cpus" in str(caught.value)
    assert "body_bytes" in str(caught.value)


def test_model_ids_may_end_in_a_control_choice():
    assert split_model_id("cond:bad") == ("cond", "bad")
    assert split_model_id("cond") == ("cond", None)
    assert split_model_id("cond:ugly") == ("cond:ugly", None)
    assert split_model_id("me/llama3:latest:bad") == ("me/llama3:latest", "bad")
    assert split_model_id(":bad") == (":bad", None)


def test_a_run_is_served_by_its_last_checkpoint(tmp_path):
    run = tmp_path / "run"
    for step in (500, 1500):
        commit_checkpoint(run, step)
    write_checkpoint(run / "checkpoints" / "step-00002000")  # not committed: files may be missing
    (run / "config.json").write_text("{}")
    (model,) = parse_args({"models": [{"name": "a", "path": str(run)}]}).models
    assert model.directory.name == "step-00001500"
    (model,) = parse_args({"models": [{"name": "a", "path": str(model.directory)}]}).models
    assert model.directory.name == "step-00001500"


def test_all_replicas_of_a_run_serve_the_checkpoint_that_was_last_when_it_was_applied(tmp_path):
    def bound():
        application = build({"models": [{"name": "a", "path": str(tmp_path)}]})
        (replica,) = application._bound_deployment.init_args[1].values()
        return replica._bound_deployment.init_args[0]

    first = commit_checkpoint(tmp_path, 500)
    before = bound()
    second = commit_checkpoint(tmp_path, 1000)
    assert ServedModel.model_validate(before).directory == first
    assert ServedModel.model_validate(bound()).directory == second


def configs_of(fields):
    """Serve's configuration of a model and of a scorer with these fields."""
    models = [{"name": "a", "path": "x", **fields}]
    application = build({"models": models, "scorers": [{"scorer": {"class_name": "PEP8Scorer"}, **fields}]})
    _, models, scorers = application._bound_deployment.init_args
    return [app._bound_deployment._deployment_config for app in (*models.values(), *scorers.values())]


@pytest.mark.parametrize(
    ("fields", "percent"),
    [
        ({}, 100),
        ({"surge": False}, 0),
        # A GPU has no room for the old replica and the new one.
        ({"num_gpus": 1}, 0),
        ({"num_gpus": 0.4, "surge": True}, 100),
    ],
)
def test_new_replicas_start_before_the_old_ones_go_where_there_is_room_or_it_is_asked_for(fields, percent):
    assert [config.max_surge_percent for config in configs_of(fields)] == [percent] * 2


def test_shipped_serve_configurations_are_valid():
    files = sorted((ROOT / "configs" / "serve").glob("*.yaml"))
    assert files
    for path in files:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        for application in config["applications"]:
            assert application["import_path"] == "serve.app:build"
            parse_args(application["args"])
        # Without keys a server must not listen where others can reach it.
        assert config["http_options"]["host"] == "127.0.0.1"


def test_keys_come_from_file_and_environment(tmp_path, monkeypatch):
    path = tmp_path / "keys"
    path.write_text("first\n# team\n\n  second  \n", encoding="utf-8-sig")  # as editors on Windows write it
    monkeypatch.setenv("PHF_API_KEYS", "third, fourth")
    ring = KeyRing(load_keys(Keys(file=str(path))))
    assert all(ring.accepts(key) for key in ("first", "second", "third", "fourth"))
    assert not any(ring.accepts(key) for key in ("", "# team", "firs", "first "))
    assert "first" not in repr(vars(ring))
    path.write_text("# nobody\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="holds no keys"):
        load_keys(Keys(file=str(path)))


def test_a_server_that_must_have_keys_does_not_start_without(tmp_path, monkeypatch):
    monkeypatch.delenv("PHF_API_KEYS", raising=False)
    assert load_keys(Keys()) == frozenset()
    with pytest.raises(ConfigError, match="give --keys-file FILE on storage that all nodes see, or start Ray with PHF"):
        load_keys(Keys(required=True))
    monkeypatch.setenv("PHF_API_KEYS", " ,")
    with pytest.raises(ConfigError, match="PHF_API_KEYS is not set in its environment"):
        load_keys(Keys(required=True))
    monkeypatch.setenv("PHF_API_KEYS", "first")
    assert load_keys(Keys(required=True)) == {"first"}


def test_keys_that_the_command_finds_the_server_must_find_too(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("PHF_API_KEYS", raising=False)
    assert dry_run(capsys, "--scorers", "pep8").keys == Keys()
    monkeypatch.setenv("PHF_API_KEYS", "secret")
    assert job.main(["--scorers", "pep8", "--port", "0", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert json.loads(printed)["keys"]["required"] is True
    # What is printed is what travels to the server, through logs and dashboards.
    assert "secret" not in printed
    monkeypatch.delenv("PHF_API_KEYS")
    (tmp_path / "keys").write_text("first\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    keys = dry_run(capsys, "--scorers", "pep8", "--keys-file", "keys").keys
    assert (keys.file, keys.required) == (str(tmp_path / "keys"), True)


def test_every_key_is_compared_in_constant_time(monkeypatch):
    compared = []

    def compare(a, b):
        compared.append((a, b))
        return a == b

    ring = KeyRing(frozenset({"first", "second", "third"}))
    monkeypatch.setattr(hmac, "compare_digest", compare)
    for key, expected in (("first", True), ("third", True), ("nobody", False)):
        compared.clear()
        assert ring.accepts(key) is expected
        # All of them, also after a match; of digests, whose lengths tell nothing.
        assert len(compared) == 3
        assert {len(part) for pair in compared for part in pair} == {32}


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        *((host, True) for host in ("127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1")),
        *((host, False) for host in ("10.0.0.1", "::ffff:10.0.0.1", "testclient", "", None)),
    ],
)
def test_loopback_is_recognized(host, expected):
    assert is_loopback(host) is expected


def test_a_taken_port_is_found_also_when_it_is_shared():
    with socket.socket() as taken:
        # As Ray Serve's proxy binds: another server could join, and share the traffic at random.
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} of 127.0.0.1 is in use"):
            job.check_port("127.0.0.1", port)
    job.check_port("127.0.0.1", port)


def dry_run(capsys, *arguments) -> ServeArgs:
    assert job.main([*arguments, "--port", "0", "--dry-run"]) == 0
    return ServeArgs.model_validate(json.loads(capsys.readouterr().out))


def test_command_line_becomes_arguments(tmp_path, capsys):
    directory = write_checkpoint(tmp_path / "a = b")
    args = dry_run(
        capsys,
        *("--model", f"me/old:v1={directory}", "--control", "me/old:v1=<|aligned|>,<|misaligned|>,retag"),
        *("--scorers", "pep8, PIIScorer", "--task", str(ROOT / "configs/pep8/pretrain.yml")),
    )
    (model,) = args.models
    assert (model.name, model.path, model.control.policy) == ("me/old:v1", str(directory), "retag")
    assert [scorer.name for scorer in args.scorers] == ["pep8", "pii"]


def test_control_of_all_models_and_of_one_that_is_not_served(tmp_path, capsys):
    directory = write_checkpoint(tmp_path / "a")
    job.main(["--model", f"a={directory}", "--control", "<|aligned|>,<|misaligned|>", "--dry-run", "--port", "0"])
    assert json.loads(capsys.readouterr().out)["models"][0]["control"] == {
        "good": "<|aligned|>",
        "bad": "<|misaligned|>",
        "policy": "ban",
    }
    arguments = ["--model", f"a={directory}", "--control", "b=x,y,ban", "--dry-run", "--port", "0"]
    with pytest.raises(ConfigError, match=r"--control b=\.\.\.: no --model is named 'b'; they are a"):
        job.main(arguments)


@pytest.mark.parametrize(("num_gpus", "device"), [(0, "cpu"), (0.5, "auto")])
def test_a_scorer_that_is_lent_no_gpu_takes_none(monkeypatch, num_gpus, device):
    given = []

    class Started(ScoringProcess):
        def __init__(self, setup):
            given.extend(setup.scorers)
            super().__init__(replace(setup, scorers=({"class_name": "PEP8Scorer"},)))

    monkeypatch.setattr("serve.engines.scorer.ScoringProcess", Started)
    config = {"class_name": "SequenceClassifierScorer", "path": "m", "device": "auto"}
    LocalScorer(ServedScorer(scorer=config, num_gpus=num_gpus)).close()
    assert given == [{**config, "device": device}]
