"""Best of n in one process: what it writes, how it goes on after a kill, and what it refuses."""

import json
import uuid
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from best_of_n_runs import ScriptedSampler, prompts_of, request_of, samples_in, write_prompts
from feedback_files import bytes_of
from feedback_runs import make_config, train, write_feedback
from tiny_models import write_checkpoint

from jobs.annotate import main as annotate
from jobs.best_of_n import main
from jobs.leaderboard import main as leaderboard
from phf_ray.errors import ConfigError, DataError, IncompleteError
from phf_ray.feedback import read_feedback, read_feedback_manifest
from phf_ray.judging.question import Failure
from phf_ray.rollouts.best_of_n import plan as plan_module
from phf_ray.rollouts.best_of_n.job import best_of_n, best_of_n_here
from phf_ray.rollouts.best_of_n.stages import Hardware
from phf_ray.rollouts.rewards import named_rewards
from phf_ray.rollouts.sampling import SamplingSettings


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def scripted(monkeypatch):
    """No model: samples are words by their seed."""
    monkeypatch.setattr("phf_ray.rollouts.best_of_n.stages.build_sampler", ScriptedSampler)
    monkeypatch.setattr(ScriptedSampler, "asked", type(ScriptedSampler.asked)())
    monkeypatch.setattr(plan_module, "_FEWEST", 16)
    return ScriptedSampler


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory):
    """A run of the command, with a gold reward: the folder of its files."""
    folder = tmp_path_factory.mktemp("run")
    prompts = write_prompts(folder / "prompts.json", 6)
    command = ["--model", str(model), "--prompts", prompts, "--reward", "shorter", "--gold", "longer", "--n", "4"]
    assert main([*command, "--template", "plain", "--max-tokens", "16", "--output", str(folder / "out")]) == 0
    return folder


# --- What is written --------------------------------------------------------------------------------------------------


def test_all_samples_and_rewards_are_kept_and_the_best_is_marked(finished):
    rows = samples_in(finished / "out")
    assert len(rows) == 24
    for begin in range(0, 24, 4):
        own = rows[begin : begin + 4]
        assert [row["sample"] for row in own] == [0, 1, 2, 3]
        assert len({row["prompt_id"] for row in own}) == 1
        best = max(own, key=lambda row: row["reward"])
        assert [row["is_best"] for row in own] == [row is best for row in own]
    assert all(row["reward"] == row["reward_shorter"] == -row["gold"] == -len(row["completion"]) for row in rows)
    assert all(len(row["completion_ids"]) <= 16 for row in rows)
    assert len({row["completion"] for row in rows}) == 24


def test_final_rows_are_alpaca_farms_and_leaderboard_and_annotate_take_them(finished, tmp_path):
    rows = json.loads((finished / "out" / "best_of_n.json").read_text())
    best = [row for row in samples_in(finished / "out") if row["is_best"]]
    assert [row["output"] for row in rows] == [row["completion"] for row in best]
    assert rows[0] | {"output": ""} == {
        "instruction": "Write 0 words",
        "input": "now",
        "output": "",
        "generator": "tiny-best-of-4",
        "decoder_name_or_path": rows[0]["decoder_name_or_path"],
        "scorer_name_or_path": "shorter",
        "sample_mode": "best_of_n_temperature=1.0,max_new_tokens=16,seed=0",
        "reward": best[0]["reward"],
        "datasplit": "eval",
    }
    reference = [{**row, "output": row["output"] + " and more", "generator": "base"} for row in rows]
    (tmp_path / "reference.json").write_text(json.dumps(reference))
    outputs = ["--outputs", str(finished / "out" / "best_of_n.json"), "--reference", str(tmp_path / "reference.json")]
    (tmp_path / "pool.yml").write_text("annotators: [{name: shorter, judge: {rule: shorter}}]")
    assert leaderboard([*outputs, "--annotators", str(tmp_path / "pool.yml"), "--output", str(tmp_path / "board")]) == 0
    board = json.loads((tmp_path / "board" / "leaderboard.json").read_text())
    assert [(one["name"], one["win_rate"]) for one in board["models"]] == [("tiny-best-of-4", 100.0)]


