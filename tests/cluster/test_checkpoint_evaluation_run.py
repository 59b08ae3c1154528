"""Samples, scores and KL of a run's weights beside its loop: of the right weights, once, and never fatal."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from evaluation_server import listening
from tiny_models import tiny_gpt2, tiny_tokenizer, write_checkpoint
from train_runs import arguments, checkpoint_names, losses, metrics, run_folder, write_inputs

from jobs.train_lm import main
from phf_ray.checkpoint import read_info
from phf_ray.config import load_config, parse_config
from phf_ray.errors import ConfigError, IncompleteError
from phf_ray.evaluation.arms import Arm, ScoresServer
from phf_ray.evaluation.asking import run_here
from phf_ray.evaluation.beside_training import CheckpointEvaluations, EvaluationJob, plan_evaluations
from phf_ray.evaluation.kl.measure import measure_kl
from phf_ray.evaluation.kl.texts import reference_texts
from phf_ray.evaluation.on_ray import EvaluationTask
from phf_ray.evaluation.report.figures import recompute
from phf_ray.evaluation.report.samples import read_samples
from phf_ray.evaluation.run import EvaluationOptions, evaluate_arms
from phf_ray.evaluation.weights import evaluate_weights
from phf_ray.generation.engine import generate
from phf_ray.generation.load import load_engine
from phf_ray.generation.requests import GenerationRequest
from phf_ray.runs.directory import RunDirectory
from phf_ray.runs.rows import EVALUATION, STEP
from phf_ray.runs.samples import all_sample_tables, sample_tables
from phf_ray.training.estimate import describe_evaluations
from serve.api.application import build_app
from serve.backends import Backend
from serve.engines.local import LocalModel as ServedModel
from serve.engines.scorer import LocalScorer
from serve.schemas import HealthResponse
from serve.settings import ServedScorer

pytestmark = pytest.mark.timeout(400)

NUM_STEPS = 34
STEPS = [0, 15, 20, NUM_STEPS]
KL_STEPS = [20, NUM_STEPS]
SCENARIO = "generation/unconditional"


def write_reference(folder: Path) -> Path:
    tokenizer = tiny_tokenizer()
    tiny_gpt2(tokenizer, seed=7, vocab_size=len(tokenizer), spread=0.1).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def sections(folder: Path) -> dict:
    """Samples at steps 0, 15 (not one of a checkpoint), 20 and the last; KL at 20 and the last."""
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"text": f"value = {number}"}) + "\n" for number in range(3)))
    kwargs = {"max_length": 24, "min_length": 4, "temperature": 0.9, "top_p": 0.95}
    return {
        "generation": {
            "every_n_steps": 20,
            "force_call_on": [15],
            "batch_size": 16,
            "metrics_configs": [{"class_name": "Length"}, {"class_name": "SelfBLEU", "n": 2}],
            "scenario_configs": [
                {"name": "unconditional", "num_samples": 24, "num_hits_threshold": 0, "generate_kwargs": kwargs},
                {
                    "name": "prompted",
                    "num_samples": 6,
                    "prompts_path": str(prompts),
                    "use_prompt_for_scoring": True,
                    "generate_kwargs": kwargs,
                },
            ],
        },
        "kl_gpt3_callback": {
            "every_n_steps": 20,
            "run_on_train_start": False,
            "num_samples": 12,
            "max_tokens": 12,
            "reference": f"ref={folder / 'reference'}",
        },
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory, local_ray) -> Path:
    """Task file of a finished run; checkpoints every ten steps, of which one is kept."""
    folder = tmp_path_factory.mktemp("beside the loop")
    task = write_inputs(folder, conditional=True, save_total_limit=1)
    write_reference(folder / "reference")
    task.write_text(yaml.safe_dump(yaml.safe_load(task.read_text()) | sections(folder)))
    assert main(arguments(task)) == 0
    return task


@pytest.fixture(scope="module")
def rows(finished) -> dict[int, dict]:
    """Figures by step."""
    return {row[STEP]: row for row in metrics(run_folder(finished)) if EVALUATION in row}


# --- What a run leaves ------------------------------------------------------------------------------------------------


def test_weights_are_evaluated_at_step_0_at_the_cadence_and_after_the_last_step(finished, rows):
    run = run_folder(finished)
    assert list(rows) == STEPS
    train_rows = {row[STEP]: row for row in metrics(run) if "train/loss" in row}
    for step in STEPS[1:]:
        assert rows[step]["train/tokens_seen"] == train_rows[step]["train/tokens_seen"]
    assert rows[0]["train/tokens_seen"] == 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["evaluations"]["steps"] == STEPS
    assert summary["evaluations"]["missing"] == {}
    assert summary["metrics"][f"{SCENARIO}/score"] == rows[NUM_STEPS][f"{SCENARIO}/score"]
    assert summary["metrics"]["KL/ref/per_byte"] == rows[NUM_STEPS]["KL/ref/per_byte"]


def test_figures_have_the_names_of_the_original(rows):
    names = {"score", "score_max", "num_hits", "samples_per_second", "length", "Self-BLEU-2", "num_unscored"}
    for scenario in (SCENARIO, "generation/prompted"):
        for step in STEPS:
            assert {f"{scenario}/{name}" for name in names} <= rows[step].keys()
    of_kl = {f"KL/ref/per_{unit}{kind}" for unit in ("sequence", "token", "byte") for kind in ("", "_error")}
    for step in STEPS:
        assert (of_kl <= rows[step].keys()) == (step in KL_STEPS)


def test_a_checkpoint_evaluated_by_itself_gives_the_same_figures(finished, rows, tmp_path):
    """The last weights were handed out and the last checkpoint was kept; 20 was pruned before the run ended."""
    run = run_folder(finished)
    assert checkpoint_names(run) == [f"step-{NUM_STEPS:08d}"]
    again = RunDirectory(tmp_path)
    shutil.copytree(run / "checkpoints" / f"step-{NUM_STEPS:08d}", again.evaluation_folder(NUM_STEPS) / "weights")
    job = plan_evaluations(load_config(finished), again, num_steps=NUM_STEPS, resources={"CPU": 1.0})
    found = evaluate_weights(job, NUM_STEPS)
    timed = {EVALUATION, f"{SCENARIO}/samples_per_second", "generation/prompted/samples_per_second"}
    theirs = {key: value for key, value in rows[NUM_STEPS].items() if key not in timed}
    assert {key: value for key, value in found.items() if key not in timed} == pytest.approx(theirs, rel=1e-9)


def test_every_figure_can_be_recomputed_from_the_samples_of_its_step(finished, rows):
    run = RunDirectory(run_folder(finished))
    texts = []
    for step in STEPS:
        folder = str(run.evaluation_folder(step))
        samples, evaluation = read_samples(folder)
        assert len(samples) == 24 + 6
        assert evaluation.arms[0].control == "good", "a conditional model is asked with its good token"
        assert evaluation.arms[0].checkpoint.step == step
        [unconditional, prompted] = recompute(folder)["table"]
        assert unconditional["score"] == rows[step][f"{SCENARIO}/score"]
        assert prompted["length"] == rows[step]["generation/prompted/length"]
        texts.append({sample.text for sample in samples})
    assert len(set.union(*texts)) > 40, "other weights, other texts"


def test_a_tracker_is_shown_the_samples_of_each_step_as_tables(finished):
    run = RunDirectory(run_folder(finished))
    tables = sample_tables(run, 15)
    assert {name: len(table["rows"]) for name, table in tables.items()} == {
        f"{SCENARIO}/current_samples": 24,
        "generation/prompted/current_samples": 6,
    }
    samples, _ = read_samples(str(run.evaluation_folder(15)))
    first = tables[f"{SCENARIO}/current_samples"]
    assert dict(zip(first["columns"], first["rows"][0], strict=True)) == {
        key: getattr(samples[0], key) for key in ("prompt", "text", "score", "error")
    }
    assert sample_tables(run, 16) == {}
    whole = all_sample_tables(run, max_rows=1000)[f"{SCENARIO}/all_samples"]
    assert whole["columns"] == ["step", *first["columns"]]
    assert [row[1:] for row in whole["rows"] if row[0] == 15] == first["rows"]
    assert {row[0] for row in whole["rows"]} == set(STEPS)


def test_the_cost_to_the_loop_is_in_the_metrics_and_the_summary(finished):
    run = run_folder(finished)
    cost = json.loads((run / "summary.json").read_text())["wall_cost"]
    assert set(cost) == {"loop_s", "evaluation_s", "held_out_s", "checkpoint_s"}
    assert 0 < cost["evaluation_s"] < cost["loop_s"]
    last = [row for row in metrics(run) if "train/loss" in row][-1]
    assert 0 < last["evaluation/blocked_s"] <= cost["evaluation_s"]
    assert 0 < last["evaluation/blocked_fraction"] < 1


def test_evaluations_leave_no_trace_in_what_is_learned(finished):
    off = ("generation.scenario_configs=[]", "kl_gpt3_callback.reference=null")
    assert main(arguments(finished, *off, name="without")) == 0
    run, other = run_folder(finished), run_folder(finished, "without")
    assert losses(run) == losses(other)
    assert not (other / "evaluations").exists()
    assert "evaluations" not in json.loads((other / "summary.json").read_text())
    last = f"checkpoints/step-{NUM_STEPS:08d}/model.safetensors"
    assert (run / last).read_bytes() == (other / last).read_bytes()


def test_the_plan_says_how_much_is_evaluated_beside_the_loop(tmp_path):
    config = parse_config(sections(tmp_path))
    assert describe_evaluations(config, NUM_STEPS) == "during training: 30 samples at each of 4 steps, KL at 2 steps"
    assert describe_evaluations(parse_config({}), NUM_STEPS) == "none during training"


# --- Interruptions and failures ---------------------------------------------------------------------------------------


def test_a_killed_run_makes_what_is_missing_and_nothing_twice(finished, rows):
    """Killed after step 20 while its evaluation was under way, with the figures of 0 and 15 written."""
    run, copy = run_folder(finished), RunDirectory(run_folder(finished, "killed"))
    shutil.copytree(run, copy.path)
    (copy.path / "summary.json").unlink()
    weights = copy.evaluation_folder(20) / "weights"
    shutil.copytree(run / "checkpoints" / f"step-{NUM_STEPS:08d}", weights)
    for step in (20, NUM_STEPS):
        (copy.evaluation_folder(step) / "metrics.json").unlink()
    shutil.rmtree(copy.checkpoints)
    done = {step: (copy.evaluation_folder(step) / "metrics.json").stat().st_mtime_ns for step in (0, 15)}
    assert main(arguments(finished, name="killed")) == 0
    assert {step: (copy.evaluation_folder(step) / "metrics.json").stat().st_mtime_ns for step in done} == done
    assert [row[STEP] for row in metrics(copy.path) if EVALUATION in row] == STEPS, "each once"
    again = {row[STEP]: row for row in metrics(copy.path) if EVALUATION in row}
    assert again[NUM_STEPS]["KL/ref/per_byte"] == rows[NUM_STEPS]["KL/ref/per_byte"]
    assert again[20][f"{SCENARIO}/score"] == rows[NUM_STEPS][f"{SCENARIO}/score"], "of the weights that waited"
    assert not weights.exists()


def test_an_evaluation_that_fails_does_not_end_the_training_and_is_made_up_for(finished, caplog):
    broken = ("generation.scorer_config={class_name: NoSuchScorer}",)
    with pytest.raises(IncompleteError, match="evaluations during training are missing"):
        main(
            arguments(finished, *broken, "generation.every_n_steps=null", "generation.force_call_on=[]", name="failed")
        )
    run = RunDirectory(run_folder(finished, "failed"))
    assert losses(run.path)[NUM_STEPS] == losses(run_folder(finished))[NUM_STEPS]
    summary = run.read_summary()
    assert (summary["status"], list(summary["evaluations"]["missing"])) == ("finished", ["0", str(NUM_STEPS)])
    assert "THE EVALUATION OF STEP 0 FAILED" in caplog.text
    assert run.steps_to_evaluate() == [0, NUM_STEPS], "the weights are kept"
    assert main(arguments(finished, name="failed")) == 0
    assert run.read_summary()["evaluations"]["missing"] == {}
    assert run.steps_to_evaluate() == []


# --- In process and over HTTP -----------------------------------------------------------------------------------------


def evaluation_job(run: RunDirectory, folder: Path, step: int) -> EvaluationJob:
    values = sections(folder) | {"scoring": {"scorers": [{"class_name": "PEP8Scorer"}], "segmenter": "lines"}}
    return EvaluationJob(
        config=values,
        run_path=str(run.path),
        resources={"CPU": 1.0},
        generation_steps=frozenset({step}),
        kl_steps=frozenset({step}),
    )


@pytest.fixture(scope="module", params=[None, "retag"], ids=["plain", "conditional"])
def handed_out(request, tmp_path_factory) -> tuple[RunDirectory, EvaluationJob, dict]:
    """A run with weights of step 7, and their figures."""
    folder = tmp_path_factory.mktemp("handed out")
    run = RunDirectory(folder / "run")
    run.hand_out_weights(7, lambda target: write_checkpoint(target, control=request.param))
    write_reference(folder / "reference")
    job = evaluation_job(run, folder, 7)
    return run, job, evaluate_weights(job, 7)


def test_samples_scores_and_kl_are_those_of_the_path_over_http(handed_out, tmp_path):
    run, job, row = handed_out
    weights = run.evaluation_folder(7) / "weights"
    config = parse_config(job.config)
    reference = Path(job.config["kl_gpt3_callback"]["reference"].partition("=")[2])

    async def health():
        return HealthResponse(status="ok", deployments={})

    models = {"model": ServedModel(load_engine(weights)), "ref": ServedModel(load_engine(reference))}
    scorers = {"pep8": LocalScorer(ServedScorer(scorer={"class_name": "PEP8Scorer"}))}
    with listening(build_app(Backend(models, scorers, health), access_log=False)) as url:
        info = read_info(weights)
        arm = Arm("model", url, "model", control="good" if info.control else None, checkpoint=info)
        evaluate_arms(
            config,
            arms=[arm],
            scores=ScoresServer(url, "pep8"),
            output=str(tmp_path),
            options=EvaluationOptions(seeds=(0,)),
            runner=run_here,
        )
        texts = reference_texts(Arm("ref", url, "ref"), num_samples=12, max_tokens=12, cache=str(tmp_path / "cache"))
        kl = measure_kl(Arm("ref", url, "ref"), arm, texts, control_per_line=info.control is not None)
    ours, _ = read_samples(str(run.evaluation_folder(7)))
    theirs, _ = read_samples(str(tmp_path))
    assert len(ours) == 30
    assert ours == theirs
    assert row["KL/ref/per_byte"] == pytest.approx(kl.per_byte.mean, abs=1e-6)
    assert row["KL/ref/per_sequence_error"] == pytest.approx(kl.per_sequence.standard_error, abs=1e-5)


def test_models_are_evaluated_in_eval_mode(handed_out):
    """With dropout 0.1, as GPT-2 has it, two evaluations in train mode would differ (A-2)."""
    run, job, row = handed_out
    engine = load_engine(run.evaluation_folder(7) / "weights")
    dropouts = [module for module in engine.model.modules() if isinstance(module, torch.nn.Dropout)]
    assert {module.p for module in dropouts} == {0.1}
    again = evaluate_weights(job, 7)
    assert {key: again[key] for key in again if key.endswith(("/score", "/length", "/per_sequence"))} == {
        key: row[key] for key in row if key.endswith(("/score", "/length", "/per_sequence"))
    }
    engine.model.train()
    request = GenerationRequest(prompt="", max_tokens=20, temperature=0, ignore_eos=True)
    assert len({generate(engine, [request])[0].text for _ in range(8)}) > 1, "dropout would show"


def test_the_texts_of_the_reference_are_drawn_once(handed_out):
    _, job, row = handed_out
    before = {path.name: path.stat().st_mtime_ns for path in Path(job.cache).iterdir()}
    assert {name.partition("-")[0] for name in before} == {"texts", "logprobs"}
    again = evaluate_weights(job, 7)
    assert {path.name: path.stat().st_mtime_ns for path in Path(job.cache).iterdir()} == before
    assert again["KL/ref/per_byte"] == row["KL/ref/per_byte"]


# --- The queue --------------------------------------------------------------------------------------------------------


def test_prompts_are_read_before_the_training_and_kept_with_the_run(local_ray, tmp_path):
    write_reference(tmp_path / "reference")
    values = sections(tmp_path) | {"scoring": {"scorers": [{"class_name": "PEP8Scorer"}]}}
    run = RunDirectory(tmp_path / "run")
    job = plan_evaluations(parse_config(values), run, num_steps=NUM_STEPS, resources={"CPU": 1.0})
    kept = Path(job.config["generation"]["scenario_configs"][1]["prompts_path"])
    assert kept.is_relative_to(run.path)
    assert [json.loads(line)["text"] for line in kept.read_text().splitlines()] == [f"value = {n}" for n in range(3)]
    (tmp_path / "prompts.jsonl").unlink()
    with pytest.raises(ConfigError, match="prompts_path"):
        plan_evaluations(parse_config(values), run, num_steps=NUM_STEPS, resources={"CPU": 1.0})
    with pytest.raises(ConfigError, match=r"scoring\.scorers is empty"):
        plan_evaluations(
            parse_config({"generation": values["generation"]}), run, num_steps=NUM_STEPS, resources={"CPU": 1.0}
        )


def test_resources_that_never_come_are_given_up_when_the_training_is_over(local_ray, tmp_path):
    run = RunDirectory(tmp_path)
    run.hand_out_weights(3, write_checkpoint)
    job = EvaluationJob(
        config={},
        run_path=str(run.path),
        resources={"quantum": 1.0},
        generation_steps=frozenset({3}),
        kl_steps=frozenset(),
    )
    with CheckpointEvaluations(run, job, start=EvaluationTask, poll_s=0.05) as evaluations:
        assert evaluations.finish()
    assert evaluations.summary()["missing"] == {
        "3": "the cluster does not have 1 quantum; lower training.resources_per_evaluation"
    }


def test_a_stop_ends_the_wait_and_leaves_the_weights_to_the_next_start(local_ray, tmp_path):
    import ray

    @ray.remote(num_cpus=1)
    class HoldsOneCPU:
        def is_there(self) -> bool:
            return True

    holder = HoldsOneCPU.remote()
    assert ray.get(holder.is_there.remote())
    run = RunDirectory(tmp_path)
    run.hand_out_weights(3, write_checkpoint)
    job = EvaluationJob(
        config={},
        run_path=str(run.path),
        resources={"CPU": 4.0},
        generation_steps=frozenset({3}),
        kl_steps=frozenset(),
    )
    run.request_stop()
    with CheckpointEvaluations(run, job, start=EvaluationTask, poll_s=0.05) as evaluations:
        assert not evaluations.finish()
    assert run.steps_to_evaluate() == [3]
    ray.kill(holder)
