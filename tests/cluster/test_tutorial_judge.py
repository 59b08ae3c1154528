"""The tutorial of judges, run as a reader would: every command and example, and what the page says of them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

pytestmark = pytest.mark.timeout(900)

PAGE = ROOT / "docs" / "tutorial_judge.md"


def steps() -> list[tuple[str, str]]:
    """Return (language, text) of the page's blocks that a reader runs."""
    text = PAGE.read_text(encoding="utf-8")
    return re.findall(r"^```(bash|python)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, list[str]]:
    """The folder that the commands wrote, out/judge on the page, and what each step printed."""
    folder = tmp_path_factory.mktemp("judge")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "RAY_ADDRESS": "local"}
    said = []
    for language, text in steps():
        assert "out/judge" in text, text
        given = text.replace("out/judge", str(folder))
        command = ["bash", "-ec", given] if language == "bash" else [sys.executable, "-c", given]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"{text}\n{done.stdout[-2000:]}{done.stderr[-3000:]}"
        said.append(done.stdout)
    return folder, said


def board(folder: Path, name: str) -> dict:
    return json.loads((folder / name / "leaderboard.json").read_text())


def test_the_leaderboard_shows_what_the_page_says(run):
    models = {row["name"]: row for row in board(run[0], "board")["models"]}
    assert set(models) == {"careless", "long"}
    assert all(row["n_total"] + row["n_failed"] == 120 for row in models.values())
    assert all(row["n_failed"] <= 12 for row in models.values())
    assert models["careless"]["interval"][1] < 50, "the judges see careless white space"
    assert models["long"]["avg_length"] > 1.5 * models["careless"]["avg_length"]
    assert models["long"]["length_controlled_win_rate"] is not None
    assert (run[0] / "board" / "report.html").stat().st_size > 0


def test_the_pool_agrees_with_its_scorer_and_beats_judges_that_know_nothing(run):
    rows = {row["name"]: row for row in board(run[0], "checked")["human"]}
    assert 0.7 < rows["all annotators"]["accuracy"] < 0.95
    assert rows["constant"]["kappa"] == 0
    assert rows["all annotators"]["kappa"] > 0.2 + max(rows[name]["kappa"] for name in ("longer", "random"))


def test_noise_makes_a_quarter_of_the_labels_wrong(run):
    shares = dict(
        re.findall(r"^(likes_long|likes_short|likes_the_first|ignores_white_space) ([\d.]+)", run[1][-1], re.M)
    )
    assert len(shares) == 4
    assert all(0.65 < float(share) < 0.97 for share in shares.values())
    clean, noisy = (float(re.search(rf"^{name}: ([\d.]+)", run[1][-1], re.M)[1]) for name in ("pool", "with noise"))
    # Half of the labels are drawn: they are right half of the time.
    assert noisy == pytest.approx(clean / 2 + 0.25, abs=0.1)
    assert noisy < clean
