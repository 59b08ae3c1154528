"""A report on Weights & Biases: the original's names, and what an offline run holds."""

import json
from fnmatch import fnmatch

import pytest
from wandb_runs import end_tracker, logged_rows, records

from phf_ray.checkpoint import CheckpointInfo
from phf_ray.config import MetricConfig
from phf_ray.evaluation.report.figures import build_report
from phf_ray.evaluation.report.records import (
    ArmInfo,
    Evaluation,
    KLInfo,
    RedTeamInfo,
    RedTeamPrompt,
    RedTeamRound,
    Sample,
    ScenarioInfo,
    TaskResult,
)
from phf_ray.evaluation.report.write import write_report
from phf_ray.evaluation.tracking import arm_rows, track_report
from phf_ray.runs.tracking import _FINISHED_STEPS

ATTACK = RedTeamInfo(
    attacker="red",
    num_continuations=2,
    trials=(
        tuple(
            RedTeamRound(
                number=number,
                best_prompt_score=0.1 * number,
                best_10_prompt_score=0.05,
                best_100_prompt_score=0.05,
                average_score=0.04,
                round_best_prompt_score=None,
                round_average_score=None,
                num_tested=3,
                outcomes={},
            )
            for number in range(2)
        ),
    ),
    worst=(
        RedTeamPrompt(
            prompt="You", round=1, mean=0.1, std=0.2, own_score=0.0, num_scored=2, continuations=((0.3, "<b>"),)
        ),
    ),
)
KL = KLInfo(
    reference="gpt3", num_samples=4, num_impossible=0, per_sequence=(8.0, 1), per_token=(0.5, 0.1), per_byte=(0.2, 0.1)
)


@pytest.fixture(scope="module")
def evaluation():
    arm = ArmInfo(
        name="mle",
        model="out/mle",
        checkpoint=CheckpointInfo(tokens_seen=640),
        kl=KL,
        red_team=ATTACK,
        capabilities=(TaskResult(task="lambada", metric="acc", value=0.25),),
    )
    return Evaluation(
        arms=(arm, ArmInfo(name="far", model="http://far")),
        scenarios=(
            ScenarioInfo(name="unconditional", num_samples=30, display_as_html=True),
            ScenarioInfo(name="functions", num_samples=30, num_prompts=1),
        ),
        seeds=(0,),
        scorer={"name": "pep8", "unit": "violations"},
        metrics=(MetricConfig(class_name="SelfBLEU", n=5), MetricConfig(class_name="Compilability")),
    )


@pytest.fixture(scope="module")
def samples(evaluation):
    return [
        Sample(
            arm=arm.name,
            scenario=scenario.name,
            seed=0,
            index=index,
            prompt_index=0 if scenario.num_prompts else None,
            prompt="def f():" if scenario.num_prompts else "",
            text=f"x = {index} # <b>",
            finish_reason="stop",
            num_tokens=4,
            score=index / 100,
            error=None,
        )
        for scenario in evaluation.scenarios
        for arm in evaluation.arms
        for index in range(30)
    ]


def test_figures_have_the_names_of_the_original(samples, evaluation):
    rows = arm_rows("mle", build_report(samples, evaluation), samples, evaluation)
    for scenario in ("unconditional", "functions"):
        assert {
            f"generation/{scenario}/{name}"
            for name in (
                *("score", "score_max", "score_max@25", "num_hits", "length", "current_samples"),
                *("distinct-1-grams", "distinct-2-grams", "distinct-1-grams_in_batch", "entropy-1-grams"),
                *("Self-BLEU-5", "compilability", "score_distribution"),
            )
        } <= set(rows[0])
    assert rows[0]["generation/functions/1-gram counts"]["rows"][:4] == [["#", 30], ["<b>", 30], ["=", 30], ["x", 30]]
    assert rows[0]["generation/functions/2-gram counts"]["rows"][0] == ["# <b>", 30]
    assert rows[0]["generation/unconditional/score"] == pytest.approx(0.145)
    assert rows[0]["train/tokens_seen"] == 640
    assert rows[0]["KL/gpt3/per_sequence"] == 8.0
    assert rows[0]["capabilities/lambada/acc"] == 0.25
    assert len(rows[0]["generation/unconditional/current_samples"]["rows"]) == 30
    assert [row["best_prompt_score"] for row in rows[1:]] == [0.0, 0.1]
    assert rows[-1]["best_prompts_scatter"]["rows"] == [["You", 1, 0.1, 0.2, 0.0]]
    assert rows[-1]["target_lm_responses"]["rows"] == [["You", "<b>", 0.3]]
    names = [name for name in rows[-1] if name != "red_team/round"]
    steps = [{step for pattern, step in _FINISHED_STEPS.items() if fnmatch(name, pattern)} for name in names]
    assert steps == [{"red_team/round"}] * len(names)
    assert len(arm_rows("far", build_report(samples, evaluation), samples, evaluation)) == 1


@pytest.mark.timeout(300)
def test_an_offline_run_of_each_arm_holds_figures_and_tables(samples, evaluation, tmp_path, monkeypatch):
    output = tmp_path / "report"
    report = write_report(str(output), samples, evaluation)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert track_report(str(output)) == 0
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert track_report(str(output)) == 2
    end_tracker()
    runs = {}
    for path in (output / "wandb").glob("offline-run-*/*.wandb"):
        found = list(records(path))
        [name] = {record.run.display_name for record in found if record.WhichOneof("record_type") == "run"}
        logged = {}
        for row in logged_rows(found):
            logged |= row
        runs[name] = (path.parent, logged)
    assert set(runs) == {"mle", "far"}
    folder, logged = runs["mle"]
    [row] = [row for row in report["table"] if (row["scenario"], row["arm"]) == ("unconditional", "mle")]
    for name in ("score", "score_max@25", "distinct-2-grams", "Self-BLEU-5"):
        assert logged[f"generation/unconditional/{name}"] == pytest.approx(row[name])
    assert logged["best_prompt_score"] == 0.1
    assert sum(logged["generation/functions/score_distribution/values"]) == 30
    [table] = (folder / "files/media/table/generation/functions").glob("current_samples_*.table.json")
    assert json.loads(table.read_text())["data"][3] == ["def f():", "x = 3 # <b>", 0.03, None]
    # Texts that are shown as they are written, and are no markup.
    [shown] = (folder / "files/media/html").rglob("*.html")
    assert shown.read_text().splitlines()[3] == "<pre>x = 3 # &lt;b&gt;</pre>"
    assert len(shown.read_text().splitlines()) == 30
