"""`PairwiseAutoAnnotator` and `alpaca_leaderboard`, against the behaviour that AlpacaFarm's users know."""

import asyncio
import json
import logging

import datasets
import pandas as pd
import pytest
from judges import LongerAsker, asked_pool, numbered_rows, rules

from phf_ray.errors import ConfigError, DataError, IncompleteError
from phf_ray.judging import PairwiseAutoAnnotator, alpaca_leaderboard
from phf_ray.judging.samples import derangement, pairs_of_samples

ROW = {"instruction": "i", "input": "", "output_1": "long", "output_2": "s"}


def longer(**settings):
    return PairwiseAutoAnnotator(rules("longer"), **settings)


def test_rows_come_back_in_their_order_with_their_columns_and_the_judgement():
    rows = [{**row, "dataset": f"d{i}"} for i, row in enumerate(numbered_rows(5))]
    judged = longer().annotate_pairs(rows)
    assert [row["dataset"] for row in judged] == [f"d{i}" for i in range(5)]
    assert [row["preference"] for row in judged] == [1, 2, 1, 2, 1]
    row = judged[1]
    assert {key: row[key] for key in ("annotator", "error", "raw", "price", "seconds")} == {
        "annotator": "longer", "error": None, "raw": None, "price": None, "seconds": None
    }  # fmt: skip
    assert row["order"] in ("12", "21")


@pytest.mark.parametrize(
    "form",
    [list, pd.DataFrame, datasets.Dataset.from_list, tuple, iter],
    ids=["list", "frame", "dataset", "tuple", "iter"],
)
def test_rows_may_have_any_usual_form(form):
    rows = numbered_rows(5)
    assert longer().annotate_pairs(form(rows)) == longer().annotate_pairs(rows)


def test_a_hole_of_a_frame_is_no_text():
    frame = pd.DataFrame([{"instruction": "i", "output_1": "a", "output_2": "bb"}, {**ROW, "input": "x"}])
    assert [row["input"] for row in longer().annotate_pairs(frame)] == [None, "x"]


def test_a_share_of_failures_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="max_failed_fraction nan is no share of the rows; give 0 to 1"):
        longer(max_failed_fraction=float("nan"))


@pytest.mark.parametrize("method", ["annotate_pairs", "annotate_samples"])
def test_nothing_in_nothing_out(method, tmp_path):
    # Without an asker: nobody is to be asked.
    annotator = PairwiseAutoAnnotator(asked_pool(tmp_path))
    assert getattr(annotator, method)([]) == []
    assert annotator.annotate_head2head([], []) == []


def test_later_copies_of_a_pair_are_left_out():
    rows = [{**ROW, "n": 1}, {**ROW, "n": 2}, {**ROW, "input": None, "n": 3}, {**ROW, "output_2": "other", "n": 4}]
    assert [row["n"] for row in longer().annotate_pairs(rows)] == [1, 4]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([ROW, {"instruction": "i", "output_1": "a"}], "row 2: 'output_2' is missing; .* has instruction, output_1"),
        ([{**ROW, "output_1": None}], "row 1: 'output_1' is None"),
        ([{"output_1": "a", "output_2": "b"}], "row 1: 'instruction' is missing"),
        ([{**ROW, "instruction": " "}], "row 1: the instruction is empty"),
        ([{**ROW, "input": 3}], "row 1: 'input' is 3; it must be a text"),
        ([{**ROW, "output_2": ["a"]}], "row 1: 'output_2' is "),
        ([ROW, {**ROW, "instruction": "hi \ud83d"}], "row 2: 'instruction': character 3 is half of a surrogate pair"),
        ([{**ROW, "output_2": "\ud83d"}], "row 1: 'output_2': character 0 is half of a surrogate pair"),
    ],
)
def test_a_row_that_is_no_pair_is_named_before_anything_is_judged(rows, message):
    with pytest.raises(DataError, match=message):
        longer().annotate_pairs(rows)


