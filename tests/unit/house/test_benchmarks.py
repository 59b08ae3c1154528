"""The benchmarks run, at sizes that prove nothing, and judge as they say."""

import json
import sys
from contextlib import nullcontext

import pytest
import torch

from benchmarks import (
    bench_annotate,
    bench_before,
    bench_feedback,
    bench_hindsight,
    bench_lora,
    bench_objectives,
    bench_rounds,
    bench_score,
    bench_train,
)
from benchmarks.__main__ import command
from benchmarks.bench_objectives import Result, Sizes, bench_training

TINY = {"vocabulary": 300, "width": 16, "rows": 1, "length": 24, "layers": 1, "heads": 2}


def test_head_and_step_of_every_objective_are_compared_in_interleaved_pairs(capsys):
    sizes = [part for name, value in TINY.items() for part in (f"--{name}", str(value))]
    assert bench_objectives.main(["--parts", "head", "step", "--pairs", "2", *sizes]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["sizes"] == TINY
    assert [metric["name"] for metric in report["metrics"]] == [
        f"{what} fp32: {name}" for what in ("loss", "step") for name in ("MLE", "Unlikelihood", "RWR", "AWR")
    ]
    assert {metric["verdict"] for metric in report["metrics"]} <= {"met", "missed", "within noise"}


def test_memory_of_a_loss_is_measured_above_its_inputs():
    sizes = Sizes(vocabulary=4000, width=64, rows=2, length=256)
    original = bench_objectives._peak_in_subprocess(sizes, "original", "Unlikelihood", "fp32")
    assert original > 512 * 4000 * 4, "the matrix of logits"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_its_part_is_refused_in_words(capsys):
    assert bench_objectives.main(["--parts", "gpu"]) == 2
    assert "no GPU here" in capsys.readouterr().err


def test_training_steps_are_measured_for_each_objective(capsys):
    device = torch.device("cpu")
    speeds = bench_training(Sizes(**TINY), device=device, rounds=2, steps=1, compiled=False, precision="fp32")
    assert [speed.objective for speed in speeds] == ["MLE", "Unlikelihood", "RWR", "AWR"]
    assert all(speed.lowest <= speed.tokens_per_s <= speed.highest for speed in speeds)
    assert all(speed.mfu is None for speed in speeds)
    bench_objectives.print_speeds(speeds)
    assert "MFU unknown" in capsys.readouterr().out


@pytest.fixture
def tiny_feedback(monkeypatch):
    shape = bench_feedback.Shape(vocabulary=300, width=16, layers=1, heads=2, pairs=2, row=48)
    monkeypatch.setitem(bench_feedback.MODELS, "small", shape)


def test_a_step_of_lora_is_compared_with_one_of_the_whole_model(tiny_feedback, capsys):
    sizes = {**TINY, "batch": 2, "rank": 1}
    sizes.pop("rows")
    assert (
        bench_lora.main(
            ["--pairs", "1", *(part for name, value in sizes.items() for part in (f"--{name}", str(value)))]
        )
        == 0
    )
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["sizes"] == sizes
    kinds = [each["name"].partition(",")[0] for each in report["verdicts"]]
    assert kinds == ["gpt2"] * 4 + ["llama"] * 4 + ["gpt2 sft"] * 2 + ["gpt2 dpo"] * 2
    assert all(each["median"] > 0 for each in report["verdicts"])


def test_a_step_of_hindsight_is_compared_with_plain_likelihood(capsys):
    sizes = [part for name, value in (TINY | {"rows": 4}).items() for part in (f"--{name}", str(value))]
    assert bench_hindsight.main(["--pairs", "1", *sizes]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [each["name"].split()[2] for each in report["verdicts"]] == ["hindsight", "a"]
    assert all(each["median"] > 0 for each in report["verdicts"])


@pytest.mark.parametrize(
    ("ratio", "lowest", "verdict"), [(1.04, 1.03, "met"), (1.06, 1.04, "within noise"), (1.07, 1.06, "missed")]
)
def test_a_cost_is_met_missed_or_within_noise(ratio, lowest, verdict):
    assert Result("AWR", "MLE", ratio, lowest, 1.2, 1.05, "").verdict == verdict


@pytest.mark.parametrize(
    ("values", "verdict"),
    [([0.96, 0.98, 0.99], "met"), ([0.95, 0.96, 0.98], "within noise"), ([0.9, 0.95, 0.96], "missed")],
)
def test_a_speed_under_ray_is_met_missed_or_within_noise(values, verdict):
    assert bench_train.judge("ratio", values, at_least=0.97).verdict == verdict


@pytest.mark.parametrize(
    ("values", "verdict"),
    [([0.01, 0.015, 0.03], "met"), ([0.01, 0.03, 0.05], "within noise"), ([0.03, 0.03, 0.04], "missed")],
)
def test_waiting_is_met_missed_or_within_noise(values, verdict):
    assert bench_train.judge("waiting", values, at_most=0.02).verdict == verdict


def test_all_benchmarks_together_compare_the_detections_of_personal_data_too():
    assert command("bench_score")[-2:] == ["--compare", "2000"]
    assert command("bench_train")[-1] == "benchmarks.bench_train"


def test_a_detection_that_a_shortcut_loses_fails_the_benchmark(tmp_path, monkeypatch, capsys):
    assert bench_score.compare_pii(tmp_path, 20) == 0
    found = int(capsys.readouterr().out.split()[3])
    assert found > 0
    detections, calls = bench_score.detections, []
    # Every second call is of the fast detectors.
    monkeypatch.setattr(
        bench_score, "detections", lambda *given: calls.append(0) or (detections(*given) if len(calls) % 2 else [[]])
    )
    assert bench_score.compare_pii(tmp_path, 20) == 1
    assert "different detections" in capsys.readouterr().out


def test_steps_on_feedback_are_compared_with_trl(tiny_feedback, capsys):
    pytest.importorskip("trl", reason="TRL is not installed")
    assert bench_feedback.main(["--rounds", "1", "--parts", "time", "--models", "small"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])["models"]["small"]
    assert report["sizes"]["width"] == 16
    names = [each["name"] for each in report["verdicts"]]
    assert names == [f"small, {case}: tokens/s / TRL" for case in bench_feedback.CASES]


def test_without_trl_the_comparison_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "trl", None)
    assert bench_feedback.main([]) == 2
    assert "pip install trl" in capsys.readouterr().err


def test_steps_are_compared_with_those_of_another_commit(monkeypatch, capsys):
    monkeypatch.setattr(bench_before, "checked_out", lambda commit: nullcontext(bench_before.HERE))
    monkeypatch.setattr(bench_before, "STEPPER", bench_before.STEPPER.replace("n_embd=256", "n_embd=16"))
    assert bench_before.main(["--pairs", "1"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [each["name"] for each in report["verdicts"]] == [
        f"{name}: CPU seconds / before" for name in bench_before.OBJECTIVES
    ]
    assert all(0.1 < each["median"] < 10 for each in report["verdicts"])


def test_a_commit_that_is_not_there_is_named(capsys):
    assert bench_before.main(["--before", "no-such-commit", "--pairs", "1"]) == 2
    assert "no-such-commit" in capsys.readouterr().err


def test_judging_is_compared_with_bare_loops(monkeypatch, capsys):
    monkeypatch.setattr(bench_annotate, "DELAY_S", 0.01)
    sizes = ("--rounds", "1", "--requests", "8", "--rows", "60")
    assert bench_annotate.main(["--parts", "http", "cache", *sizes]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [each["name"] for each in report["verdicts"]] == [
        "requests/s / bare asyncio client",
        "rows/s from the cache / bare reads",
    ]
    assert report["requests"] == 8


def test_rounds_are_compared_with_the_sum_of_their_parts(monkeypatch, capsys):
    monkeypatch.setattr(bench_rounds, "TOKENS", 4)
    assert bench_rounds.main(["--pairs", "1", "--rounds", "2", "--threads", "1", "--parts", "sum"]) == 0
    (verdict,) = json.loads(capsys.readouterr().out.splitlines()[-1])["verdicts"]
    assert verdict["name"] == "time of a round / its parts"
    assert verdict["median"] > 1
