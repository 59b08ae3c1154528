"""Token blocks of text without scores: all of it is learned, nothing counts as a score, and rejects are counted."""

import json
from pathlib import Path

import numpy as np
import places
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from phf_ray.blocks.build import build_blocks, build_here, ensure_blocks
from phf_ray.blocks.group import build_group
from phf_ray.blocks.manifest import read_block_manifest
from phf_ray.blocks.mixture import Mixture
from phf_ray.blocks.plan import plan_blocks
from phf_ray.blocks.tokenizer import load_tokenizer
from phf_ray.config import parse_config
from phf_ray.corpus import unscored
from phf_ray.errors import ConfigError, DataError, IncompleteError
from phf_ray.objectives.build import build_objective
from phf_ray.records import TokenKind
from phf_ray.training.plan import plan_training

TOKENIZER = {"path_or_name": str(places.GOLDEN / "tokenizer")}
TEXT = "def walk(path):\n    return path\n"


def configured(*, compat=None, objective="MLE", max_failed_fraction=0.01, **dataset):
    return parse_config(
        {
            "dataset": {"seq_length": 16} | dataset,
            "tokenizer": TOKENIZER,
            "scoring": {"max_failed_fraction": max_failed_fraction},
            "objective": {"name": objective},
            "compat": compat,
        }
    )


@pytest.fixture
def texts(tmp_path) -> str:
    (tmp_path / "texts").mkdir()
    for number in range(20):
        (tmp_path / "texts" / f"{number:02}.txt").write_text(f"# {number}\n{TEXT}")
    return str(tmp_path / "texts")


def built(config, corpora, output):
    return read_block_manifest(ensure_blocks(config, corpora=corpora, output_root=str(output), builder=build_here).root)


def kinds_of(output):
    [root] = Path(output).glob("blocks-*")
    tables = [pq.read_table(path) for path in sorted(root.glob("shard-*.parquet"))]
    return np.concatenate([np.stack(table["token_kinds"].to_numpy()) for table in tables])


@pytest.mark.parametrize("compat", [None, "korbak2023"])
def test_all_of_the_text_is_learned_and_nothing_counts_as_a_score(texts, tmp_path, compat):
    manifest = built(configured(compat=compat, is_split_by_sentences=False), [texts], tmp_path / "out")
    kinds = kinds_of(tmp_path / "out")
    assert set(np.unique(kinds)) <= {TokenKind.PLAIN, TokenKind.END_OF_TEXT, TokenKind.PAD}
    assert manifest.num_content_tokens == manifest.tokens["plain"] == (kinds == TokenKind.PLAIN).sum() > 100
    assert manifest.tokens["content"] == manifest.tokens["unscored"] == 0
    assert (manifest.token_scores.mean, manifest.token_scores.quantiles) == (None, {})
    assert Mixture.of(manifest, None).score_mean_and_std() == (None, None)
    assert manifest.segments == {}
    block = torch.from_numpy(kinds[:1])
    targets = build_objective({"name": "MLE"}, compat=compat).targets(
        torch.zeros(block.shape, dtype=torch.long), token_scores_BS=torch.zeros(block.shape), token_kinds_BS=block
    )
    assert targets.valid_N.all()
    assert not targets.scored_N[block[0, 1:] == TokenKind.PLAIN].any()


def test_the_manifest_says_what_was_read_and_rejected_records_are_listed(texts, tmp_path):
    Path(texts, "bad.txt").write_bytes(b"\xff\xfe")
    Path(texts, "empty.txt").write_text("")
    manifest = built(configured(), [texts], tmp_path / "out")
    [corpus] = manifest.corpora
    read = corpus.unscored
    assert (read.unit, read.num_files, read.documents, read.rejected) == (
        "document",
        22,
        20,
        {"empty": 1, "not_utf8": 1},
    )
    assert manifest.unscored == ["texts"]
    [listed] = (tmp_path / "out").rglob("rejected-*.parquet")
    assert {row["source"]: row["reason"] for row in pq.read_table(listed).to_pylist()} == {
        "bad.txt": "not_utf8",
        "empty.txt": "empty",
    }


