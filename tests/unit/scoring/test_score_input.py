"""What a scored corpus says about its input: segments that came cut, the splitter's version, columns that are kept."""

import json
from importlib.metadata import version

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import score_corpus as job
from phf_ray.config import parse_config
from phf_ray.corpus.reader import read_corpus, read_corpus_manifest
from phf_ray.corpus.segments import SEGMENTER_VERSIONS, segmenter_versions
from phf_ray.errors import ConfigError
from phf_ray.scoring.executor import InProcessScoring
from phf_ray.scoring.job import run_scoring
from phf_ray.scoring.plan import preview_scoring
from phf_ray.scoring.request import ScoringRequest

LENGTH = {"class_name": "fakes:LengthScorer"}
WORDS = {"class_name": "fakes:WordScorer"}


def request(*inputs, scorers=(LENGTH,), segmenter="lines", pools=None, compat=None, **options):
    scoring = {"scorers": list(scorers), "segmenter": segmenter, "pools": pools or {}}
    config = parse_config({"scoring": scoring, "compat": compat})
    return ScoringRequest(config, inputs=[str(path) for path in inputs], **options)


def run(asked, output, **options):
    return run_scoring(asked, str(output), executor=InProcessScoring(), **options)


def stored(path, name):
    return json.loads((path / name).read_text())


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "in" / "a.txt"
    path.parent.mkdir()
    path.write_text("One. Two.\nThree.\n")
    return path


def segments_of(folder):
    return [document.texts for document in read_corpus(str(folder))]


def test_a_corpus_by_lines_is_not_scored_again_as_one_by_sentences(text, tmp_path):
    run(request(text), tmp_path / "lines")
    for attempt in (preview_scoring, lambda asked: run(asked, tmp_path / "sentences")):
        with pytest.raises(
            ConfigError, match=r"lines was cut into lines, .* set scoring\.segmenter=lines, or score the input"
        ):
            attempt(request(tmp_path / "lines", segmenter="sentences"))
    assert not (tmp_path / "sentences").exists()
    manifest = run(request(tmp_path / "lines", scorers=[LENGTH, WORDS]), tmp_path / "again")
    assert (manifest.segmenter, segments_of(tmp_path / "again")) == ("lines", [("One. Two.\n", "Three.\n")])
    assert run(request(tmp_path / "again", scorers=[WORDS]), tmp_path / "third").segmenter == "lines"


def test_segments_that_the_input_gave_are_not_those_of_the_segmenter(text, tmp_path):
    pools = {"gpu": {"num_gpus": 0}}  # a GPU pool that asks for no GPU: two stages, on any machine
    pq.write_table(pa.table({"texts": [["a b", " c"], ["d"]]}), tmp_path / "cut.parquet")
    scorers = [LENGTH, WORDS]
    manifest = run(request(tmp_path / "cut.parquet", scorers=scorers, pools=pools), tmp_path / "given")
    assert manifest.segmenter == read_corpus_manifest(str(tmp_path / "given")).segmenter == "unknown"
    assert segments_of(tmp_path / "given") == [("a b", " c"), ("d",)]
    mixed = run(
        request(tmp_path / "cut.parquet", text, scorers=scorers, pools=pools, shard_bytes=1), tmp_path / "mixed"
    )
    assert mixed.segmenter == "lines, unknown"
    # What nobody knows stays unknown.
    assert run(request(tmp_path / "given", segmenter="sentences"), tmp_path / "next").segmenter == "unknown"


def test_the_splitter_of_sentences_is_part_of_plan_and_manifest(text, tmp_path, monkeypatch):
    out = tmp_path / "out"
    manifest = run(request(text, segmenter="sentences"), out)
    assert stored(out, "plan.json")["key"][SEGMENTER_VERSIONS].keys() == {"spacy", "East Asian sentence ends"}
    assert stored(out, "manifest.json")["segmenter_versions"] == segmenter_versions("sentences")
    assert manifest.segmenter_versions == read_corpus_manifest(str(out)).segmenter_versions
    assert SEGMENTER_VERSIONS not in request(text).key()
    monkeypatch.setattr("phf_ray.corpus.segments.version", lambda package: "0.1")
    with pytest.raises(ConfigError, match=r"segmenter versions was \{'spacy': '3\..*'\}, is \{'spacy': '0\.1', "):
        run(request(text, segmenter="sentences"), out)


def test_a_plan_that_does_not_name_the_splitter_goes_on(text, tmp_path):
    out = tmp_path / "out"
    run(request(text, segmenter="sentences"), out)
    plan = stored(out, "plan.json")
    del plan["key"][SEGMENTER_VERSIONS]
    for path in (*out.glob("part-*"), out / "_SUCCESS", out / "manifest.json"):
        path.unlink()
    (out / "plan.json").write_text(json.dumps(plan))
    assert run(request(text, segmenter="sentences"), out).segmenter_versions == {}
    assert run(request(text, segmenter="sentences"), out).documents == 1


