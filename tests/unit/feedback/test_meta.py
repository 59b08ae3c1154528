"""What a corpus keeps in `meta` is read by all as columns, from sets of this version and of earlier ones."""

import json
from pathlib import Path
from typing import Any

import pytest
from feedback_files import write_lines

from jobs.evaluate_reward import _subset
from phf_ray.feedback import read_feedback
from phf_ray.feedback.job import prepare_feedback
from phf_ray.feedback.plan import FeedbackRequest
from phf_ray.feedback.values import unfolded
from phf_ray.judging.board.rows import judged_row
from phf_ray.judging.sources import JudgingSource


def test_the_columns_of_a_row_come_first_and_its_origin_is_the_innermost():
    began = {"source": "judge", "record": 7, "id": "mine", "subset": "chat"}
    middle = {"source": "part-0.parquet", "record": 1, "meta": began}
    row = {
        "id": "outer",
        "preference": None,
        "meta": json.dumps({"source": "part-1.parquet", "record": 0, "meta": middle}),
    }
    assert unfolded(row) == {
        "id": "outer",
        "preference": None,
        "source": "part-1.parquet",
        "record": 0,
        "source_column": "judge",
        "record_column": 7,
        "subset": "chat",
    }
    assert row["meta"], "the row itself stays"


@pytest.mark.parametrize("meta", [None, "text", "[1]", "{broken", "[" * 100_000, 7])
def test_a_meta_that_is_no_object_stays(meta):
    assert unfolded({"a": 1, "meta": meta}) == {"a": 1, "meta": meta}


def corpora(folder: Path, row: dict[str, Any], times: int) -> str:
    """Prepare a set of a set of a set."""
    source = str(write_lines(folder / "in.jsonl", [row]))
    for number in range(times):
        prepare_feedback(FeedbackRequest([source]), str(folder / f"set-{number}"))
        source = str(folder / f"set-{number}")
    return source


@pytest.mark.parametrize("times", [1, 3])
def test_every_reader_finds_the_columns_of_a_set_that_was_made_of_sets(tmp_path, times):
    row = {
        "instruction": "Name a river.",
        "input": "",
        "output_1": "Elbe",
        "output_2": "No.",
        "preference": 1,
        "generator_1": "a",
        "generator_2": "b",
        "subset": "chat",
        "margin": 0.5,
        "source": "noise",
        "order": "21",
    }
    corpus = corpora(tmp_path, row, times)
    (stored,) = read_feedback(corpus)
    (found,) = JudgingSource(pairs=corpus).rows()
    assert (found["generator_1"], found["generator_2"], found["margin"]) == ("a", "b", 0.5)
    assert "meta" not in found
    record = {
        "instruction": "Name a river.",
        "output_1": "Elbe",
        "output_2": "No.",
        "preference": 1,
        "meta": stored.meta,
    }
    judged = judged_row(record, "row 1")
    assert (judged.generator_2, judged.order, judged.source) == ("b", "21", "noise")
    assert _subset({"meta": stored.meta}) == "chat"
    assert unfolded({"meta": stored.meta})["margin"] == 0.5
