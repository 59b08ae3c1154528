"""Which weights of a run are evaluated, and the steps at which the loop gives them away."""

import json
from pathlib import Path

import pytest
from places import ROOT
from tiny_models import write_checkpoint

from phf_ray.config import GenerationConfig, KLConfig, due_steps, evaluation_steps, load_config, parse_config
from phf_ray.errors import ConfigError
from phf_ray.evaluation import weights
from phf_ray.evaluation.beside_training import EvaluationJob, _check_prefix, _resolved_reference, plan_evaluations
from phf_ray.evaluation.weights import evaluate_weights
from phf_ray.generation.load import load_engine
from phf_ray.runs.directory import RunDirectory
from phf_ray.runs.following import Follower
from phf_ray.runs.rows import EVALUATION, STEP

CONFIGS = ROOT / "configs"


# --- Cadence ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "steps"),
    [
        ({"every_n_steps": 10}, {0, 10, 20, 30, 34}),
        ({"every_n_steps": 17}, {0, 17, 34}),
        ({"every_n_steps": 1000}, {0, 34}),
        ({"every_n_steps": 1000, "force_call_on": [15, 34, 35]}, {0, 15, 34}),
        ({"every_n_steps": 10, "run_on_train_start": False}, {10, 20, 30, 34}),
        ({"every_n_steps": 10, "run_on_train_end": False}, {0, 10, 20, 30}),
        ({"every_n_steps": 17, "run_on_train_end": False}, {0, 17, 34}),
        ({"every_n_steps": None, "run_on_train_start": False, "run_on_train_end": False}, set()),
        ({"every_n_steps": None, "run_on_train_start": False, "force_call_on": [0, 5]}, {0, 5, 34}),
    ],
)
@pytest.mark.parametrize("section", [GenerationConfig, KLConfig])
def test_weights_are_evaluated_at_the_start_every_n_steps_where_forced_and_at_the_end(section, keys, steps):
    assert due_steps(section.model_validate(keys), num_steps=34) == steps


def test_samples_and_kl_have_cadences_of_their_own_and_are_off_without_scenarios_or_reference():
    values = {
        "generation": {"every_n_steps": 20, "scenario_configs": [{"name": "unconditional"}]},
        "kl_gpt3_callback": {"every_n_steps": 15, "run_on_train_start": False, "reference": "ref"},
    }
    assert evaluation_steps(parse_config(values), num_steps=34) == ({0, 20, 34}, {15, 30, 34})
    del values["generation"]["scenario_configs"], values["kl_gpt3_callback"]["reference"]
    assert evaluation_steps(parse_config(values), num_steps=34) == (set(), set())


def test_the_shipped_configurations_keep_the_cadence_of_the_original():
    """51 evaluations of 50,354 steps, the first at step 0; the last weights too, which the original left out (D-7)."""
    samples, kl = evaluation_steps(load_config(CONFIGS / "toxicity" / "pretrain.yml"), num_steps=50_354)
    assert samples == {*range(0, 50_001, 1000), 25_354, 50_354}
    assert kl == set(), "davinci was shut down; a reference has to be given"
    samples, _ = evaluation_steps(
        load_config(CONFIGS / "toxicity" / "pretrain.yml", CONFIGS / "toxicity" / "awr.yml"), num_steps=3147
    )
    assert samples == {*range(0, 3137, 16), 3147}


def test_the_demo_evaluates_nothing_beside_its_training():
    assert evaluation_steps(load_config(CONFIGS / "demo" / "pretrain.yml"), num_steps=1000) == (set(), set())


# --- The reference ----------------------------------------------------------------------------------------------------


def test_a_reference_is_called_after_its_run_unless_named(tmp_path):
    run = RunDirectory(tmp_path / "a ref")
    checkpoint = run.commit_checkpoint(5, lambda folder: (folder / "config.json").write_text("{}"), keep=None)
    assert _resolved_reference(str(checkpoint), allow_plain_http=False) == f"a-ref={checkpoint}"
    assert _resolved_reference(str(run.path), allow_plain_http=False) == f"a-ref={checkpoint}", "the newest of a run"
    assert _resolved_reference(f"gpt={checkpoint}", allow_plain_http=False) == f"gpt={checkpoint}"
    assert _resolved_reference("gpt=http://host:8000", allow_plain_http=False) == "gpt=http://host:8000"


@pytest.mark.parametrize(
    ("text", "message"),
    [("missing", "missing: no such directory.*null for no KL"), ("http://host:8000", "NAME=http://host:8000")],
)
def test_a_reference_that_can_not_be_asked_is_refused_before_the_training(text, message):
    with pytest.raises(ConfigError, match=message):
        _resolved_reference(text, allow_plain_http=False)


def test_a_prefix_that_is_no_control_token_of_the_training_is_refused_before_it(tmp_path):
    values = load_config(CONFIGS / "toxicity" / "pretrain.yml", CONFIGS / "toxicity" / "conditional.yml").model_dump()
    for prefix in ("<|aligned|>", "<|misaligned|>", None):
        values["kl_gpt3_callback"] |= {"prefix": prefix, "reference": "gpt=http://host:8000"}
        _check_prefix(parse_config(values))
    values["kl_gpt3_callback"]["prefix"] = "# good"
    values["generation"]["scenario_configs"] = []
    with pytest.raises(ConfigError, match=r"prefix: '# good' .* which has <\|aligned\|> and <\|misaligned\|>; set one"):
        plan_evaluations(parse_config(values), RunDirectory(tmp_path), num_steps=10, resources={"CPU": 1.0})
    del values["dataset"]["conditional_training_config"]
    with pytest.raises(ConfigError, match=r"prefix: '# good' .* which has none"):
        plan_evaluations(parse_config(values), RunDirectory(tmp_path), num_steps=10, resources={"CPU": 1.0})


