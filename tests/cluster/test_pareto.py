"""The six objectives at a hundredth of their size: every stage runs on the real path."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.pareto import METHODS

ROOT = Path(__file__).parents[2]
ARMS = ["mle", "conditional:good", "filtering", "ul", "rwr", "awr"]


@pytest.mark.timeout(900)
def test_six_objectives_are_trained_and_drawn_by_score_and_kl(tmp_path):
    output = tmp_path / "out"
    command = [sys.executable, "-m", "jobs.pareto", "--output", str(output), "--small"]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ}, capture_output=True, text=True, timeout=850)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    report = json.loads((output / "pareto" / "report.json").read_text())
    rows = {row["arm"]: row for row in report["table"]}
    assert list(rows) == ARMS
    assert {row["num_samples"] for row in rows.values()} == {24}
    # The reference's distance from itself is 0; every other model is somewhere else.
    assert abs(rows["mle"]["kl_per_byte"]) < 1e-4
    assert all(row["kl_per_byte"] is not None for row in rows.values())
    objectives = {arm["name"]: arm["checkpoint"]["objective"]["name"] for arm in report["arms"]}
    assert objectives == dict(zip(ARMS, ["MLE", "MLE", "MLE", "Unlikelihood", "RWR", "AWR"], strict=True))
    thresholds = {arm["name"]: set(arm["checkpoint"]["thresholds"]) for arm in report["arms"]}
    assert (thresholds["filtering"], thresholds["conditional:good"]) == ({"filter"}, {"conditional"})
    page = (output / "pareto" / "report.html").read_text()
    assert all(f'id="mark-pareto-unconditional-{arm}"' in page for arm in ARMS)
    assert all(f"<td>{name}</td>" in page for name in ("MLE", "Conditional", "Filtering", "Unlikelihood"))
    # Which ones, nothing can say of models that have learned nothing; no fewer than one.
    front = done.stdout.partition("not beaten in both score and KL:\n")[2].partition("\n\n")[0].splitlines()
    assert front
    assert {line.partition(": score ")[0] for line in front} <= set(ARMS)
    assert len(METHODS) == 6