def test_the_best_answers_are_a_corpus_that_training_learns_from(finished, tmp_path):
    folder = write_feedback(tmp_path)
    corpus = str(finished / "out" / "examples")
    manifest, rows = read_feedback_manifest(corpus), list(read_feedback(corpus))
    best = [row for row in samples_in(finished / "out") if row["is_best"]]
    assert (manifest.kind, manifest.rows) == ("examples", 6)
    assert [(row.prompt.instruction, row.completion) for row in rows] == [
        (row["instruction"], row["completion"]) for row in best
    ]
    assert json.loads(rows[0].meta)["reward"] == best[0]["reward"]
    config = make_config(folder, objective={"name": "MLE"}, num_epochs=1, effective_batch_size=2, save_steps=10)
    config = config.model_copy(update={"dataset": config.dataset.model_copy(update={"held_out_fraction": 0.0})})
    run, start = train(folder, "expert", config, corpus=corpus)
    start()
    assert run.latest_checkpoint() is not None


def test_the_curve_and_the_page_show_gold_beside_the_reward(finished, capsys):
    curve = json.loads((finished / "out" / "curve.json").read_text())
    rows = samples_in(finished / "out")
    first, last = curve["points"][0], curve["points"][-1]
    assert [point["n"] for point in curve["points"]] == [1, 2, 3, 4]
    assert first["proxy"]["mean"] == pytest.approx(sum(row["reward"] for row in rows) / 24)
    assert last["proxy"]["mean"] == pytest.approx(sum(row["reward"] for row in rows if row["is_best"]) / 6)
    assert last["gold"]["mean"] == pytest.approx(-last["proxy"]["mean"])
    page = (finished / "out" / "report.html").read_text()
    assert page.count('<tr data-n="') == 4
    assert "<script" not in page


def test_decoded_rows_hold_all_answers_and_reranking_them_picks_the_same(model, finished, tmp_path):
    prompts = str(finished / "prompts.json")
    decode = ["--mode", "decode", "--model", str(model), "--prompts", prompts, "--template", "plain"]
    assert main([*decode, "--n", "4", "--max-tokens", "16", "--output", str(tmp_path / "decoded")]) == 0
    file = tmp_path / "decoded" / "best_of_n.json"
    rows = json.loads(file.read_text())
    wanted = samples_in(finished / "out")
    assert [text for row in rows for text in row["output"]] == [row["completion"] for row in wanted]
    assert set(rows[0]) == {
        "instruction", "input", "output", "prompt", "decoder_name_or_path", "sample_mode", "datasplit"
    }  # fmt: skip
    assert not (tmp_path / "decoded" / "curve.json").exists()
    assert "reward" not in pq.read_schema(tmp_path / "decoded" / "samples.parquet").names
    pool = tmp_path / "pool.yml"
    pool.write_text("annotators: [{name: longer, judge: {rule: longer}}]")
    output = str(tmp_path / "judged")
    assert annotate(["--samples", str(file), "--annotators", str(pool), "--output", output, "--in-process"]) == 0

    rerank = ["--mode", "rerank", "--prompts", str(file), "--reward", "shorter"]
    assert main([*rerank, "--output", str(tmp_path / "reranked")]) == 0
    reranked = json.loads((tmp_path / "reranked" / "best_of_n.json").read_text())
    best = [row for row in wanted if row["is_best"]]
    assert [row["top_index"] for row in reranked] == [[row["sample"]] for row in best]
    assert [row["top_sequence"] for row in reranked] == [[row["prompt"] + row["completion"]] for row in best]
    assert [row["rewards"] for row in reranked] == [
        [row["reward"] for row in wanted[begin : begin + 4]] for begin in range(0, 24, 4)
    ]
    assert reranked[0]["scorer_name_or_path"] == "shorter"


def test_one_decoded_sample_is_a_text(model, tmp_path):
    request = request_of(model, num=2, n=1, mode="decode")
    best_of_n(request, str(tmp_path / "out"))
    assert all(isinstance(row["output"], str) for row in json.loads((tmp_path / "out" / "best_of_n.json").read_text()))


