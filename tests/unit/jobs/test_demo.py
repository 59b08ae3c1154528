import json
from types import SimpleNamespace

import pytest

from jobs import demo, demo_seeds, learned_reward, pareto, rounds
from jobs.demo import BAD, GOOD, MLE, SKIPPED_FOLDERS, copy_standard_library, judge
from phf_ray.errors import ConfigError


def row(arm, mean, half_width=0.001, **changes):
    return {
        "scenario": "unconditional",
        "arm": arm,
        "score": mean,
        "score_ci": [mean - half_width, mean + half_width],
        "length": 250.0,
        "distinct-2-grams": 0.8,
        "distinct-2-grams_corpus": 0.6,
        **dict.fromkeys(("empty", "few_letters", "duplicates", "repetition"), 0.02),
        **changes,
    }


def report(good, bad, mle, **changes):
    return {"table": [row(MLE, mle), row(GOOD, good, **changes), row(BAD, bad)]}


def test_a_clear_difference_is_shown():
    assert judge(report(good=0.007, bad=0.022, mle=0.0095)) == []


def test_overlapping_intervals_show_nothing():
    (problem,) = judge(report(good=0.008, bad=0.022, mle=0.0095))
    assert "with separate 95% intervals" in problem


def test_a_bad_token_that_is_no_worse_shows_nothing():
    (problem,) = judge(report(good=0.007, bad=0.0069, mle=0.0095))
    assert "bad token" in problem


@pytest.mark.parametrize(
    "change", [{"length": 120.0}, {"distinct-2-grams": 0.39}, {"distinct-2-grams_corpus": 0.29}, {"few_letters": 0.2}]
)
def test_a_good_score_of_degenerate_text_is_a_failure(change):
    (problem,) = judge(report(good=0.001, bad=0.022, mle=0.0095, **change))
    assert next(iter(change)).replace("_", " ") in problem.replace("_", " ")


def test_an_arm_without_scores_is_named():
    assert "no scored sample" in judge(report(good=0.001, bad=0.02, mle=0.01, score=None, score_ci=None))[-1]


def test_trainings_share_the_cores_and_leave_some_if_asked(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [demo._threads_of_each(count) for count in (1, 2, 16)] == [8, 4, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert [demo._threads_of_each(count) for count in (1, 2, 16)] == [3, 3, 1]


@pytest.mark.parametrize("job", [demo, pareto, learned_reward, rounds])
def test_an_output_that_is_a_file_is_refused_before_ray_starts(job, tmp_path):
    (tmp_path / "file").touch()
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match="is a file, or is below one"):
            job.main(["--output", str(output)])


def test_the_standard_library_is_copied_without_tests_and_only_once(tmp_path):
    source = copy_standard_library(tmp_path / "source")
    files = [path.relative_to(source) for path in source.rglob("*.py")]
    assert len(files) > 300
    assert not any(SKIPPED_FOLDERS.intersection(path.parts) for path in files)
    (source / "ast.py").unlink()
    assert not (copy_standard_library(source) / "ast.py").exists()


# -- Several training seeds --------------------------------------------------------------------------------------------


def test_the_mean_over_seeds_is_judged_with_an_interval_over_seeds():
    good = {seed: report(good=0.007 + seed * 1e-4, bad=0.022, mle=0.0095) for seed in range(3)}
    assert demo.judge_seeds(good) == []
    # Each but the last alone is shown, and the mean is below.
    uneven = {**good, 2: report(good=0.0099, bad=0.022, mle=0.0095)}
    (problem,) = demo.judge_seeds(uneven)
    assert "minus those of mle, -0.0015 [-0.005589, 0.002589]" in problem
    assert "over 3 training seeds, are not below 0" in problem
    degenerate = {**good, 1: report(good=0.007, bad=0.022, mle=0.0095, length=100.0)}
    (problem,) = demo.judge_seeds(degenerate)
    assert problem.startswith("seed 1: ")
    unscored = {**good, 1: report(good=0.007, bad=0.022, mle=0.0095, score=None, score_ci=None)}
    assert any("a seed has no scored sample of conditional:good or mle" in one for one in demo.judge_seeds(unscored))


def test_the_spread_over_seeds_is_written_and_a_figure_that_a_seed_lacks_is_unknown(tmp_path, capsys):
    reports = {0: report(good=1.0, bad=3.0, mle=2.0), 4: report(good=2.0, bad=3.0, mle=2.0)}
    reports[4]["table"][0]["score"] = None
    demo_seeds.say_spread(reports, ("score",), file=tmp_path / "seeds.json")
    rows = {row["arm"]: row for row in json.loads((tmp_path / "seeds.json").read_text())["spread"]}
    assert (rows[GOOD]["mean"], rows[GOOD]["by_seed"]) == (1.5, {"0": 1.0, "4": 2.0})
    # 12.7 standard errors of 0.5, with one degree of freedom.
    assert rows[GOOD]["interval"] == pytest.approx([1.5 - 6.353, 1.5 + 6.353], abs=1e-3)
    assert (rows[MLE]["mean"], rows[MLE]["interval"]) == (None, None)
    assert "mle, score: unknown, because a seed has none" in capsys.readouterr().out
    demo_seeds.say_spread({0: reports[0]}, ("score",), file=tmp_path / "one.json")
    assert not (tmp_path / "one.json").exists()


def test_every_seed_trains_and_compares_runs_of_its_own(tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(gcs_address="nowhere"))
    monkeypatch.setattr(demo.cli, "command_of", lambda name, command: ["true", *command])
    popen = demo.subprocess.Popen
    monkeypatch.setattr(
        demo.subprocess, "Popen", lambda command, **options: commands.append(command) or popen(command, **options)
    )
    for seed in (0, 2):
        demo.train_models(["mle"], tmp_path, tmp_path, output=tmp_path, overrides=["training.num_tokens=64"], seed=seed)
    names = [command[command.index("--run-name") + 1] for command in commands]
    assert names == ["mle", "mle_seed2"]
    assert commands[0][-1] == "training.num_tokens=64"
    assert commands[1][-1] == "training.seed=44"
    monkeypatch.setattr(demo, "run_job", lambda job, command: commands.append(command))
    for job, folder in ((demo, "report_seed2"), (pareto, "pareto_seed2")):
        job._evaluate(tmp_path, overrides=(), seed=2)
        assert f"mle={tmp_path / 'runs' / 'mle_seed2'}" in commands[-1]
        assert commands[-1][commands[-1].index("--output") + 1] == str(tmp_path / folder)


@pytest.mark.parametrize("job", [demo, pareto])
def test_bad_seeds_are_refused_before_ray_starts(job, tmp_path):
    with pytest.raises(ConfigError, match="--seeds 1,1: write different numbers"):
        job.main(["--output", str(tmp_path / "out"), "--seeds", "1,1"])
    assert not (tmp_path / "out").exists()