# --- Weights on the disk ----------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    return RunDirectory(tmp_path)


def write_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"weights")


def row(step: int, **figures: float) -> dict[str, float]:
    return {STEP: step, "train/tokens_seen": 100 * step, EVALUATION: 1.5, **figures}


def test_weights_appear_whole_and_wait_until_they_have_figures(run):
    def write(folder: Path) -> None:
        write_weights(folder)
        assert run.steps_to_evaluate() in ([], [20]), "not before all of it is written"

    for step in (20, 5):
        run.hand_out_weights(step, write)
    assert run.steps_to_evaluate() == [5, 20]
    run.write_evaluation(5, row(5))
    assert run.steps_to_evaluate() == [20]
    assert run.evaluated_steps() == [5]
    assert not (run.evaluation_folder(5) / "weights").exists(), "not needed any more"
    assert (run.evaluation_folder(20) / "weights" / "model.safetensors").read_bytes() == b"weights"


def test_weights_are_handed_out_once_also_when_their_step_is_trained_again(run):
    def never(folder: Path) -> None:
        raise AssertionError("handed out twice")

    run.hand_out_weights(5, write_weights)
    run.hand_out_weights(5, never)
    run.write_evaluation(5, row(5))
    run.hand_out_weights(5, never)
    assert run.steps_to_evaluate() == []


def test_weights_whose_writer_was_killed_are_written_again(run):
    scratch = run.evaluation_folder(5) / ".writing-weights-0123"
    scratch.mkdir(parents=True)
    assert run.steps_to_evaluate() == []
    assert run.handed_out() == [5], "the summary must name it, should it never be written"
    run.claim()
    assert not scratch.exists()
    run.hand_out_weights(5, write_weights)
    assert run.steps_to_evaluate() == [5]


def test_pruning_checkpoints_spares_weights_that_wait(run):
    run.hand_out_weights(5, write_weights)
    for step in (5, 10, 15):
        run.commit_checkpoint(step, write_weights, keep=1)
    assert [path.name for path in run.complete_checkpoints()] == ["step-00000015"]
    assert run.steps_to_evaluate() == [5]


def test_figures_are_rows_of_their_step_also_after_steps_are_trained_again(run):
    for step in (1, 2, 3):
        run.append_metrics({STEP: step, "train/loss": 1.0})
    run.hand_out_weights(2, write_weights)
    run.write_evaluation(2, row(2, **{"generation/unconditional/score": 0.25, "KL/ref/per_byte": float("nan")}))
    run.drop_metrics_after(1)
    for step in (2, 3):
        run.append_metrics({STEP: step, "train/loss": 1.0})
    expected = [(1, False), (2, False), (2, True), (3, False)]
    assert [(one[STEP], EVALUATION in one) for one in run.read_metrics()] == expected
    assert run.read_metrics()[2]["KL/ref/per_byte"] is None
    for _ in range(2):
        run.merge_evaluations()
        rows = [json.loads(line) for line in run.metrics_path.read_text().splitlines()]
        assert [(one[STEP], EVALUATION in one) for one in rows] == expected
        assert run.read_metrics() == rows
    assert rows[2]["generation/unconditional/score"] == 0.25


def test_followers_are_handed_the_figures_of_evaluations_once(run):
    run.hand_out_weights(1, write_weights)
    run.write_evaluation(1, row(1))
    seen = []
    with Follower(run, [seen.append], poll_s=0.01) as follower:
        run.append_metrics({STEP: 2, "eval/bits_per_byte": 2.0})
        run.hand_out_weights(2, write_weights)
        run.write_evaluation(2, row(2))
        while len(seen) < 2:
            pass
        run.merge_evaluations()
        follower._hand_on()
    assert [(one[STEP], EVALUATION in one) for one in seen] == [(2, False), (2, True)]


# --- Devices ----------------------------------------------------------------------------------------------------------


class Built(Exception):
    """In the place of a process that scores."""


@pytest.mark.parametrize(("num_gpus", "device"), [(0.0, "cpu"), (0.5, "auto")])
def test_an_evaluation_without_a_gpu_scores_on_a_cpu(run, monkeypatch, num_gpus, device):
    """Ray hides no GPU from a task that asks for none; it would be that of a worker."""
    scorer = {"class_name": "DetoxifyToxicityScorer", "device": "auto"}
    built = []

    def stop(setup):
        built.append(setup)
        raise Built

    def load_on_a_cpu(directory, *, settings):
        return load_engine(directory)

    monkeypatch.setattr(weights, "load_engine", load_on_a_cpu)
    monkeypatch.setattr("phf_ray.evaluation.in_process.ScoringProcess", stop)
    run.hand_out_weights(7, write_checkpoint)
    job = EvaluationJob(
        config={"scoring": {"scorers": [scorer]}},
        run_path=str(run.path),
        resources={"CPU": 1.0, "GPU": num_gpus},
        generation_steps=frozenset({7}),
        kl_steps=frozenset(),
    )
    with pytest.raises(Built):
        evaluate_weights(job, 7)
    assert [setup.scorers for setup in built] == [({**scorer, "device": device},)]
