"""`phf leaderboard --models`: answers are drawn from servers as an evaluation draws, stored, and never drawn again."""

import itertools
import json
import re
from collections import Counter

import pytest
from boards import LongerWins, few_resamples
from evaluation_server import Server
from fastapi.responses import JSONResponse
from judged_rows import write_lines

from jobs import leaderboard
from phf_ray.errors import ConfigError, DataError, IncompleteError, ServiceError
from phf_ray.evaluation.answers.store import AnswerStore
from phf_ray.judging.board import write

COLUMNS = ["instruction", "input", "output", "generator", "dataset", "datasplit"]


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(write, "draw_board_plots", lambda board: [])
    with few_resamples():
        yield


@pytest.fixture
def server():
    server = Server()
    yield server
    server.stop()


def prompts(*numbers):
    return [{"instruction": f"do {number}", "input": "", "dataset": "koala"} for number in numbers]


@pytest.fixture
def run(server, tmp_path):
    def run(*words, asked=tuple(range(4)), models=("mle", "conditional"), reference="mle", judge=None):
        file = write_lines(tmp_path / "prompts.jsonl", prompts(*asked))
        named = [f"{name}={server.url}" for name in models]
        command = ["--models", *named, "--prompts", file, "--reference", reference, *map(str, words)]
        command += ["--output", str(tmp_path / "board")]
        try:
            assert leaderboard.main(command, judge=judge or LongerWins()) == 0
        finally:
            board = tmp_path / "board" / "leaderboard.json"
        return json.loads(board.read_text()) if board.exists() else None

    return run


def answers(tmp_path, name):
    return json.loads((tmp_path / "board" / "answers" / f"{name}.json").read_text())


def test_answers_are_drawn_written_as_alpaca_farms_rows_and_ranked(run, server, tmp_path):
    board = run()
    (row,) = board["models"]
    assert (row["name"], row["n_total"], row["references"]) == ("conditional", 4, ["mle"])
    rows = answers(tmp_path, "conditional")
    assert [list(one) for one in rows] == [COLUMNS] * 4
    assert [(one["instruction"], one["generator"], one["dataset"]) for one in rows] == [
        (f"do {number}", "conditional", "koala") for number in range(4)
    ]
    assert all(one["output"] for one in rows + answers(tmp_path, "mle"))
    assert {(body["temperature"], body["top_p"]) for body in server.completions} == {(0.7, 0.9)}
    # 300 at most, or what the 128 positions leave.
    assert all(body["max_tokens"] < 128 for body in server.completions)
    assert all(body["prompt"].endswith("### Response:") for body in server.completions)


def test_all_models_get_the_same_random_numbers_whatever_the_order_of_prompts(run, server, tmp_path):
    run()
    seeds = Counter((body["prompt"], body["seed"]) for body in server.completions)
    assert sorted(seeds.values()) == [2] * 4
    assert len({seed for _, seed in seeds}) == 4
    run(asked=(3, 0, 2, 1))
    assert len(server.completions) == 8, "the same prompts in another order"
    run("--sampling-seed", 1, "--overwrite")
    assert len(server.completions) == 16


def test_what_is_stored_is_not_drawn_again(run, server, tmp_path):
    first = run(models=("mle", "conditional"))
    assert len(server.completions) == 8
    assert run() == first
    assert len(server.completions) == 8
    server.models = {**server.models, "third": {}}
    board = run(models=("mle", "conditional", "third"), asked=range(5))
    assert {row["name"] for row in board["models"]} == {"conditional", "third"}
    assert len(server.completions) == 8 + 2 + 5, "the new prompt, and the new model"
    run("--temperature", 0, "--overwrite")
    assert len(server.completions) == 15 + 8, "other settings are other answers"
    assert all(list((tmp_path / "board" / "drawn").glob(pattern)) for pattern in ("mle.jsonl", "conditional.jsonl"))
    assert not (tmp_path / "board" / "drawn" / "mle").exists()


