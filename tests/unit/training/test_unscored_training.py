"""Training on text without scores, in this process: exact resume, held-out text and evaluation sets."""

import json
import math
from pathlib import Path

import pytest
from train_here import stopped_after
from train_runs import losses, write_inputs

from phf_ray.blocks.build import build_here, ensure_blocks
from phf_ray.blocks.manifest import read_block_manifest
from phf_ray.config import load_config
from phf_ray.corpus.overlap import overlaps_here
from phf_ray.errors import DataError, IncompleteError
from phf_ray.runs.directory import RunDirectory
from phf_ray.training.driver import Helpers, Tracking, run_training
from phf_ray.training.eval_sets import read_eval_sets, store_eval_sets
from phf_ray.training.in_process import fit_here
from phf_ray.training.plan import plan_training


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A task, a folder of text with the lines of its scored corpus, and evaluation sets with and without scores."""
    folder = tmp_path_factory.mktemp("unscored training")
    write_inputs(folder, num_tokens=2000, save_steps=2).rename(folder / "task.yml")
    (folder / "texts").mkdir()
    for number in range(120):
        lines = [f"value = first + {number}\n", f"path = value + {number % 7}\n", "result = path\n"]
        (folder / "texts" / f"{number}.txt").write_text("".join(lines))
    (folder / "fresh").mkdir()
    (folder / "fresh" / "a.jsonl").write_text(
        "".join(json.dumps({"text": "while tired:\n    go()\n"}) + "\n" for _ in "ab")
    )
    return folder


def prepared(folder, *overrides, corpora=("texts",), sets=()):
    named = {name: str(folder / name) for name in sets}
    config = load_config(str(folder / "task.yml"), overrides=[*overrides, f"dataset.eval_datasets={json.dumps(named)}"])
    blocks = ensure_blocks(
        config,
        corpora=[str(folder / name) for name in corpora],
        output_root=str(folder / "blocks"),
        builder=build_here,
    )
    stored = store_eval_sets(
        config,
        read_eval_sets(config),
        parts=[part for group in blocks.groups for part in group.parts],
        folder=str(folder / "blocks" / "eval_sets"),
        counter=overlaps_here,
    )
    manifest = read_block_manifest(blocks.root)
    plan = plan_training(config, manifest=manifest, objective_threshold=None, checkpoint_path=None, eval_sets=stored)
    return config, plan, blocks.root


def train(prepared, run):
    config, plan, blocks = prepared
    tracking, helpers = Tracking(), Helpers(fit=fit_here)
    return run_training(config, plan=plan, run=run, blocks_path=blocks, task="pep8", tracking=tracking, helpers=helpers)


def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(folder):
    whole, parts = RunDirectory(folder / "whole"), RunDirectory(folder / "parts")
    assert train(prepared(folder), whole)["status"] == "finished"
    seen = [row["train/tokens_seen"] for row in whole.read_metrics() if "train/tokens_seen" in row]
    assert seen[-1] == pytest.approx(2000, abs=1.5 * 8 * 32), "tokens without scores are paid from the budget"
    assert losses(whole.path)[1] > 1.1 * list(losses(whole.path).values())[-1] > 0

    with stopped_after(num_rows=2), pytest.raises(IncompleteError):
        train(prepared(folder), parts)
    train(prepared(folder), parts)
    assert losses(parts.path) == losses(whole.path)
    weights = [run.latest_checkpoint() / "model.safetensors" for run in (whole, parts)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_held_out_text_and_evaluation_sets_without_scores_are_measured_and_no_score_is_reported(folder):
    run = RunDirectory(folder / "measured")
    train(prepared(folder, sets=("fresh",)), run)
    rows = run.read_metrics()
    last = {name: value for row in rows for name, value in row.items()}
    assert 0 < last["eval/bits_per_byte"] < 8
    assert all(last[f"eval/fresh/{name}"] > 0 for name in ("loss", "bits_per_byte", "perplexity"))
    assert last["eval/fresh/loss"] == pytest.approx(math.log(last["eval/fresh/perplexity"]), rel=0.2)
    assert last["eval/fresh/num_documents"] == 2
    assert last["objective/eval/loss"] > 0
    assert "debugging/num_segments" in last
    assert "debugging/raw_token_scores_avg" not in last
    rewards = {reward for row in last["debugging/raw_text"]["rows"] for reward in row[1]}
    assert rewards == {None, 0.0}, "only the end-of-text tokens, which are structure, have a neutral 0"


def test_a_set_without_scores_has_no_loss_of_an_objective_that_reads_them(folder):
    rwr = "objective={name: RWR, beta: 0.1}"
    run = RunDirectory(folder / "rwr")
    train(prepared(folder, rwr, corpora=("scored",), sets=("fresh", "scored")), run)
    last = {name: value for row in run.read_metrics() for name, value in row.items()}
    assert last["eval/fresh/loss"] is None
    assert last["eval/fresh/bits_per_byte"] > 0
    assert last["eval/scored/loss"] > 0


def test_an_evaluation_set_that_can_not_be_read_is_named(folder):
    (folder / "broken").mkdir(exist_ok=True)
    Path(folder, "broken", "a.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"dataset\.eval_datasets\.broken: .*has no text \(not_utf8: 1\)"):
        prepared(folder, sets=("broken",))
