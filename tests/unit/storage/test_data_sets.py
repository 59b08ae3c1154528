"""Data sets by name, configuration and split: from a hub on this machine over its own routes, and from folders."""

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feedback_files import hh_record, write_lines
from hub_server import commit_of, serving_hub
from places import ROOT, SUPPORT

from phf_ray.corpus.find import find_files
from phf_ray.corpus.reader import list_parts
from phf_ray.errors import ConfigError
from phf_ray.storage.data_set_names import DataSetName, absolute_source, parse_data_set, short_name

# huggingface_hub reads its environment when it is imported, and importing datasets takes seconds: one process asks all.
CODE = """
import contextlib, httpx, json, os, sys
from pathlib import Path
from jobs.prepare_feedback import main as prepare_feedback
from types import SimpleNamespace
from phf_ray.corpus.data_sets import open_data_sets
from phf_ray.storage.data_set_names import short_name
from phf_ray.config import parse_config
from phf_ray.training.licenses import run_licenses
from phf_ray.corpus.find import find_files
from phf_ray.corpus.reader import list_parts, read_corpus
from phf_ray.corpus.read import read_piece
from phf_ray.corpus.cut import Piece
from phf_ray.errors import PhfError
from phf_ray.evaluation.prompts import read_prompts
from phf_ray.scoring.executor import InProcessScoring
from phf_ray.scoring.job import run_scoring
from phf_ray.scoring.request import ScoringRequest
from phf_ray.corpus.sources import pinned_sources, sources_of

def files(name):
    found = find_files([name])
    return [[file.name, file.kind] for file in found.files] + [vars_of(found.sources.get(name))]

def vars_of(source):
    return source and [source.name, source.license]

def score(name, limit, output):
    scoring = {"scorers": [{"class_name": "fakes:LengthScorer"}], "segmenter": "lines"}
    request = ScoringRequest(parse_config({"scoring": scoring}), inputs=[name], limit=limit, shard_bytes=1)
    done = run_scoring(request, output, executor=InProcessScoring())
    return [done.documents, [dict(one) for one in done.sources], json.loads(Path(output, "plan.json").read_text())]

def prepare(name, output):
    with contextlib.redirect_stdout(None):
        prepare_feedback(["--input", name, "--output", output])
    manifest = json.loads(Path(output, "manifest.json").read_text())
    return [manifest["sources"], manifest["fingerprint"], manifest["rows"]]

def blocks(name, output):
    # What the manifest of token blocks says of a data set by its pinned name. Planning blocks would import torch.
    (pin,) = pins(name, f"{output}/pins.json").values()
    config = parse_config({"dataset": {"seq_length": 16, "datasets": [name]}})
    return [[short_name(one.path), sources_of(one.path, one.manifest)] for one in open_data_sets(config, [pin])]

def model_license(name, revision=None):
    model = parse_config({"model": {"path_or_name": name, "revision": revision, "from_scratch": False}}).model
    return run_licenses(SimpleNamespace(licenses=()), model=model, checkpoint_path=None)

def parts(name):
    return [len(list_parts(name)), sum(1 for _ in read_corpus(name))]

def pins(name, memory):
    return pinned_sources([name], option="dataset.datasets", memory=memory, remembers=True)

def second_piece(name):
    file = find_files([name]).files[0]
    texts = [record.text for record in read_piece(file, Piece(0, 1, 2, 4, 32))]
    return texts, [path.name for path in Path(os.environ["HF_HOME"]).rglob("*.json.gz")]

found = []
for number, (name, *rest) in enumerate(json.loads(sys.argv[1])):
    if not os.environ["HF_ENDPOINT"].endswith(":9"):
        httpx.get(f"{os.environ['HF_ENDPOINT']}/mark/{number}")
    try:
        found.append(globals()[name](*rest))
    except PhfError as error:
        found.append(f"{type(error).__name__}: {error}")
print(json.dumps(found))
"""


def ask(calls, *, endpoint, home, **environment):
    home.mkdir(exist_ok=True)
    values = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", **environment}
    values["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(SUPPORT)])
    done = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps(list(calls.values()))],
        env=values,
        cwd=home,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def write_table(path, *texts):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": list(texts)}), path)


