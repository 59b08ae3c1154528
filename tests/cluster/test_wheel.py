"""The wheel, installed outside of the clone: `phf` finds what it needs, whatever the folder holds that it runs in."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pyarrow.parquet as pq
import pytest
from places import ROOT

SOURCES = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "configs", "phf_ray", "serve", "jobs")
PATIENCE_S = 240


@pytest.fixture(scope="module")
def phf(tmp_path_factory) -> Path:
    """The command, in a virtual environment that has the wheel, and the packages of this one but not its phf-ray."""
    folder = tmp_path_factory.mktemp("wheel")
    wheel = build(folder)
    home = folder / "environment"
    venv.create(home, symlinks=True)
    inside = Path(sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)}))
    # As a line of a .pth file, the folder's own .pth files, such as that of an editable install, do not count.
    (inside / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = home / "bin" / "python"
    pip("--python", str(python), "install", "--no-deps", "--no-index", str(wheel))
    return home / "bin" / "phf"


def build(folder: Path) -> Path:
    """From a copy: a build leaves files beside its sources, and takes in those of an older one."""
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / name, source)
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source))
    (wheel,) = folder.glob("*.whl")
    return wheel


def pip(*words: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *words]
    subprocess.run(command, env=environment(), check=True, timeout=PATIENCE_S)


def environment() -> dict[str, str]:
    """Without what would lead to the clone, or to another Ray."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RAY_ADDRESS")}


@pytest.fixture
def work(tmp_path) -> Path:
    """A folder of a user's own project, whose packages have names of ours."""
    folder = tmp_path / "my work"
    for name in ("jobs", "serve"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(f"raise ImportError('{name} of the user')\n")
    return folder


def run(phf: Path, *words: str, work: Path) -> "subprocess.CompletedProcess[str]":
    command = [str(phf), *words]
    return subprocess.run(
        command, cwd=work, env=environment(), capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )


def test_the_command_lists_the_jobs_and_runs_from_the_wheel(phf, work):
    done = run(phf, "--help", work=work)
    assert (done.returncode, done.stderr) == (0, "")
    assert "phf COMMAND" in done.stdout
    (configs,) = run(phf, "--configs", work=work).stdout.splitlines()
    assert Path(configs).is_relative_to(phf.parents[1])
    shipped = {path.relative_to(configs) for path in Path(configs).rglob("*") if path.is_file()}
    ours = {path.relative_to(ROOT / "configs") for path in (ROOT / "configs").rglob("*") if path.is_file()}
    assert {path for path in shipped ^ ours if "__pycache__" not in path.parts} == set()


def test_a_job_finds_task_method_and_prompts_that_come_along(phf, work):
    done = run(phf, *["train-lm", "--task", "pep9", "--run-name", "a", "--storage-path", "runs"], work=work)
    assert done.returncode == 2
    assert "did you mean pep8?" in done.stderr
    code = (
        "from phf_ray.config import load_config; from phf_ray.evaluation.prompts import read_prompts; "
        "config = load_config('pep8', 'conditional'); "
        "print(config.model.num_additional_tokens, len(read_prompts(config.red_team.prompts_path)))"
    )
    python = [str(phf.with_name("python")), "-c", code]
    assert subprocess.check_output(python, cwd=work, env=environment(), text=True) == "2 500\n"


def test_a_corpus_is_scored_beside_folders_with_our_names(phf, work):
    (work / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in ("x = 1\n", "x=1\n")))
    words = ["score-corpus", "--task", "pep8", "--input", "texts.jsonl", "--output", "scored"]
    done = run(phf, *words, work=work)
    assert done.returncode == 0, done.stderr
    rows = [row for path in (work / "scored").glob("part-*.parquet") for row in pq.read_table(path).to_pylist()]
    # E225: one violation in four characters.
    assert {"".join(row["texts"]): row["scores"] for row in rows} == {"x = 1\n": [0.0], "x=1\n": [0.25]}


def test_replicas_are_ours_beside_folders_with_our_names(phf, work):
    with serving(phf, "--scorers", "pep8", "--port", "0", work=work) as url:
        answer = httpx.post(f"{url}/v1/scores", json={"scorer": "pep8", "input": ["x=1\n"]}, timeout=60)
    assert answer.status_code == 200, answer.text
    assert [entry["score"] for entry in answer.json()["data"]] == [0.25]


@contextlib.contextmanager
def serving(phf: Path, *words: str, work: Path) -> Iterator[str]:
    with (work / "log").open("wb") as log:
        process = subprocess.Popen(
            [str(phf), "serve", *words], cwd=work, env=environment(), stdout=subprocess.PIPE, stderr=log, text=True
        )
    try:
        assert process.stdout is not None
        ready = next((line for line in process.stdout if line.startswith("ready: ")), None)
        assert ready is not None, (work / "log").read_text()
        yield ready.removeprefix("ready: ").strip()
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=PATIENCE_S)


def test_the_wheel_holds_every_file_of_the_packages(phf):
    """Templates and prompts, too: not only what Python imports."""
    (wheel,) = phf.parents[2].glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    listed = subprocess.run(
        ["git", "ls-files", "phf_ray", "serve", "jobs", "configs"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    names = [
        name.replace("configs/", "phf_ray/shipped_configs/", 1) if name.startswith("configs/") else name
        for name in listed.stdout.split()
    ]
    assert len(names) > 250
    assert not set(names) - held