def test_other_things_than_rows_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="rows are a dict; give a list of dicts"):
        longer().annotate_pairs(ROW)
    with pytest.raises(DataError, match=r"gone\.json can't be read"):
        longer().annotate_pairs(tmp_path / "gone.json")
    with pytest.raises(ConfigError, match=r"chache: unknown key|unknown key"):
        longer(chache="x")


def test_it_works_inside_a_running_event_loop():
    async def cell():
        return longer().annotate_pairs(numbered_rows(4))

    assert asyncio.run(cell()) == longer().annotate_pairs(numbered_rows(4))

    async def failing():
        longer().annotate_pairs([{}])

    with pytest.raises(DataError, match="row 1"):
        asyncio.run(failing())


# --- What is remembered ---------------------------------------------------------------------------------------------


def test_a_pair_is_judged_once_unless_one_asks_for_more(tmp_path):
    asker, rows = LongerAsker(), numbered_rows(6)
    annotator = PairwiseAutoAnnotator(asked_pool(tmp_path), asker=asker)
    first = annotator.annotate_pairs(rows[:4])
    again = annotator.annotate_pairs(rows)
    assert len(asker.questions) == 6 - sum(row["output_1"] == row["output_2"] for row in rows)
    assert [row["preference"] for row in again[:4]] == [row["preference"] for row in first]
    judged = [row for row in again[:4] if row["source"] != "identical"]
    assert {(row["source"], row["price"], row["seconds"]) for row in judged} == {("stored", None, None)}
    assert judged[0]["order"] == first[again.index(judged[0])]["order"] in ("12", "21")
    eager = PairwiseAutoAnnotator(asked_pool(tmp_path), asker=asker, is_avoid_reannotations=False)
    before = len(asker.questions)
    eager.annotate_pairs(rows[1:2])
    eager.annotate_pairs(rows[1:2])
    assert len(asker.questions) == before + 2


def test_noise_is_never_remembered(tmp_path):
    rows = numbered_rows(200)[1::2]
    annotator = PairwiseAutoAnnotator(asked_pool(tmp_path), asker=LongerAsker(), p_label_flip=0.5)
    assert {row["source"] for row in annotator.annotate_pairs(rows)} == {"noise"}
    annotator.set_noise(None)
    assert [row["preference"] for row in annotator.annotate_pairs(rows)] == [2] * 100


def test_judgements_are_saved_and_loaded(tmp_path):
    asker = LongerAsker()
    annotator = PairwiseAutoAnnotator(asked_pool(tmp_path), asker=asker)
    first = annotator.annotate_pairs(numbered_rows(20)[1::2])
    annotator.save(tmp_path / "kept" / "annotations.json")
    other = PairwiseAutoAnnotator(asked_pool(tmp_path))
    other.load_(tmp_path / "kept" / "annotations.json")
    again = other.annotate_pairs(numbered_rows(20)[1::2])
    assert [row["preference"] for row in again] == [row["preference"] for row in first]
    assert {row["source"] for row in again} == {"stored"}


def test_both_orders_are_saved_and_loaded(tmp_path):
    rows = numbered_rows(20)[1::2]
    annotator, other = (PairwiseAutoAnnotator(rules("longer", order="both")) for _ in range(2))
    first = annotator.annotate_pairs(rows)
    annotator.save(tmp_path / "kept.json")
    other.load_(tmp_path / "kept.json")
    again = other.annotate_pairs(rows)
    assert again == [{**row, "source": "stored"} for row in first]
    assert (again[0]["order"], again[0]["preference_12"], again[0]["preference_21"]) == ("both", 2, 2)