@pytest.fixture
def chinese(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text(json.dumps({"text": "\u597d\u3002\u597d"}) + "\n")
    return path


def test_chinese_sentences_end_but_not_under_compat_and_the_plan_tells(chinese, tmp_path):
    out = tmp_path / "out"
    assert run(request(chinese, segmenter="sentences"), out).segments == 2
    original = request(chinese, segmenter="sentences", compat="korbak2023")
    with pytest.raises(ConfigError, match=r"segmenter versions was .*East Asian.*, is \{'spacy': '[^,]*'\}; give"):
        run(original, out)
    manifest = run(original, tmp_path / "original")
    assert (manifest.segments, manifest.segmenter) == (1, "sentences")
    assert manifest.segmenter_versions == {"spacy": version("spacy")}


def test_a_plan_from_before_chinese_sentences_ended_goes_on_without(chinese, tmp_path):
    out, asked = tmp_path / "out", request(chinese, segmenter="sentences")
    run(asked, out)
    plan = stored(out, "plan.json")
    plan["key"][SEGMENTER_VERSIONS] = {"spacy": version("spacy")}
    for path in (*out.glob("part-*"), out / "_SUCCESS", out / "manifest.json"):
        path.unlink()
    (out / "plan.json").write_text(json.dumps(plan))
    manifest = run(asked, out)
    assert (manifest.segments, manifest.segmenter_versions) == (1, {"spacy": version("spacy")})
    plan["key"][SEGMENTER_VERSIONS] = {"spacy": "0.1"}
    (out / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(ConfigError, match=r"segmenter versions was \{'spacy': '0\.1'\}, is \{'spacy': '[^,]*'\}; give"):
        run(asked, out)


def test_a_node_with_another_splitter_cuts_nothing(text, tmp_path, monkeypatch):
    class Elsewhere(InProcessScoring):
        def score(self, pools, rows):
            monkeypatch.setattr("phf_ray.corpus.segments.version", lambda package: "0.1")
            yield from super().score(pools, rows)

    with pytest.raises(
        ConfigError, match=r"would cut texts with \{'spacy': '0\.1', .*\}; the job began with .*all nodes"
    ):
        run_scoring(request(text, segmenter="sentences"), str(tmp_path / "out"), executor=Elsewhere())


def test_a_job_begun_before_a_setting_had_a_name_goes_on_if_the_scorer_is_the_same(text, tmp_path):
    out = tmp_path / "out"
    run(request(text, scorers=[{"class_name": "PIIScorer", "mode": "paper"}]), out)
    plan = stored(out, "plan.json")
    del plan["key"]["scoring.scorers"][0]["mode"]
    (out / "plan.json").write_text(json.dumps(plan))
    assert run(request(text, scorers=[{"class_name": "PIIScorer", "mode": "paper"}]), out).documents == 1
    with pytest.raises(ConfigError, match=r"scoring\.scorers was .*, is .*'mode': 'strict'"):
        run(request(text, scorers=[{"class_name": "PIIScorer", "mode": "strict"}]), out)


def test_columns_are_kept_and_belong_to_the_plan(tmp_path, caplog):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "x", "url": "u", "date": "d"}) + "\n")
    caplog.set_level("INFO")
    run(request(tmp_path / "a.jsonl"), tmp_path / "none")
    assert "columns that no document keeps: url, date; --keep-columns puts them into meta" in caplog.text
    run(request(tmp_path / "a.jsonl", keep_columns=["url"]), tmp_path / "out")
    (document,) = read_corpus(str(tmp_path / "out"))
    assert json.loads(document.meta) == {"url": "u", "source": "a.jsonl", "record": 0}
    assert stored(tmp_path / "out", "manifest.json")["config"]["--keep-columns"] == ["url"]
    assert "--keep-columns" not in stored(tmp_path / "none", "plan.json")["key"]
    for keep in ([], ["date"]):
        with pytest.raises(ConfigError, match=r"--keep-columns was \['url'\], is"):
            run(request(tmp_path / "a.jsonl", keep_columns=keep), tmp_path / "out")
    arguments = ["--task", "configs/pep8/pretrain.yml", "--input", f"{tmp_path}/a.jsonl", "--output", f"{tmp_path}/cli"]
    with pytest.raises(ConfigError, match="--keep-columns urls: not in the records"):
        job.main([*arguments, "--dry-run", "--keep-columns", "url", "--keep-columns", "urls"])


def test_a_record_without_text_is_one_rejection_of_many(tmp_path):
    lines = [{"id": 1}, *({"text": f"t{number}"} for number in range(5))]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    manifest = run(request(tmp_path / "a.jsonl"), tmp_path / "out")
    assert (manifest.documents, dict(manifest.rejected)) == (5, {"no_text": 1})


def test_odd_metadata_goes_all_the_way(tmp_path):
    odd = pa.array([2**62, 5, 6], pa.int64()).view(pa.timestamp("us", "Mars/Olympus"))
    pq.write_table(pa.table({"text": ["a", "b", "c"], "id": odd}), tmp_path / "a.parquet")
    (tmp_path / "b.jsonl").write_text('{"text": "d", "meta": ' + "[" * 983 + "]" * 983 + "}\n")
    (tmp_path / "std::map.md").write_text("e")
    out = tmp_path / "out::put"
    manifest = run(request(tmp_path / "a.parquet", tmp_path / "b.jsonl", tmp_path / "std::map.md"), out)
    assert (manifest.documents, dict(manifest.rejected)) == (5, {})
    assert [document.text for document in read_corpus(str(out))] == ["a", "b", "c", "d", "e"]