def write_wikitext(folder):
    card = "---\nlicense: cc-by-sa-3.0\nconfigs:\n"
    for config in ("large", "small"):
        card += f"- config_name: {config}\n  data_files:\n"
        for split in ("test", "train"):
            for number in range(3):
                texts = [f"{config} {split} {number} {row}" for row in range(20)]
                write_table(folder / config / f"{split}-0000{number}-of-00003.parquet", *texts)
            card += f"  - split: {split}\n    path: {config}/{split}-*\n"
    (folder / "README.md").write_text(card + "---\n# Wikitext\n")


def write_hub(root):
    sets = root / "datasets"
    write_wikitext(sets / "Salesforce/wikitext/main")
    lines = sets / "owner/lines/main/data"
    lines.mkdir(parents=True)
    for number in range(3):
        text = "".join(json.dumps({"text": f"{number} {row}"}) + "\n" for row in range(100))
        (lines / f"train-{number}.json.gz").write_bytes(gzip.compress((text * 10).encode()))
    scored = sets / "owner/scored/main"
    scored.mkdir(parents=True)
    for name in ("train", "test"):
        pq.write_table(pa.table({"texts": [["a", "b"]] * 60, "scores": [[0.0, 1.0]] * 60}), scored / f"{name}.parquet")
    for name in ("program", "lost"):
        (sets / f"owner/{name}/main").mkdir(parents=True)
        (sets / f"owner/{name}/main/{name}.py").write_text("raise SystemExit('run')")
    (sets / "owner/program/main/README.md").write_text("---\nlicense: odc-by\n---\n# Program\n")
    base = root / "models/owner/base/main"
    base.mkdir(parents=True)
    (base / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n# Base\n")
    (root / "models/owner/bare/main").mkdir(parents=True)
    converted = sets / "owner/program/refs-convert-parquet"
    write_table(converted / "en/train/0000.parquet", "converted")
    write_table(converted / "de/train/0000.parquet", "umgewandelt")
    for name in ("table", "table2"):
        (sets / f"owner/{name}/main").mkdir(parents=True)
        (sets / f"owner/{name}/main/data.csv").write_text("text\na\n")
    write_table(sets / "owner/table/refs-convert-parquet/default/train/0000.parquet", "a")
    prompts = sets / "allenai/real-toxicity-prompts/main"
    prompts.mkdir(parents=True)
    records = [{"prompt": {"text": f"So I {number}", "toxicity": 0.1}, "challenging": True} for number in range(3)]
    (prompts / "prompts.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (sets / "owner/gated/main").mkdir(parents=True)
    pairs = [{"text": f"{number}", **hh_record(number)} for number in range(9)]
    write_lines(sets / "owner/pairs/main/train.jsonl", pairs)
    (sets / "owner/pairs/main/README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n# Pairs\n")
    return root


PINNED = ("Salesforce/wikitext", "owner/lines", "owner/scored", "owner/pairs")
"""Data sets whose commits the tests know."""


@dataclass(frozen=True)
class Asked:
    """What calls found at the hub, by name, and the files that each read."""

    found: dict
    later: dict
    """The same calls after the hub got other files."""
    read: dict
    commits: dict


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    root = write_hub(folder / "root")
    sets = root / "datasets"
    commits = {name: commit_of(sets / name / "main") for name in PINNED}
    calls = {
        "no config": ["files", "wikitext"],
        "no split": ["files", "wikitext:small"],
        "chosen": ["files", "wikitext:small@train"],
        "other config": ["files", "wikitext:none@train"],
        "other split": ["files", "Salesforce/wikitext:small@dev"],
        "one of each": ["files", "owner/lines"],
        "at a commit": ["files", f"hf://datasets/owner/lines@{commits['owner/lines']}:default"],
        "wrong revision": ["files", "hf://datasets/owner/lines@v9:default@train"],
        "program": ["files", "owner/program:en"],
        "program, no config": ["files", "owner/program"],
        "program, no copy": ["files", "owner/lost"],
        "csv": ["files", "owner/table"],
        "csv, no copy": ["files", "owner/table2"],
        "gated": ["files", "owner/gated"],
        "missing": ["files", "owner/none"],
        "parts": ["parts", "owner/scored@test"],
        "parts without scores": ["parts", "owner/lines"],
        "prompts": ["read_prompts", "allenai/real-toxicity-prompts"],
        "pins": ["pins", "owner/scored@train", str(folder / "pins.json")],
        "second piece": ["second_piece", "owner/lines"],
        "copy in blocks": ["blocks", "owner/program:en", str(folder / "copy")],
        "URL": ["files", "hf://datasets/owner/pairs"],
        "URL in blocks": [
            "blocks",
            f"hf://datasets/owner/pairs@{commits['owner/pairs']}/train.jsonl",
            str(folder / "file"),
        ],
        "URL of none": ["files", "hf://datasets/owner/none/x.jsonl"],
        "base model": ["model_license", "owner/base"],
        "base model without a card": ["model_license", "owner/bare"],
        "base model, no revision": ["model_license", "owner/base", "v9"],
        "feedback": ["prepare", "owner/pairs", str(folder / "pairs")],
        "some of a table": ["score", "wikitext:large@train", 25, str(folder / "tables")],
        "some lines": ["score", "owner/lines", 5, str(folder / "lines")],
    }
    with serving_hub(root) as (server, url):
        server.moved["wikitext"] = "Salesforce/wikitext"
        server.gated.add("owner/gated")
        found = dict(zip(calls, ask(calls, endpoint=url, home=folder / "home"), strict=True))
        read = {name: server.files_read(some) for name, some in _by_call(calls, server.requests)}
        for name in ("Salesforce/wikitext", "owner/scored", "owner/pairs"):
            server.commits[commits[name]] = sets / name / "old"
            shutil.copytree(sets / name / "main", sets / name / "old")
        write_table(sets / "Salesforce/wikitext/main/large/train-00000-of-00003.parquet", "new")
        write_table(sets / "owner/scored/main/train.parquet", "new")
        write_lines(sets / "owner/pairs/main/train.jsonl", [hh_record(number) for number in range(99)])
        for name in ("_SUCCESS", "part-00000.parquet"):
            (folder / "tables" / name).unlink()
            (folder / "pairs" / name).unlink()
        again = {name: calls[name] for name in ("some of a table", "pins", "chosen", "feedback")}
        later = dict(zip(again, ask(again, endpoint=url, home=folder / "home"), strict=True))
    return Asked(found, later, read, commits)


def _by_call(calls, requests):
    """Yield each call and its requests: each call begins with a mark."""
    marks = [number for number, request in enumerate(requests) if request.startswith("GET /mark/")]
    for name, begin, end in zip(calls, marks, [*marks[1:], len(requests)], strict=True):
        yield name, requests[begin:end]


def test_configuration_and_split_choose_files_at_a_commit(asked):
    # The old name without an owner is the data set's of today.
    root = f"hf://datasets/Salesforce/wikitext@{asked.commits['Salesforce/wikitext']}"
    names = [[f"{root}/small/train-0000{number}-of-00003.parquet", "table"] for number in range(3)]
    assert asked.found["chosen"] == [*names, [f"{root}:small@train", "cc-by-sa-3.0"]]
    root = f"hf://datasets/owner/lines@{asked.commits['owner/lines']}"
    lines = [[f"{root}/data/train-{number}.json.gz", "lines"] for number in range(3)]
    assert asked.found["one of each"] == [*lines, [f"{root}:default@train", None]]
    assert asked.found["at a commit"] == asked.found["one of each"]


def test_without_a_choice_the_choices_are_named(asked):
    found = asked.found
    assert found["no config"] == (
        "ConfigError: --input wikitext has several configurations; give one of wikitext:large, wikitext:small"
    )
    assert found["no split"] == (
        "ConfigError: --input wikitext:small has several splits; give one of wikitext:small@test, wikitext:small@train"
    )
    assert "no configuration 'none'; give one of wikitext:large@train, wikitext:small@train" in found["other config"]
    assert "no split 'dev'; give one of Salesforce/wikitext:small@test" in found["other split"]


def test_what_the_hub_does_not_give_is_explained(asked):
    found = asked.found
    assert "has no revision 'v9'; give a branch, tag or commit" in found["wrong revision"]
    assert "accept it at https://huggingface.co/datasets/owner/gated, and set HF_TOKEN" in found["gated"]
    assert found["missing"].startswith("ConfigError: --input owner/none: there is no such folder here and no such rep")


def test_what_can_not_be_read_is_read_from_the_parquet_copy_of_the_hub(asked):
    [[file, kind], _] = asked.found["program"]
    assert file.startswith("hf://datasets/owner/program@")
    assert (file.partition("/en/")[2], kind) == ("train/0000.parquet", "table")
    assert "several configurations; give one of owner/program:de, owner/program:en" in asked.found["program, no config"]
    assert "/default/train/0000.parquet" in asked.found["csv"][0][0]
    assert "has files that phf-ray does not read (data.csv), and the hub has no" in asked.found["csv, no copy"]
    assert "is a program (lost.py), which neither phf-ray nor `datasets` runs" in asked.found["program, no copy"]


def test_a_scored_data_set_is_read_by_split_and_others_are_refused(asked):
    assert asked.found["parts"] == [1, 60]
    assert "holds no scored corpus (no .parquet or .arrow files)" in asked.found["parts without scores"]


def test_prompts_of_realtoxicityprompts_are_structs(asked):
    assert asked.found["prompts"] == ["So I 0", "So I 1", "So I 2"]


def test_a_limit_reads_the_files_that_it_needs(asked):
    documents, sources, plan = asked.found["some of a table"]
    name = f"hf://datasets/Salesforce/wikitext@{asked.commits['Salesforce/wikitext']}:large@train"
    assert (documents, sources) == (25, [{"name": name, "license": "cc-by-sa-3.0"}])
    assert plan["sources"]["wikitext:large@train"]["name"] == name
    assert len(plan["files"]) == 3
    assert {file for file in asked.read["some of a table"] if "-of-" in file} == {
        f"large/train-0000{number}-of-00003.parquet" for number in (0, 1)
    }
    assert asked.found["some lines"][0] == 5
    assert {file for file in asked.read["some lines"] if "data/" in file} == {"data/train-0.json.gz"}


def test_the_rest_of_a_compressed_file_is_read_from_the_cache_of_the_hub(asked):
    texts, copies = asked.found["second piece"]
    assert texts == ["0 2", "0 3"]
    assert copies == ["train-0.json.gz"]


def test_a_job_that_goes_on_reads_the_commit_with_which_it_began(asked):
    assert asked.later["some of a table"] == asked.found["some of a table"]
    name = f"hf://datasets/owner/scored@{asked.commits['owner/scored']}:default@train"
    assert asked.later["pins"] == asked.found["pins"] == {"owner/scored@train": name}
    assert asked.later["chosen"] != asked.found["chosen"]


def test_a_feedback_corpus_is_made_of_the_commit_with_which_it_began(asked):
    sources, _, rows = asked.found["feedback"]
    name = f"hf://datasets/owner/pairs@{asked.commits['owner/pairs']}:default@train"
    assert sources == [{"name": name, "license": "cc-by-nc-4.0"}]
    assert rows == 9
    assert asked.later["feedback"] == asked.found["feedback"]


def test_token_blocks_name_the_source_and_the_licence_of_the_copy_of_the_hub(asked):
    [[name, [source]]] = asked.found["copy in blocks"]
    assert name == "owner/program/en/train"
    assert re.fullmatch(r"hf://datasets/owner/program@[0-9a-f]{40}/en/train", source["name"])
    assert source["license"] == "odc-by"


def test_files_of_the_hub_have_the_licence_of_their_data_set(asked):
    assert asked.found["URL"][-1] == ["hf://datasets/owner/pairs", "cc-by-nc-4.0"]
    [[name, sources]] = asked.found["URL in blocks"]
    assert name == "owner/pairs/train.jsonl"
    file = f"hf://datasets/owner/pairs@{asked.commits['owner/pairs']}/train.jsonl"
    assert sources == [{"name": file, "license": "cc-by-nc-4.0"}]
    assert asked.found["URL of none"].startswith("ConfigError: data set owner/none: there is no such folder here and")


def test_a_base_model_of_the_hub_has_the_licence_of_its_card(asked):
    assert asked.found["base model"] == ["cc-by-nc-4.0"]
    assert asked.found["base model without a card"] == asked.found["base model, no revision"] == []


def test_without_a_hub_the_remedy_is_named_and_the_cache_of_datasets_is_read(tmp_path):
    for commit in ("plain/0.0.0/abc", "plain/0.0.0/def", "other/0.0.0/abc"):
        cache = tmp_path / "home/datasets/owner___known" / commit
        cache.mkdir(parents=True)
        for name in ("train", "test"):
            with pa.ipc.new_stream(cache / f"known-{name}.arrow", pa.schema({"text": pa.string()})) as stream:
                stream.write_table(pa.table({"text": [name]}))
        (cache / "dataset_info.json").write_text("{}")
        os.utime(cache, (1, 1) if cache.name == "abc" else None)
    calls = {
        "none": ["files", "wikitext:small@train"],
        "known": ["files", "owner/known:plain@train"],
        "pinned": ["files", "hf://datasets/owner/known@abc:plain@train"],
        "other commit": ["files", "hf://datasets/owner/known@123:plain@train"],
        "no config": ["files", "owner/known@train"],
        "no split": ["files", "owner/known:plain"],
    }
    none, known, pinned, other, no_config, no_split = ask(calls, endpoint="http://127.0.0.1:9", home=tmp_path / "home")
    assert none.startswith("ConfigError: --input wikitext:small@train does not exist here, and the hub can't be asked")
    assert "run `hf download wikitext --repo-type dataset --local-dir DIR` on a machine with internet" in none
    assert [Path(file).parts[-2:] for file, _ in known[:-1]] == [("def", "known-train.arrow")]
    assert [Path(file).parts[-2:] for file, _ in pinned[:-1]] == [("abc", "known-train.arrow")]
    assert "@123:plain@train: the hub can't be asked" in other
    assert "has other commits; give hf://datasets/owner/known@def:plain@train, hf://datasets/owner/known@abc" in other
    assert "several configurations; give one of owner/known:other@train, owner/known:plain@train" in no_config
    # The order of the splits is that of the folder's files.
    assert "--input owner/known:plain has several splits; give one of owner/known:plain@t" in no_split


def names_of(source):
    return [file.path for file in find_files([source]).files]


def test_saved_data_sets_and_clones_are_read_in_the_same_way(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = {name: datasets.Dataset.from_dict({"text": [name]}) for name in ("train", "test")}
    datasets.DatasetDict(made).save_to_disk("saved")
    made["test"].save_to_disk("one")
    write_wikitext(tmp_path / "clone")
    assert names_of("saved@test") == ["test/data-00000-of-00001.arrow"]
    assert names_of("one@train") == ["data-00000-of-00001.arrow"]
    assert names_of("clone:small@test") == [f"small/test-0000{number}-of-00003.parquet" for number in range(3)]
    assert len(list_parts("clone:small@test")) == 3
    source = find_files(["clone:small@test"]).sources["clone:small@test"]
    assert (source.name, source.license) == ("clone:small@test", "cc-by-sa-3.0")
    for name, message in {
        "saved@dev": "no split 'dev'; give one of saved@train, saved@test",
        "saved:en@test": "has splits and no configurations; give saved@test",
        "clone": "clone has several configurations; give one of clone:large, clone:small",
        "clone:small": "has several splits; give one of clone:small@test, clone:small@train",
    }.items():
        with pytest.raises(ConfigError, match=message):
            find_files([name])


def test_a_path_that_exists_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a@train/x.jsonl", "a/b.jsonl", "c:d@e/x.jsonl"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text('{"text": "x"}\n')
    assert names_of("a@train") == names_of("c:d@e") == ["x.jsonl"]
    assert parse_data_set("a@train@test") == DataSetName("a@train", None, "test", is_local=True)
    assert parse_data_set("c:d@e:en@v1") == DataSetName("c:d@e", "en", "v1", is_local=True)
    assert parse_data_set("glue:mnli@validation_matched") == DataSetName("glue", "mnli", "validation_matched")
    for text in (
        "a/b",
        "a/none@train",
        "./x@train",
        "x/y/z@train",
        "data.jsonl",
        "a1/b.jsonl",
        "s3://a/b@train",
        "x/*@train",
        "/x:y",
    ):
        assert parse_data_set(text) is None, text
    assert absolute_source("c:d@e:en@v1") == f"{tmp_path}/c:d@e:en@v1"
    assert absolute_source("glue:mnli") == "glue:mnli"
    assert absolute_source("a/b") == f"{tmp_path}/a/b"
    assert short_name("hf://datasets/owner/name@0123:en@train") == "owner/name:en@train"
    assert short_name("hf://datasets/owner/name@refs/convert/parquet/en/train") == "owner/name/en/train"
    assert short_name("hf://datasets/owner/name/") == "owner/name"
    assert short_name("runs/scored/") == "scored"
