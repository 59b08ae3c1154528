"""The pages of the quickstart and of serving, run as a reader would: every command, in order."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import ROOT

pytestmark = pytest.mark.timeout(600)

# The environment is there already.
SETTING_UP = ("make install", "source .venv/bin/activate")


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(page: str) -> list[str]:
    lines = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and line not in SETTING_UP]


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "RAY_ADDRESS": "local"}


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory, environment) -> Path:
    """The folder that the quickstart's commands wrote, out/quickstart on the page."""
    folder = tmp_path_factory.mktemp("quickstart")
    for command in commands("quickstart.md"):
        assert "out/quickstart" in command, command
        given = command.replace("out/quickstart", str(folder))
        done = subprocess.run(
            ["bash", "-c", given], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-3000:]}"
    return folder


def test_the_quickstart_ends_in_a_report(quickstart):
    assert (quickstart / "scored" / "_SUCCESS").exists()
    assert json.loads((quickstart / "runs" / "conditional" / "summary.json").read_text())["status"] == "finished"
    report = json.loads((quickstart / "report" / "report.json").read_text())
    assert {row["arm"] for row in report["table"]} == {"conditional:good", "conditional:bad"}
    assert (quickstart / "report" / "report.html").stat().st_size > 0


@contextlib.contextmanager
def running(command: str, *, environment: dict[str, str]) -> Iterator[None]:
    """A server in the background, once it says that it is ready."""
    process = subprocess.Popen(
        ["bash", "-c", f"exec {command}"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines: list[str] = []
    is_ready = threading.Event()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if "ready: http" in line:
                is_ready.set()
        is_ready.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        assert is_ready.wait(240), "".join(lines)
        assert process.poll() is None, "".join(lines)
        yield
        process.send_signal(signal.SIGTERM)
        assert process.wait(90) == 0, "".join(lines)
    finally:
        process.kill()
        process.wait()


def test_the_page_of_serving_answers_what_it_shows(quickstart, environment):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])

    def as_given(text: str) -> str:
        return text.replace("out/quickstart", str(quickstart)).replace("8000", port)

    server, *others = commands("serve.md")
    # Those with prompts or messages speak to servers of other models, which tests/local/serve has.
    elsewhere = ('"prompts"', '"messages"')
    requests = [
        command
        for command in others
        if command.startswith("curl ") and not any(field in command for field in elsewhere)
    ]
    assert "jobs.serve" in server
    assert len(requests) == 4
    with running(as_given(server), environment=environment):
        answers = []
        for command in requests:
            done = subprocess.run(
                ["bash", "-c", as_given(command)], env=environment, capture_output=True, text=True, timeout=60
            )
            assert done.returncode == 0, command
            answers.append(json.loads(done.stdout))
        (example,) = blocks("serve.md", "python")
        command = [sys.executable, "-c", as_given(example)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
    health, models, completion, scores = answers
    assert health["status"] == "ok"
    assert models["data"][0]["id"] == "conditional"
    assert completion["choices"][0]["finish_reason"] in ("stop", "length")
    # E225 on the first text, nothing on the second.
    assert [round(one["score"], 4) for one in scores["data"]] == [0.25, 0.0]
