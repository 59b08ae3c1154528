"""The API keeps answers where `phf annotate` does, within a budget, and asks nothing twice."""

import pytest
from judge_server import judge_server
from judging_files import pair_rows, write_pool, write_rows

from phf_ray.judging import PairwiseAutoAnnotator
from phf_ray.judging.budget import BudgetSpentError
from phf_ray.judging.importing import import_annotations
from phf_ray.judging.store import Store


def preferences(rows):
    return [row["preference"] for row in rows]


def test_answers_are_kept_for_other_processes_and_later_calls(tmp_path):
    pool, rows = write_pool(tmp_path), pair_rows(20)
    with judge_server() as server:
        options = {"url": server.url, "caching_path": tmp_path / "cache"}
        api = PairwiseAutoAnnotator(pool, **options)
        first = api.annotate_pairs(rows[:10])
        assert len(api.annotate_pairs(rows)) == 20, "a second event loop"
        assert server.counts.total() == 20
        again = PairwiseAutoAnnotator(pool, is_avoid_reannotations=False, **options).annotate_pairs(rows)
        assert preferences(again[:10]) == preferences(first)
        assert server.counts.total() == 20
        PairwiseAutoAnnotator(pool, url=server.url, caching_path=None).annotate_pairs(rows)
        assert server.counts.total() == 40, "None keeps nothing"


def test_a_budget_holds_and_imported_judgements_are_known(tmp_path):
    pool, rows = write_pool(tmp_path), pair_rows(40)
    store = Store(tmp_path / "cache")
    old = [{**row, "annotator": "asked", "preference": 1.25} for row in rows[:5]]
    old[0]["raw_completion"] = "half a character: \ud83d"
    import_annotations(store, write_rows(tmp_path / "annotations.json", old))
    store.close()
    with judge_server() as server:
        options = {"url": server.url, "caching_path": tmp_path / "cache"}
        with pytest.raises(BudgetSpentError, match=r"of the budget of 0\.002"):
            PairwiseAutoAnnotator(pool, budget=0.002, **options).annotate_pairs(rows)
        found = PairwiseAutoAnnotator(pool, budget=1, **options).annotate_pairs(rows)
        assert server.counts.total() == 35
    assert preferences(found[:5]) == [1.25] * 5
