"""Models of the hub are brought into its cache, so that the jobs after it need no internet."""

import os
import subprocess
import sys

import pytest
from places import ROOT


def fetch(home, *arguments):
    """Offline: what the hub's client can give is what its cache has."""
    return subprocess.run(
        [sys.executable, "-m", "jobs.fetch_models", "--output", str(home / "models"), *arguments],
        cwd=ROOT,
        env={**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=110,
    )


def test_what_the_cache_has_is_enough_without_internet(tmp_path):
    folder = tmp_path / "hub" / "models--acme--tiny"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
    (folder / "snapshots" / ("0" * 40) / "config.json").write_text("{}")
    done = fetch(tmp_path, "--models", "--hub", "acme/tiny")
    assert done.returncode == 0, done.stderr
    assert "acme/tiny is in" in done.stderr


def test_what_can_not_be_had_is_named_with_a_remedy(tmp_path):
    done = fetch(tmp_path, "--models", "--hub", "acme/other")
    assert done.returncode == 4
    assert "acme/other can't be fetched from the Hugging Face hub" in done.stderr
    assert "HF_HUB_OFFLINE=0" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--models"], 2, "name at least one"),
        (["--models", "--hub", "gpt2", "--dry-run"], 0, "would fetch gpt2"),
    ],
)
def test_nothing_to_fetch_and_a_dry_run(tmp_path, arguments, code, said):
    done = fetch(tmp_path, *arguments)
    assert done.returncode == code
    assert said in done.stdout + done.stderr
    assert not (tmp_path / "models").exists()
