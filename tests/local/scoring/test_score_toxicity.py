"""Toxicity through the whole job, with other scorers in the same pass, against Detoxify itself."""

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_detoxify import load_original, mixed_texts, write_base, write_published

from jobs import fetch_models
from jobs import score_corpus as job
from phf_ray.corpus.reader import list_parts, read_corpus_manifest
from phf_ray.corpus.tables import read_rows
from phf_ray.scorers.build import build_scorer


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return write_base(tmp_path_factory.mktemp("roberta"))


@pytest.fixture(scope="module")
def checkpoint(base, tmp_path_factory) -> Path:
    return write_published(tmp_path_factory.mktemp("published"), base)


@pytest.mark.timeout(300)
def test_the_job_gives_the_scores_of_detoxify_one_segment_at_a_time(local_ray, base, checkpoint, tmp_path):
    fetch_models.main(["--output", str(tmp_path / "models"), "--from", str(checkpoint), "--config", str(base)])
    texts = mixed_texts(40)
    documents = [". ".join(texts[first : first + 4]) + ".\n" for first in range(0, 40, 4)]
    lines = [json.dumps({"text": text}) for text in (*documents, "z" * 200, "\ud800", "\u6587\u5b57 \U0001f600")]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    toxicity = {"class_name": "DetoxifyToxicityScorer", "path": f"{tmp_path}/models/unbiased", "device": "cpu"}
    words = {"class_name": "WordListScorer", "words": ["cat"]}
    # A GPU pool that asks for no GPU: the model has a stage of its own, on any machine.
    pools = {"cpu": {"num_cpus": 0.5, "max": 2}, "gpu": {"num_cpus": 0.5, "num_gpus": 0, "max": 1}}
    scoring = {"scorers": [toxicity, words], "segmenter": "sentences", "pools": pools}
    (tmp_path / "task.yml").write_text(json.dumps({"scoring": scoring}))
    output = tmp_path / "out"
    arguments = ["--task", str(tmp_path / "task.yml"), "--input", str(tmp_path / "in.jsonl"), "--output", str(output)]
    assert job.main([*arguments, "--shard-mb", "0.001"]) == 0

    rows = [row for part in list_parts(str(output)) for row in read_rows(part)]
    segments = [text for row in rows for text in row["texts"]]
    assert len(segments) > len(rows) == 12
    original = load_original(checkpoint, base, tmp_path)
    expected = [original.predict(text)["toxicity"] for text in segments]
    np.testing.assert_allclose([score for row in rows for score in row["scores"]], expected, atol=1e-5)
    assert np.std(expected) > 0.01
    listed = build_scorer(words).score_texts(segments)
    assert [score for row in rows for score in row["scores__word_list"]] == listed
    assert max(listed) > 0

    manifest = read_corpus_manifest(str(output))
    num_cut = sum(len(original.tokenizer(text)["input_ids"]) > 64 for text in segments)
    assert manifest.num_parts > 1
    assert 0 < manifest.scorer_stats("toxicity").truncated == num_cut < len(segments)
    assert manifest.rejected == {"lone_surrogate": 1}
    assert manifest.scorer == json.loads(json.dumps(build_scorer(toxicity).identity().to_json()))
