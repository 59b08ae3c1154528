import pytest

from jobs import demo, learned_reward, pareto, rounds
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


@pytest.mark.parametrize("change", [{"length": 120.0}, {"distinct-2-grams": 0.39}, {"distinct-2-grams_corpus": 0.29}])
def test_a_good_score_of_degenerate_text_is_a_failure(change):
    (problem,) = judge(report(good=0.001, bad=0.022, mle=0.0095, **change))
    assert next(iter(change)) in problem


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