# --- Kills and failures -----------------------------------------------------------------------------------------------


def test_a_killed_run_goes_on_with_the_missing_parts_and_ends_byte_for_byte(scripted, model, tmp_path):
    request = request_of(model)
    best_of_n(request, str(tmp_path / "whole"))
    assert len(scripted.asked) == 160
    scripted.asked.clear()

    def killed_after(num):
        def run(work, rows):
            for done, outcome in enumerate(best_of_n_here(work, rows)):
                if done == num:
                    raise KeyboardInterrupt
                yield outcome

        return run

    for num in (2, 0, 3):
        with pytest.raises(KeyboardInterrupt):
            best_of_n(request, str(tmp_path / "killed"), runner=killed_after(num))
    assert len(list((tmp_path / "killed" / "parts").glob("rewards-*"))) == 8
    assert best_of_n(request, str(tmp_path / "killed")).manifest["samples"] == 160
    assert set(scripted.asked.values()) == {1}, "a stored sample was drawn again"
    assert bytes_of(tmp_path / "killed") == bytes_of(tmp_path / "whole")
    scripted.asked.clear()
    assert best_of_n(request, str(tmp_path / "killed")).manifest["samples"] == 160
    assert not scripted.asked


def test_a_run_killed_between_sampling_and_rewarding_samples_nothing_again(scripted, model, tmp_path, monkeypatch):
    request = request_of(model, reward="own_rewarders:WordRewarder")
    with monkeypatch.context() as broken:
        broken.setattr("own_rewarders.WordRewarder.rewards", lambda *_: [][0])
        with pytest.raises(IndexError):
            best_of_n(request, str(tmp_path / "out"))
    assert best_of_n(request, str(tmp_path / "out")).manifest["failed"] == 0
    assert set(scripted.asked.values()) == {1}


def test_a_part_that_was_torn_is_drawn_again(scripted, model, tmp_path):
    request = request_of(model)

    def torn(work, rows):
        yield from best_of_n_here(work, rows[:1])
        for name in ("samples", "rewards"):
            file = tmp_path / "out" / "parts" / f"{name}-00000.parquet"
            file.write_bytes(file.read_bytes()[:100])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        best_of_n(request, str(tmp_path / "out"), runner=torn)
    assert best_of_n(request, str(tmp_path / "out")).manifest["samples"] == 160


def test_what_a_server_did_not_answer_is_asked_again_and_nothing_else(scripted, model, tmp_path, monkeypatch):
    request = request_of(model)
    down = staticmethod(lambda prompt, sample: Failure("unanswered: no server") if sample % 2 else None)
    with monkeypatch.context() as without:
        without.setattr(scripted, "script", down)
        with pytest.raises(
            IncompleteError, match=r"160 samples have no answer .* sample: unanswered; the first: unans"
        ):
            best_of_n(request, str(tmp_path / "out"))
    asked = dict(scripted.asked)
    scripted.asked.clear()
    finished = best_of_n(request, str(tmp_path / "out"))
    assert finished.manifest["failures"] == {}
    again = set(asked) & set(scripted.asked)
    assert again
    assert all(sample % 2 for _, sample in again), "a sample that was there was drawn again"


def test_a_reward_that_was_not_given_is_asked_for_again_and_the_others_stay(scripted, model, tmp_path, monkeypatch):
    asked = []

    def rewards(self, answers):
        asked.append(len(answers))
        return [
            Failure("unanswered: x") if down and one.completion.endswith("3") else 1.0 * len(one.completion)
            for one in answers
        ]

    monkeypatch.setattr("own_rewarders.WordRewarder.rewards", rewards)
    request, down = request_of(model, reward="own_rewarders:WordRewarder"), True
    with pytest.raises(IncompleteError, match="reward WordRewarder: unanswered"):
        best_of_n(request, str(tmp_path / "out"), max_failed_fraction=0.1)
    down, before = False, sum(asked)
    finished = best_of_n(request, str(tmp_path / "out"))
    assert finished.manifest["failed"] == 0
    assert sum(asked) - before < 160
    rows = samples_in(tmp_path / "out")
    assert [row["reward"] for row in rows] == [len(row["completion"]) for row in rows]


