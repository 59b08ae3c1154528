"""jobs.train_lm under Ray: what a run leaves, and that workers and interruptions do not show in it."""

import json
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from places import ROOT
from ray.train import ScalingConfig
from safetensors import SafetensorError
from safetensors.torch import load_file
from tiny_models import BAD, GOOD, tiny_tokenizer
from train_here import worker_here
from train_runs import SEQ_LENGTH, arguments, checkpoint_names, losses, metrics, run_folder, write_inputs
from transformers import AutoModelForCausalLM, AutoTokenizer
from wandb_runs import end_tracker, logged_rows, records

from jobs.train_lm import main
from phf_ray.blocks.build import build_blocks, build_here
from phf_ray.blocks.manifest import read_block_manifest
from phf_ray.blocks.mixture import Mixture
from phf_ray.blocks.plan import plan_blocks
from phf_ray.blocks.settings import ConditionalTraining, PackingConfig
from phf_ray.blocks.tokenizer import load_tokenizer
from phf_ray.checkpoint import read_info
from phf_ray.config import load_config, parse_config
from phf_ray.errors import ConfigError, DataError
from phf_ray.evaluation.beside_training import CheckpointEvaluations, EvaluationHere, EvaluationJob
from phf_ray.models.loading import load_checkpoint
from phf_ray.records import NEVER_SCORED, ScoredDocument
from phf_ray.runs.directory import RunDirectory
from phf_ray.training import token_count
from phf_ray.training.driver import EffectiveSampleWarning
from phf_ray.training.held_out_documents import (
    are_never_scored,
    choose_held_out,
    encode_held_out,
    encode_with_own_control,
)
from phf_ray.training.learner import hand_out
from phf_ray.training.on_ray import _of_a_worker, _warn_if_too_large
from phf_ray.training.plan import TrainingPlan, plan_training
from phf_ray.training.saving import Saver
from phf_ray.training.start import initial_model, trained_control
from phf_ray.training.worker import TrainingWorker

pytestmark = pytest.mark.timeout(400)

NUM_STEPS = 34
LAST = f"step-{NUM_STEPS:08d}"
# fp32 sums in another order, over 14 steps of Adam at 1e-2.
TOLERANCE = 5e-4
# Adam moves a weight by up to the learning rate, whatever the size of its gradient: rounding decides on tiny ones.
WEIGHT_TOLERANCE = 1e-3
LABELS = ["--group-name", "tiny models", "--tags", "pep8", "conditional"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, local_ray) -> Path:
    """Task file of a run that one worker has finished, with a checkpoint every ten steps, and tracked."""
    task = write_inputs(tmp_path_factory.mktemp("one worker"), conditional=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        assert main([*arguments(task), *LABELS]) == 0
    end_tracker()
    return task


def weights(checkpoint: Path) -> bytes:
    return (checkpoint / "model.safetensors").read_bytes()


# --- What a run leaves ------------------------------------------------------------------------------------------------


def test_a_run_leaves_configuration_metrics_checkpoints_and_summary(finished):
    run = run_folder(finished)
    rows = metrics(run)
    curve = losses(run)
    assert list(curve) == list(range(1, NUM_STEPS + 1))
    assert curve[NUM_STEPS] < curve[1] - 2
    assert checkpoint_names(run) == [f"step-{step:08d}" for step in (10, 20, 30, NUM_STEPS)]
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["status"], summary["step"]) == ("finished", NUM_STEPS)
    assert summary["checkpoint"] == f"checkpoints/{LAST}"
    last = rows[-1]
    assert summary["metrics"]["eval/bits_per_byte"] == last["eval/bits_per_byte"]
    config = json.loads((run / "config.json").read_text())
    assert config["training"]["learning_rate"] == 0.01
    row = next(row for row in rows if row.get("train/global_step") == 5)
    named = {"loss", "learning_rate", "epoch", "global_step", "tokens_seen", "theoretical_loss", "grad_norm"}
    named |= {"tokens_per_s", "tokens_per_s_per_device", "data_wait_fraction", "peak_memory_gb"}
    assert {f"train/{name}" for name in named} <= row.keys()
    named = {"original_loss", "theoretical_loss", "tokens_used", "docs_used"}
    named |= {"instantaneous_batch_size", "instantaneous_microbatch_size"}
    assert {f"objective/train/{name}" for name in named} <= row.keys()
    assert row["train/tokens_seen"] < 5 * 8 * 32, "control tokens count"


