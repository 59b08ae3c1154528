"""What is read as a judgement, from which files, and what is refused."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from judged_rows import of_counts, record, rows_of, write_lines

from jobs import prepare_feedback
from phf_ray.errors import ConfigError, DataError
from phf_ray.judging.board.duels import battles_of, duels_of
from phf_ray.judging.board.human import read_labels, with_labels
from phf_ray.judging.board.read import read_judged
from phf_ray.judging.board.rows import NO_REASON, NO_VERDICT, judged_row


def read(*sources):
    return read_judged([str(source) for source in sources], option="--comparisons")


def test_every_kind_of_file_gives_the_same_rows(tmp_path):
    records = [
        record(0, 2.0, order="21", price=0.25, error=None),
        record(1, None, error="it timed out"),
        record(2, 1.5),
    ]
    (tmp_path / "a.json").write_text(json.dumps(records))
    write_lines(tmp_path / "b.jsonl", records)
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress((tmp_path / "b.jsonl").read_bytes()))
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "d.parquet")
    found = [read(tmp_path / name) for name in ("a.json", "b.jsonl", "c.jsonl.gz", "d.parquet")]
    assert found[0] == rows_of(records)
    assert found[1:] == [found[0]] * 3
    assert read(tmp_path) == found[0] * 4
    (tmp_path / "alone").mkdir()
    (tmp_path / "a.json").rename(tmp_path / "alone" / "a.json")
    assert read(tmp_path / "alone") == found[0]
    assert (found[0][0].order, found[0][0].price, found[0][1].error) == ("21", 0.25, "it timed out")


def test_a_comparisons_corpus_gives_its_rows_with_what_is_in_meta(tmp_path, capsys):
    records = [record(number, 1.0 + number % 2, input="of this", price=0.5, order="12") for number in range(4)]
    source = write_lines(tmp_path / "judged.jsonl", records)
    assert prepare_feedback.main(["--input", source, "--output", str(tmp_path / "corpus")]) == 0
    assert "comparisons" in capsys.readouterr().out
    assert sorted(read(tmp_path / "corpus"), key=lambda row: row.instruction) == rows_of(records)


def test_names_are_found_in_the_meta_of_a_meta():
    one = record(0, 2.0)
    inner = {name: one.pop(name) for name in ("generator_1", "generator_2")}
    meta = json.dumps({"source": "a", "order": "21", "meta": json.dumps({**inner, "order": "12"})})
    (row,) = rows_of([{**one, "meta": meta}])
    assert (row.generator_1, row.generator_2, row.order) == ("reference", "model", "21")


def test_noise_is_known_under_the_source_that_a_corpus_adds():
    meta = json.dumps({"source": "data.jsonl", "meta": json.dumps({"source": "noise"})})
    rows = rows_of([record(0, 2.0, meta=meta), record(1, 2.0, source="stored"), record(2, 2.0, source=["x"])])
    assert [row.source for row in rows] == ["noise", "stored", None]


def test_a_dialogue_is_its_prompt(tmp_path):
    one = record(0, 2.0)
    del one["instruction"]
    rows = rows_of([{**one, "messages": [{"role": "user", "content": "Hello"}]}, {**one, "prompt": "Hello"}])
    assert [row.prompt for row in rows] == ["user: Hello", "Hello"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"instruction": None}, "has no instruction"),
        ({"instruction": ""}, "has no instruction"),
        ({"output_1": None}, "output_1 is None, not a text"),
        ({"output_2": ["a", "b"]}, r"output_2 is \['a', 'b'\], not a text; each answer must be one text"),
        ({"preference": 3}, "preference is 3, which is not between 1 .* and 2"),
        ({"preference": 0.5}, "preference is 0.5, which is not between"),
        ({"preference": "2"}, "preference is '2', not a number"),
        ({"preference": True}, "preference is True, not a number"),
        ({"human_preference": 7}, "human_preference is 7"),
        ({"generator_1": None}, "generator_1 is None, but a leaderboard needs the names"),
        ({"generator_2": ""}, "generator_2 is ''"),
        ({"order": "1"}, "order is '1'; write 12"),
        ({"price": -1}, "price is -1"),
        ({"input": 5}, "input is 5, not a text"),
        *(
            ({name: "hi \ud83d"}, f"{name}: character 3 is half of a surrogate pair")
            for name in ("instruction", "input", "output_1", "output_2", "generator_2", "annotator")
        ),
        ({"messages": [{"role": "user"}]}, r"message 1 is \{'role': 'user'\}; write a role and a content"),
        ({"messages": ["hi"]}, "message 1 is 'hi'; write a role"),
    ],
)
def test_a_record_that_is_no_judgement_is_refused_with_its_place(tmp_path, change, told):
    source = write_lines(tmp_path / "a.jsonl", [record(0, 1.0), {**record(1, 1.0), **change}])
    with pytest.raises(DataError, match=told) as raised:
        read(source)
    assert "a.jsonl, record 1" in str(raised.value)


def test_rows_that_nobody_judged_yet_are_told_how_to_be(tmp_path):
    one = record(0, 1.0)
    del one["preference"]
    with pytest.raises(DataError, match=r"has no preference .* phf annotate"):
        read(write_lines(tmp_path / "a.jsonl", [one]))


def test_files_that_hold_no_rows(tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "torn.jsonl").write_text('{"instruction": "a", ')
    with pytest.raises(DataError, match="there are no rows"):
        read(tmp_path / "empty.jsonl")
    with pytest.raises(DataError, match="can't be read: bad_json"):
        read(tmp_path / "torn.jsonl")
    with pytest.raises(ConfigError, match=r"^--comparisons .*nowhere does not exist"):
        read(tmp_path / "nowhere")


def test_what_older_programs_wrote_for_a_draw_and_for_a_failure():
    rows = rows_of([record(0, 0), record(1, -1), record(2, None), record(3, float("nan"))])
    assert [row.preference for row in rows] == [1.5, None, None, None]
    assert [row.error for row in rows] == [None, NO_VERDICT, NO_REASON, NO_REASON]
    priced = judged_row(record(0, 1.0, preference_price_per_example=0.125), "x")
    assert priced.price == 0.125


def test_names_can_be_given_to_rows_that_have_none():
    one = record(0, 2.0, generator_1=None)
    del one["generator_2"]
    row = judged_row(one, "x", generators=("davinci", "mine"))
    assert (row.generator_1, row.generator_2) == ("davinci", "mine")


def test_copies_of_one_verdict_are_one_draw():
    (duel,) = duels_of(rows_of([record(0, 2.0, price=1.0)] * 3))
    assert (duel.preference, duel.num_rows, duel.price) == (2.0, 3, 3.0)


def test_both_orders_of_a_pair_are_one_draw():
    (duel,) = duels_of(rows_of([record(0, 2.0, order="12"), record(0, 1.0, order="21")]))
    assert duel.preference == 1.5


def test_a_failure_beside_a_verdict_on_the_same_pair_counts_nowhere():
    (duel,) = duels_of(rows_of([record(0, None, error="timeout"), record(0, 2.0)]))
    assert (duel.preference, duel.reason) == (2.0, None)
    (duel,) = duels_of(rows_of([record(0, None, error="timeout"), record(0, None, error="timeout"), record(0, None)]))
    assert (duel.preference, duel.reason) == (None, "timeout")


def test_two_annotators_are_two_draws_and_so_are_two_answers():
    rows = rows_of([record(0, 2.0), record(0, 2.0, annotator="other"), record(0, 2.0, output_2="another")])
    assert len(duels_of(rows)) == 3


def test_a_pair_judged_with_the_models_in_either_place_is_one_battle():
    one = record(0, 2.0)
    turned = record(
        0, 2.0, output_1=one["output_2"], output_2=one["output_1"], generator_1="model", generator_2="reference"
    )
    duels = duels_of(rows_of([one, turned]))
    assert len(duels) == 2
    (battle,) = battles_of(duels)
    assert battle.preference == 1.5
    assert battle.num_rows == 2
    assert battles_of(duels_of(rows_of([record(0, 2.0, generator_1="same", generator_2="same")]))) == []


def test_human_labels_are_joined_by_the_texts_in_either_order(tmp_path):
    records = of_counts("model", 2, 1, 0)
    labels = [
        {name: records[0][name] for name in ("instruction", "output_1", "output_2")} | {"preference": 1},
        {
            "instruction": records[1]["instruction"],
            "output_1": records[1]["output_2"],
            "output_2": records[1]["output_1"],
            "preference": 1,
        },
    ]
    found = read_labels([write_lines(tmp_path / "labels.jsonl", labels)], option="--human")
    assert [row.human_preference for row in with_labels(rows_of(records), found)] == [1.0, 2.0, None]
    with pytest.raises(ConfigError, match="none of the 2 labelled pairs is among the 1 rows"):
        with_labels(rows_of([record(77, 2.0)]), found)


def test_labels_that_say_nothing_are_refused(tmp_path):
    with pytest.raises(DataError, match="no row has a preference"):
        read_labels([write_lines(tmp_path / "labels.jsonl", [record(0, None)])], option="--human")