def test_a_failure_is_null_with_its_reason_and_the_best_of_the_others_is_picked(scripted, model, tmp_path, monkeypatch):
    def script(prompt, sample):
        return Failure("model_failed: NaN") if sample == 2 and prompt.text.startswith("Write 1") else None

    monkeypatch.setattr(scripted, "script", staticmethod(script))
    spec = "{class_name: 'own_rewarders:WordRewarder', settings: {word: word}, name: words}"
    finished = best_of_n(request_of(model, reward=spec), str(tmp_path / "out"))
    assert finished.manifest["failures"] == {"sample: model_failed": 11}
    failed = [row for row in samples_in(tmp_path / "out") if row["error"] is not None]
    assert len(failed) == 11
    assert all(row["completion"] is None and row["reward"] is None and not row["is_best"] for row in failed)
    assert {row["error"] for row in failed} == {"model_failed: NaN"}
    assert any("11 samples have no answer or no reward: 11 sample: model_failed" in one for one in finished.warnings)


def test_nan_rewards_are_null_and_prompts_with_equal_rewards_are_named(scripted, model, tmp_path, monkeypatch):
    def rewards(self, answers):
        return [float("nan") if answer.completion.endswith("0") else 7.0 for answer in answers]

    monkeypatch.setattr("own_rewarders.WordRewarder.rewards", rewards)
    request = request_of(model, reward="own_rewarders:WordRewarder")
    with pytest.raises(IncompleteError, match=r"3\d of 160 .* 3\d reward WordRewarder: not_finite"):
        best_of_n(request, str(tmp_path / "out"), max_failed_fraction=0.2)
    finished = best_of_n(request, str(tmp_path / "out"), max_failed_fraction=0.3)
    assert finished.manifest["prompts_with_equal_rewards"] == 40
    assert any("40 of 40 prompts have the same reward for all samples" in one for one in finished.warnings)
    assert any("one of them is 'Write 0 words'" in one for one in finished.warnings)
    rows = samples_in(tmp_path / "out")
    assert {row["error"] for row in rows if row["sample"] == 0} == {"WordRewarder: not_finite: the reward is nan"}
    assert all(row["is_best"] == (row["sample"] == 1) for row in rows)


def test_a_prompt_that_is_too_long_is_counted_by_name(model, tmp_path):
    prompts = prompts_of(12)
    long = type(prompts[0])("long", "word " * 70, prompts[0].prompt)
    finished = best_of_n(request_of(model, prompts=(*prompts, long), n=2), str(tmp_path / "out"))
    assert finished.manifest["failures"] == {"sample: prompt_too_long": 2}
    assert finished.manifest["prompts_without_best"] == 1
    assert finished.manifest["examples"] == 12


def test_more_samples_than_the_cache_holds_take_turns(model, tmp_path):
    request = request_of(model, num=2, n=12, sampling=SamplingSettings(max_tokens=12))
    best_of_n(request, str(tmp_path / "roomy"))
    best_of_n(request, str(tmp_path / "narrow"), hardware=Hardware({"cache_gb": 1e-5}))
    texts = [[row["completion"] for row in samples_in(tmp_path / name)] for name in ("roomy", "narrow")]
    assert texts[0] == texts[1]


# --- Refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"n": 2}, "--n"),
        ({"seed": 1}, "--seed"),
        ({"sampling": SamplingSettings(max_tokens=17)}, "--temperature, --top-p, --top-k, --max-tokens"),
        ({"rewards": named_rewards("{rule: longer, weight: 2}", option="")}, "--reward"),
        ({"gold": named_rewards("shorter", option="")[0]}, "--gold"),
        ({"prompts": prompts_of(41)}, "--prompts"),
        ({"prompts": tuple(replace(one, row={"solution": 3}) for one in prompts_of(40))}, "--prompts"),
        ({"template": "{instruction}!"}, "--template"),
        ({"name": "other"}, "--name"),
    ],
)
def test_a_changed_setting_is_refused_by_name(scripted, model, tmp_path, changes, named):
    best_of_n(request_of(model), str(tmp_path / "out"))
    with pytest.raises(ConfigError, match=f"was begun with another {named}.*--restart"):
        best_of_n(request_of(model, **changes), str(tmp_path / "out"))
    assert best_of_n(request_of(model, **changes), str(tmp_path / "out"), restart=True).manifest["samples"]


