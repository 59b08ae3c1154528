"""phf train-rl before Ray starts: its plan, and what is refused."""

from types import SimpleNamespace

import pytest
import yaml
from rollout_runs import rollout_values, write_prompts
from train_runs import arguments

from jobs import demo, train_rl
from jobs.train_lm import main as train_lm
from jobs.train_rl import main
from phf_ray.config import load_config
from phf_ray.errors import ConfigError, DataError, IncompleteError
from phf_ray.rollouts.in_process import fit_rollouts_here
from phf_ray.rollouts.on_ray.metrics import RoundGauges
from phf_ray.runs.directory import RunDirectory


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = write_prompts(tmp_path_factory.mktemp("train rl"))
    path = folder / "alpaca" / "task.yml"
    path.parent.mkdir()
    path.write_text(yaml.safe_dump(rollout_values(folder)), encoding="utf-8")
    return path


def test_a_dry_run_says_what_it_takes_and_writes_nothing(task, capsys):
    assert main([*arguments(task), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "rounds       4 of 4 prompts x 3 answers; 1.3 passes over the prompts" in said
    assert "answers      48, at most 576 tokens" in said
    assert "steps        8, 2 a round" in said
    assert not (task.parents[1] / "runs").exists()


def test_a_dry_run_says_how_many_actors_draw(task, capsys):
    overrides = ("rollouts.place=actors", "rollouts.actors.max=3", "rollouts.max_staleness=1")
    assert main([*arguments(task, *overrides), "--dry-run"]) == 0
    said = "actors       1 to 3, of 1 CPU and 0 GPU, each with the weights; a round is drawn while the one before it is"
    assert said in capsys.readouterr().out


def test_only_a_run_on_ray_shows_its_rounds_in_rays_metrics(task):
    prepared = SimpleNamespace(plan=SimpleNamespace(num_steps=8))
    config = load_config(task)
    (gauges,) = train_rl._helpers(config, prepared, run_name="rloo", is_here=False).sinks
    assert isinstance(gauges, RoundGauges)
    assert train_rl._helpers(config, prepared, run_name="rloo", is_here=True).sinks == ()


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["rollouts.prompts=[nowhere.jsonl]"], ConfigError, r"rollouts\.prompts nowhere\.jsonl does not exist"),
        (["rollouts.reward=[{model: nowhere}]"], ConfigError, r"rollouts\.reward: .*nowhere is not a model directory"),
        (["rollouts.place=http://localhost:1"], ConfigError, "a server has no fresh weights"),
        (["rollouts.prompts_per_round=13"], ConfigError, "lower it to at most 12"),
    ],
)
def test_what_can_not_be_is_refused_before_ray_starts(task, overrides, error, message):
    with pytest.raises(error, match=message):
        main(arguments(task, *overrides))


def test_missing_evaluations_of_a_finished_run_are_tried_again(task, monkeypatch):
    """As train-lm does. A third start has nothing to do."""
    summaries = iter([{"missing": {"2": "server away"}}, {"missing": {}}])

    class Evaluations:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def finish(self):
            return True

        def summary(self):
            return next(summaries)

    monkeypatch.setattr("jobs.train_rl.start_ray", lambda: None)
    monkeypatch.setattr("phf_ray.rollouts.on_ray.train.fit_rollouts_on_ray", fit_rollouts_here)
    monkeypatch.setattr("phf_ray.evaluation.on_ray.evaluations_beside", lambda *_, **__: Evaluations())
    command = arguments(task, "rollouts.rounds=1", name="evaluated")
    with pytest.raises(IncompleteError, match=r"evaluations during training are missing: .*server away"):
        main(command)
    run = RunDirectory(task.parents[1] / "runs" / "evaluated")
    first = run.read_summary()
    assert main(command) == 0
    for name in ("wall_s_of_last_start", "wall_cost"):
        assert run.read_summary()[name] == first[name], "this start did not train"
    assert next(summaries, None) is None
    assert main(command) == 0


def test_other_settings_are_refused_with_the_option_of_the_command_in_use(task, monkeypatch):
    monkeypatch.setattr("jobs.train_rl.start_ray", lambda: None)
    monkeypatch.setattr("phf_ray.rollouts.on_ray.train.fit_rollouts_on_ray", fit_rollouts_here)
    monkeypatch.setattr("phf_ray.evaluation.on_ray.evaluations_beside", lambda *_, **__: None)
    assert main(arguments(task, "rollouts.rounds=1", name="inside")) == 0
    other = arguments(task, "rollouts.rounds=1", "training.learning_rate=0.5", name="inside")
    with pytest.raises(ConfigError, match=r"holds a run with other settings[^$]*choose another --run-name, or undo"):
        main(other)
    with pytest.raises(ConfigError, match=r"holds a run with other settings[^$]*choose another --output, or undo"):
        demo.run_job(train_rl, other)


def test_an_empty_file_of_prompts_is_refused(task, tmp_path):
    (tmp_path / "empty.json").write_text("[]")
    with pytest.raises(DataError, match="there are no prompts"):
        main(arguments(task, f"rollouts.prompts=[{tmp_path / 'empty.json'}]"))


def test_each_of_the_two_trainings_names_the_other(task):
    with pytest.raises(ConfigError, match="start it with `phf train-rl`"):
        train_lm(arguments(task))
    with pytest.raises(ConfigError, match="learn from stored data with `phf train-lm`"):
        main(["--task", "pep8", "--method", "mle"])