def test_too_many_rejected_records_stop_the_build_and_a_higher_limit_continues_it(texts, tmp_path):
    for number in range(15):
        Path(texts, f"bad-{number}.txt").write_bytes(b"\xff\xfe")
    message = (
        r"texts: 15 of 35 records could not be read \(not_utf8: 15\), more than scoring\.max_failed_fraction=0\.01"
    )
    with pytest.raises(IncompleteError, match=message):
        built(configured(), [texts], tmp_path / "out")
    assert not list((tmp_path / "out").rglob("_SUCCESS"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("shard-*")}
    manifest = built(configured(max_failed_fraction=0.5), [texts], tmp_path / "out")
    assert manifest.corpora[0].unscored.rejected == {"not_utf8": 15}
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("shard-*")} == before


def test_in_a_mixture_segments_that_a_scorer_failed_on_stay_what_they_are(texts, tmp_path):
    table = pa.table({"texts": [["a = 1\n", "b = 2\n"]] * 5, "scores": [[0.25, None]] * 5})
    (tmp_path / "scored").mkdir()
    pq.write_table(table, tmp_path / "scored" / "train.parquet")
    manifest = built(configured(), [str(tmp_path / "scored"), texts], tmp_path / "out")
    assert [corpus.unscored is None for corpus in manifest.corpora] == [True, False]
    assert all(manifest.tokens[kind] > 0 for kind in ("content", "unscored", "plain"))
    assert manifest.token_scores.mean == 0.25
    assert manifest.segments == {"unscored": 5}
    assert [one.num_scored_tokens > 0 for one in manifest.by_corpus] == [True, False]


def test_a_build_that_was_interrupted_ends_with_the_same_bytes(texts, tmp_path, monkeypatch):
    monkeypatch.setattr(unscored, "_PART_BYTES", 200)
    monkeypatch.setattr("phf_ray.blocks.plan._GROUP_BYTES", 50)
    config = configured(held_out_fraction=0.2)
    Path(texts, "bad.txt").write_bytes(b"\xff\xfe")
    tokenizer = load_tokenizer(config.tokenizer)
    plans = [plan_blocks(config, corpora=[texts], tokenizer=tokenizer, output_root=str(tmp_path / n)) for n in "ab"]
    assert len(plans[0].groups) > 3
    for group in plans[1].groups[::2]:
        build_group(plans[1], group, tokenizer=tokenizer)
    whole, resumed = (
        {
            path.name: path.read_bytes()
            for path in Path(build_blocks(plan, tokenizer=tokenizer, builder=build_here)).iterdir()
        }
        for plan in plans
    )
    assert whole == resumed
    manifest = json.loads(whole["manifest.json"])
    assert manifest["corpora"][0]["unscored"]["rejected"] == {"not_utf8": 1}
    assert manifest["documents"]["dropped"]["held_out"] > 0


def test_blocks_inside_the_text_are_refused_because_they_would_be_read_as_text(texts):
    config = configured()
    with pytest.raises(ConfigError, match="would lie in data set"):
        plan_blocks(config, corpora=[texts], tokenizer=load_tokenizer(config.tokenizer), output_root=f"{texts}/blocks")


def test_blocks_of_text_are_refused_by_an_objective_that_reads_scores(texts, tmp_path):
    manifest = built(configured(), [texts], tmp_path / "out")
    config = configured(objective="RWR")
    with pytest.raises(ConfigError, match=r"data set texts has no scores, which objective\.name: RWR needs"):
        plan_training(config, manifest=manifest, objective_threshold=None, checkpoint_path=None)
    with pytest.raises(ConfigError, match=r"no scores, which objective\.name: RWR needs"):
        built(config, [texts], tmp_path / "out")
    assert plan_training(configured(), manifest=manifest, objective_threshold=None, checkpoint_path=None).num_steps


def test_text_of_which_nothing_can_be_read_is_refused(tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "empty.txt").write_text("")
    with pytest.raises(DataError, match=r"no document of texts is left to pack.*empty"):
        built(configured(), [str(tmp_path / "texts")], tmp_path / "out")
