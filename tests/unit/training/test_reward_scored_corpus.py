"""Pretraining with a learned preference: a corpus scored by a reward model, a quantile of it, conditional training."""

import itertools
import json

import numpy as np
import pytest
import torch
from tiny_models import BAD, GOOD
from tiny_rewards import write_reward_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from phf_ray.blocks.build import build_here, ensure_blocks
from phf_ray.blocks.manifest import read_block_manifest
from phf_ray.blocks.order import BlockOrder
from phf_ray.blocks.reader import BlockReader
from phf_ray.blocks.thresholds import resolve_thresholds
from phf_ray.blocks.tokenizer import load_tokenizer
from phf_ray.checkpoint import read_info
from phf_ray.config import parse_config
from phf_ray.corpus.reader import list_parts, read_corpus_manifest
from phf_ray.corpus.tables import read_rows
from phf_ray.runs.directory import RunDirectory
from phf_ray.scoring.executor import InProcessScoring
from phf_ray.scoring.job import run_scoring
from phf_ray.scoring.request import ScoringRequest
from phf_ray.training.driver import Helpers, Tracking, run_training
from phf_ray.training.in_process import fit_here
from phf_ray.training.plan import plan_training

WORDS = ["fox", "dog", "house", "lazy", "over", "jumps", "brown", "quick"]


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """Folder with a reward model, and a corpus of lines that it has scored."""
    folder = tmp_path_factory.mktemp("learned")
    model = write_reward_model(folder / "reward", template="plain")
    draw = np.random.default_rng(0)
    texts = ["".join(f"{' '.join(draw.choice(WORDS, 4))}\n" for _ in range(4)) for _ in range(40)]
    (folder / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    scorer = {"class_name": "RewardModelScorer", "path": str(model), "device": "cpu"}
    config = parse_config({"scoring": {"scorers": [scorer], "segmenter": "lines"}})
    request = ScoringRequest(config, inputs=[str(folder / "in.jsonl")])
    run_scoring(request, str(folder / "scored"), executor=InProcessScoring())
    return folder


def segments(folder):
    """Text -> score of every line."""
    rows = [row for part in list_parts(str(folder / "scored")) for row in read_rows(part)]
    return {text: score for row in rows for text, score in zip(row["texts"], row["scores"], strict=True)}


def test_the_scores_of_a_corpus_are_minus_the_rewards_of_transformers(scored):
    model = AutoModelForSequenceClassification.from_pretrained(scored / "reward").eval()
    tokenizer = AutoTokenizer.from_pretrained(scored / "reward")
    found = segments(scored)
    end = tokenizer.eos_token_id
    for text, score in list(found.items())[:20]:
        ids = torch.tensor([[end, *tokenizer(text, add_special_tokens=False)["input_ids"], end]])
        with torch.no_grad():
            assert score == pytest.approx(-model(ids).logits.item(), abs=1e-5)
    assert np.std(list(found.values())) > 0.01
    manifest = read_corpus_manifest(str(scored / "scored"))
    assert manifest.scorer["unit"] == "minus reward"


def test_conditional_training_splits_it_at_a_quantile(scored):
    config = parse_config(
        {
            "dataset": {
                "seq_length": 32,
                "held_out_fraction": 0.1,
                "conditional_training_config": {"threshold": {"quantile": 0.5}},
            },
            "tokenizer": {"path_or_name": str(scored / "reward"), "special_tokens": [GOOD, BAD]},
            "model": {
                "path_or_name": None,
                "model_type": "gpt2",
                "num_additional_tokens": 2,
                "config_kwargs": {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 32},
            },
            "training": {
                "num_tokens": 500, "effective_batch_size": 4, "per_device_train_batch_size": 2, "precision": "fp32",
            },
        }
    )  # fmt: skip
    blocks = ensure_blocks(
        config, corpora=[str(scored / "scored")], output_root=str(scored / "blocks"), builder=build_here
    )
    thresholds = resolve_thresholds(config, manifests=blocks.manifests)
    found = segments(scored)
    median = thresholds["conditional"]
    assert np.mean([score <= median for score in found.values()]) == pytest.approx(0.5, abs=0.1)
    manifest = read_block_manifest(blocks.root)
    tokenizer = load_tokenizer(config.tokenizer)
    good, bad = tokenizer.convert_tokens_to_ids([GOOD, BAD])
    reader = BlockReader(blocks.root, order=BlockOrder(manifest, seed=0))
    ids = reader.read(0, manifest.num_blocks).input_ids.flatten().tolist()
    assert min(ids.count(good), ids.count(bad)) > 20
    # Whole lines within a block stand behind the token that their score asks for.
    num_checked = 0
    places = [place for place, token in enumerate(ids) if token in (good, bad)]
    for begin, end in itertools.pairwise(places):
        text = tokenizer.decode(ids[begin + 1 : end]).removesuffix("<|endoftext|>")
        if text in found:
            assert (ids[begin] == good) == (found[text] <= median), text
            num_checked += 1
    assert num_checked > 20
    plan = plan_training(config, manifest=manifest, objective_threshold=None, checkpoint_path=None)
    run = RunDirectory(scored / "run")
    run_training(
        config, plan=plan, run=run, blocks_path=blocks.root, task="demo", tracking=Tracking(),
        helpers=Helpers(fit=fit_here),
    )  # fmt: skip
    info = read_info(run.latest_checkpoint())
    assert info.thresholds["conditional"] == median
    assert (info.control.good, info.scorer["class_name"]) == (GOOD, "RewardModelScorer")