def test_the_budget_is_in_content_tokens(finished):
    """8,000 tokens are 31 steps of 8 x 32; control and end-of-text tokens are not paid for, so it takes 34."""
    seen = metrics(run_folder(finished))[-1]["train/tokens_seen"]
    assert seen == pytest.approx(8000, abs=1.5 * 8 * 32)
    assert seen < 0.95 * NUM_STEPS * 8 * 32


def test_a_checkpoint_loads_without_anything_of_ours(finished):
    checkpoint = run_folder(finished) / "checkpoints" / LAST
    model, loading = AutoModelForCausalLM.from_pretrained(checkpoint, output_loading_info=True)
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    assert tokenizer.convert_tokens_to_ids(GOOD) == len(tokenizer) - 2
    ids = tokenizer("value = ", return_tensors="pt").input_ids
    assert torch.isfinite(model(ids).logits).all()


def test_a_checkpoint_says_what_it_is(finished):
    checkpoint = run_folder(finished) / "checkpoints" / LAST
    info = read_info(checkpoint)
    assert (info.control.good, info.control.bad, info.control.policy) == (GOOD, BAD, "retag")
    assert info.is_control_per_segment
    assert info.task == "pep8"
    assert info.step == NUM_STEPS
    assert info.tokens_seen == metrics(run_folder(finished))[-1]["train/tokens_seen"]
    assert info.thresholds == {"conditional": 0.0}
    last = metrics(run_folder(finished))[-1]
    assert info.bits_per_byte == {
        "none": last["eval/bits_per_byte"],
        "joint": last["eval/bits_per_byte_joint"],
        "good": last["eval/bits_per_byte_good"],
        "bad": last["eval/bits_per_byte_bad"],
    }
    assert info.blocks_hash
    assert info.versions["torch"] == torch.__version__


def test_held_out_bits_per_byte_fall_and_control_tokens_are_measured_too(finished):
    measured = [row for row in metrics(run_folder(finished)) if "eval/bits_per_byte" in row]
    assert [row["train/global_step"] for row in measured] == [10, 20, 30, NUM_STEPS]
    for name in ("eval/bits_per_byte", *(f"eval/bits_per_byte_{kind}" for kind in ("joint", "good", "bad"))):
        assert 0 < measured[-1][name] < measured[0][name] < 8
    assert measured[-1]["eval/bits_per_byte_joint"] > measured[-1]["eval/bits_per_byte_good"]


def test_a_finished_run_started_again_is_left_as_it_is(finished, caplog):
    before = {path: path.stat().st_mtime_ns for path in run_folder(finished).rglob("*")}
    with caplog.at_level(logging.INFO):
        assert main(arguments(finished)) == 0
    assert "is finished; nothing to do" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in run_folder(finished).rglob("*")} == before


def test_a_finished_run_is_pushed_once_where_that_is_asked_for(finished, monkeypatch):
    copy = run_folder(finished, "pushed")
    shutil.copytree(run_folder(finished), copy)
    pushed = []

    def push(checkpoint, *, repository, private):
        pushed.append((checkpoint, repository, private))
        return f"https://hub.example/{repository}"

    monkeypatch.setattr("phf_ray.training.hub.push_to_hub", push)
    overrides = ("training.push_to_hub=true", "training.hub_model_id=owner/model")
    for _ in range(2):
        assert main(arguments(finished, *overrides, name="pushed")) == 0
    assert pushed == [(copy / "checkpoints" / LAST, "owner/model", True)]
    assert json.loads((copy / "summary.json").read_text())["pushed_to"] == "https://hub.example/owner/model"


def test_a_run_with_other_settings_is_refused_by_the_names_of_the_keys(finished):
    with pytest.raises(ConfigError, match=r"training\.learning_rate: 0\.01 in the run, 0\.02 now") as caught:
        main(arguments(finished, "training.learning_rate=0.02", "training.num_workers=2"))
    assert "choose another --run-name" in str(caught.value)
    assert "num_workers" not in str(caught.value)


# --- Workers and interruptions do not show ----------------------------------------------------------------------------


