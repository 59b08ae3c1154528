"""The frontier: its figures are those that runs and results stored; what is missing or unlike is said."""

import dataclasses
import json
import shutil

import pytest
from best_of_n_runs import ScriptedSampler, request_of, samples_in
from judged_rows import of_counts, rows_of
from rollout_rounds import rollout_row, write_overoptimized_run, write_round
from tiny_models import write_checkpoint

from jobs import frontier
from jobs.annotate import main as annotate
from phf_ray.config.rewards import RewardSpec
from phf_ray.errors import ConfigError, DataError
from phf_ray.evaluation.report.records import ArmInfo, Evaluation, KLInfo, Sample, ScenarioInfo
from phf_ray.evaluation.report.write import write_report
from phf_ray.judging.board.stored import BoardSettings
from phf_ray.judging.board.write import write_board
from phf_ray.measures import best_of_n_kl
from phf_ray.rollouts.against_base.answers import HeldOutSettings, draw_answers, held_out_prompts
from phf_ray.rollouts.against_base.arms import CandidateModel, compare
from phf_ray.rollouts.against_base.page import comparison_json
from phf_ray.rollouts.best_of_n.job import best_of_n
from phf_ray.rollouts.best_of_n.stages import Hardware
from phf_ray.rollouts.frontier.collect import collect
from phf_ray.rollouts.guard import read_figures
from phf_ray.rollouts.identity import check_rewards_identity
from phf_ray.rollouts.prompts import read_prompts
from phf_ray.rollouts.rewards import named_rewards
from phf_ray.rollouts.rewards.identities import model_identity
from phf_ray.runs.directory import RunDirectory

