"""Prompts and answers as rows of tokens, by hand; and which prompts and rows belong to a round and a step."""

import numpy as np
import pytest

from phf_ray.records import TokenKind
from phf_ray.rollouts.order import prompts_of_round, units_of_minibatch
from phf_ray.rollouts.token_rows import token_rows

END, GIVEN, PLAIN, PAD, CONTROL = (int(TokenKind[name]) for name in ("END_OF_TEXT", "GIVEN", "PLAIN", "PAD", "CONTROL"))


@pytest.fixture
def rows():
    return token_rows([[0, 5], [0, 6, 7]], [[8, 9, 0], [4]], pad_id=1)


def test_a_row_is_end_of_text_prompt_and_answer_and_the_answers_end_is_learned(rows):
    assert rows.input_ids.tolist() == [[0, 5, 8, 9, 0], [0, 6, 7, 4, 1]]
    assert rows.token_kinds.tolist() == [[END, GIVEN, PLAIN, PLAIN, PLAIN], [END, GIVEN, GIVEN, PLAIN, PAD]]


def test_numbers_stand_at_the_answers_tokens_and_come_back_from_there(rows):
    numbers_RT = np.array([[1, 2, 3], [4, 9, 9]], np.float32)
    spread_RS = rows.spread(numbers_RT)
    assert spread_RS.tolist() == [[0, 0, 1, 2, 3], [0, 0, 0, 4, 0]]
    assert [found.tolist() for found in rows.answers(spread_RS)] == [[1, 2, 3], [4]]


def test_rows_that_are_not_kept_are_given(rows):
    learned = rows.learned(np.array([False, True]), {"weight": np.ones((2, 3), np.float32)})
    assert learned.token_kinds.tolist() == [[END, GIVEN, GIVEN, GIVEN, GIVEN], [END, GIVEN, GIVEN, PLAIN, PAD]]
    assert learned.channels["weight"].tolist() == [[0, 0, 1, 1, 1], [0, 0, 0, 1, 0]]


def test_a_control_token_is_of_its_kind():
    rows = token_rows([[0, 3, 5], [0, 5]], [[8], [8]], pad_id=1, has_control=[True, False])
    assert rows.token_kinds.tolist() == [[END, CONTROL, GIVEN, PLAIN], [END, GIVEN, PLAIN, PAD]]


def test_a_pair_is_two_rows_behind_each_other_and_the_chosen_one_is_first(rows):
    learned = rows.learned(np.array([True, True]), {"reference": np.array([[1, 2, 3], [4, 0, 0]], np.float32)})
    pairs = learned.paired(np.array([[1, 0]]))
    assert pairs.input_ids[0].tolist() == [0, 6, 7, 4, 0, 5, 8, 9, 0]
    assert pairs.token_kinds[0].tolist() == [END, GIVEN, GIVEN, PLAIN, END, GIVEN, PLAIN, PLAIN, PLAIN]
    assert pairs.channels["reference"][0].tolist() == [0, 0, 0, 4, 0, 0, 1, 2, 3]
    nothing = learned.paired(np.zeros((0, 2), np.int64))
    assert nothing.token_kinds.tolist() == [[PAD, PAD]]


def test_a_part_is_as_wide_as_its_longest_row(rows):
    assert rows.part(np.array([1])).input_ids.tolist() == [[0, 6, 7, 4]]


def test_an_epoch_has_every_prompt_once_and_what_is_too_little_for_a_round_waits():
    drawn = [prompts_of_round(number, num_prompts=10, per_round=3, seed=1).tolist() for number in range(6)]
    for epoch in (drawn[:3], drawn[3:]):
        assert len({prompt for part in epoch for prompt in part}) == 9
    assert drawn[:3] != drawn[3:]
    assert drawn != [prompts_of_round(number, num_prompts=10, per_round=3, seed=2).tolist() for number in range(6)]


def test_the_minibatches_of_an_epoch_have_every_row_once_and_other_epochs_another_order():
    def epoch_of(epoch):
        settings = {"num_minibatches": 3, "num_units": 10, "round_": 4, "epoch": epoch, "seed": 1}
        return [units_of_minibatch(number, **settings).tolist() for number in range(3)]

    parts = epoch_of(0)
    assert sorted(row for part in parts for row in part) == list(range(10))
    assert [len(part) for part in parts] == [3, 3, 4]
    assert epoch_of(1) != parts