def interrupted_copy(task: Path, name: str) -> Path:
    """The finished run as a kill after step 30 left it: checkpoints 10 and 20, and 30 cut short; rows up to 30."""
    copy = run_folder(task, name)
    shutil.copytree(run_folder(task), copy)
    (copy / "summary.json").unlink()
    shutil.rmtree(copy / "checkpoints" / LAST)
    torn = copy / "checkpoints" / "step-00000030" / "training_state" / "optimizer.safetensors"
    torn.write_bytes(torn.read_bytes()[:-100])
    leftover = copy / "checkpoints" / ".writing-step-00000030-0123"
    leftover.mkdir()
    lines = (copy / "metrics.jsonl").read_text().splitlines()
    (copy / "metrics.jsonl").write_text("\n".join(lines[:-3]) + '\n{"train/global_st')
    return copy


def test_an_interrupted_run_ends_byte_for_byte_as_the_uninterrupted_one(finished, caplog, monkeypatch):
    copy = interrupted_copy(finished, "resumed")
    torn = weights(copy / "checkpoints" / "step-00000030")
    assert RunDirectory(copy).latest_checkpoint().name == "step-00000020"
    monkeypatch.setenv("WANDB_MODE", "offline")
    with caplog.at_level(logging.INFO):
        assert main([*arguments(finished, name="resumed"), *LABELS]) == 0
    original = run_folder(finished)
    assert weights(copy / "checkpoints" / LAST) == weights(original / "checkpoints" / LAST)
    assert weights(copy / "checkpoints" / "step-00000030") == torn
    state = f"checkpoints/{LAST}/training_state/optimizer.safetensors"
    assert (copy / state).read_bytes() == (original / state).read_bytes()
    assert losses(copy) == losses(original)
    assert [row["train/global_step"] for row in metrics(copy)] == [
        row["train/global_step"] for row in metrics(original)
    ], "each row once"
    assert checkpoint_names(copy) == checkpoint_names(original), "leftovers of the kill are gone"
    cost = json.loads((copy / "summary.json").read_text())["wall_cost"]
    shares = [
        f"{cost[key]:.2f} s ({cost[key] / cost['loop_s']:.2%})"
        for key in ("evaluation_s", "held_out_s", "checkpoint_s")
    ]
    assert cost["held_out_s"] > 0
    (line,) = [message for message in caplog.messages if message.startswith("wall cost: ")]
    assert line == (
        f"wall cost: in {cost['loop_s']:.1f} s the loop paused {shares[0]} for samples and KL, "
        f"{shares[1]} for held-out text, {shares[2]} for checkpoints"
    )
    assert_tracked_as_one_run(copy)


def assert_tracked_as_one_run(run: Path) -> None:
    """The first start tracked all steps, and the second those after the checkpoint of step 20."""
    end_tracker()
    identity = (run / "wandb_id").read_text()
    files = sorted(run.glob("wandb/offline-run-*/*.wandb"))
    assert [path.name for path in files] == [f"run-{identity}.wandb"] * 2
    for path, first in zip(files, (1, 21), strict=True):
        found = list(records(path))
        labels = [record.run for record in found if record.WhichOneof("record_type") == "run"]
        assert labels
        for label in labels:
            assert (label.run_id, label.run_group) == (identity, "tiny models")
            assert sorted(label.tags) == ["conditional", "pep8"]
        tracked = {row["train/global_step"]: row["train/loss"] for row in logged_rows(found) if "train/loss" in row}
        assert tracked == {step: loss for step, loss in losses(run).items() if step >= first}


def test_two_workers_go_on_from_a_checkpoint_of_one_and_learn_the_same(finished):
    """With dropout 0.1, GPT-2's default: both numbers of workers draw the same masks."""
    copy = interrupted_copy(finished, "two-workers")
    overrides = ("training.num_workers=2", "training.save_total_limit=2")
    assert main(arguments(finished, *overrides, name="two-workers")) == 0
    ours, theirs = losses(copy), losses(run_folder(finished))
    assert list(ours) == list(theirs)
    assert list(ours.values())[:20] == list(theirs.values())[:20]
    assert list(ours.values()) == pytest.approx(list(theirs.values()), abs=TOLERANCE)
    assert [row["train/tokens_seen"] for row in metrics(copy)] == [
        row["train/tokens_seen"] for row in metrics(run_folder(finished))
    ]
    assert checkpoint_names(copy) == ["step-00000030", LAST], "two are kept"
    mine, other = (load_file(run / "checkpoints" / LAST / "model.safetensors") for run in (copy, run_folder(finished)))
    assert mine.keys() == other.keys()
    for key, tensor in other.items():
        torch.testing.assert_close(mine[key], tensor, rtol=0, atol=WEIGHT_TOLERANCE, msg=key)