GOLD_OF_RUN = {"rule": "longer"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """One of each: base, run (over), best (of n), rounds (a report against the base), report (evaluate-lm), board."""
    made = tmp_path_factory.mktemp("made")
    write_checkpoint(made / "base")
    _run(made / "over", base=made / "base")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("phf_ray.rollouts.best_of_n.stages.build_sampler", ScriptedSampler)
        (gold,) = named_rewards("longer", option="--gold")
        best_of_n(
            request_of(made / "base", num=6, n=8, reward="shorter", gold=gold), str(made / "best"), hardware=Hardware()
        )
    _report_against_base(made)
    _evaluation(made / "report")
    settings = BoardSettings(num_resamples=20)
    write_board(str(made / "board"), rows_of([*of_counts("sft", 6, 4, 1), *of_counts("ppo", 8, 2, 1)]), settings)
    return made


def _run(run, *, base=None, **changes):
    run.mkdir()
    write_overoptimized_run(run, num_rounds=10, num_prompts=8, **changes)
    if base is not None:
        plan = {"checkpoint_path": str(base), "start": "start", "prompts_hash": "of the run"}
        RunDirectory(run).prepare(config=RunDirectory(run).read_config(), plan=plan)
        check_rewards_identity(run, {"rewards": {"helpful": {"weight": 1.0, "rule": "shorter"}}, "gold": GOLD_OF_RUN})


def _report_against_base(made):
    (made / "prompts.jsonl").write_text("".join(json.dumps({"text": f"the {n} "}) + "\n" for n in range(4)))
    settings = HeldOutSettings(gold=RewardSpec(rule="longer"), samples_per_prompt=2, max_tokens=4)
    prompts = read_prompts([str(made / "prompts.jsonl")], template=None).prompts
    rows = draw_answers(
        made / "base", held_out_prompts(prompts, made / "base", settings), store=made / "rounds/answers/base"
    )
    others = [
        CandidateModel("ppo", [dataclasses.replace(row, gold=row.gold + 1) for row in rows], minutes=2.5),
        CandidateModel("best_of_4", rows, kl_upper_bound=best_of_n_kl(4), learned=False),
    ]
    models = compare(CandidateModel("base", rows, learned=False), others, is_code=False)
    (made / "rounds/report.json").write_text(json.dumps(comparison_json(models)))


def _evaluation(folder):
    def kl(mean):
        return KLInfo(reference="mle", num_samples=9, num_impossible=0, per_sequence=(mean, 0.1), per_token=None,
                      per_byte=(0.1, 0.01), failures={"no_logprob": 3} if mean else {})  # fmt: skip

    arms = tuple(ArmInfo(name=name, model=name, kl=found) for name, found in (("mle", kl(0.0)), ("awr", kl(2.0)),
                                                                             ("far", None)))  # fmt: skip
    evaluation = Evaluation(
        arms=arms, scenarios=(ScenarioInfo(name="unconditional", num_samples=6),), seeds=(0,),
        scorer={"name": "pep8", "class_name": "PEP8Scorer", "unit": "violations"}, num_resamples=50,
    )  # fmt: skip
    samples = [
        Sample(arm.name, "unconditional", 0, index, None, "", f"x = {index}", "stop", 4, (index + place) / 10, None)
        for place, arm in enumerate(arms)
        for index in range(6)
    ]
    write_report(str(folder), samples, evaluation)


def figures_of(output):
    return json.loads((output / "frontier.json").read_text())


def draw(*results, output):
    assert frontier.main([*map(str, results), "--output", str(output)]) == 0
    return figures_of(output), (output / "frontier.html").read_text()


# --- Figures are those that are stored --------------------------------------------------------------------------------


def test_rounds_have_the_figures_of_their_rows_and_the_peak_and_the_stop_are_marked(made, tmp_path):
    content, page = draw(made / "over", output=tmp_path)
    (method,) = content["methods"]
    rounds = read_figures(made / "over")
    assert [point["gold"]["mean"] for point in method["points"]] == [one.gold.mean for one in rounds]
    assert [point["kl"]["mean"] for point in method["points"]] == [one.kl.mean for one in rounds]
    intervals = [[one.reward.interval.low, one.reward.interval.high] for one in rounds]
    assert [point["proxy"]["interval"] for point in method["points"]] == intervals
    golds = [one.gold.mean for one in rounds]
    assert method["peak"] == f"round {golds.index(max(golds))}"
    assert method["base"] == "round 0"
    answers = [len(row) for one in range(10) for row in _completion_ids(made / "over", one)]
    assert method["tokens_drawn"] == sum(answers)
    # No rule of its own; one that watches gold would have stopped it after the peak.
    assert method["stop"]["happened"] is False
    assert int(method["stop"]["where"].split()[1]) > golds.index(max(golds))
    assert f"would have, {method['stop']['where']}" in page
    assert 'id="mark-peak-over (rounds)"' in page
    assert 'id="mark-stop-gold-against-kl-over (rounds)"' in page


def _completion_ids(run, number):
    import pyarrow.parquet as pq

    table = pq.read_table(run / f"rollouts/round-{number:05d}/samples.parquet")
    return [ids for ids in table["completion_ids"].to_pylist() if ids is not None]


def test_a_run_with_rules_shows_where_they_stopped_it(tmp_path):
    _run(tmp_path / "ppo", stop={"kl": 3.0})
    content = collect([str(tmp_path / "ppo")]).as_json()
    kls = [one.kl.mean for one in read_figures(tmp_path / "ppo")]
    first = next(number for number, kl in enumerate(kls) if kl > 3)
    stop = content["methods"][0]["stop"]
    assert (stop["where"], stop["rule"], stop["happened"]) == (f"round {first}", "kl", True)


def test_a_best_of_n_has_its_stored_curve_at_the_bound_of_its_kl(made, tmp_path):
    content, page = draw(made / "best", output=tmp_path)
    (method,) = content["methods"]
    curve = json.loads((made / "best/curve.json").read_text())["points"]
    assert [point["where"] for point in method["points"]] == [f"n = {point['n']}" for point in curve]
    for point, stored in zip(method["points"], curve, strict=True):
        assert point["kl"] is None
        assert point["kl_at_most"] == best_of_n_kl(stored["n"])
        for worth in ("gold", "proxy"):
            assert [point[worth]["mean"], point[worth]["interval"]] == [
                stored[worth]["mean"],
                stored[worth]["interval"],
            ]
    assert method["base"] == "n = 1"
    assert method["tokens_drawn"] == sum(len(row["completion_ids"]) for row in samples_in(made / "best"))
    assert "at most 1.2" in page
    assert "Hollow triangles stand at the upper bound of their KL" in page
    assert "no minutes stored" in page
    assert "drawn with top_p 0.9, and the bound is that of the KL from such answers" in page


def test_models_against_their_base_have_the_figures_of_their_report(made, tmp_path):
    content, page = draw(made / "rounds", output=tmp_path)
    stored = json.loads((made / "rounds/report.json").read_text())["models"]
    assert [method["kind"] for method in content["methods"]] == ["base", "model", "model"]
    for method, row in zip(content["methods"], stored, strict=True):
        (point,) = method["points"]
        assert [point["gold"]["mean"], point["gold"]["interval"]] == [row["gold"]["mean"], row["gold"]["interval"]]
        assert (point["kl"] or {}).get("mean") == (row["kl"] or {}).get("mean")
        assert (point["kl_at_most"], method["minutes"]) == (row["kl_upper_bound"], row["minutes"])
    assert "ppo: no proxy measured; no tokens stored" in page


def test_scores_of_evaluate_lm_become_gold_on_a_plot_of_their_own(made, tmp_path):
    content, page = draw(made / "report", made / "over", output=tmp_path)
    table = json.loads((made / "report/report.json").read_text())["table"]
    for method, row in zip(content["methods"], table, strict=False):
        (point,) = method["points"]
        assert method["kl_is"] == "KL(reference || method)"
        assert point["gold"]["mean"] == -row["score"]
        assert point["gold"]["interval"] == [-row["score_ci"][1], -row["score_ci"][0]]
    base, awr, far = content["methods"][:3]
    assert (base["kind"], awr["kind"]) == ("base", "model")
    assert awr["points"][0]["kl"]["interval"] == pytest.approx([2 - 0.196, 2 + 0.196], abs=1e-3)
    assert "no KL measured" in far["missing"]
    told = "its KL leaves out texts that the reference gave no log-probability of (no_logprob x 3)"
    assert [told in method["notes"] for method in (base, awr)] == [False, True]
    assert "On no plot, because they lack KL, or gold and proxy alike: far." in page
    assert 'id="mark-gold-against-kl-of-the-reference-awr"' in page
    assert 'id="mark-gold-against-kl-of-the-reference-far"' not in page
    assert any("plots of their own" in note for note in content["notes"])


def test_a_leaderboard_and_judged_rows_have_matrix_and_ratings(made, tmp_path):
    outputs = []
    for name, words in (("short", "a"), ("long", "a longer answer")):
        rows = [{"instruction": f"do {n}", "input": "", "output": f"{words} {n}", "generator": name} for n in range(6)]
        outputs.append(tmp_path / f"{name}.json")
        outputs[-1].write_text(json.dumps(rows))
    (tmp_path / "pool.yml").write_text("annotators: [{name: longer, judge: {rule: longer}}]")
    judged = ["--annotators", str(tmp_path / "pool.yml"), "--output", str(tmp_path / "judged"), "--in-process"]
    assert annotate(["--head2head", *map(str, outputs), *judged]) == 0
    content, page = draw(made / "board", tmp_path / "judged", output=tmp_path / "out")
    stored = json.loads((made / "board/leaderboard.json").read_text())
    board, rows = content["boards"]
    assert (board["ratings"], board["matrix"]) == (stored["ratings"], stored["matrix"])
    assert [(row["first"], row["second"], row["win_rate"]) for row in rows["matrix"]] == [("long", "short", 100.0)]
    assert page.count('data-rating="') == 5
    assert "Only judgements were given" in page


def test_fits_are_shown_where_the_points_allow_them_and_else_the_reason(made, tmp_path):
    content, page = draw(made / "over", made / "best", output=tmp_path)
    rounds, best = (method["fits"] for method in content["methods"])
    assert rounds["gold"]["form"] == "reinforcement"
    assert rounds["gold"]["alpha"] == pytest.approx(0.9, abs=0.3)
    assert 'data-fit="over (rounds), gold"' in page
    assert best["gold"] == {"reason": "5 points have a KL above 0; a fit needs 8"}
    assert "No fit of gold of best (best of n): 5 points" in page


def test_a_best_of_many_is_fitted_by_the_form_of_best_of_n(made, tmp_path):
    shutil.copytree(made / "best", tmp_path / "best")
    curve = json.loads((made / "best/curve.json").read_text())
    points = []
    for n in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32):
        distance = best_of_n_kl(n) ** 0.5
        worth = {"mean": distance * (0.9 - 0.3 * distance), "interval": None, "num_prompts": 6}
        points.append({"n": n, "proxy": worth, "gold": worth, "kl_upper_bound": distance**2})
    (tmp_path / "best/curve.json").write_text(json.dumps({**curve, "points": points}))
    fit = collect([str(tmp_path / "best")]).methods[0].fits["gold"]
    assert (fit.form, fit.alpha, fit.beta) == ("best of n", pytest.approx(0.9), pytest.approx(0.3))