def test_changed_weights_are_refused(scripted, tmp_path):
    model = write_checkpoint(tmp_path / "model")
    best_of_n(request_of(model), str(tmp_path / "out"))
    write_checkpoint(tmp_path / "model", seed=1)
    with pytest.raises(ConfigError, match=r"--model \(or its weights have changed\)"):
        best_of_n(request_of(model), str(tmp_path / "out"))


def test_a_command_that_was_refused_leaves_its_place_to_the_corrected_one(model, finished, tmp_path):
    command = ["--model", str(model), "--prompts", str(finished / "prompts.json"), "--template", "plain"]
    command += ["--reward", "longer", "--n", "2", "--output", str(tmp_path / "out")]
    with pytest.raises(ConfigError, match="give at most 95"):
        main([*command, "--max-tokens", "96"])
    assert main([*command, "--max-tokens", "4"]) == 0
    with pytest.raises(ConfigError, match="was begun with another --temperature"):
        main([*command, "--max-tokens", "5"])


def test_two_commands_on_one_output_do_not_disturb_each_other(scripted, model, tmp_path):
    output = tmp_path / "out"

    def and_another(work, rows):
        for options in ({}, {"restart": True}):
            with pytest.raises(ConfigError, match=f"--output {output}: another command is working on it; wait"):
                best_of_n(request_of(model), str(output), **options)
        return best_of_n_here(work, rows)

    finished = best_of_n(request_of(model), str(output), runner=and_another)
    assert best_of_n(request_of(model), str(output)).manifest == finished.manifest


def test_where_nothing_keeps_commands_apart_one_without_samples_may_be_under_way(scripted, model):
    output = f"memory://{uuid.uuid4().hex}"

    def and_another(work, rows):
        with pytest.raises(ConfigError, match="was begun with another --n"):
            best_of_n(request_of(model, n=3), output)
        return best_of_n_here(work, rows)

    assert best_of_n(request_of(model), output, runner=and_another).manifest