def test_a_job_that_is_interrupted_goes_on_with_what_it_has(run, server, tmp_path, monkeypatch):
    from phf_ray.evaluation.answers import run as module

    monkeypatch.setattr(module, "_AT_ONCE", 3)
    with monkeypatch.context() as until:
        numbers, add = itertools.count(1), AnswerStore.add

        def interrupt(self, arm, answer):
            if next(numbers) == 8:
                raise KeyboardInterrupt
            add(self, arm, answer)

        until.setattr(AnswerStore, "add", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(asked=range(12))
    stored = {name: len(AnswerStore(str(tmp_path / "board")).read(name)) for name in ("mle", "conditional")}
    before = len(server.completions)
    assert 0 < sum(stored.values()) < 24
    board = run(asked=range(12))
    assert len(server.completions) - before == 24 - sum(stored.values())
    assert board["models"][0]["n_total"] == 12


def refuse(what, status=400):
    def troubles(number, body):
        if what in body["prompt"] and body["model"] == "conditional":
            return JSONResponse({"error": {"message": "not this"}}, status_code=status)
        return None

    return troubles


def test_an_answer_that_a_server_refuses_is_null_with_its_reason_and_asked_for_again(run, server, tmp_path):
    server.troubles = refuse("do 2")
    with pytest.raises(IncompleteError, match="1 answers could not be drawn; the leaderboard counts them as failures"):
        run()
    row = answers(tmp_path, "conditional")[2]
    assert row["output"] is None
    assert re.match("refused: .*not this", row["error"])
    board = json.loads((tmp_path / "board" / "leaderboard.json").read_text())
    (model,) = board["models"]
    assert (model["n_total"], model["n_failed"], model["failures"]) == (3, 1, {"no_answer": 1})
    assert model["n_empty_answers"] == 0
    lengths = [len(one["output"]) for one in answers(tmp_path, "conditional") if one["output"] is not None]
    assert model["avg_length"] == int(sum(lengths) / 3), "of answers that there are"
    assert any("conditional has no answer to 1 of 4 prompts (refused x 1" in one for one in board["warnings"])
    assert not any("not named" in one for one in board["warnings"]), "no annotator failed"
    assert board["annotators"] == {"longer": 3}
    asked = len(server.completions)
    server.troubles = lambda number, body: None
    assert run()["models"][0]["n_failed"] == 0
    assert len(server.completions) == asked + 1


def test_the_reference_may_fail_too(run, server, tmp_path):
    server.troubles = refuse("do 2")
    with pytest.raises(IncompleteError):
        run(reference="conditional")
    board = json.loads((tmp_path / "board" / "leaderboard.json").read_text())
    assert board["models"][0]["failures"] == {"no_reference_answer": 1}
    from phf_ray.judging.board.outputs import reference_of
    from phf_ray.judging.board.stored import read_rows_file

    again = reference_of(read_rows_file(str(tmp_path / "board"))[0])
    assert [("error" in one) for one in again.outputs].count(True) == 1, (
        "an answer that is missing is never an empty one"
    )


def test_a_server_that_refuses_everything_ends_the_job(run, server, tmp_path):
    server.troubles = refuse("", status=403)
    with pytest.raises(ServiceError, match="not this"):
        run()
    assert not (tmp_path / "board" / "leaderboard.json").exists()


def test_a_prompt_that_leaves_no_room_is_a_failure_that_nobody_is_asked_for(run, server, tmp_path):
    board = run(asked=(0, 1, "x " * 200))
    assert board["models"][0]["n_failed"] == 1
    row = answers(tmp_path, "mle")[2]
    assert (row["output"], row["error"]) == (
        None,
        "too_long: the prompt leaves no room for an answer in the model's 128 positions",
    )
    assert len(server.completions) == 4


def test_equal_prompts_are_answered_once(run, server, tmp_path):
    run(asked=(1, 1, 2))
    assert len(server.completions) == 4
    assert len(answers(tmp_path, "mle")) == 3


def test_a_file_with_the_name_of_a_model_is_refused_before_anything_is_drawn(run, server, tmp_path):
    file = write_lines(tmp_path / "other.jsonl", [{**one, "output": "x", "generator": "mle"} for one in prompts(0, 1)])
    for words, reference in ((["--outputs", file], "mle"), ([], file)):
        with pytest.raises(ConfigError, match="--models and a file have a model called mle"):
            run(*words, reference=reference)
    assert server.completions == []


def test_a_dry_run_counts_and_asks_for_nothing(run, server, tmp_path, capsys):
    run(asked=range(3))
    asked = len(server.completions)
    capsys.readouterr()
    run("--dry-run", "--max-tokens", 300, asked=range(5))
    said = capsys.readouterr().out
    found = re.search(r"mle: 2 answers to draw of 5, at most ([\d,]+) tokens \(([\d,]+) of prompts\)", said)
    most, of_prompts = (int(one.replace(",", "")) for one in found.groups())
    assert most == of_prompts + 600
    assert "5 pairs to judge for each of conditional" in said
    assert len(server.completions) == asked


def test_the_prompts_may_be_those_of_the_reference(server, tmp_path):
    rows = [{**one, "output": "none", "generator": "davinci"} for one in prompts(0, 1, 2)]
    reference = write_lines(tmp_path / "reference.jsonl", rows)
    output = tmp_path / "board"
    command = ["--models", f"mle={server.url}", "--reference", reference, "--output", str(output), "--limit", "2"]
    assert leaderboard.main([*command, "--template", "plain"], judge=LongerWins()) == 0
    assert sorted(body["prompt"] for body in server.completions) == ["do 0", "do 1"]
    board = json.loads((output / "leaderboard.json").read_text())
    assert [(row["name"], row["n_total"], row["references"]) for row in board["models"]] == [("mle", 2, ["davinci"])]


def test_a_reference_that_is_no_model_to_rank_and_outputs_beside_models(run, server, tmp_path):
    rows = [{**one, "output": "short", "generator": "other"} for one in prompts(*range(4))]
    file = write_lines(tmp_path / "other.jsonl", rows)
    board = run("--outputs", file, models=("conditional",), reference=f"mle={server.url}")
    assert {row["name"]: row["references"] for row in board["models"]} == {"conditional": ["mle"], "other": ["mle"]}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--prompts", "p.jsonl"], "--models needs --reference"),
        (["--reference", "mle"], "--models needs --prompts FILE"),
        (["--reference", "mle", "--prompts", "none.jsonl"], "none.jsonl"),
        (
            ["--reference", "mle", "--prompts", "p.jsonl", "--temperature", "3"],
            "--temperature 3.0 is not between 0 and 2",
        ),
        (["--reference", "mle", "--prompts", "p.jsonl", "--top-p", "0"], "--top-p 0.0 is not between"),
        (["--reference", "mle", "--prompts", "p.jsonl", "--arm", "mle"], "names the reference alone, mle"),
        (["--reference", "mle", "--prompts", "p.jsonl", "--arm", "conditional"], "mle: --arm leaves this model out"),
        (["--reference", "mle", "--prompts", "p.jsonl", "--arm", "typo"], "no model is called typo"),
        (["--reference", "mle", "--prompts", "p.jsonl", "--annotators", "typo"], "typo"),
        (["--reference", "mle", "--prompts", "p.jsonl"], "outputs need --annotators"),
        (["--reference", "mle=http://localhost:1", "--prompts", "p.jsonl"], "--models has a model of that name"),
        (["--reference", "mle", "--prompts", "p.jsonl", "--name", "a"], "--name a is for --outputs"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_drawn(words, told, server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "p.jsonl", prompts(0, 1))
    with pytest.raises(ConfigError, match=re.escape(told)):
        leaderboard.main(
            ["--models", f"mle={server.url}", f"conditional={server.url}", "--output", str(tmp_path / "board"), *words]
        )
    assert server.completions == []
    assert not (tmp_path / "board").exists()


@pytest.mark.parametrize(
    ("template", "told"),
    [("none", "template none does not exist"), ("tokenizer", "the tokenizer of mle is on its server")],
)
def test_a_template_that_can_not_be_had(template, told, run, server):
    with pytest.raises(ConfigError, match=told):
        run("--template", template)
    assert server.completions == []


@pytest.mark.parametrize(("option", "value"), [("--max-tokens", "3"), ("--temperature", "0")])
def test_options_of_sampling_need_models(tmp_path, option, value):
    with pytest.raises(ConfigError, match=f"{option} belongs to --models"):
        leaderboard.main(["--comparisons", "a", option, value, "--output", str(tmp_path / "board")])


def test_a_prompt_that_no_file_can_hold_is_told_before_anything_is_drawn(server, tmp_path):
    file = write_lines(tmp_path / "p.jsonl", [*prompts(0), {"instruction": "a", "input": "b \ud83d"}])
    command = ["--models", f"a={server.url}", f"b={server.url}", "--reference", "a", "--prompts", file]
    with pytest.raises(DataError, match="input: character 2 is half of a surrogate pair"):
        leaderboard.main([*command, "--output", str(tmp_path / "board")], judge=LongerWins())
    assert server.completions == []