# --- What is missing, and what is unlike ------------------------------------------------------------------------------


def test_what_a_run_lacks_is_said_and_no_zero_stands_for_it(tmp_path):
    rows = [rollout_row(prompt, reward=1.0, logprobs=[(-1.0, -1.5)]) for prompt in "ab"]
    for number in range(2):
        write_round(tmp_path / "run", number, rows)
    content, page = draw(tmp_path / "run", output=tmp_path / "out")
    (method,) = content["methods"]
    assert method["missing"] == ["no gold measured", "no minutes stored"]
    assert [point["gold"] for point in method["points"]] == [None, None]
    assert (method["peak"], method["stop"]) == (None, None)
    assert "without gold, nothing says where a guard would have stopped it" in page
    assert "the run has not finished: 2 rounds so far" in page
    assert "<td>not measured</td>" in page
    assert "gold-against-kl" not in page
    assert "proxy-against-kl" in page


def test_one_base_and_one_gold_are_known_across_kinds_and_other_prompts_are_warned_of(made, tmp_path, capsys):
    content, page = draw(made / "over", made / "best", made / "rounds", output=tmp_path)
    (warning,) = content["warnings"]
    assert warning.startswith("They answer different prompts")
    assert "over (rounds) (24 prompts) | best (best of n) (6 prompts) | base, ppo, best_of_4 (4 prompts)" in warning
    assert warning.endswith("none in common")
    assert f'<p class="warning">{warning}.</p>' in page
    assert f"warning: {warning}" in capsys.readouterr().out
    assert not any("base is the same" in note or "gold reward is" in note for note in content["notes"])