def test_annotations_of_alpaca_farm_are_loaded(tmp_path):
    old = [
        {**ROW, "preference": 2, "annotator": "longer"},
        {**ROW, "instruction": "tie", "preference": 0, "annotator": "longer"},
        {**ROW, "instruction": "unread", "preference": -1, "annotator": "longer"},
    ]
    (tmp_path / "annotations.json").write_text(json.dumps(old))
    annotator = longer()
    annotator.load_(tmp_path / "annotations.json")
    judged = annotator.annotate_pairs([{**ROW, "instruction": name} for name in ("i", "tie", "unread")])
    assert [row["preference"] for row in judged] == [2, 1.5, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "can't be read as a JSON array"),
        ("{}", "is no JSON array of rows"),
        (json.dumps([{**ROW, "preference": 3, "annotator": "a"}]), "row 1: preference 3 is not 0"),
        (json.dumps([{**ROW, "preference": 1}]), "row 1: annotator None is no name"),
    ],
)
def test_a_file_of_no_judgements_is_refused(text, message, tmp_path):
    (tmp_path / "annotations.json").write_text(text)
    with pytest.raises(DataError, match=message):
        longer().load_(tmp_path / "annotations.json")


# --- Failures -------------------------------------------------------------------------------------------------------


def test_too_many_unread_answers_stop_the_call_and_what_was_judged_stays(tmp_path):
    answers = iter(["Output (a)"] * 20 + ["Both are fine."] * 80)
    asker = LongerAsker(lambda _: next(answers))
    annotator = PairwiseAutoAnnotator(asked_pool(tmp_path), asker=asker, in_flight=1, max_failed_fraction=0.2)
    rows = numbered_rows(200)[1::2]
    with pytest.raises(
        IncompleteError, match=r"21 of 100 rows .* max_failed_fraction 0\.2: asked: 21 unparsable; the first: "
    ):
        annotator.annotate_pairs(rows)
    assert len(asker.questions) == 41
    annotator.save(tmp_path / "kept.json")
    assert len(json.loads((tmp_path / "kept.json").read_text())) == 20


def test_a_few_unread_answers_are_null_with_a_reason_and_counted_by_annotator(tmp_path, caplog):
    asker = LongerAsker(lambda text: "" if len(asker.questions) == 3 else text)
    with caplog.at_level(logging.WARNING):
        judged = PairwiseAutoAnnotator(asked_pool(tmp_path), asker=asker).annotate_pairs(numbered_rows(40)[1::2])
    assert [row["error"] for row in judged if row["preference"] is None] == ["empty_answer: the judge said nothing"]
    assert "1 of 20 rows have no judgement: asked: 1 empty_answer" in caplog.text


@pytest.mark.parametrize("order", ["random", "both"])
def test_a_judge_that_always_says_the_same_is_named_with_its_figure(order, caplog):
    with caplog.at_level(logging.WARNING):
        PairwiseAutoAnnotator(rules("constant", order=order)).annotate_pairs(numbered_rows(61)[1::2])
    num = 60 if order == "both" else 30
    assert f"annotator constant says 'the first is better' of {num} of {num} pairs (100.0%)" in caplog.text


def test_a_judge_that_judges_is_not_accused(caplog):
    with caplog.at_level(logging.WARNING):
        longer().annotate_pairs(numbered_rows(61)[1::2])
    assert caplog.text == ""


# --- Samples --------------------------------------------------------------------------------------------------------

SAMPLES = [
    {"instruction": "a", "input": "", "output": ["x", "xx", "xxx", "xx"], "id": 1},
    {"instruction": "b", "input": "", "output": ["y", "yy"], "id": 2},
    {"instruction": "alone", "input": "", "output": ["z", "z"], "id": 3},
]


def test_every_sample_meets_another_one(caplog):
    pairs = pairs_of_samples(SAMPLES, is_unique_instructions=False)
    assert [pair["output_1"] for pair in pairs] == ["x", "xx", "xxx", "y", "yy"]
    assert sorted(pair["output_2"] for pair in pairs) == ["x", "xx", "xxx", "y", "yy"]
    assert all(pair["output_1"] != pair["output_2"] for pair in pairs)
    assert [pair["id"] for pair in pairs] == [1, 1, 1, 2, 2]
    assert [(pair["sample_id_1"], pair["output_1"]) for pair in pairs[:3]] == [(0, "x"), (1, "xx"), (2, "xxx")]
    assert "1 of 3 instructions have a single output" in caplog.text