# --- Failures ---------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_batch(finished):
    message = r"positions \d+ to \d+ of the training order, are kept in"
    with worker_here(), pytest.raises(DataError, match=message) as caught:
        main(arguments(finished, "training.learning_rate=1.0e+30", name="diverged"))
    run = run_folder(finished, "diverged")
    (folder,) = run.glob("non-finite-step-*")
    step = int(folder.name.rpartition("-")[2])
    assert f"positions {8 * (step - 1)} to {8 * step - 1}" in str(caught.value)
    assert len(list(folder.iterdir())) == 4, "four micro-batches"
    assert not (run / "summary.json").exists()
    assert all(math.isfinite(loss) for loss in losses(run).values())


def test_relative_paths_begin_where_the_command_was_given(finished):
    tokenizer = os.path.relpath(finished.parents[1] / "tokenizer")
    overrides = (f"tokenizer.path_or_name='{tokenizer}'", "training.num_tokens=1000", "training.save_steps=null")
    assert main(arguments(finished, *overrides, name="relative")) == 0


def test_a_run_that_waits_for_workers_ends_when_it_is_told_to(tmp_path, local_ray):
    import ray

    task = write_inputs(tmp_path)
    overrides = ("training.resources_per_worker={CPU: 1, nothing: 1}",)
    job = subprocess.Popen(
        [sys.executable, "-m", "jobs.train_lm", *arguments(task, *overrides)],
        cwd=ROOT,
        env={**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address, "PHF_SHARED_ROOTS": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert any("waiting for it to grow" in line for line in job.stderr)
        job.send_signal(signal.SIGTERM)
        _, rest = job.communicate(timeout=60)
    finally:
        job.kill()
    assert job.returncode == 5, rest
    assert "the run ended at step 0, because it was told to stop" in rest


def test_an_error_of_a_worker_reaches_the_user_with_its_kind(finished):
    """A head count that does not divide the width passes as configuration; only the model knows."""
    with pytest.raises(ConfigError, match=r"num_heads"):
        main(arguments(finished, "model.config_kwargs.n_head=3", name="broken"))


# --- Bad input: refused before Ray is asked ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--checkpoint-path", "missing"], "no such directory; give a checkpoint such as"),
        (["--override", "dataset.datasets=[]"], r"add --override dataset\.datasets"),
        (["--run-name", "a/b"], "can't name a new folder"),
        (["--storage-path", "s3://bucket/runs"], "/mnt/shared/runs"),
        (["--override", "training.num_token=5"], "did you mean 'num_tokens'"),
        (["--override", "training.fp16=true"], "precision: bf16 or fp32"),
        (["--method", "nothing.yml"], r"nothing\.yml"),
        (["--task", "missing.yml"], r"missing\.yml"),
    ],
)
def test_bad_arguments_are_refused_with_what_to_do(tmp_path, extra, message):
    task = write_inputs(tmp_path)
    with pytest.raises(ConfigError, match=message):
        main([*arguments(task), *extra])
    assert not (tmp_path / "runs").exists()


def test_a_corpus_without_documents_is_refused(tmp_path, local_ray):
    task = write_inputs(tmp_path)
    for part in (tmp_path / "scored").iterdir():
        part.unlink()
    with pytest.raises((ConfigError, DataError), match="scored"):
        main(arguments(task))


def test_a_corpus_that_is_not_there_is_named(tmp_path, local_ray):
    with pytest.raises((ConfigError, DataError), match=str(tmp_path / "nowhere")):
        main(arguments(write_inputs(tmp_path), f"dataset.datasets=['{tmp_path / 'nowhere'}']"))
    assert not list((tmp_path / "runs").rglob("summary.json"))


def test_a_budget_below_one_step_is_refused(tmp_path, local_ray):
    task = write_inputs(tmp_path, num_tokens=100)
    with pytest.raises(ConfigError, match=r"raise training\.num_tokens"):
        main(arguments(task))


def dry_run(task: Path, capsys, *extra: str) -> dict[str, str]:
    assert main([*arguments(task, name="dry"), "--dry-run", *extra]) == 0
    lines = (line.partition(" ") for line in capsys.readouterr().out.splitlines())
    return {key: text.strip() for key, _, text in lines}


