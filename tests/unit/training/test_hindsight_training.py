"""Chain of Hindsight: records with fields learned beside text, each stream with its weight, with some tokens hidden."""

import json
import math

import numpy as np
import pytest
import torch
from feedback_runs import WORDS
from tiny_models import tiny_tokenizer
from train_runs import metrics

from jobs.prepare_feedback import main as prepare_feedback
from phf_ray.blocks.build import build_here, ensure_blocks
from phf_ray.blocks.manifest import read_block_manifest
from phf_ray.blocks.order import BlockOrder
from phf_ray.blocks.plan import plan_blocks
from phf_ray.blocks.reader import BlockReader
from phf_ray.blocks.tokenizer import load_tokenizer
from phf_ray.config import parse_config
from phf_ray.corpus.overlap import overlaps_here
from phf_ray.errors import ConfigError
from phf_ray.objectives.build import build_objective
from phf_ray.objectives.streams import CORPUS
from phf_ray.records import TokenKind
from phf_ray.runs.directory import RunDirectory
from phf_ray.training.batches import DataShare, step_batches
from phf_ray.training.driver import Helpers, Tracking, run_training
from phf_ray.training.eval_sets import read_eval_sets, store_eval_sets
from phf_ray.training.in_process import fit_here
from phf_ray.training.loss_streams import loss_streams
from phf_ray.training.plan import plan_training
from phf_ray.training.start import initial_model
from phf_ray.training.streams import weighed
from phf_ray.training.token_count import count_tokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tokenizer, records of comparisons, more of them to evaluate on, and text."""
    folder = tmp_path_factory.mktemp("coh")
    tiny_tokenizer().save_pretrained(folder / "tokenizer")
    for name, words in (("coh", WORDS[:6]), ("more", WORDS[9:])):
        rows = [
            {"prompt": f"{one} and {two}: ", "chosen": f"{two} again", "rejected": f"never {one}"}
            for one in words
            for two in words
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        arguments = ["--input", str(folder / f"{name}.jsonl"), "--output", str(folder / name), "--to", "coh"]
        prepare_feedback([*arguments, "--include-feedback", "p,n,pn,np"])
    for name in ("text", "other"):
        (folder / name).mkdir()
        for number in range(12):
            words = " ".join(WORDS[(number + place) % len(WORDS)] for place in range(60))
            (folder / name / f"{number}.txt").write_text(f"{name} {words}.")
    return folder


def config_of(folder, datasets=("coh", "text"), *, dataset=None, training=None, **others):
    return parse_config(
        {
            "dataset": {"datasets": [str(folder / name) for name in datasets], "seq_length": 96} | (dataset or {}),
            "tokenizer": {"path_or_name": str(folder / "tokenizer")},
            "model": {
                "path_or_name": None,
                "model_type": "gpt2",
                "config_kwargs": {"n_layer": 1, "n_head": 2, "n_embd": 32, "n_positions": 96, "resid_pdrop": 0.0},
            },
            "training": {
                "num_epochs": 2,
                "effective_batch_size": 8,
                "per_device_train_batch_size": 4,
                "learning_rate": 0.02,
                "precision": "fp32",
                "document_mask": True,
            }
            | (training or {}),
        }
        | others
    )


def blocks_of(folder, config):
    plan = ensure_blocks(
        config, corpora=config.dataset.datasets, output_root=str(folder / "blocks"), builder=build_here
    )
    return plan.root, read_block_manifest(plan.root)


def steps(folder, config, *, micro_batch_size=4, num_steps=1):
    root, manifest = blocks_of(folder, config)
    order = BlockOrder(manifest, seed=1, weights=config.dataset.weights)
    reader = BlockReader(root, order=order, corpus=CORPUS)
    share = DataShare(batch_size=8, micro_batch_size=micro_batch_size)
    streams = loss_streams(config, manifest)
    objective = build_objective({"name": "MLE"}, compat=config.compat, examples=True, streams=streams)
    return objective, list(step_batches(reader.read, share, steps=range(num_steps)))


def test_records_are_whole_and_only_answers_and_their_ends_are_learned(folder):
    config = config_of(folder, ["coh"])
    root, manifest = blocks_of(folder, config)
    blocks = BlockReader(root, order=BlockOrder(manifest, seed=1)).read(0, manifest.num_blocks)
    tokenizer = load_tokenizer(config.tokenizer)
    end = tokenizer.eos_token_id
    learned = []
    for ids, kinds in zip(blocks.input_ids, blocks.token_kinds, strict=True):
        assert kinds[0] == TokenKind.END_OF_TEXT, "no record goes on in another block"
        for row in np.split(np.arange(len(ids)), np.flatnonzero(kinds == TokenKind.END_OF_TEXT)[1:]):
            own, own_kinds = ids[row], kinds[row]
            is_learned = own_kinds == TokenKind.PLAIN
            text = tokenizer.decode(own[own_kinds == TokenKind.GIVEN])
            assert text.startswith("User: ")
            # An answer and its end are learned after each marker, and nothing else is.
            assert (own[is_learned] == end).sum() == text.count("helpful answer:") > 0
            learned.append(tokenizer.decode(own[is_learned], skip_special_tokens=True))
    assert len(learned) == 4 * 36
    assert sum("again" in one and "never" in one for one in learned) == 2 * 36


def test_the_text_beside_feedback_keeps_its_ends_as_targets(folder):
    objective, found = steps(folder, config_of(folder, dataset={"weights": [1, 1]}))
    seen = set()
    for batch in (batch for step in found for batch in step):
        targets = objective.targets(
            batch.input_ids_BS,
            token_scores_BS=batch.token_scores_BS,
            token_kinds_BS=batch.token_kinds_BS,
            channels_BS=batch.channels,
        )
        begins = batch.token_kinds_BS[:, 1:].flatten() == int(TokenKind.END_OF_TEXT)
        is_text = targets.channels[CORPUS] == 1
        seen |= {*targets.channels[CORPUS][begins].tolist()}
        assert targets.valid_N[begins & is_text].all()
        assert not targets.valid_N[begins & ~is_text].any()
    assert seen == {0.0, 1.0}


def by_hand(step, weights, *, rows_alike, likelihood):
    """Return the loss of a step: the mean of each stream, or the mean over its blocks, times its weight, added up."""
    total = 0.0
    for stream, weight in enumerate(weights):
        sums, counts = [], []
        for batch in step:
            for row in range(len(batch.input_ids_BS)):
                if int(batch.channels[CORPUS][row, 0]) != stream:
                    continue
                kinds = batch.token_kinds_BS[row, 1:]
                valid = (kinds == int(TokenKind.PLAIN)) | ((kinds == int(TokenKind.END_OF_TEXT)) & (stream == 1))
                sums.append(float(likelihood(batch, row)[valid].sum()))
                counts.append(int(valid.sum()))
        if not sums:
            continue
        means = [one / number for one, number in zip(sums, counts, strict=True)]
        total += weight * (sum(means) / len(means) if rows_alike else sum(sums) / sum(counts))
    return total


@pytest.mark.parametrize(
    ("dataset", "others", "weights"),
    [({}, {}, (1.0, 0.01)), ({"loss_weights": [2.0, 1.0]}, {}, (2.0, 1.0)), ({}, {"compat": "coh"}, (1.0, 0.01))],
)
@pytest.mark.parametrize("micro_batch_size", [1, 4])
def test_the_loss_is_the_sum_of_weighed_means_however_the_step_is_divided(
    folder, dataset, others, weights, micro_batch_size
):
    config = config_of(folder, dataset=dataset | {"weights": [1, 1]}, **others)
    objective, found = steps(folder, config, micro_batch_size=micro_batch_size)
    tokenizer = load_tokenizer(config.tokenizer)
    model = initial_model(config, checkpoint_path=None, tokenizer=tokenizer).eval()
    model.mask_documents()
    head = model.head()[0]

    def likelihood(batch, row):
        with torch.no_grad():
            hidden, *_ = model.operands(batch.input_ids_BS[row : row + 1], batch.token_kinds_BS[row : row + 1])
            logits = hidden[0, :-1] @ head.T
            return torch.nn.functional.cross_entropy(logits, batch.input_ids_BS[row, 1:], reduction="none")

    for step in found:
        assert len({int(number) for batch in step for number in batch.channels[CORPUS].flatten()}) == 2
        losses, targets = 0.0, 0.0
        for batch in weighed(step, objective=objective, device=torch.device("cpu")):
            with torch.no_grad():
                out = batch.through(model, objective)
            losses, targets = losses + float(out.loss), targets + float(out.num_targets)
        expected = by_hand(step, weights, rows_alike=config.compat == "coh", likelihood=likelihood)
        assert losses / targets == pytest.approx(expected, rel=1e-5)


def train(folder, name, config):
    root, manifest = blocks_of(folder, config)
    sets = store_eval_sets(config, read_eval_sets(config), parts=[], folder=str(folder / "sets"), counter=overlaps_here)
    plan = plan_training(config, manifest=manifest, objective_threshold=None, checkpoint_path=None, eval_sets=sets)
    run = RunDirectory(folder / "runs" / name)
    run_training(
        config, plan=plan, run=run, blocks_path=root, task="coh", tracking=Tracking(), helpers=Helpers(fit=fit_here)
    )
    return run


def test_both_streams_are_learned_and_measured_apart(folder):
    sets = {"eval_datasets": {"pairs": str(folder / "more"), "prose": str(folder / "other")}}
    config = config_of(folder, dataset={"weights": [3, 1], **sets}, training={"num_epochs": 0.8, "eval_steps": 100})
    rows = metrics(train(folder, "both", config).path)
    trained = [row for row in rows if "objective/train/feedback_loss" in row]
    first, last = trained[0], trained[-1]
    assert last["objective/train/feedback_loss"] < first["objective/train/feedback_loss"] - 0.3
    mixed = next(row for row in trained if row["objective/train/pretraining_targets"] > 0)
    added = mixed["objective/train/feedback_loss"] + 0.01 * mixed["objective/train/pretraining_loss"]
    assert mixed["train/loss"] == pytest.approx(added, rel=1e-5)
    (measured,) = [row for row in rows if "eval/pairs/loss" in row]
    assert measured["eval/pairs/perplexity"] == pytest.approx(math.exp(measured["eval/pairs/loss"]), rel=1e-6)
    assert measured["eval/prose/bits_per_byte"] > 0
    assert measured["eval/pairs/num_documents"] == 4 * 9


def test_a_dry_run_counts_both_streams(folder):
    config = config_of(folder, dataset={"weights": [1, 1]})
    tokenizer = load_tokenizer(config.tokenizer)
    plan = plan_blocks(
        config, corpora=config.dataset.datasets, tokenizer=tokenizer, output_root=str(folder / "elsewhere")
    )
    counted = count_tokens(plan, tokenizer=tokenizer, weights=[1, 1])
    _, manifest = blocks_of(folder, config)
    assert [one.num_blocks for one in counted.mixture.corpora] == [one.num_blocks for one in manifest.by_corpus]


def test_the_original_ends_each_record_once_more(folder):
    _, ours = blocks_of(folder, config_of(folder, ["coh"]))
    _, theirs = blocks_of(folder, config_of(folder, ["coh"], compat="coh"))
    assert theirs.tokens["plain"] - ours.tokens["plain"] == ours.documents["kept"] == 4 * 36


def test_a_record_that_is_too_long_ends_with_a_learned_token(folder):
    config = config_of(folder, ["coh"], dataset={"max_length": 64})
    root, manifest = blocks_of(folder, config)
    assert manifest.cut["completions"] > 0
    blocks = BlockReader(root, order=BlockOrder(manifest, seed=1)).read(0, manifest.num_blocks)
    for kinds in blocks.token_kinds:
        ends = [*np.flatnonzero(kinds == TokenKind.END_OF_TEXT)[1:] - 1, np.flatnonzero(kinds != TokenKind.PAD)[-1]]
        assert (kinds[ends] == TokenKind.PLAIN).all()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"dataset": {"loss_weights": [1.0]}}, "loss_weights"),
        ({"dataset": {"loss_weights": [0.0, 0.0]}}, "not all 0"),
        ({"objective": {"name": "DPO"}, "dataset": {"loss_weights": [1.0, 1.0]}}, "is for objective MLE"),
        ({"objective": {"name": "DPO"}, "training": {"forgetful_mask": {}}}, "forgetful_mask would hide"),
        ({"training": {"forgetful_mask": {"min": 0.3, "max": 0.1}}}, "above max"),
        ({"objective": {"name": "DPO"}, "compat": "coh"}, "compat: coh knows no"),
    ],
)
def test_settings_that_can_not_be(folder, changes, says):
    with pytest.raises(ConfigError, match=says):
        config_of(folder, **changes)


@pytest.mark.parametrize(
    ("datasets", "changes", "says"),
    [
        (["coh", "text"], {"dataset": {"max_length": 40}}, "max_length: 40 limits examples alone"),
        (["coh", "text"], {"objective": {"name": "MLE", "mask_above": 0.5}}, "can't learn both"),
        (["coh"], {"dataset": {"prompt_template": "plain"}}, "say their own words"),
        (["coh"], {"compat": "trl"}, "compat: trl knows no records with fields"),
        (["coh"], {"training": {"document_mask": False}}, "document_mask"),
    ],
)
def test_data_that_can_not_be_learned_so(folder, datasets, changes, says):
    training = {"document_mask": True} | changes.get("training", {})
    config = config_of(folder, datasets, **{**changes, "training": training})
    with pytest.raises(ConfigError, match=says):
        blocks_of(folder, config)
