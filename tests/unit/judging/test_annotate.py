"""`phf annotate` in one process: what it writes, resumes, spends, refuses."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from judge_server import JudgeServer, judge_server
from judging_files import RULES, pair_rows, write_pool, write_rows

from jobs import prepare_feedback
from jobs.annotate import main
from phf_ray.errors import ConfigError, DataError, IncompleteError
from phf_ray.feedback import Comparison, read_feedback, read_feedback_manifest
from phf_ray.http.client import RefusedError
from phf_ray.judging import annotate_plan
from phf_ray.judging.annotate import annotate, judge_here
from phf_ray.judging.annotate_plan import AnnotateRequest
from phf_ray.judging.budget import UNIT, BudgetSpentError
from phf_ray.judging.desk import DeskSettings
from phf_ray.judging.ledger import Ledger
from phf_ray.judging.pool import load_pool
from phf_ray.judging.sources import JudgingSource
from phf_ray.judging.store import Store


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    with judge_server() as started:
        yield started


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("PHF_API_KEY", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


class Job:
    def __init__(self, folder: Path, url: str):
        self.folder, self.url = folder, url

    def __call__(self, source: str, pool: str, output: str, *more: str, kind: str = "--pairs") -> list[Comparison]:
        arguments = [kind, source, "--annotators", pool, "--url", self.url, "--cache", str(self.folder / "cache")]
        main([*arguments, "--output", str(self.folder / output), *more])
        if "--dry-run" in more:
            return []
        return [row for row in read_feedback(str(self.folder / output)) if isinstance(row, Comparison)]


@pytest.fixture
def job(tmp_path, server) -> Job:
    return Job(tmp_path, server.url)


def spent(job: Job) -> int:
    store = Store(job.folder / "cache")
    money = Ledger(store).spent().money
    store.close()
    assert money is not None
    return money


def test_pairs_become_comparisons_and_keep_their_columns(job, tmp_path, server):
    rows = pair_rows(30)
    human = [{**row, "preference": 2, "annotator": "a human"} for row in rows]
    found = job(write_rows(tmp_path / "pairs.json", [*human, *human[:3]]), write_pool(tmp_path), "out")
    assert len(found) == 30
    by_text = {(row["output_1"], row["output_2"]): row for row in rows}
    for one in found:
        row = by_text[one.output_1, one.output_2]
        assert (one.prompt.instruction, one.prompt.input) == (row["instruction"], row["input"])
        assert (one.annotator, one.preference in (1.0, 2.0)) == ("asked", True)
        meta = json.loads(one.meta)
        assert (meta["generator_1"], meta["generator_2"]) == ("base", "new")
        assert (meta["given_preference"], meta["given_annotator"]) == (2, "a human")
        assert meta["order"] in ("12", "21")
        assert meta["raw"] in ("Output (a)", "Output (b)")
        said = 1.0 if meta["raw"] == "Output (a)" else 2.0
        assert one.preference == (said if meta["order"] == "12" else 3 - said)
        assert meta["price"] > 0
    manifest = json.loads((tmp_path / "out/manifest.json").read_text(encoding="utf-8"))
    assert manifest["judging"]["annotators"] == {"asked": 30}
    assert manifest["rejected"] == {"duplicate": 3}
    assert manifest["judging"]["price"] == pytest.approx(spent(job) * UNIT)
    assert read_feedback_manifest(str(tmp_path / "out")).kind == "comparisons"
    assert server.counts.total() == 30


def test_a_second_run_and_another_output_ask_nothing(job, tmp_path, server):
    pairs, pool = write_rows(tmp_path / "pairs.json", pair_rows(20)), write_pool(tmp_path)
    first = job(pairs, pool, "out")
    assert job(pairs, pool, "out") == job(pairs, pool, "other") == first
    assert server.counts.total() == 20


def test_rows_do_not_depend_on_their_order_or_on_the_parts(job, tmp_path, server, monkeypatch):
    """Prompts of three pairs: which stand together must not change either."""
    rows = pair_rows(300)
    pool = write_pool(tmp_path, batch_size="3")
    server.answer = lambda body: "Output (a) Output (b) Output (a)"
    first = job(write_rows(tmp_path / "pairs.json", rows), pool, "out", "--p-label-flip", "0.1")
    asked = server.counts.total()
    monkeypatch.setattr(annotate_plan, "_FEWEST_ROWS", 20)
    again = job(write_rows(tmp_path / "back.json", rows[::-1]), pool, "back", "--p-label-flip", "0.1")
    assert len(list((tmp_path / "out").glob("part-*"))) != len(list((tmp_path / "back").glob("part-*"))) > 3
    assert sorted(first, key=lambda row: row.id) == sorted(again, key=lambda row: row.id)
    assert server.counts.total() == asked, "the same prompts"


def test_the_price_of_a_call_for_several_pairs_counts_once_whether_it_can_be_read_or_not(job, tmp_path, server):
    pool = write_pool(tmp_path, batch_size="5")
    server.answer = lambda body: "Output (a) " * (4 if "Write 7 words" in json.dumps(body) else 5)
    found = job(write_rows(tmp_path / "pairs.json", pair_rows(43)), pool, "out", "--max-failed-fraction", "0.5")
    assert 0 < sum(row.preference is None for row in found) <= 5
    calls = server.counts.total()
    assert calls < 20
    prices = [json.loads(row.meta)["price"] for row in found]
    manifest = json.loads((tmp_path / "out/manifest.json").read_text(encoding="utf-8"))
    assert sum(prices) == pytest.approx(spent(job) * UNIT)
    assert manifest["judging"]["price"] == pytest.approx(spent(job) * UNIT)


def test_input_that_is_larger_than_memory_allows_is_dealt_in_several_readings(job, tmp_path, monkeypatch):
    (tmp_path / "pool.yml").write_text(RULES, encoding="utf-8")
    rows = pair_rows(200)
    first = job(write_rows(tmp_path / "pairs.json", rows), str(tmp_path / "pool.yml"), "out")
    monkeypatch.setattr(annotate_plan, "_FEWEST_ROWS", 10)
    monkeypatch.setattr(annotate_plan, "_STAGED_BYTES", 10_000)
    again = job(str(tmp_path / "pairs.json"), str(tmp_path / "pool.yml"), "other")
    assert len(list((tmp_path / "other").glob("part-*"))) == 20
    assert sorted(first, key=lambda row: row.id) == sorted(again, key=lambda row: row.id)
    assert len(again) == 200


def test_a_job_that_was_stopped_goes_on_with_the_missing_parts(job, tmp_path, server, monkeypatch):
    monkeypatch.setattr(annotate_plan, "_FEWEST_ROWS", 10)
    pairs, pool = write_rows(tmp_path / "pairs.json", pair_rows(100)), write_pool(tmp_path, judge="max_in_flight: 4")
    refused = []

    def script(body, count):
        # Two requests may have arrived before either is answered, so only the answer says which were refused.
        if len(server.asked) <= 50:
            return None
        refused.append(body)
        return 401, {}, {"error": {"message": "no more"}}

    server.script = script
    with pytest.raises(RefusedError, match=r"status 401: .*no more"):
        job(pairs, pool, "out")
    parts = {part: part.stat().st_mtime_ns for part in (tmp_path / "out").glob("part-*")}
    assert parts
    assert not (tmp_path / "out/_SUCCESS").exists()
    server.script = lambda body, count: None
    assert len(job(pairs, pool, "out")) == 100
    assert server.counts.total() == 100 + len(refused)
    assert {part: part.stat().st_mtime_ns for part in parts} == parts, "finished parts stay as they are"


def test_rows_that_were_refused_are_asked_again_when_the_job_goes_on(job, tmp_path, server):
    pairs, pool = write_rows(tmp_path / "pairs.json", pair_rows(40)), write_pool(tmp_path)
    server.script = lambda body, count: (400, {}, {"error": {"message": "too long"}})
    with pytest.raises(IncompleteError, match=r"40 of 40 rows have no judgement.*asked: 40 refused.*too long"):
        job(pairs, pool, "out")
    server.script = lambda body, count: None
    assert {row.preference for row in job(pairs, pool, "out")} == {1.0, 2.0}


def test_a_few_failures_are_counted_and_judge_nothing(job, tmp_path, server):
    server.answer = lambda body: "no idea" if "Write 7 words" in body["messages"][0]["content"] else "Output (a)"
    found = job(write_rows(tmp_path / "pairs.json", pair_rows(40)), write_pool(tmp_path), "out")
    failed = [row for row in found if row.preference is None]
    assert [row.prompt.instruction for row in failed] == ["Write 7 words"]
    assert json.loads(failed[0].meta)["error"]
    manifest = json.loads((tmp_path / "out/manifest.json").read_text(encoding="utf-8"))
    assert sum(manifest["judging"]["failures"]["asked"].values()) == 1
    assert manifest["preferences"]["unknown"] == 1
    assert "says 'the first is better' of 39 of 39 pairs (100.0%)" in manifest["judging"]["warnings"][0]


def test_a_budget_stops_the_job_which_says_what_is_left_and_goes_on(job, tmp_path, server, capsys):
    pairs, pool = write_rows(tmp_path / "pairs.json", pair_rows(60)), write_pool(tmp_path)
    with pytest.raises(
        BudgetSpentError, match=r"raise --budget to go on.*Left to do: \d+ pairs.*\d+ calls; .*price: about"
    ):
        job(pairs, pool, "out", "--budget", "0.003")
    assert 0 < spent(job) <= 0.003 / UNIT
    asked = server.counts.total()
    assert 0 < asked < 60
    assert len(job(pairs, pool, "out", "--budget", "1.00")) == 60
    assert server.counts.total() == 60


def test_a_budget_of_money_needs_a_price(job, tmp_path, server):
    pairs = write_rows(tmp_path / "pairs.json", pair_rows(5))
    with pytest.raises(
        ConfigError,
        match=r"--budget 1.00 is money, and .* m has no price; write `prices: \{MODEL: ",
    ):
        job(pairs, write_pool(tmp_path, judge="max_in_flight: 4"), "out", "--budget", "1.00")
    with pytest.raises(ConfigError, match="may have any length; give its annotator max_tokens"):
        job(pairs, write_pool(tmp_path, decoding="{temperature: 0.0}"), "other", "--budget", "1.00")
    assert server.counts.total() == 0


def test_a_dry_run_counts_calls_tokens_and_price_and_writes_nothing(job, tmp_path, server, capsys):
    rows = pair_rows(20)
    pairs, pool = write_rows(tmp_path / "pairs.json", rows), write_pool(tmp_path)
    job(pairs, pool, "out", "--dry-run")
    said = capsys.readouterr().out
    assert "20 pairs" in said
    assert "20 calls; 0 more are answered in the cache" in said
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "cache").exists()
    assert server.counts.total() == 0
    job(write_rows(tmp_path / "some.json", rows[:5]), pool, "out")
    job(pairs, pool, "other", "--dry-run")
    assert "15 calls; 5 more are answered in the cache" in capsys.readouterr().out
    job(str(tmp_path / "some.json"), pool, "out", "--dry-run")
    assert "0 pairs" in capsys.readouterr().out


def test_samples_and_two_models_become_pairs(job, tmp_path, server):
    (tmp_path / "pool.yml").write_text(RULES, encoding="utf-8")
    pool = str(tmp_path / "pool.yml")
    samples = [{"instruction": f"i {number}", "output": ["a", "bb", "ccc"]} for number in range(4)]
    file = write_rows(tmp_path / "samples.json", samples)
    assert len(job(file, pool, "one", kind="--samples")) == 4
    assert len(job(file, pool, "all", "--all-samples", kind="--samples")) == 12
    models = [
        write_rows(tmp_path / f"{name}.json", [{"instruction": "i", "output": text, "generator": name}])
        for name, text in (("A", "short"), ("B", "longer"))
    ]
    fixed = ["--annotators", pool, "--output", str(tmp_path / "h2h"), "--cache", str(tmp_path / "cache")]
    main(["--head2head", *models, *fixed])
    (row,) = read_feedback(str(tmp_path / "h2h"))
    assert isinstance(row, Comparison)
    assert (row.output_1, row.output_2) == ("short", "longer")
    assert (json.loads(row.meta)["generator_1"], json.loads(row.meta)["generator_2"]) == ("A", "B")


def test_the_output_of_one_job_is_input_of_another(job, tmp_path, server):
    (tmp_path / "rules.yml").write_text(RULES, encoding="utf-8")
    asked = job(write_rows(tmp_path / "pairs.json", pair_rows(10)), write_pool(tmp_path), "out")
    ruled = job(str(tmp_path / "out"), str(tmp_path / "rules.yml"), "ruled")
    assert {row.id for row in ruled} == {row.id for row in asked}
    before = {row.id: row for row in asked}
    for row in ruled:
        meta = json.loads(row.meta)
        assert (meta["given_preference"], meta["given_annotator"]) == (before[row.id].preference, "asked")


def test_what_the_input_called_as_we_do_is_kept_however_often_it_is_judged(job, tmp_path):
    (tmp_path / "rules.yml").write_text(RULES, encoding="utf-8")
    (row,) = pair_rows(1)
    row |= {"id": 17, "prompt": "as it was asked", "preference": 2}
    job(write_rows(tmp_path / "pairs.json", [row]), str(tmp_path / "rules.yml"), "once")
    ((once,), (twice,)) = (
        read_feedback(str(tmp_path / "once")),
        job(str(tmp_path / "once"), str(tmp_path / "rules.yml"), "twice"),
    )
    for one in (once, twice):
        meta = json.loads(one.meta)
        given = (meta["given_id"], meta["given_prompt"], meta["given_preference"])
        assert given == (17, "as it was asked", 2), "a human's"
    assert "given_annotator" not in json.loads(twice.meta), "nobody says who the human was"
    assert json.loads(twice.meta)["given_given_preference"] == once.preference
    assert json.loads(twice.meta)["given_given_annotator"] == once.annotator
    assert "given_given_id" not in json.loads(twice.meta), "it is the same"


def test_a_corpus_of_dialogues_is_judged_by_the_dialogue_as_one_text(job, tmp_path):
    said = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: {}?\n\nAssistant: "
    pairs = [{"chosen": said.format(n) + "yes", "rejected": said.format(n) + "no, never"} for n in range(3)]
    prepare_feedback.main(["--input", write_rows(tmp_path / "hh.json", pairs), "--output", str(tmp_path / "corpus")])
    (tmp_path / "pool.yml").write_text(RULES, encoding="utf-8")
    found = job(str(tmp_path / "corpus"), str(tmp_path / "pool.yml"), "out")
    assert {row.prompt.instruction for row in found} == {
        f"user: Hi\n\nassistant: Hello\n\nuser: {n}?" for n in range(3)
    }
    assert [one["role"] for one in json.loads(found[0].meta)["messages"]] == ["user", "assistant", "user"]


def test_old_annotations_spare_their_calls(job, tmp_path, server):
    rows = pair_rows(10)
    old = [
        {**row, "annotator": "asked", "preference": given}
        for row, given in zip(rows, (1, 2, 0, -1, None), strict=False)
    ]
    found = job(
        write_rows(tmp_path / "pairs.json", rows),
        write_pool(tmp_path),
        "out",
        "--known",
        write_rows(tmp_path / "annotations.json", old),
    )
    by_instruction = {row.prompt.instruction: row for row in found}
    assert [by_instruction[row["instruction"]].preference for row in rows[:4]] == [1.0, 2.0, 1.5, None], (
        "0 was a tie, and -1 an answer that could not be read"
    )
    assert json.loads(by_instruction[rows[3]["instruction"]].meta)["error"] == "unparsed: imported as -1"
    assert server.counts.total() == 6
    manifest = json.loads((tmp_path / "out/manifest.json").read_text(encoding="utf-8"))
    assert manifest["judging"]["judged_by"] == {"judge": 6, "stored": 4}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "there is no pair to judge"),
        ([{"instruction": "i", "output_1": "a"}], r"pairs.json, row 1: 'output_2' is missing"),
        ([*pair_rows(2), {"output_1": "a", "output_2": "b"}], "row 3: 'instruction' is missing"),
        ([{"messages": ["hi"], "output_1": "a", "output_2": "b"}], r"pairs.json, record 0: message 1 is 'hi'"),
        ([{"instruction": "i", "output_1": ["a", "b"], "output_2": ["c"]}], r"row 1: 'output_1' is \['a', 'b'\]"),
    ],
)
def test_rows_that_can_not_be_judged_are_named_before_anyone_is_asked(job, tmp_path, server, rows, said):
    with pytest.raises(DataError, match=said):
        job(write_rows(tmp_path / "pairs.json", rows), write_pool(tmp_path), "out")
    assert server.counts.total() == 0
    assert not (tmp_path / "out").exists()


def test_another_pool_seed_or_input_is_refused_for_an_output_that_was_begun(job, tmp_path):
    (tmp_path / "pool.yml").write_text(RULES, encoding="utf-8")
    pool = str(tmp_path / "pool.yml")
    pairs = write_rows(tmp_path / "pairs.json", pair_rows(5))
    job(pairs, pool, "out")
    with pytest.raises(ConfigError, match=r"begun with another --seed; give another --output, or --restart"):
        job(pairs, pool, "out", "--seed", "1")
    with pytest.raises(ConfigError, match="begun with another input"):
        job(write_rows(tmp_path / "other.json", pair_rows(6)), pool, "out")
    (tmp_path / "pool.yml").write_text(RULES.replace("name: shorter", "name: other"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"begun with another --annotators \(or its file has changed\)"):
        job(pairs, pool, "out")
    assert len(job(pairs, pool, "out", "--restart")) == 5


def test_a_job_that_has_judged_no_part_leaves_its_place_to_another(tmp_path):
    source, pool, output = write_rows(tmp_path / "pairs.json", pair_rows(4)), tmp_path / "pool.yml", tmp_path / "out"
    pool.write_text(RULES, encoding="utf-8")

    def away(*_):
        with pytest.raises(ConfigError, match="another command is working on it"):
            annotate(request(0), str(output), desk=desk)
        raise IncompleteError("nobody answers")

    def request(seed):
        return AnnotateRequest(source=JudgingSource(pairs=source), pool=load_pool(pool), seed=seed)

    desk = DeskSettings(cache=str(tmp_path / "cache"), endpoints={})
    with pytest.raises(IncompleteError):
        annotate(request(0), str(output), desk=desk, runner=away)
    assert annotate(request(1), str(output), desk=desk).stats.rows.rows == 4
    with pytest.raises(ConfigError, match="begun with another --seed"):
        annotate(request(2), str(output), desk=desk)


def test_where_nothing_keeps_jobs_apart_one_without_parts_may_be_under_way(tmp_path):
    source, pool, output = write_rows(tmp_path / "pairs.json", pair_rows(4)), tmp_path / "pool.yml", "memory://judged"
    pool.write_text(RULES, encoding="utf-8")
    desk = DeskSettings(cache=str(tmp_path / "cache"), endpoints={})

    def and_another(work, shards, desk):
        with pytest.raises(ConfigError, match="begun with another --seed"):
            annotate(request(1), output, desk=desk)
        return judge_here(work, shards, desk)

    def request(seed):
        return AnnotateRequest(source=JudgingSource(pairs=source), pool=load_pool(pool), seed=seed)

    assert annotate(request(0), output, desk=desk, runner=and_another).stats.rows.rows == 4


def test_settings_of_the_server_change_no_row_and_no_plan(job, tmp_path, server):
    pairs = write_rows(tmp_path / "pairs.json", pair_rows(5))
    first = job(pairs, write_pool(tmp_path), "out")
    assert job(pairs, write_pool(tmp_path, judge="max_in_flight: 2, patience_s: 5"), "out") == first


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--max-failed-fraction", "nan"], "max_failed_fraction nan is no share of the rows; give 0 to 1"),
        (["--max-failed-fraction", "1.5"], "max_failed_fraction 1.5 is no share"),
        (["--max-actors", "0"], "--max-actors 0: nobody would judge; give 1 or more"),
    ],
)
def test_limits_that_are_none_are_refused_before_anything_is_read(job, flags, message):
    with pytest.raises(ConfigError, match=message):
        job("nope.json", "offline", "out", *flags)


@pytest.mark.parametrize("kind", ["--pairs", "--samples"])
def test_a_file_that_is_missing_is_named_with_its_option(job, kind):
    with pytest.raises(ConfigError, match=f"^{kind} nope.json does not exist"):
        job("nope.json", "offline", "out", kind=kind)