def test_dry_run_prints_the_plan_and_writes_nothing(tmp_path, capsys):
    task = write_inputs(tmp_path, conditional=True)
    plan = dry_run(task, capsys)
    # Two layers with a matrix of 12 x 32 x 32 and 13 x 32 in biases and norms each, the last norm, tokens, positions.
    num_parameters = 2 * (12 * 32**2 + 13 * 32) + 2 * 32 + 32 * 302 + 32 * SEQ_LENGTH
    assert plan["parameters"] == f"{num_parameters:,}: 2 layers, width 32, 302 rows"
    assert plan["steps"] == f"{NUM_STEPS} of 8 x 32 tokens", "exact, as the run that has been trained on this corpus"
    assert plan["tokens"].startswith("8,000 content tokens to train on; the data has ")
    assert plan["memory"].startswith("about 0.1")
    assert "measured on this machine as one of 1 worker(s)" in plan["time"]
    assert not (tmp_path / "runs").exists()


def test_dry_run_counts_the_same_from_the_blocks_that_a_run_has_built(finished, capsys, tmp_path):
    built = dry_run(finished, capsys, "--tokens-per-s", "2")
    task = write_inputs(tmp_path, conditional=True)
    counted = dry_run(task, capsys, "--tokens-per-s", "2")
    for key in ("parameters", "steps", "tokens", "memory", "disk"):
        assert built[key] == counted[key]
    hours = NUM_STEPS * 8 * 32 / 2 / 3600
    assert counted["time"] == f"about {60 * hours:.1f} minutes at 2 tokens/s, as given by --tokens-per-s"


# --- Parts ------------------------------------------------------------------------------------------------------------


def test_training_starts_from_the_weights_of_a_checkpoint_and_keeps_its_control_tokens(finished):
    checkpoint = run_folder(finished) / "checkpoints" / LAST
    config = load_config(finished)
    tokenizer = load_tokenizer(config.tokenizer)
    model = initial_model(config, checkpoint_path=str(checkpoint), tokenizer=tokenizer)
    trained = load_checkpoint(checkpoint).model
    for name, tensor in trained.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


@pytest.mark.parametrize(("is_split", "score_control"), [(True, True), (True, False), (False, True), (False, False)])
def test_control_tokens_may_be_sampled_where_the_loss_was_taken_on_them(is_split, score_control):
    dataset = {"is_split_by_sentences": is_split, "conditional_training_config": {"threshold": 0.0}}
    tokenizer = {"special_tokens": ["<|aligned|>", "<|misaligned|>"]}
    values = {"dataset": dataset, "tokenizer": tokenizer, "objective": {"name": "MLE", "score_control": score_control}}
    control = trained_control(parse_config(values))
    assert control.policy == ("retag" if is_split and score_control else "ban")
    assert trained_control(parse_config({})) is None


@pytest.mark.parametrize("count_tokens", ["content", "all"])
def test_a_corpus_that_has_all_the_weight_is_planned_as_if_it_were_alone(tmp_path, count_tokens):
    """The second has shorter documents, so more end-of-text tokens to a block, and other scores."""
    task = write_inputs(tmp_path, count_tokens=count_tokens, num_tokens=100_000)
    rows = pq.read_table(tmp_path / "scored" / "part-00000.parquet").to_pylist()
    short = [
        row | {"texts": row["texts"][:2], "scores": [0.3, 0.5], "errors": [None] * 2, "avg_score": 0.4, "num_sents": 2}
        for row in rows
    ]
    (tmp_path / "short").mkdir()
    pq.write_table(pa.Table.from_pylist(short), tmp_path / "short" / "part-00000.parquet")

    manifests = {}

    def planned(*corpora: str, weights: list[int] | None = None) -> TrainingPlan:
        paths = [str(tmp_path / name) for name in corpora]
        config = load_config(task, overrides=[f"dataset.datasets={paths}", f"dataset.weights={weights or 'null'}"])
        tokenizer = load_tokenizer(config.tokenizer)
        blocks = plan_blocks(config, corpora=paths, tokenizer=tokenizer, output_root=str(tmp_path / "blocks"))
        counted = token_count.count_tokens(blocks, tokenizer=tokenizer, weights=weights)
        manifest = read_block_manifest(build_blocks(blocks, tokenizer=tokenizer, builder=build_here))
        assert counted.mixture == Mixture.of(manifest, weights), "counted ahead as they are built"
        manifests[corpora[0]] = manifest
        return plan_training(config, manifest=manifest, objective_threshold=None, checkpoint_path=None)

    both = planned("scored", "short", weights=[0, 1])
    alone = planned("short")
    for name in ("num_steps", "tokens_per_block", "reward_mean", "reward_std"):
        assert getattr(both, name) == getattr(alone, name), name
    assert planned("scored", "short").num_steps < alone.num_steps, "guard: the corpora differ"
    scores = manifests["short"].token_scores
    assert (alone.reward_mean, alone.reward_std) == (-scores.mean, scores.std)
    assert 0.3 < scores.mean < 0.5
    assert 0 < scores.std <= 0.1 + 1e-6


