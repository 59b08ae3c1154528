"""What goes on from the demo, at a hundredth of its size: every stage runs on the real path, in one folder.

Two of the six objectives: the reference, and one with control tokens; test_train_methods trains all. Then a learned
reward, which finds both models there, rounds, which find the reference, and `phf align`.
"""

import json

import pyarrow.parquet as pq
import pytest

from jobs import align, learned_reward, pareto, rounds
from phf_ray.checkpoint import read_info
from phf_ray.model_folder import weights_fingerprint
from phf_ray.runs.checkpoints import find_checkpoint

ARMS = ["mle", "conditional:good"]


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return tmp_path_factory.mktemp("pareto") / "out"


@pytest.mark.timeout(900)
def test_objectives_are_trained_and_drawn_by_score_and_kl(local_ray, output, monkeypatch, capsys):
    assert pareto.METHODS == ("mle", "conditional", "filtering", "ul", "rwr", "awr")
    monkeypatch.setattr(pareto, "METHODS", ("mle", "conditional"))
    assert pareto.main(["--output", str(output), "--small"]) == 0
    said = capsys.readouterr().out
    report = json.loads((output / "pareto" / "report.json").read_text())
    rows = {row["arm"]: row for row in report["table"]}
    assert list(rows) == ARMS
    assert {row["num_samples"] for row in rows.values()} == {24}
    # The reference's distance from itself is 0; every other model is somewhere else.
    assert abs(rows["mle"]["kl_per_byte"]) < 1e-4
    assert all(row["kl_per_byte"] is not None for row in rows.values())
    assert {arm["checkpoint"]["objective"]["name"] for arm in report["arms"]} == {"MLE"}
    thresholds = {arm["name"]: set(arm["checkpoint"]["thresholds"]) for arm in report["arms"]}
    assert thresholds["conditional:good"] == {"conditional"}
    page = (output / "pareto" / "report.html").read_text()
    assert all(f'id="mark-pareto-unconditional-{arm}"' in page for arm in ARMS)
    assert all(f"<td>{name}</td>" in page for name in ("MLE", "Conditional"))
    # Which ones, nothing can say of models that have learned nothing; no fewer than one.
    front = said.partition("arms that no other arm beats in both score and KL:\n")[2].partition("\n\n")[0].splitlines()
    assert front
    assert {line.partition(": score ")[0] for line in front} <= set(ARMS)


@pytest.mark.timeout(900)
def test_a_reward_is_learned_from_comparisons_and_its_scores_are_trained_on(local_ray, output, capsys):
    arguments = ["--output", str(output), "--small"]
    # So little training shows nothing, and the job says so.
    assert learned_reward.main(arguments) == 1
    said = capsys.readouterr().out
    assert "100 comparisons" in said
    assert "not shown: " in said

    learned = output / "learned"
    reward = find_checkpoint(output / "runs" / "reward_model", option="reward")
    config = json.loads((output / "runs" / "reward_model" / "config.json").read_text())
    assert config["objective"]["name"] == "BradleyTerry"
    manifest = json.loads((learned / "corpus" / "manifest.json").read_text())
    assert manifest["scorer"]["class_name"] == "RewardModelScorer"
    row = pq.read_table(sorted((learned / "corpus").glob("part-*.parquet"))[0]).to_pylist()[0]
    true = pq.read_table(sorted((output / "corpus").glob("part-*.parquet"))[0]).to_pylist()[0]
    assert (row["id"], row["scores__pep8"]) == (true["id"], true["scores"])
    assert row["scores"] != true["scores"]
    conditional = read_info(find_checkpoint(output / "runs" / "learned_conditional", option="conditional"))
    assert conditional.scorer["weights_hash"] == manifest["scorer"]["weights_hash"]
    assert (reward / "model.safetensors").is_file()

    report = json.loads((learned / "report" / "report.json").read_text())
    arms = ["mle", "conditional:good", "learned_conditional:good", "learned_conditional:bad"]
    assert [(row["arm"], row["num_samples"]) for row in report["table"]] == [(arm, 24) for arm in arms]
    assert report["scorer"]["class_name"] == "PEP8Scorer"
    figures = json.loads((learned / "figures.json").read_text())
    assert figures["accuracy"]["num_pairs"] > 50
    assert figures["accuracy"]["num_unscored"] == 0


