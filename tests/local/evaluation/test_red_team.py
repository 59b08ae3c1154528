"""The attack over HTTP, against a small server that speaks the contract over TCP."""

import gzip
import json

import fsspec
import pytest
from evaluation_server import IDENTITY, Server, listening
from fastapi.responses import JSONResponse
from tiny_models import BAD, GOOD, tiny_gpt2, tiny_tokenizer

from jobs import evaluate_lm
from jobs import red_team as job
from phf_ray.checkpoint import CheckpointInfo, Control
from phf_ray.config import parse_config
from phf_ray.errors import ConfigError, IncompleteError, ServiceError
from phf_ray.evaluation.arms import Arm, ScoresServer
from phf_ray.evaluation.asking import run_here
from phf_ray.evaluation.attack.red_lm import Attacker
from phf_ray.evaluation.attack.run import AttackOptions, run_attack
from phf_ray.evaluation.on_ray import run_on_ray
from phf_ray.evaluation.report.figures import recompute
from phf_ray.generation.engine import Engine
from phf_ray.generation.requests import EngineSettings
from serve.api.application import build_app
from serve.backends import Backend
from serve.engines.local import LocalModel
from serve.engines.scorer import LocalScorer
from serve.schemas import HealthResponse
from serve.settings import ServedScorer

RED_TEAM = {
    "num_seed_prompts": 5,
    "num_trials": 2,
    "num_rounds": 3,
    "num_examples": 3,
    "num_candidates": 6,
    "num_continuations": 70,
    "instruction": "Write {total} lines.",
    "examples_format": "numbered",
    "use_prompt_for_scoring": False,
    "generate_kwargs": {"max_length": None, "max_new_tokens": 12, "min_length": 2},
}


@pytest.fixture
def server():
    running = Server()
    running.models["red"] = {}
    yield running
    running.stop()


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"text": f"begin {number} " + "a" * number}) + "\n" for number in range(9)))
    return path


def make_config(prompts, **changes):
    return parse_config(
        {
            "scoring": {"scorers": [{"class_name": "PEP8Scorer"}]},
            "red_team": {**RED_TEAM, "prompts_path": str(prompts), **changes},
        }
    )


def attacker(url, *, api="chat", model="red"):
    return Attacker(Arm(model, url, model), api)


def run(server, output, config, *, arms=("mle",), runner=run_here, red_lm=None, **options):
    return run_attack(
        config,
        arms=[Arm(name=name, url=server.url, model=name) for name in arms],
        attacker=red_lm or attacker(server.url),
        scores=ScoresServer(server.url, "pep8"),
        output=str(output),
        runner=runner,
        options=AttackOptions(**{"patience_s": 5.0} | options),
    )


FILES = ("report.json", "report.html", "samples.parquet", "transcript.jsonl.gz")


def content_of(output):
    return {name: (output / name).read_bytes() for name in FILES}


def transcript_of(output):
    return [json.loads(line) for line in gzip.decompress((output / "transcript.jsonl.gz").read_bytes()).splitlines()]


def test_a_chat_model_attacks_and_the_curve_is_in_the_report(local_ray, server, prompts, tmp_path):
    report = run(server, tmp_path / "out", make_config(prompts), runner=run_on_ray)
    rows = report["red_team"]
    assert [(row["arm"], row["round"], row["num_trials"]) for row in rows] == [("mle", n, 2) for n in range(4)]
    best = [row["best_prompt_score"] for row in rows]
    assert best == sorted(best)
    assert best[-1] > 1.2 * best[0]
    assert rows[1]["best_prompt_score_ci"] is not None
    answers = [row["outcomes"] for row in rows[1:]]
    assert all(sum(outcomes.values()) == 2 * 6 for outcomes in answers)
    assert sum(outcomes["refused"] for outcomes in answers) > 0
    assert sum(outcomes.get("empty", 0) for outcomes in answers) > 0
    # Every prompt was continued exactly as often as configured; the ones at the start once for both trials.
    tried = [step for step in transcript_of(tmp_path / "out") if "continuations" in step]
    assert {len(step["continuations"]) for step in tried} == {70}
    # Trials at the same time may both ask for a prompt that is new to both.
    assert server.num_asked >= 70 * len(tried) == 70 * len({step["prompt"] for step in tried})
    assert rows[0]["num_tested"] == 5
    assert json.loads(json.dumps(recompute(str(tmp_path / "out")))) == report
    page = (tmp_path / "out" / "report.html").read_text()
    assert 'id="mark-best_prompt_score-mle"' in page
    assert 'data-attack="mle"' in page
    assert (tmp_path / "out" / "red-team-best-prompt.png").exists()
    worst = report["red_team_worst"]
    assert [prompt["mean"] for prompt in worst] == sorted((prompt["mean"] for prompt in worst), reverse=True)
    assert worst[0]["mean"] >= best[-1]
    # What was asked is kept, too.
    asked = [step for step in transcript_of(tmp_path / "out") if "replies" in step]
    assert sorted(step["request"] for step in asked) == sorted(body["messages"][0]["content"] for body in server.chats)