def test_a_folder_of_others_is_left_alone(scripted, model, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty"):
        best_of_n(request_of(model), str(tmp_path / "out"), restart=True)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"


ROWS = [{"instruction": "a", "output": ["x", "yy"]}, {"instruction": "b", "output": ["x", "yy"]}]


@pytest.mark.parametrize(
    ("rows", "options", "error", "message"),
    [
        ([ROWS[0], {"instruction": "b", "output": ["x"]}], [], DataError, "has 1 answers, and .* has 2; every row"),
        (ROWS, ["--n", "3"], ConfigError, "--n 3, but the rows of .* hold 2 answers"),
        ([ROWS[0], ROWS[0]], [], DataError, "put their answers into one row"),
        ([{"instruction": "a", "output": [1]}], [], DataError, r"output is \[1\]"),
        ([{"instruction": "a"}], [], DataError, "output is None"),
        ([{"instruction": "a", "prompt": "a \ud83d", "output": ["x"]}], [], DataError, "2 of the prompt is half of a"),
        (ROWS, ["--model", "MODEL"], ConfigError, "leave out --model"),
    ],
)
def test_answers_that_cannot_be_reranked_are_named(model, tmp_path, rows, options, error, message):
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    command = ["--mode", "rerank", "--prompts", str(tmp_path / "rows.json"), "--reward", "longer"]
    options = [str(model) if option == "MODEL" else option for option in options]
    with pytest.raises(error, match=message):
        main([*command, *options, "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_fewer_answers_than_there_are_may_be_reranked_and_null_is_a_failure(tmp_path):
    (tmp_path / "rows.json").write_text(
        json.dumps([*ROWS, {"instruction": "c", "output": [None, "y"], "dataset": "\ud83d"}])
    )
    command = ["--mode", "rerank", "--prompts", str(tmp_path / "rows.json"), "--reward", "longer"]
    assert main([*command, "--output", str(tmp_path / "out")]) == 0
    reranked = json.loads((tmp_path / "out" / "best_of_n.json").read_text())
    assert [row["top_index"] for row in reranked] == [[1], [1], [1]]
    assert reranked[2]["rewards"] == [None, 1.0]
    assert reranked[2]["dataset"] == "\ufffd", "no file could hold half of a character"
    assert main([*command, "--n", "1", "--output", str(tmp_path / "one")]) == 0


def test_files_of_judges_are_found_whatever_folder_an_actor_works_in(tmp_path, monkeypatch):
    for name in ("here", "elsewhere"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here" / "pool.yml").write_text("annotators: [{name: longer, judge: {rule: longer}}]")
    for name, rows in (
        ("rows", ROWS),
        ("base", [{"instruction": one, "output": "x", "generator": "b"} for one in "ab"]),
    ):
        (tmp_path / "here" / f"{name}.json").write_text(json.dumps(rows))

    def elsewhere(work, rows):
        monkeypatch.chdir(tmp_path / "elsewhere")
        return best_of_n_here(work, rows)

    monkeypatch.setattr("phf_ray.rollouts.best_of_n.job.best_of_n_here", elsewhere)
    reward = "{annotators: {pool: pool.yml, reference: base.json, cache: cache}}"
    assert main(["--mode", "rerank", "--prompts", "rows.json", "--reward", reward, "--output", "out"]) == 0
    assert [row["reward"] for row in samples_in(tmp_path / "here" / "out")] == [0.5, 1.0] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--n", "0"], "--n 0 is below 1"),
        (["--temperature", "-1"], "temperature is -1"),
        (["--top-p", "nan"], "top_p is nan"),
        (["--max-tokens", "96"], "--max-tokens 96: the model's context is 96 tokens"),
        (["--mode", "decode"], "--mode decode rewards nothing"),
        (["--control", "good"], "the model has no control tokens"),
        (["--style", "chat"], "--style chat is for servers"),
        (["--gold", "[{rule: longer}, {rule: shorter}]"], "--gold names 2 rewards"),
        (["--reward", "longer", "longer"], "2 rewards are called 'longer'"),
        (["--max-failed-fraction", "nan"], "max_failed_fraction nan"),
        (["--template", "nothing"], "template nothing does not exist"),
    ],
)
def test_wrong_options_are_refused(model, finished, tmp_path, options, message):
    given = dict(zip(("--template", "--reward", "--max-tokens"), ("plain", "longer", "16"), strict=True))
    given = {name: value for name, value in given.items() if name not in options}
    command = [word for pair in given.items() for word in pair]
    always = ["--model", str(model), "--prompts", str(finished / "prompts.json")]
    with pytest.raises(ConfigError, match=message):
        main([*always, *command, *options, "--output", str(tmp_path / "out")])


def test_instructions_without_words_around_them_are_refused(model, finished, tmp_path):
    command = ["--model", str(model), "--prompts", str(finished / "prompts.json"), "--reward", "longer"]
    with pytest.raises(ConfigError, match="give --template alpaca, hh, plain or a file, or --template none"):
        main([*command, "--output", str(tmp_path / "out")])
    assert main([*command, "--template", "none", "--output", str(tmp_path / "out"), "--dry-run"]) == 0
    with pytest.raises(ConfigError, match="--mode best-of-n needs --model"):
        main(["--prompts", str(finished / "prompts.json"), "--reward", "longer", "--output", str(tmp_path / "out")])


def test_an_output_among_the_prompts_is_refused(model, finished):
    command = ["--model", str(model), "--prompts", str(finished), "--reward", "longer", "--template", "plain"]
    with pytest.raises(ConfigError, match="the next start would read it as prompts"):
        main([*command, "--output", str(finished / "new")])