def test_workers_that_would_compute_padding_are_told_of_when_a_run_is_planned(finished, caplog):
    (built,) = {path.parent for path in run_folder(finished, "blocks").rglob("_SUCCESS")}

    def plan(*overrides: str) -> TrainingPlan:
        config = load_config(finished, overrides=list(overrides))
        return plan_training(
            config, manifest=read_block_manifest(str(built)), objective_threshold=None, checkpoint_path=None
        )

    plan("training.num_workers=4")
    assert not caplog.records
    plan("training.num_workers=8")
    (record,) = caplog.records
    assert "training.per_device_train_batch_size: 1 keeps 8 busy, in a new run" in record.getMessage()
    assert "training.num_workers: 4 is as fast" in record.getMessage()


@pytest.mark.parametrize(
    ("resources", "use_gpu"),
    [
        ({}, False),
        ({}, True),
        ({"CPU": 2.0}, False),
        ({"CPU": 2.0}, True),
        ({"GPU": 0.5}, True),
        ({"CPU": 1.0, "GPU": 2.0}, True),
    ],
)
def test_a_worker_asks_for_what_ray_train_asks_for(resources, use_gpu):
    theirs = ScalingConfig(num_workers=2, use_gpu=use_gpu, resources_per_worker=resources or None)
    assert _of_a_worker(resources, use_gpu=use_gpu) == theirs._resources_per_worker_not_none


def test_resources_that_the_cluster_lacks_are_warned_of_also_where_they_are_not_named(caplog):
    asked = _of_a_worker({"CPU": 1.0}, use_gpu=True)
    _warn_if_too_large(2, asked, available={"CPU": 8.0, "GPU": 1.0})
    (record,) = caplog.records
    assert "2 worker(s) need 2 GPU, but the cluster has 1" in record.getMessage()


def test_weights_that_hardly_differ_are_reported_once(caplog):
    sink = EffectiveSampleWarning()
    sink({"objective/train/effective_sample_fraction": 0.98})
    assert not caplog.records
    for _ in range(2):
        sink({"objective/train/effective_sample_fraction": 0.995})
    (record,) = caplog.records
    assert "numerically MLE" in record.getMessage()


def test_a_checkpoint_is_written_beside_the_loop_and_the_next_one_waits_for_it():
    gate, written = threading.Event(), []

    def blocked() -> None:
        assert gate.wait(60)
        written.append("first")

    saver = Saver()
    saver.submit(blocked)
    assert not written, "submit returned while the first was under way"
    threading.Timer(0.2, gate.set).start()
    saver.submit(lambda: written.append("second"))
    assert written[0] == "first"
    saver.close()
    assert written == ["first", "second"]


def test_a_checkpoint_that_could_not_be_written_is_told_at_the_next_one_or_at_the_end():
    def fails() -> None:
        raise OSError("no space left on device")

    saver, written = Saver(), []
    saver.submit(fails)
    with pytest.raises(OSError, match="no space left"):
        saver.submit(lambda: written.append("second"))
    assert not written
    saver.submit(fails)
    with pytest.raises(OSError, match="no space left"):
        saver.close()
    saver.close()
    saver.submit(lambda: written.append("third"))
    saver.close()
    assert written == ["third"], "told once, and then over"


def test_an_error_of_one_saver_is_raised_after_the_other_has_written():
    gate, written = threading.Event(), []

    def fails() -> None:
        raise OSError("no space left on device")

    def blocked() -> None:
        assert gate.wait(60)
        written.append("checkpoint")

    worker = object.__new__(TrainingWorker)
    worker._saver, worker._weights_saver = Saver(), Saver()
    worker._saver.submit(blocked)
    worker._weights_saver.submit(fails)
    worker._train = lambda: threading.Timer(0.2, gate.set).start()
    with pytest.raises(OSError, match="no space left"):
        worker.train()
    assert written == ["checkpoint"]