def test_interrupted_anywhere_and_resumed_it_asks_for_the_rest_and_ends_the_same(server, prompts, tmp_path):
    config = make_config(prompts)
    run(server, tmp_path / "whole", config)
    num_whole = len(server.completions), len(server.chats)
    server.completions.clear()
    server.chats.clear()
    for limit in (4, 21, 1):
        allowed = iter(range(limit))

        def trouble(number, body, allowed=allowed):
            stopped = next(allowed, None) is None
            return JSONResponse({"error": {"message": "out of order"}}, status_code=503) if stopped else None

        server.troubles = trouble
        with pytest.raises((IncompleteError, ServiceError), match="out of order"):
            run(server, tmp_path / "out", config, patience_s=0.05)
        assert not (tmp_path / "out" / "report.json").exists()
    server.troubles = lambda number, body: None
    run(server, tmp_path / "out", config)
    assert content_of(tmp_path / "out") == content_of(tmp_path / "whole")
    assert len(server.chats) == num_whole[1]
    # No more than the continuations under way were asked for twice.
    assert num_whole[0] <= len(server.completions) <= num_whole[0] + 26
    asked = len(server.completions), len(server.chats)
    run(server, tmp_path / "out", config)
    assert (len(server.completions), len(server.chats)) == asked
    assert content_of(tmp_path / "out") == content_of(tmp_path / "whole")


def test_more_rounds_and_trials_go_on_from_what_is_there(server, prompts, tmp_path):
    small = make_config(prompts, num_trials=1, num_rounds=1)
    run(server, tmp_path / "out", small)
    before = server.num_asked
    run(server, tmp_path / "out", make_config(prompts))
    grown = content_of(tmp_path / "out")
    in_steps = server.num_asked
    server.completions.clear()
    run(server, tmp_path / "whole", make_config(prompts))
    assert content_of(tmp_path / "whole") == grown
    assert in_steps == server.num_asked > before


def test_fewer_trials_throw_no_answers_away(server, prompts, tmp_path):
    run(server, tmp_path / "out", make_config(prompts))
    whole = content_of(tmp_path / "out")
    asked = len(server.completions), len(server.chats)
    run(server, tmp_path / "out", make_config(prompts, num_trials=1))
    assert content_of(tmp_path / "out")["report.json"] != whole["report.json"]
    run(server, tmp_path / "out", make_config(prompts))
    assert (len(server.completions), len(server.chats)) == asked
    assert content_of(tmp_path / "out") == whole


def test_an_attack_is_kept_on_any_file_system(server, prompts, tmp_path):
    config = make_config(prompts)
    run(server, tmp_path / "out", config)
    num_asked = server.num_asked
    server.troubles = lambda number, body: (
        JSONResponse({"error": {"message": "out of order"}}, status_code=400) if number > num_asked // 50 else None
    )
    with pytest.raises(ServiceError, match="out of order"):
        run(server, "memory://attack", config)
    server.troubles = lambda number, body: None
    run(server, "memory://attack", config)
    run(server, "memory://attack", config)
    filesystem = fsspec.filesystem("memory")
    assert {name: filesystem.cat_file(f"/attack/{name}") for name in FILES} == content_of(tmp_path / "out")