def test_lists_of_a_frame_that_was_parquet_are_lists(tmp_path):
    pd.DataFrame(SAMPLES).to_parquet(tmp_path / "samples.parquet")
    frame = pd.read_parquet(tmp_path / "samples.parquet")
    annotator = longer()
    assert [row["instruction"] for row in annotator.annotate_samples(frame)] == ["a", "b"]


def test_one_pair_of_each_instruction_is_kept():
    pairs = pairs_of_samples(SAMPLES)
    assert [pair["instruction"] for pair in pairs] == ["a", "b"]
    # All of the pairs are kept for some seed.
    kept = {pairs_of_samples(SAMPLES, seed=seed)[0]["output_1"] for seed in range(30)}
    assert kept == {"x", "xx", "xxx"}


def test_flat_rows_of_one_instruction_belong_together():
    flat = [{**row, "output": output} for row in SAMPLES for output in row["output"]]
    assert pairs_of_samples(flat, is_unique_instructions=False) == pairs_of_samples(
        SAMPLES, is_unique_instructions=False
    )


@pytest.mark.parametrize("num", [2, 3, 5])
def test_derangements_leave_nothing_in_its_place_and_are_all_drawn(num):
    drawn = [tuple(derangement(num, seed, "text")) for seed in range(400)]
    assert all(sorted(one) == list(range(num)) for one in drawn)
    assert all(index != other for one in drawn for index, other in enumerate(one))
    assert len(set(drawn)) == {2: 1, 3: 2, 5: 44}[num]


def test_samples_are_judged_and_noise_of_the_call_ends_with_it():
    annotator = longer(p_label_flip=0.1)
    judged = annotator.annotate_samples(SAMPLES, is_unique_instructions=False, p_label_flip=0)
    assert all(row["preference"] == (1 if len(row["output_1"]) > len(row["output_2"]) else 2) for row in judged)
    with pytest.raises(DataError, match="row 1: 'output' is None"):
        annotator.annotate_samples([{"instruction": "a"}], p_label_flip=0.5)
    with pytest.raises(DataError):
        annotator.annotate_samples([{"instruction": "", "output": ["a", "b"]}], p_label_flip=0.5)
    assert annotator.p_label_flip == 0.1


# --- Two models -----------------------------------------------------------------------------------------------------


def outputs(*texts, name="m", first=0):
    return [
        {"instruction": f"i{n}", "input": "", "output": text, "generator": name} for n, text in enumerate(texts, first)
    ]


def test_outputs_are_joined_by_instruction_and_input(caplog):
    ours, theirs = outputs("a", "bb", "c", name="A"), list(reversed(outputs("x", "y", "zz", "w", name="B")))
    judged = longer().annotate_head2head(ours, theirs)
    assert [(row["output_1"], row["output_2"], row["preference"]) for row in judged] == [
        ("a", "x", 1.5), ("bb", "y", 1), ("c", "zz", 2)
    ]  # fmt: skip
    assert {(row["generator_1"], row["generator_2"]) for row in judged} == {("A", "B")}
    assert "3 outputs against 4" in caplog.text


def test_ordered_outputs_are_joined_by_their_places():
    same = [{"instruction": "i", "output": "a"}, {"instruction": "i", "output": "bb"}]
    assert len(longer().annotate_head2head(same, same)) == 4
    judged = longer().annotate_head2head(same, same[::-1], is_ordered=True)
    assert [(row["output_1"], row["output_2"]) for row in judged] == [("a", "bb"), ("bb", "a")]
    with pytest.raises(ConfigError, match="2 and 1 outputs can't be paired by their places"):
        longer().annotate_head2head(same, same[:1], is_ordered=True)
    with pytest.raises(DataError, match="row 1: the instructions of the two lists differ"):
        longer().annotate_head2head(outputs("a"), outputs("b", first=3), is_ordered=True)


