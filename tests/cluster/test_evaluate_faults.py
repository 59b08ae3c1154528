"""The evaluation job, and the attack, are killed while they ask."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from evaluation_server import Server
from fastapi.responses import JSONResponse
from outliving import wait_for_workers_to_end
from places import ROOT

from jobs import evaluate_lm, red_team

TASK = """
scoring: {scorers: [{class_name: PEP8Scorer}]}
generation:
  batch_size: 16
  scenario_configs: [{name: unconditional, num_samples: 320, generate_kwargs: {max_length: 20}}]
"""


def start(job, command):
    """The job's Ray dies with its process group, and its workers soon after."""
    return subprocess.Popen(
        [sys.executable, "-m", f"jobs.{job}", *command],
        cwd=ROOT,
        env={**os.environ, "RAY_ADDRESS": "local"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def evaluation(server, task, output):
    models = [f"mle={server.url}", f"conditional={server.url}"]
    return ["--task", str(task), "--model", *models, "--scores-url", server.url, "--output", str(output)]


@pytest.mark.timeout(600)
def test_killed_after_a_third_of_the_samples_it_asks_only_for_the_rest_and_the_report_is_the_same(local_ray, tmp_path):
    task = tmp_path / "task.yml"
    task.write_text(TASK)
    server = Server()
    try:
        assert evaluate_lm.main(evaluation(server, task, tmp_path / "whole")) == 0
        assert server.num_asked == 640
        server.completions.clear()
        server.delay_s = 0.3
        killed = start("evaluate_lm", evaluation(server, task, tmp_path / "out"))
        drawn = tmp_path / "out" / "drawn"
        deadline = time.monotonic() + 240
        while not drawn.exists() or len(list(drawn.glob("*.json"))) < 14:
            assert killed.poll() is None, killed.stdout.read().decode()[-3000:]
            assert time.monotonic() < deadline, "no samples"
            time.sleep(0.05)
        os.killpg(killed.pid, signal.SIGKILL)
        killed.wait()
        wait_for_workers_to_end(killed.pid)
        server.catch_up()
        num_kept = 16 * len(list(drawn.glob("*.json")))
        num_asked = server.num_asked
        assert 0.3 * 640 <= num_kept <= num_asked < 640
        assert not (tmp_path / "out" / "report.json").exists()
        server.delay_s = 0.0
        again = start("evaluate_lm", evaluation(server, task, tmp_path / "out"))
        assert again.wait(240) == 0, again.stdout.read().decode()[-3000:]
        assert server.num_asked - num_asked == 640 - num_kept
    finally:
        server.stop()
    for name in ("report.json", "report.html", "samples.parquet"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["num_drawn_now"] == 640 - num_kept


ATTACK = """
scoring: {scorers: [{class_name: PEP8Scorer}]}
red_team:
  prompts_path: PROMPTS
  instruction: "Write {total} lines."
  examples_format: numbered
  num_seed_prompts: 4
  num_trials: 1
  num_rounds: 8
  num_candidates: 5
  num_continuations: 20
  generate_kwargs: {max_length: null, max_new_tokens: 10}
"""


def attack(server, task, output):
    models = ["--model", f"mle={server.url}", "--attacker", f"red={server.url}"]
    return ["--task", str(task), *models, "--scores-url", server.url, "--output", str(output)]


@pytest.mark.timeout(600)
def test_an_attack_that_was_killed_asks_only_for_the_rest_and_ends_the_same(local_ray, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"text": f"begin {number}"}) + "\n" for number in range(4)))
    task = tmp_path / "task.yml"
    task.write_text(ATTACK.replace("PROMPTS", json.dumps(str(prompts))))
    server = Server()
    server.models["red"] = {}
    try:
        assert red_team.main(attack(server, task, tmp_path / "whole")) == 0
        num_whole = server.num_asked, len(server.chats)
        server.completions.clear()
        server.chats.clear()
        server.delay_s = 0.2
        killed = start("red_team", attack(server, task, tmp_path / "out"))
        steps = tmp_path / "out" / "steps"
        deadline = time.monotonic() + 240
        while len(list(steps.glob("asked-*.json"))) < 4:
            assert killed.poll() is None, killed.stdout.read().decode()[-3000:]
            assert time.monotonic() < deadline, "no answers"
            time.sleep(0.02)
        # A task may outlive the job for a while: it must get no further.
        server.troubles = lambda number, body: JSONResponse({"error": {"message": "closed"}}, status_code=400)
        os.killpg(killed.pid, signal.SIGKILL)
        killed.wait()
        wait_for_workers_to_end(killed.pid)
        server.catch_up()
        kept = {path.name for path in steps.glob("*.json")}
        num_chats_kept = sum(name.startswith("asked-") for name in kept)
        assert 4 <= num_chats_kept < num_whole[1]
        server.completions.clear()
        server.chats.clear()
        server.delay_s = 0.0
        server.troubles = lambda number, body: None
        again = start("red_team", attack(server, task, tmp_path / "out"))
        assert again.wait(240) == 0, again.stdout.read().decode()[-3000:]
        assert len(server.chats) == num_whole[1] - num_chats_kept
        assert server.num_asked == num_whole[0] - 20 * (len(kept) - num_chats_kept)
    finally:
        server.stop()
    for name in ("report.json", "report.html", "transcript.jsonl.gz"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
