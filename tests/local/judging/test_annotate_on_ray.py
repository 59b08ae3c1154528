"""On Ray: the same comparisons as in one process, each question asked once, and errors that are the job's own."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from judge_server import JudgeServer, judge_server
from judging_files import pair_rows, write_pool, write_rows

from phf_ray.feedback import read_feedback
from phf_ray.judging import annotate_plan
from phf_ray.judging.annotate import annotate
from phf_ray.judging.annotate_plan import AnnotateRequest
from phf_ray.judging.api import PairwiseAutoAnnotator
from phf_ray.judging.budget import UNIT, Budget, BudgetSpentError
from phf_ray.judging.desk import DeskSettings, StoreDesk, endpoints_of
from phf_ray.judging.on_ray import judge_on_ray
from phf_ray.judging.pool import load_pool
from phf_ray.judging.served_scorers import identified, scorers_of
from phf_ray.judging.sources import JudgingSource

pytestmark = pytest.mark.usefixtures("local_ray")

MIXED = """\
annotators:
  - {name: longer, judge: {rule: longer}}
  - name: asked
    judge: {chat: {model: m, price: {input: 1.0, output: 2.0}}}
    prompt: prompt.txt
    parser: {regex: {1: 'Output \\(a\\)', 2: 'Output \\(b\\)'}}
    decoding: {max_tokens: 10}
"""


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    with judge_server() as started:
        yield started


def request_of(folder: Path, url: str, num: int = 200) -> AnnotateRequest:
    write_pool(folder)
    (folder / "pool.yml").write_text(MIXED, encoding="utf-8")
    pairs = write_rows(folder / "pairs.json", pair_rows(num))
    return AnnotateRequest(JudgingSource(pairs=pairs), load_pool(folder / "pool.yml", over={"url": url}))


def desk_of(request: AnnotateRequest, cache: Path, budget: str | None = None) -> DeskSettings:
    return DeskSettings(str(cache), endpoints_of(request.pool), None if budget is None else Budget.parse(budget))


def test_any_number_of_actors_gives_the_comparisons_of_one_process(tmp_path, server, monkeypatch):
    monkeypatch.setattr(annotate_plan, "_FEWEST_ROWS", 16)
    request = request_of(tmp_path, server.url)
    desk = desk_of(request, tmp_path / "cache")
    on_one = annotate(request, str(tmp_path / "one"), desk=desk, runner=judge_on_ray(max_actors=1))
    asked = server.counts.total()
    assert set(server.counts.values()) == {1}
    here = annotate(request, str(tmp_path / "here"), desk=desk)
    on_three = annotate(request, str(tmp_path / "three"), desk=desk, runner=judge_on_ray(max_actors=3))
    assert server.counts.total() == asked, "what one run asked, no other asks again"
    rows = [list(read_feedback(str(tmp_path / name))) for name in ("here", "one", "three")]
    assert rows[0] == rows[1] == rows[2]
    assert {row.annotator for row in rows[0]} == {"longer", "asked"}
    assert here.manifest["fingerprint"] == on_one.manifest["fingerprint"] == on_three.manifest["fingerprint"]


def test_actors_that_judge_grow_in_number_while_parts_wait(tmp_path, monkeypatch):
    monkeypatch.setattr(annotate_plan, "_FEWEST_ROWS", 16)
    seen = tmp_path / "seen"
    seen.mkdir()
    judge = {"class_name": "judges:WaitsForAnother", "settings": {"folder": str(seen)}}
    pairs = write_rows(tmp_path / "pairs.json", pair_rows(16 * 16))
    request = AnnotateRequest(
        JudgingSource(pairs=pairs), load_pool({"annotators": [{"name": "waits", "judge": judge}]})
    )
    annotate(
        request, str(tmp_path / "out"), desk=desk_of(request, tmp_path / "cache"), runner=judge_on_ray(max_actors=2)
    )
    assert len(list(seen.iterdir())) == 2


def test_a_budget_holds_over_all_actors_and_its_error_is_the_job_s_own(tmp_path, server):
    request = request_of(tmp_path, server.url)
    desk = desk_of(request, tmp_path / "cache", "0.003")
    with pytest.raises(BudgetSpentError, match=r"raise --budget to go on. All answers so far are kept$"):
        annotate(request, str(tmp_path / "out"), desk=desk, runner=judge_on_ray(max_actors=2))
    opened = StoreDesk(desk)
    spent = opened.ledger.spent().money
    opened.store.close()
    assert spent is not None
    assert 0 < spent <= 0.003 / UNIT
    more = desk_of(request, tmp_path / "cache", "1.00")
    done = annotate(request, str(tmp_path / "out"), desk=more, runner=judge_on_ray(max_actors=2))
    assert done.stats.rows.rows == 200
    assert set(server.counts.values()) == {1}


def test_a_job_and_the_api_on_one_cache_at_once_ask_each_question_once(tmp_path, server):
    server.delay_s = 0.02
    request = request_of(tmp_path, server.url)
    desk = desk_of(request, tmp_path / "cache")
    started = judge_on_ray(max_actors=1)
    here: list[dict] = []

    def runner(work, shards, settings):
        for number, outcome in enumerate(started(work, shards, settings)):
            if number == 0:
                # While the other parts are under way, this process judges all of it, too.
                opened = StoreDesk(desk)
                api = PairwiseAutoAnnotator(tmp_path / "pool.yml", asker=opened, url=server.url)
                here.extend(api.annotate_pairs(json.loads((tmp_path / "pairs.json").read_text(encoding="utf-8"))))
                opened.store.close()
            yield outcome

    annotate(request, str(tmp_path / "out"), desk=desk, runner=runner)
    assert set(server.counts.values()) == {1}
    said = {(row["output_1"], row["output_2"]): row["preference"] for row in here}
    assert said == {(row.output_1, row.output_2): row.preference for row in read_feedback(str(tmp_path / "out"))}
    assert len(said) == 200


def test_a_scorer_behind_a_url_is_asked_in_batches_and_once_for_all_actors(tmp_path, server, monkeypatch):
    monkeypatch.setattr(annotate_plan, "_FEWEST_ROWS", 32)
    server.script = lambda body, count: (
        200,
        {},
        {
            "scorer": {"name": "length"},
            "data": [{"index": place, "score": len(text), "error": None} for place, text in enumerate(body["input"])],
        },
    )
    pool = {"annotators": [{"name": "served", "judge": {"scorer": {"url": server.url, "name": "length"}}}]}
    pairs = write_rows(tmp_path / "pairs.json", pair_rows(200))
    request = AnnotateRequest(JudgingSource(pairs=pairs), identified(load_pool(pool)))
    desk = replace(desk_of(request, tmp_path / "cache"), scorers=scorers_of(request.pool))
    begin = len(server.asked)
    annotate(request, str(tmp_path / "out"), desk=desk, runner=judge_on_ray(max_actors=2))
    sizes = [len(body["input"]) for body in server.asked[begin:]]
    assert sum(sizes) == 400
    # How many wait at once depends on how busy the machine is.
    assert len(sizes) < 200
    annotate(request, str(tmp_path / "here"), desk=desk)
    assert len(server.asked) == begin + len(sizes), "scores come from the store"
    rows = list(read_feedback(str(tmp_path / "out")))
    assert rows == list(read_feedback(str(tmp_path / "here")))
    for row in rows:
        lengths = len(row.output_1), len(row.output_2)
        assert row.preference == (1.0 if lengths[0] < lengths[1] else 2.0 if lengths[0] > lengths[1] else 1.5)
