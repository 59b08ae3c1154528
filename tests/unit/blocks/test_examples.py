"""Rows of prompt and completion, and their packing into blocks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phf_ray.blocks.examples import AnswerIds, RowLimits, pack_units, rows_of_unit
from phf_ray.blocks.stats import PackingStats
from phf_ray.records import TokenKind

START, END, PAD = 10_000, 10_001, 10_002
S, G, C, P = (int(TokenKind[name]) for name in ("END_OF_TEXT", "GIVEN", "PLAIN", "PAD"))


def rows_of(*answers, length=10):
    counts = PackingStats()
    rows = rows_of_unit([AnswerIds(*answer) for answer in answers], RowLimits(length, START, END), stats=counts)
    return rows, counts


def test_a_row_is_start_prompt_completion_and_an_end_that_is_learned():
    (row,), counts = rows_of(([1, 2], [3, 4]))
    assert row.ids.tolist() == [START, 1, 2, 3, 4, END]
    assert row.kinds.tolist() == [S, G, G, C, C, C]
    assert (counts.num_cut, counts.num_documents_dropped) == ({}, {})


def test_an_answer_that_ends_gets_no_second_end():
    (row,), _ = rows_of(([1], [3, END]))
    assert row.ids.tolist() == [START, 1, 3, END]


def test_a_prompt_is_cut_at_its_beginning():
    (row,), counts = rows_of((list(range(20)), [50, 51]))
    assert row.ids.tolist() == [START, 14, 15, 16, 17, 18, 19, 50, 51, END]
    assert counts.num_cut == {"prompts": 1}


def test_a_control_token_is_never_cut():
    (row,), counts = rows_of((list(range(20)), [50, 51], [77]))
    assert row.ids.tolist() == [START, 77, 15, 16, 17, 18, 19, 50, 51, END]
    assert row.kinds.tolist() == [S, G, G, G, G, G, G, C, C, C]
    rows, counts = rows_of(([1], list(range(8)), [77]))
    assert (rows, counts.num_documents_dropped) == (None, {"prompt_has_no_room": 1})


def test_a_completion_is_cut_at_its_end_and_then_does_not_end():
    (row,), counts = rows_of(([], list(range(20))))
    assert row.ids.tolist() == [START, *range(9)]
    assert row.kinds.tolist() == [S] + [C] * 9
    assert counts.num_cut == {"completions": 1}


@pytest.mark.parametrize(
    ("answer", "reason"), [(([1], []), "empty_completion"), (([1, 2], list(range(20))), "prompt_has_no_room")]
)
def test_a_unit_of_which_nothing_can_be_learned_is_dropped_whole_and_counted(answer, reason):
    rows, counts = rows_of(([1], [2]), answer)
    assert rows is None
    assert (counts.num_documents_dropped, counts.num_cut) == ({reason: 1}, {})


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.integers(1, 6), min_size=2, max_size=2), min_size=1, max_size=60))
def test_blocks_hold_every_unit_once_whole_and_their_rows_in_order(sizes):
    units = []
    for number, pair in enumerate(sizes):
        answers = [AnswerIds([number], [10 * number + side] * size) for side, size in enumerate(pair)]
        units.append(rows_of_unit(answers, RowLimits(9, START, END), stats=PackingStats()))
    blocks = list(pack_units(units, length=18, pad_id=PAD))
    found = []
    for block in blocks:
        assert len(block.input_ids) == 18
        text = block.input_ids[block.token_kinds != P]
        assert (block.input_ids[len(text) :] == PAD).all()
        found.append(np.split(text, np.flatnonzero(text == START)[1:]))
        assert len(found[-1]) % 2 == 0
    pairs = [tuple(tuple(row.tolist()) for row in rows[at : at + 2]) for rows in found for at in range(0, len(rows), 2)]
    assert sorted(pairs) == sorted(tuple(tuple(row.ids.tolist()) for row in unit) for unit in units)
    again = list(pack_units(units, length=18, pad_id=PAD))
    assert [block.input_ids.tolist() for block in again] == [block.input_ids.tolist() for block in blocks]


def test_packing_leaves_little_room():
    generator = np.random.default_rng(0)
    lengths = np.clip(generator.lognormal(5.2, 0.7, 2000), 10, 500).astype(int)
    units = [
        rows_of_unit([AnswerIds([1], [2] * size)], RowLimits(512, START, END), stats=PackingStats()) for size in lengths
    ]
    blocks = list(pack_units(units, length=1024, pad_id=PAD))
    padding = sum(int((block.token_kinds == P).sum()) for block in blocks) / (1024 * len(blocks))
    assert padding < 0.02
