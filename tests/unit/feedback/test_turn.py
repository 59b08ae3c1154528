"""`--to`: what comparisons become."""

import pytest

from phf_ray.feedback.prepare import Prepared, RowSettings, prepare_record
from phf_ray.generation.chat.prompts import InstructionPrompt


def made(to, preference, *, instruction="Add"):
    record = {"instruction": instruction, "input": "1", "output_1": "x", "output_2": "y", "preference": preference}
    (one,) = prepare_record(record, source="a", index=0, settings=RowSettings("alpaca", to=to))
    return one


@pytest.mark.parametrize(
    ("to", "rows"),
    [
        ("sft", [("y", None, None)]),
        ("feedme", [("y", None, None)]),
        ("kto", [("y", True, None), ("x", False, None)]),
        ("reward-conditioning", [("y", None, "good"), ("x", None, "bad")]),
    ],
)
@pytest.mark.parametrize("preference", [2, 1.75])
def test_each_use_makes_its_examples(to, rows, preference):
    prepared = made(to, preference)
    assert isinstance(prepared, Prepared)
    assert [(one.completion, one.label, one.control) for one in prepared.rows] == rows
    assert {one.prompt for one in prepared.rows} == {InstructionPrompt("Add", "1")}
    assert len({one.id for one in prepared.rows}) == len(rows)


@pytest.mark.parametrize(("preference", "reason"), [(1.5, "tie"), (None, "no_preference")])
def test_without_a_better_answer_there_is_nothing_to_learn_and_it_is_counted(preference, reason):
    assert made("sft", preference).reason == reason


def test_an_example_is_no_comparison():
    settings = RowSettings("trl", to="sft")
    (one,) = prepare_record({"prompt": "a", "completion": "b"}, source="a", index=0, settings=settings)
    assert one.reason == "no_comparison"


def test_an_answer_that_won_twice_is_one_demonstration_and_two_pairs():
    def keys(to):
        pairs = [("x", "y", 2), ("z", "y", 2)]
        found = set()
        for first, second, preference in pairs:
            record = {"instruction": "a", "output_1": first, "output_2": second, "preference": preference}
            (prepared,) = prepare_record(record, source="a", index=0, settings=RowSettings("alpaca", to=to))
            found.add(prepared.key)
        return len(found)

    assert (keys("sft"), keys("feedme"), keys("kto"), keys("reward-conditioning")) == (1, 2, 2, 2)
