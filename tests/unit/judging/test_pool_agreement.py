"""`phf annotate --agreement`: annotators against their scorers and against people, before noise."""

import json
from pathlib import Path
from typing import Any

import pytest
from judge_server import judge_server
from judging_files import pair_rows, write_pool, write_rows

from jobs.annotate import main
from phf_ray.errors import ConfigError, DataError
from phf_ray.judging import load_pool
from phf_ray.judging.pool_agreement import pool_agreement

POOL = """\
annotators:
  - name: faithful
    judge: {biased_scorer: {scorer: {class_name: PEP8Scorer}}}
  - name: first
    judge: {biased_scorer: {scorer: {class_name: PEP8Scorer}, position_weight: 3}}
    order: first
  - {name: longer, judge: {rule: longer}}
"""
GOOD, BAD = "x = 1\n", "x=1;y=2\n"


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("PHF_API_KEY", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def row(number: int, *, good_first: bool, label: float | None = None, prompt: int | None = None) -> dict[str, Any]:
    first, second = (GOOD, BAD) if good_first else (BAD, GOOD)
    return {
        "instruction": f"Write {number if prompt is None else prompt}",
        "output_1": first + f"# {number}\n",
        "output_2": second + f"# {number}\n",
        "preference": label,
    }


# The better answer comes first in 6 of 20. People want it in 15 of them, and in 5 the other.
ROWS = [row(n, good_first=n < 6, label=(1.0 if n < 6 else 2.0) if n < 15 else 1.0, prompt=n // 2) for n in range(20)]


def agreement(folder: Path, rows: list[dict[str, Any]], pool: str = POOL, *more: str) -> dict[str, Any]:
    (folder / "annotators.yml").write_text(pool)
    pairs = write_rows(folder / "pairs.json", rows)
    arguments = ["--pairs", pairs, "--annotators", str(folder / "annotators.yml"), "--cache", str(folder / "cache")]
    main([*arguments, "--agreement", "--output", str(folder / "out"), *more])
    return json.loads((folder / "out/agreement.json").read_text())


def test_agreement_by_hand(tmp_path, capsys):
    found = agreement(tmp_path, ROWS)
    assert (found["num_pairs"], found["num_prompts"], found["num_labels"]) == (20, 10, 20)
    faithful, first, longer = found["annotators"]
    assert faithful["with_scorer"]["accuracy"] == 1
    assert first["with_scorer"]["accuracy"] == 6 / 20
    assert longer["with_scorer"] is None
    assert [one["with_people"]["accuracy"] for one in (faithful, longer)] == [15 / 20, 5 / 20]
    # Says first 20 times, people 11: chance agrees as often.
    assert (first["with_people"]["accuracy"], first["with_people"]["kappa"]) == (11 / 20, pytest.approx(0))
    interval = faithful["with_people"]["accuracy_interval"]
    assert interval["low"] < 15 / 20 < interval["high"]
    baselines = {one["name"]: one["with_people"]["accuracy"] for one in found["baselines"]}
    assert (baselines["longer"], baselines["constant"]) == (5 / 20, 11 / 20)
    assert set(baselines) == {"longer", "constant", "random"}
    printed = capsys.readouterr().out
    assert "20 pairs of 10 prompts; people prefer one answer in 20" in printed
    assert "first and its scorer: 30.0% (" in printed
    assert "faithful and people: 75.0% (" in printed
    assert "rule constant and people: 55.0% (" in printed


def test_intervals_resample_prompts_and_not_pairs():
    pool = load_pool({"annotators": [{"name": "longer", "judge": {"rule": "longer"}}]})
    rows = [row(n, good_first=n % 3 == 0, label=1.0) for n in range(60)]
    together = [{**one, "instruction": f"Write {n // 20}"} for n, one in enumerate(rows)]

    def width(given: list[dict[str, Any]]) -> float:
        found = pool_agreement(pool, given).annotators[0].with_people.accuracy_interval
        return found.high - found.low

    # 20 pairs of each prompt, a third of them alike: three prompts that hardly differ.
    assert width(together) < 0.5 * width(rows)


def test_a_pair_that_several_people_judged_has_the_mean_of_their_labels_and_a_tie_is_none(tmp_path, capsys):
    same = row(0, good_first=True)
    rows = [{**same, "preference": label} for label in (1.0, 1.0, 2.0)]
    rows += [{**row(1, good_first=True), "preference": label} for label in (1.0, 2.0)]
    found = agreement(tmp_path, rows)
    assert (found["num_pairs"], found["num_labels"]) == (2, 1)
    assert found["annotators"][0]["with_people"]["accuracy"] == 1
    assert "faithful and people: 100.0% of 1 pairs" in capsys.readouterr().out, "one prompt has no interval"


def test_without_labels_only_scorers_are_compared_and_without_both_there_is_nothing(tmp_path, capsys):
    rows = [row(n, good_first=n < 6) for n in range(20)]
    found = agreement(tmp_path, rows)
    assert found["baselines"] == []
    assert found["annotators"][1]["with_scorer"]["accuracy"] == 6 / 20
    assert "longer: has no scorer, and no row has a `preference`" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="nothing to agree with: none of longer is a biased_scorer"):
        agreement(tmp_path, rows, "annotators: [{name: longer, judge: {rule: longer}}]\n")


def test_a_judge_that_may_cost_something_is_asked_only_if_told(tmp_path, capsys):
    with judge_server() as server:
        write_pool(tmp_path)
        pool = (tmp_path / "pool.yml").read_text() + f"url: {server.url}\n"
        rows = [{**one, "preference": 1.0 + number % 2} for number, one in enumerate(pair_rows(12))]
        (asked,) = agreement(tmp_path, rows, pool)["annotators"]
        assert (asked["was_asked"], asked["with_people"]) == (False, None)
        assert not server.asked
        assert "asked: not asked, because its answers may cost something; --ask-judges" in capsys.readouterr().out
        (asked,) = agreement(tmp_path, rows, pool, "--ask-judges")["annotators"]
        assert asked["with_people"]["num_judged"] == 12
        assert server.counts.total() == 12
        agreement(tmp_path, rows, pool, "--ask-judges")
        assert server.counts.total() == 12, "answers come from the cache"


def test_pairs_that_can_not_be_judged_are_counted_with_a_reason(tmp_path, capsys):
    rows = [*ROWS, {**row(30, good_first=True, label=1.0), "output_2": ""}]
    faithful, *_ = agreement(tmp_path, rows)["annotators"]
    assert faithful["failures"] == {"unscored": 1}
    assert faithful["with_people"]["num_failed"] == 1
    assert faithful["with_people"]["num_judged"] == 20
    assert "faithful without a judgement: 1 unscored; the first: unscored: answer" in capsys.readouterr().out


@pytest.mark.parametrize(
    "more", [("--p-label-flip", "0.2"), ("--dry-run",), ("--restart",), ("--known", "a.json"), ("--max-actors", "2")]
)
def test_what_has_no_meaning_is_refused(tmp_path, more):
    with pytest.raises(ConfigError, match=f"{more[0]} has no meaning with --agreement"):
        agreement(tmp_path, ROWS, POOL, *more)


def test_no_pairs_and_an_output_that_is_a_file_are_told_before_anything_is_judged(tmp_path):
    with pytest.raises(DataError, match="there are no pairs to judge"):
        agreement(tmp_path, [])
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ConfigError, match="is a file; give a folder"):
        agreement(tmp_path, ROWS)


def test_bad_input_is_named(tmp_path):
    with pytest.raises(DataError, match="row 1: preference is 3"):
        agreement(tmp_path, [{**ROWS[0], "preference": 3}])
    (tmp_path / "annotators.yml").write_text(POOL)
    arguments = ["--pairs", str(tmp_path / "pairs.json"), "--annotators", str(tmp_path / "annotators.yml")]
    arguments += ["--cache", str(tmp_path / "cache")]
    with pytest.raises(ConfigError, match="--ask-judges goes with --agreement"):
        main([*arguments, "--output", str(tmp_path / "judged"), "--ask-judges"])
    write_rows(tmp_path / "pairs.json", ROWS)
    main([*arguments, "--output", str(tmp_path / "judged"), "--in-process"])
    with pytest.raises(ConfigError, match="is a set of comparisons; give another folder"):
        main([*arguments, "--output", str(tmp_path / "judged"), "--agreement"])
