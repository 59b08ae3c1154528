"""The demo at a hundredth of its size: every stage runs, and too little training is admitted."""

import json
import os
import subprocess
import sys

import pytest
from places import ROOT

from phf_ray.evaluation.report.figures import recompute

SMALL = [
    "training.num_tokens=40000",
    "training.learning_rate=1e-3",
    "dataset.held_out_fraction=0.005",
    "generation.scenario_configs=[{name: unconditional, num_samples: 4, generate_kwargs: {max_length: 24}}]",
]


@pytest.mark.timeout(900)
def test_the_whole_story_runs_from_a_path_with_spaces_and_again(tmp_path):
    output = tmp_path / "a folder" / "demo"
    command = [sys.executable, "-m", "jobs.demo", "--output", str(output), "--override", *SMALL]
    first = subprocess.run(command, cwd=ROOT, env={**os.environ}, capture_output=True, text=True, timeout=600)
    assert (output / "report" / "report.json").exists(), first.stdout[-3000:] + first.stderr[-3000:]
    report = json.loads((output / "report" / "report.json").read_text())
    assert [(row["arm"], row["num_samples"]) for row in report["table"]] == [
        ("mle", 12),
        ("conditional:good", 12),
        ("conditional:bad", 12),
    ]
    assert all(row["bits_per_byte"] is not None for row in report["table"])
    assert json.loads(json.dumps(recompute(str(output / "report")))) == report
    # 40,000 tokens teach nothing: the demo must say so and fail.
    assert first.returncode == 1
    assert "not shown" in first.stderr

    again = subprocess.run(command, cwd=ROOT, env={**os.environ}, capture_output=True, text=True, timeout=600)
    assert again.returncode == 1, again.stderr[-3000:]
    assert json.loads((output / "report" / "report.json").read_text()) == report
