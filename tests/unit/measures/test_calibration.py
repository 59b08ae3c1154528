import json

import numpy as np
import pytest
from evaluation_server import Server
from scipy.stats import spearmanr
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import roc_auc_score

from jobs import calibrate as job
from phf_ray.errors import ConfigError, DataError
from phf_ray.measures.agreement import auc, spearman
from phf_ray.measures.calibration import calibrate, first_at, isotonic, parse_calibration


def knots(new, old):
    found = isotonic(np.array(new, dtype=float), np.array(old, dtype=float))
    return [values.tolist() for values in found]


@pytest.mark.parametrize(
    ("new", "old", "expected"),
    [
        ([1, 2, 3], [0, 1, 5], [[1, 2, 3], [0, 1, 5]]),
        # 3 before 2 is a violation: both become 2.5.
        ([1, 2, 3, 4], [1, 3, 2, 4], [[1, 2, 3, 4], [1, 2.5, 2.5, 4]]),
        # The order of the texts means nothing.
        ([4, 2, 1, 3], [4, 3, 1, 2], [[1, 2, 3, 4], [1, 2.5, 2.5, 4]]),
        # Three texts of one new score are one point, which weighs as three: (0 + 2 + 4 + 0) / 4.
        ([1, 1, 1, 2], [0, 2, 4, 0], [[1, 2], [1.5, 1.5]]),
        ([1, 2, 3], [3, 2, 1], [[1, 3], [2, 2]]),
        ([5, 5], [1, 2], [[5], [1.5]]),
    ],
)
def test_isotonic_regression_by_hand(new, old, expected):
    assert knots(new, old) == expected


@pytest.mark.parametrize("seed", range(5))
def test_isotonic_regression_is_that_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    new = np.round(rng.normal(size=400), 1)
    old = np.tanh(new) + rng.normal(size=400)
    places = np.linspace(-4, 4, 333)
    expected = IsotonicRegression(out_of_bounds="clip").fit(new, old).predict(places)
    np.testing.assert_allclose(np.interp(places, *isotonic(new, old)), expected, atol=1e-9)
    assert spearman(new, old) == pytest.approx(spearmanr(new, old).statistic)
    assert auc(new, old > 0.5) == pytest.approx(roc_auc_score(old > 0.5, new))


def test_rank_correlation_and_areas_by_hand():
    # Ranks 2.5, 1, 2.5, 4 and 1, 2, 3, 4.
    assert spearman(np.array([10.0, 5, 10, 20]), np.array([1.0, 2, 3, 4])) == pytest.approx(3 / (4.5 * 5) ** 0.5)
    assert spearman(np.array([1.0, 2, 3]), np.array([1.0, 3, 2])) == 0.5
    assert spearman(np.array([1.0, 2, 3]), np.array([7.0, 7, 7])) is None
    # 2 beats 1 and loses to 3, 4 beats both: three of four pairs; a tie is half a pair.
    assert auc(np.array([1.0, 2, 3, 4]), [False, True, False, True]) == 0.75
    assert auc(np.array([1.0, 1]), [False, True]) == 0.5
    assert auc(np.array([1.0, 2]), [True, True]) is None


def test_first_score_that_reaches_a_value_lies_on_the_line_between_knots():
    new, old = np.array([1.0, 2, 3]), np.array([0.0, 0.4, 0.8])
    assert first_at(new, old, 0.5) == pytest.approx(2.25)
    assert first_at(new, old, 0.4) == 2
    assert first_at(new, old, -1) == 1
    assert first_at(new, old, 0.9) is None


def test_a_mapping_brings_another_scale_back():
    old = np.linspace(0, 1, 201)
    new = 10 * old**3
    mapping = calibrate(new, old, threshold=0.5)
    np.testing.assert_allclose(mapping(new), old, atol=1e-12)
    assert mapping.quality.spearman == pytest.approx(1)
    assert mapping.quality.auc == 1
    assert mapping.quality.mae_before == pytest.approx(np.abs(new - old).mean())
    assert mapping.quality.mae_after < 0.01
    assert mapping.threshold.mapped == pytest.approx(1.25)
    assert mapping.threshold.same_share == pytest.approx(1.25)
    assert (mapping.threshold.share_old, mapping.threshold.share_new) == (101 / 201, 101 / 201)
    assert mapping.threshold.agreement == 1
    # Level outside of what was seen.
    assert mapping([-5, 50]).tolist() == [0, 1]


def test_held_out_error_is_not_that_of_the_fit():
    rng = np.random.default_rng(0)
    new, old = rng.normal(size=60), rng.normal(size=60)
    mapping = calibrate(new, old, threshold=0.5)
    fitted = np.abs(mapping(new) - old).mean()
    assert mapping.quality.mae_after > fitted + 0.05
    assert calibrate(new, old, threshold=0.5) == mapping


def test_a_threshold_that_nothing_reaches_has_no_counterpart():
    mapping = calibrate(np.arange(20), np.linspace(0, 0.4, 20), threshold=0.5)
    threshold = mapping.threshold
    assert (threshold.mapped, threshold.same_share, threshold.share_old, threshold.share_new) == (None, None, 0, None)
    assert threshold.agreement is None
    assert mapping.quality.auc is None