def test_another_base_and_another_gold_are_warned_of(made, tmp_path):
    write_checkpoint(tmp_path / "other", seed=1)
    run = tmp_path / "over"
    shutil.copytree(made / "over", run)
    (run / "plan.json").write_text(
        json.dumps({"checkpoint_path": str(tmp_path / "other"), "prompts_hash": "of the run"})
    )
    (run / "rollouts/rewards.json").write_text(json.dumps({"rewards": {}, "gold": {"rule": "shorter"}}))
    content = collect([str(made / "over"), f"again={run}"]).as_json()
    starts = [warning.partition(",")[0] for warning in content["warnings"]]
    assert starts == ["They start from different base models", "Their gold rewards are not the same"]
    assert content["warnings"][0].endswith("over (rounds) | again (rounds)")
    assert "Whether the proxy is the same can't be told of again (rounds)" in content["notes"]


def test_different_proxies_have_plots_of_their_own(made, tmp_path):
    run = tmp_path / "weighted"
    shutil.copytree(made / "over", run)
    heavy = {"rewards": {"helpful": {"weight": 100.0, "rule": "shorter"}}, "gold": GOLD_OF_RUN}
    (run / "rollouts/rewards.json").write_text(json.dumps(heavy))
    content, page = draw(made / "over", run, output=tmp_path / "out")
    assert any(note.startswith("Their proxies are different rewards") for note in content["notes"])
    assert 'id="mark-proxy-against-kl-over (rounds)"' in page
    assert 'id="mark-proxy-against-kl-2-weighted (rounds)"' in page
    assert content["warnings"] == []