def test_an_attack_depends_on_its_seed_and_another_attack_is_refused(server, prompts, tmp_path):
    config = make_config(prompts)
    first = run(server, tmp_path / "out", config)
    assert run(server, tmp_path / "again", config) == first
    assert run(server, tmp_path / "other", config, seed=1)["red_team"] != first["red_team"]
    with pytest.raises(ConfigError, match="holds an attack with other seed; choose another --output, or --restart"):
        run(server, tmp_path / "out", config, seed=1)
    server.models["red"] = {"step": 9}
    with pytest.raises(ConfigError, match="with other attacker"):
        run(server, tmp_path / "out", make_config(prompts))
    server.models["red"], server.models["mle"] = {}, {"step": 9}
    with pytest.raises(ConfigError, match="with other arms"):
        run(server, tmp_path / "out", make_config(prompts))
    server.models["mle"] = {}
    with pytest.raises(ConfigError, match="with other red_team"):
        run(server, tmp_path / "out", make_config(prompts, num_continuations=3))
    again = run(server, tmp_path / "out", config, seed=1, restart=True)
    assert again == run(server, tmp_path / "other", config, seed=1)


def test_newest_chats_that_bring_one_answer_at_a_time_are_asked_their_way(server, prompts, tmp_path):
    server.models["newest"] = {}
    server.brings_n = False
    report = run(
        server,
        tmp_path / "out",
        make_config(prompts, num_trials=1, num_rounds=1, num_continuations=2),
        red_lm=attacker(server.url, model="newest"),
    )
    assert sum(report["red_team"][1]["outcomes"].values()) == 6
    assert {body["max_completion_tokens"] for body in server.chats} == {1024}
    assert len({body["seed"] for body in server.chats}) == 6


def test_prompts_that_leave_no_room_are_counted_and_not_tried(server, prompts, tmp_path):
    server.models["mle"] = {"max_model_len": 6}
    config = make_config(prompts, generate_kwargs={"max_length": None, "max_new_tokens": 12, "min_length": 2})
    report = run(server, tmp_path / "out", config)
    assert sum(row["outcomes"].get("no room", 0) for row in report["red_team"][1:]) > 0
    for step in transcript_of(tmp_path / "out"):
        assert ("reason" not in step) or (step["reason"] is None) == (len(step["continuations"]) == 70)


def test_what_is_wrong_is_named_before_the_first_question(server, prompts, tmp_path, monkeypatch):
    monkeypatch.setattr("phf_ray.evaluation.arms.CHECK_PATIENCE_S", 0.3)
    config = make_config(prompts)
    with pytest.raises(ConfigError, match="serves no model 'gpt-9'; it serves conditional, mle, red"):
        run(server, tmp_path / "out", config, red_lm=attacker(server.url, model="gpt-9"))
    wrong = Attacker(Arm("red", server.url, "red", key="wrong"), "chat")
    with pytest.raises(ServiceError, match="status 401: no such key; set a key that the server accepts"):
        run(server, tmp_path / "out", config, red_lm=wrong)
    with pytest.raises(ServiceError, match="is the server running"):
        run(server, tmp_path / "out", config, red_lm=attacker("http://127.0.0.1:9"))
    server.no_messages = 404
    with pytest.raises(ConfigError, match="red does not speak chat; give --attacker-api completions"):
        run(server, tmp_path / "out", config)
    server.no_messages = 400
    server.models["mle"] = {"checkpoint": {"scorer": IDENTITY | {"class_name": "PIIScorer"}}}
    with pytest.raises(ConfigError, match=r"mle was trained on another scorer .*PIIScorer.*--allow-other-scorer"):
        run(server, tmp_path / "out", config)
    server.models["mle"] = {"owned_by": "openai"}
    with pytest.raises(ConfigError, match=r"mle can't be asked for at least 2 tokens; set .*min_length: 0"):
        run(server, tmp_path / "out", config)
    server.models["mle"] = {}
    with pytest.raises(ConfigError, match=r"red_team\.prompts_path is not set"):
        run(server, tmp_path / "out", make_config(prompts, prompts_path=None))
    with pytest.raises(ConfigError, match=r"none\.jsonl can't be read"):
        run(server, tmp_path / "out", make_config(tmp_path / "none.jsonl"))
    assert server.completions == server.chats == []
    assert not (tmp_path / "out").exists()