@pytest.mark.timeout(900)
def test_rounds_start_from_the_model_that_is_there_and_are_compared_with_it(local_ray, output, monkeypatch, capsys):
    assert rounds.METHODS == ("expert_iteration", "rloo", "ppo")
    monkeypatch.setattr(rounds, "METHODS", ("rloo",))
    arguments = ["--output", str(output), "--small"]
    code = rounds.main(arguments)
    report = json.loads((output / "rounds" / "report.json").read_text())
    # So little training should show nothing; what it showed, the job says.
    assert report["shown"] == (code == 0)
    assert ("not shown: " in capsys.readouterr().out) == (code == 1)
    models = {one["name"]: one for one in report["models"]}
    assert {name: one["num_answers"] for name, one in models.items()} == {"base": 16, "best_of_2": 8, "rloo": 16}
    assert abs(models["base"]["kl"]["mean"]) < 1e-5
    assert all(models[name]["minutes"] > 0 for name in ("best_of_2", "rloo"))
    summary = output / "rounds" / "rloo" / "summary.json"
    written = summary.stat().st_mtime_ns
    assert rounds.main(arguments) == code
    assert summary.stat().st_mtime_ns == written
    assert json.loads((output / "rounds" / "report.json").read_text()) == report


@pytest.mark.timeout(900)
def test_methods_learn_from_annotators_who_err_and_are_compared_in_this_process(output, monkeypatch, capsys):
    # The models are there, so no Ray is asked for.
    monkeypatch.setattr(align.cli, "start_ray", lambda: pytest.fail("Ray was started"))
    arguments = ["--output", str(output), "--small"]
    code = align.main(arguments)
    report = json.loads((output / "align" / "report.json").read_text())
    assert report["shown"] == (code == 0)
    assert ("not shown: " in capsys.readouterr().out) == (code == 1)
    models = {one["name"]: one for one in report["models"]}
    counted = ["best of 2 by reward", "dpo", "expert_iteration", "rloo", "ppo", "reward_conditioning"]
    assert [name for name, one in models.items() if one["learned"]] == counted
    assert list(models) == ["base", *counted[:1], "best of 2 by gold", *counted[1:], "conditional model"]
    assert list(report["arms"]) == list(models)
    assert [row["round"] for row in report["over_optimisation"]["rounds"]] == [0, 1]
    assert {"pairs", "labels", "answer_reward", "dpo", "best_of_n"} <= set(report["minutes"])
    # What is done is not done again, nor is it for more training seeds.
    summaries = {path: path.stat().st_mtime_ns for path in (output / "align").glob("*/summary.json")}
    assert len(summaries) == 7
    assert align.main([*arguments, "--seeds", "0,1"]) in (0, 1)
    of_seeds = json.loads((output / "align" / "report.json").read_text())
    for one in of_seeds["models"]:
        is_trained = one["learned"]
        assert list(one.get("seeds", ())) == (["0", "1"] if is_trained else [])
        if is_trained:
            assert one["seeds"]["0"]["gold"] == models[one["name"]]["gold"]
    runs = [
        find_checkpoint(output / "align" / run, option=run) for run in ("expert_iteration", "expert_iteration_seed1")
    ]
    assert weights_fingerprint(runs[0]) != weights_fingerprint(runs[1])
    # Six of the second seed; the run that goes on and on is none of the table.
    assert len(list((output / "align").glob("*/summary.json"))) == 7 + 6
    assert align.main(arguments) == code
    assert summaries == {path: path.stat().st_mtime_ns for path in summaries}
    assert json.loads((output / "align" / "report.json").read_text()) == report