def test_where_many_texts_have_one_score_the_nearest_share_is_taken():
    # 3 of 100 reach the old threshold; 2 have the highest new score, and all reach the lowest.
    new, old = np.repeat([0.0, 1.0], [98, 2]), np.repeat([0.0, 1.0], [97, 3])
    threshold = calibrate(new, old, threshold=0.5).threshold
    assert (threshold.same_share, threshold.share_old, threshold.share_new) == (1, 0.03, 0.02)
    assert threshold.agreement == 0.99


def test_a_calibration_comes_back_from_its_file():
    mapping = calibrate(np.arange(20), np.arange(20) % 7, threshold=3, scorer={"name": "toxicity"})
    assert parse_calibration(mapping.model_dump_json(), source="m.json") == mapping
    falling = mapping.model_dump() | {"old": mapping.old[::-1]}
    with pytest.raises(DataError, match=r"m.json is not a calibration .*must not fall"):
        parse_calibration(json.dumps(falling), source="m.json")
    with pytest.raises(DataError, match="give at least 10"):
        calibrate(np.arange(9), np.arange(9), threshold=3)


# -- The job ----------------------------------------------------------------------------------------------------------


def write_lines(path, rows):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


def test_job_fits_columns_and_applies_the_mapping(tmp_path, capsys):
    rows = [{"meta": {"perspective": i / 40}, "score": i / 20} for i in range(40)]
    rows += [{"meta": {}, "score": 0.3}, {"meta": {"perspective": 0.2}, "score": None}]
    pairs, mapping = write_lines(tmp_path / "pairs.jsonl", rows), str(tmp_path / "new folder" / "mapping.json")
    fit = ["--input", pairs, "--old-column", "meta.perspective", "--new-column", "score", "--output", mapping]
    assert job.main([*fit, "--dry-run"]) == 0
    assert not (tmp_path / "new folder").exists()
    assert job.main(fit) == 0
    output = capsys.readouterr().out
    assert "42 rows, 41 with an old score in 'meta.perspective'" in output
    assert "1 of them have no new score and are left out" in output
    written = json.loads((tmp_path / "new folder" / "mapping.json").read_text())
    assert written["num_pairs"] == 40
    assert written["threshold"]["mapped"] == pytest.approx(1.0)

    for name in ("calibrated.jsonl.gz", "calibrated.parquet"):
        calibrated = str(tmp_path / name)
        assert job.main(["--input", pairs, "--new-column", "score", "--apply", mapping, "--output", calibrated]) == 0
        found = job.read_input(calibrated)
        assert [row["calibrated"] for row in found[:40]] == pytest.approx([i / 40 for i in range(40)])
        assert found[40]["calibrated"] == pytest.approx(0.15)
        assert found[41]["calibrated"] is None
        assert [row["score"] for row in found] == [row["score"] for row in rows]


def test_job_has_texts_scored_by_a_server(tmp_path):
    # The server's score is the share of the letter x; the old one was half of it.
    rows = [{"text": "x" * (i % 11) + "y" * (10 - i % 11), "old": (i % 11) / 20} for i in range(300)]
    texts, mapping = write_lines(tmp_path / "texts.jsonl", rows), tmp_path / "mapping.json"
    server = Server()
    server.unscored = lambda text: "no letters" if text.startswith("y") else None
    arguments = ["--input", texts, "--old-column", "old", "--scores-url", server.url, "--scorer", "pep8"]
    try:
        assert job.main([*arguments, "--threshold", "0.25", "--output", str(mapping)]) == 0
    finally:
        server.stop()
    written = json.loads(mapping.read_text())
    assert written["num_pairs"] == sum(not row["text"].startswith("y") for row in rows) == 272
    assert written["threshold"]["mapped"] == pytest.approx(0.5)
    assert written["scorer"]["class_name"] == "PEP8Scorer"


@pytest.mark.parametrize(
    ("content", "arguments", "error", "match"),
    [
        ('{"old": 1}\n', [], DataError, "no row has a score in column 'new'; columns: old"),
        ('{"old": "1", "new": 1}\n', [], DataError, "column 'old' of row 1 is '1'; a score is a finite number"),
        ('{"old": NaN, "new": 1}\n', [], DataError, "is nan"),
        ('{"old": 1, "new": 1}\n[]\n', [], DataError, "line 2 is not a JSON object"),
        ("nonsense\n", [], DataError, "line 1 is not valid JSON"),
        ('{"old": 1, "new": 1}\n', [], DataError, "1 pairs of scores are too few"),
        ("", ["--scores-url", "http://x"], ConfigError, "give either --new-column, or --scores-url"),
        ("", ["--apply", "nowhere.json"], ConfigError, "nowhere.json can't be read"),
    ],
)
def test_job_says_what_it_cannot_use(tmp_path, content, arguments, error, match):
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    columns = ["--old-column", "old", "--new-column", "new"]
    with pytest.raises(error, match=match):
        job.main(["--input", str(path), *columns, "--output", str(tmp_path / "out"), *arguments])
    assert not (tmp_path / "out").exists()