def test_a_column_to_join_by_that_is_not_there_is_named():
    with pytest.raises(DataError, match="row 1: no column 'instrction' to join by; it has instruction, input"):
        longer().annotate_head2head(outputs("a"), outputs("b"), keys_to_merge=["instrction"])
    with pytest.raises(DataError, match="row 1: no column 'instrction'"):
        longer().annotate_samples(SAMPLES, keys_to_sample_output_2=["instrction"])


def test_models_without_a_common_instruction_are_refused():
    with pytest.raises(ConfigError, match="no instruction in common"):
        longer().annotate_head2head(outputs("a"), outputs("b", first=3))


def test_a_leaderboard_has_the_win_rates_of_models_against_the_reference(tmp_path):
    reference = outputs("xx", "xx", "xx", "xx", name="reference")
    (tmp_path / "best.json").write_text(json.dumps(outputs("xxx", "xxx", "xxx", "x")))
    table = alpaca_leaderboard(
        {"worst": outputs("x", "xx", "x", "x"), "best": tmp_path / "best.json"},
        reference=reference,
        annotators_config=rules("longer"),
    )
    best, worst = table
    # By hand: 3 wins and a loss, 75; sd of (1, 1, 1, 0) is .5, so 100 * .5 / sqrt(4).
    assert best == {
        "name": "best", "win_rate": 75, "standard_error": pytest.approx(25),
        "clustered_standard_error": pytest.approx(25), "n_total": 4, "n_wins": 3,
        "n_wins_base": 1, "n_draws": 0, "n_failed": 0, "avg_length": 2,
    }  # fmt: skip
    assert (worst["name"], worst["win_rate"], worst["n_draws"]) == ("worst", 12.5, 1)


def test_a_leaderboard_has_the_standard_error_of_alpaca_farm_beside_that_of_prompts():
    same = {"instruction": "i", "input": ""}
    mine = [{**same, "output": "xxx"}, {**same, "output": "xxxx"}, *outputs("x", "xxx")]
    (row,) = alpaca_leaderboard(
        mine, reference=[{**same, "output": "xx"}, *outputs("xx", "xx")], annotators_config=rules("longer")
    )
    # By hand: shares 1, 1, 0, 1, of which the first two are one prompt.
    assert (row["n_total"], row["standard_error"]) == (4, pytest.approx(25))
    assert row["clustered_standard_error"] > 26


def test_a_leaderboard_has_no_noise_and_counts_failures(tmp_path):
    annotator = longer(p_label_flip=0.5)
    (row,) = alpaca_leaderboard(
        outputs("x" * 9, "x" * 9), name="long", reference=outputs("x", "x"), annotator=annotator
    )
    assert (row["name"], row["win_rate"], annotator.p_label_flip) == ("long", 100, 0.5)
    failing = PairwiseAutoAnnotator(asked_pool(tmp_path), asker=LongerAsker(lambda _: "?"), max_failed_fraction=1)
    (row,) = alpaca_leaderboard(outputs("a", "b"), reference=outputs("c", "d"), annotator=failing)
    assert (row["win_rate"], row["n_total"], row["n_failed"]) == (None, 0, 2)


def test_samples_without_an_answer_are_in_no_pair_and_are_told(caplog):
    rows = [
        {"instruction": "a", "output": ["x", None, "y"]},
        {"instruction": "b", "output": [None, None]},
        {"instruction": "c", "output": ["x", "z"]},
    ]
    pairs = pairs_of_samples(rows)
    assert [(pair["instruction"], {pair["output_1"], pair["output_2"]}) for pair in pairs] == [
        ("a", {"x", "y"}),
        ("c", {"x", "z"}),
    ]
    assert "3 samples have no answer, and are in no pair" in caplog.text
    with pytest.raises(DataError, match="row 1: 'output' is None; write a text"):
        pairs_of_samples([{"instruction": "a", "output": None}])