def test_a_reward_model_is_known_across_kinds_while_its_folder_is_there(made, tmp_path):
    run, best, reward = (tmp_path / name for name in ("run", "best", "reward"))
    for name, copy in (("over", run), ("best", best), ("base", reward)):
        shutil.copytree(made / name, copy)
    (run / "rollouts/rewards.json").write_text(json.dumps({"rewards": {"r": {"weight": 1.0, "scorer": "told else"}}}))
    config = RunDirectory(run).read_config()
    config["rollouts"]["reward"] = [{"model": str(reward)}]
    (run / "config.json").write_text(json.dumps(config))
    manifest = json.loads((best / "manifest.json").read_text())
    manifest["settings"]["reward"] = {"r": {"weight": 1.0, "model": model_identity(str(reward))}}
    (best / "manifest.json").write_text(json.dumps(manifest))

    def told():
        return [note for note in collect([str(run), str(best)]).unlike.notes if "prox" in note]

    assert told() == []
    shutil.rmtree(reward)
    assert told() == ["Whether the proxy is the same can't be told of best (best of n)"]


# --- What is refused --------------------------------------------------------------------------------------------------


def test_what_is_unknown_is_refused_with_what_is_accepted(made, tmp_path):
    def refused(*results):
        with pytest.raises(ConfigError) as found:
            frontier.main([*map(str, results), "--output", str(tmp_path / "out")])
        assert not (tmp_path / "out").exists()
        return str(found.value)

    empty = tmp_path / "empty"
    empty.mkdir()
    told = refused(made / "over", empty)
    for what in ("phf train-rl", "phf best-of-n", "phf rounds", "phf evaluate-lm", "phf leaderboard", "phf annotate"):
        assert what in told
    assert "is not there; give folders" in refused(tmp_path / "nowhere")
    assert "is a file; give folders" in refused(made / "prompts.jsonl")
    assert "holds a model or a run of phf train-lm" in refused(made / "base")
    assert f"give the folder of the report against the base, {made / 'rounds'}" in refused(made / "rounds/answers/base")
    assert f"name them: {made / 'best'}, {made / 'board'}" in refused(made)
    below = ["--output", str(made / "prompts.jsonl" / "out")]
    with pytest.raises(ConfigError, match="is a file, or is below one"):
        frontier.main([str(made / "over"), *below])
    assert "is named 2 times" in refused(made / "over", f"again={made / 'over'}")
    assert "write NAME=DIR" in refused("=x")


def test_unfinished_and_damaged_results_are_named(made, tmp_path):
    best = tmp_path / "best"
    shutil.copytree(made / "best", best)
    (best / "_SUCCESS").unlink()
    with pytest.raises(ConfigError, match="holds a best-of-n that is not finished"):
        collect([str(best)])
    (best / "_SUCCESS").touch()
    (best / "curve.json").write_text('{"points": [{"n": 1}], "num_prompts": 1}')
    with pytest.raises(DataError, match=r"curve.json or manifest.json is not what best-of-n writes"):
        collect([str(best)])
    (best / "curve.json").unlink()
    with pytest.raises(ConfigError, match="holds answers without rewards"):
        collect([str(best)])
    report = tmp_path / "rounds"
    report.mkdir()
    (report / "report.json").write_text('{"models": [{"name": "x", "kl_upper_bound": NaN}]}')
    with pytest.raises(DataError, match=r"report.json is not what the job writes"):
        collect([str(report)])


def test_names_may_be_hostile_and_those_that_occur_twice_say_where_from(made, tmp_path):
    for folder in ("a", "b"):
        shutil.copytree(made / "over", tmp_path / folder / "_$x$<b>")
    runs = [tmp_path / folder / "_$x$<b>" for folder in ("a", "b")]
    content, page = draw(*runs, f"<script>$x\u202e={made / 'best'}", output=tmp_path / "out")
    names = [method["name"] for method in content["methods"]]
    assert names[:2] == ["a/_$x$<b>", "b/_$x$<b>"]
    assert "<script" not in page
    assert "<b>" not in page
    assert "\u202e" not in page
