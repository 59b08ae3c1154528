"""Objectives at a hundredth of their size: every stage runs on the real path.

Three of the six: the reference, one with control tokens and one with a value head; test_train_methods trains all.
"""

import json

import pytest

from jobs import pareto

ARMS = ["mle", "conditional:good", "awr"]


@pytest.mark.timeout(900)
def test_objectives_are_trained_and_drawn_by_score_and_kl(local_ray, tmp_path, monkeypatch, capsys):
    assert pareto.METHODS == ("mle", "conditional", "filtering", "ul", "rwr", "awr")
    monkeypatch.setattr(pareto, "METHODS", ("mle", "conditional", "awr"))
    output = tmp_path / "out"
    assert pareto.main(["--output", str(output), "--small"]) == 0
    said = capsys.readouterr().out
    report = json.loads((output / "pareto" / "report.json").read_text())
    rows = {row["arm"]: row for row in report["table"]}
    assert list(rows) == ARMS
    assert {row["num_samples"] for row in rows.values()} == {24}
    # The reference's distance from itself is 0; every other model is somewhere else.
    assert abs(rows["mle"]["kl_per_byte"]) < 1e-4
    assert all(row["kl_per_byte"] is not None for row in rows.values())
    objectives = {arm["name"]: arm["checkpoint"]["objective"]["name"] for arm in report["arms"]}
    assert objectives == dict(zip(ARMS, ["MLE", "MLE", "AWR"], strict=True))
    thresholds = {arm["name"]: set(arm["checkpoint"]["thresholds"]) for arm in report["arms"]}
    assert thresholds["conditional:good"] == {"conditional"}
    page = (output / "pareto" / "report.html").read_text()
    assert all(f'id="mark-pareto-unconditional-{arm}"' in page for arm in ARMS)
    assert all(f"<td>{name}</td>" in page for name in ("MLE", "Conditional"))
    # Which ones, nothing can say of models that have learned nothing; no fewer than one.
    front = said.partition("arms that no other arm beats in both score and KL:\n")[2].partition("\n\n")[0].splitlines()
    assert front
    assert {line.partition(": score ")[0] for line in front} <= set(ARMS)