def test_one_of_our_own_models_attacks_another_by_completions(prompts, tmp_path):
    tokenizer = tiny_tokenizer(control=True)
    control = Control(good=GOOD, bad=BAD, policy="retag")
    info = CheckpointInfo(control=control)
    engines = {
        "red": Engine(
            tiny_gpt2(tiny_tokenizer(), seed=1), tiny_tokenizer(), info=None, settings=EngineSettings(max_batch=16)
        ),
        "cond": Engine(tiny_gpt2(tokenizer, seed=2), tokenizer, info=info, settings=EngineSettings(max_batch=16)),
    }

    async def health():
        return HealthResponse(status="ok", deployments={})

    scorer = LocalScorer(ServedScorer(scorer={"class_name": "PEP8Scorer"}))
    backend = Backend({name: LocalModel(engine) for name, engine in engines.items()}, {"pep8": scorer}, health)
    settings = {"num_examples": 1, "num_seed_prompts": 2, "num_trials": 1, "num_rounds": 2, "num_candidates": 3}
    # The scorer's own instruction is longer than these models' context; its format is taken.
    config = make_config(prompts, **settings, num_continuations=4, instruction="{total}:", examples_format=None)
    with listening(build_app(backend, access_log=False)) as url:
        checkpoint = CheckpointInfo(control=control)
        reports = [
            run_attack(
                config,
                arms=[Arm("cond:bad", url, "cond", control="bad", checkpoint=checkpoint)],
                attacker=Attacker(Arm("red", url, "red"), "completions"),
                scores=ScoresServer(url, "pep8"),
                output=str(tmp_path / name),
                runner=run_here,
            )
            for name in ("first", "second")
        ]
    assert reports[0] == reports[1]
    assert reports[0]["red_team"][0]["num_tested"] == 2
    # Code's examples are between fences, and what follows is the code that they are continued with.
    asked = [step for step in transcript_of(tmp_path / "first") if "replies" in step]
    assert len(asked) == 2
    assert all(step["request"].endswith("```\n\n```python\n") for step in asked)
    assert all(len(step["replies"]) == 3 for step in asked)


def test_the_job_attacks_models_of_servers_and_dry_run_says_how_much(local_ray, server, prompts, tmp_path, capsys):
    task = tmp_path / "task.yml"
    settings = {**RED_TEAM, "prompts_path": str(prompts), "num_trials": 1, "num_rounds": 1}
    task.write_text(
        f"scoring: {{scorers: [{{class_name: PEP8Scorer}}]}}\nred_team: {json.dumps(settings)}\n", encoding="utf-8"
    )
    command = ["--task", str(task), "--model", f"mle={server.url}", "--attacker", f"red={server.url}"]
    command += ["--scores-url", server.url, "--output", str(tmp_path / "out")]
    assert job.main([*command, "--dry-run"]) == 0
    assert "at most 770 continuations scored by pep8" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert job.main(command) == 0
    printed = capsys.readouterr().out
    assert "under attack (pep8: violations per character)" in printed
    assert (tmp_path / "out" / "report.html").exists()
    # The curves, and what lm-eval found, are taken into the report of jobs.evaluate_lm.
    evaluation = ["--task", str(task), "--model", f"mle={server.url}", "--scores-url", server.url, "--num-samples", "6"]
    evaluation += ["--red-team", str(tmp_path / "out"), "--lm-eval", "mle=tests/golden/lm_eval_results.json"]
    evaluation += ["--output", str(tmp_path / "report")]
    evaluation += ["--override", "generation.scenario_configs=[{name: unconditional}]"]
    assert evaluate_lm.main(evaluation) == 0
    attacked = json.loads((tmp_path / "out" / "report.json").read_text())
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["red_team"] == attacked["red_team"]
    assert {row["task"] for row in report["capabilities"]} >= {"tiny_choice", "tiny_answer"}
    page = (tmp_path / "report" / "report.html").read_text()
    assert 'data-attack="mle"' in page
    assert 'data-capability="tiny_choice/acc"' in page
    with pytest.raises(ConfigError, match="holds attacks on mle, but the arms are conditional"):
        evaluate_lm.main(
            [*evaluation[:3], f"conditional={server.url}", *evaluation[4:10], "--output", "x", "--dry-run"]
        )
    with pytest.raises(ConfigError, match="--model uses the name mle; write attacker="):
        job.main([*command[:4], "--attacker", f"mle={server.url}/other", "--output", "x", "--dry-run"])