@pytest.mark.parametrize("error", [SafetensorError, OSError, Exception], ids=["weights", "files", "tokenizer"])
def test_weights_for_evaluation_that_can_not_be_written_are_told_of_and_named_in_the_summary(tmp_path, caplog, error):
    def write(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half of it")
        raise error("No space left on device (os error 28)")

    run = RunDirectory(tmp_path)
    hand_out(run, 5, write)
    assert "the weights of step 5 can't be evaluated: " in caplog.text
    assert "No space left" in caplog.text
    job = EvaluationJob(
        config={}, run_path=str(tmp_path), resources={}, generation_steps=frozenset({5}), kl_steps=frozenset()
    )
    assert CheckpointEvaluations(run, job, start=EvaluationHere).summary()["missing"] == {
        "5": "its weights were not written"
    }
    assert list(run.evaluation_folder(5).iterdir()) == [], "room for the next checkpoint"


def document(number: int, *texts: str) -> ScoredDocument:
    return ScoredDocument(f"{number:032x}", texts, (None,) * len(texts), ("timeout",) * len(texts))


def test_held_out_text_is_encoded_whole_with_and_without_the_good_token():
    tokenizer = tiny_tokenizer(control=True)
    one = document(1, "def add(first):\n", "    return first\n", "# caf\u00e9\n")
    (plain,) = encode_held_out([one], tokenizer, control=None, per_document=False)
    (good,) = encode_held_out([one], tokenizer, control=GOOD, per_document=False)
    (once,) = encode_held_out([one], tokenizer, control=GOOD, per_document=True)
    good_id = tokenizer.convert_tokens_to_ids(GOOD)
    assert plain.num_bytes == good.num_bytes == len(one.text.encode())
    assert plain.input_ids[0] == tokenizer.eos_token_id
    assert tokenizer.decode(plain.input_ids[plain.is_predicted]) == one.text
    assert plain.input_ids[plain.is_predicted].tolist() == good.input_ids[good.is_predicted].tolist()
    assert (good.input_ids == good_id).sum() == 3
    assert not good.is_predicted[good.input_ids == good_id].any()
    assert (once.input_ids == good_id).sum() == 1


def test_held_out_text_with_the_tokens_of_its_scores_predicts_them_too():
    tokenizer = tiny_tokenizer(control=True)
    texts = ("def add(first):\n", "    return first;\n", "# end\n")
    one = ScoredDocument(f"{1:032x}", texts, (0.0, 0.5, 0.0), (None,) * 3)
    packing = PackingConfig(conditional=ConditionalTraining(0.1, aligned_token=GOOD, misaligned_token=BAD))
    (joint,) = encode_with_own_control([one], tokenizer, packing=packing)
    (plain,) = encode_held_out([one], tokenizer, control=None, per_document=False)
    assert joint.num_bytes == plain.num_bytes, "the tokens count no bytes"
    tokens = tokenizer.convert_tokens_to_ids([GOOD, BAD, GOOD])
    is_control = np.isin(joint.input_ids, tokens)
    assert joint.input_ids[is_control].tolist() == tokens
    assert joint.is_predicted[is_control].all()
    assert joint.input_ids[~is_control].tolist() == plain.input_ids.tolist()
    assert joint.is_predicted[~is_control].tolist() == plain.is_predicted.tolist()
    assert not are_never_scored([one])
    never = ScoredDocument(one.id, texts, (None,) * 3, (NEVER_SCORED,) * 3)
    assert are_never_scored([never])


def test_held_out_documents_are_taken_whole_in_the_order_of_their_ids():
    documents = [document(number, "x" * 400_000) for number in (3, 1, 2)]
    assert [one.id[-1] for one in choose_held_out(iter(documents))] == ["1", "2"]
    assert len(choose_held_out(iter([document(1, "x" * 2_000_000)]))) == 1


def test_sequences_longer_than_the_model_are_refused():
    config = parse_config(
        {
            "dataset": {"seq_length": 64},
            "model": {
                "path_or_name": None,
                "model_type": "gpt2",
                "config_kwargs": {"n_positions": 32, "n_embd": 8, "n_layer": 1, "n_head": 1},
            },
        }
    )
    with pytest.raises(ConfigError, match=r"seq_length=64 is longer than the model's 32 positions"):
        initial_model(config, checkpoint_path=None, tokenizer=tiny_tokenizer())
