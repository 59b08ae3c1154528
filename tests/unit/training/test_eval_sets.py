"""Evaluation sets: measured while a run trains, and compared with its training data before."""

import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from train_runs import write_corpus, write_inputs

from phf_ray.blocks.build import build_here, ensure_blocks
from phf_ray.blocks.manifest import read_block_manifest
from phf_ray.config import load_config
from phf_ray.corpus.overlap import overlaps_here
from phf_ray.corpus.stored import CorpusPart
from phf_ray.errors import ConfigError, DataError
from phf_ray.runs.directory import RunDirectory
from phf_ray.training.driver import Helpers, Tracking, run_training
from phf_ray.training.eval_sets import read_eval_sets, steps_per_epoch, store_eval_sets
from phf_ray.training.in_process import fit_here
from phf_ray.training.plan import plan_training


def write_text(folder, texts, scores=(0.0,)):
    folder.mkdir()
    table = pa.table({"texts": [[text] for text in texts], "scores": [list(scores)] * len(texts)})
    pq.write_table(table, folder / "train.parquet")
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eval sets")
    write_inputs(folder, num_tokens=8000, save_steps=None).rename(folder / "task.yml")
    write_corpus(folder / "seen", num_documents=5)
    write_text(folder / "fresh", ["while not tired:\n    walk(on)\n", "for step in range(10):\n    count(step)\n"])
    write_text(folder / "unscored", ["while not tired:\n    walk(on)\n"], scores=[None])
    return folder


def prepared(folder, **dataset):
    overrides = [f"dataset.{key}={json.dumps(value)}" for key, value in dataset.items()]
    config = load_config(str(folder / "task.yml"), overrides=overrides)
    corpora, blocks_root = [str(folder / "scored")], str(folder / "blocks")
    blocks = ensure_blocks(config, corpora=corpora, output_root=blocks_root, builder=build_here)
    parts = [part for group in blocks.groups for part in group.parts]
    stored = store_eval_sets(
        config, read_eval_sets(config), parts=parts, folder=f"{blocks_root}/eval_sets", counter=overlaps_here
    )
    return config, blocks.root, stored


def train(folder, name, *, eval_steps=None, **dataset):
    config, blocks, stored = prepared(folder, **dataset)
    config = config.model_copy(update={"training": config.training.model_copy(update={"eval_steps": eval_steps})})
    manifest = read_block_manifest(blocks)
    plan = plan_training(config, manifest=manifest, objective_threshold=None, checkpoint_path=None, eval_sets=stored)
    run = RunDirectory(folder / name)
    run_training(
        config, plan=plan, run=run, blocks_path=blocks, task="pep8", tracking=Tracking(), helpers=Helpers(fit=fit_here)
    )
    return plan.num_steps, manifest, [row for row in run.read_metrics() if "eval/sets_wall_s" in row]


def test_sets_are_measured_at_their_steps_and_at_the_end(folder):
    sets = {"seen": str(folder / "seen"), "fresh": str(folder / "fresh"), "unscored": str(folder / "unscored")}
    num_steps, _, rows = train(folder, "a", eval_steps=10, eval_datasets=sets)
    assert [row["train/global_step"] for row in rows] == [*range(10, num_steps, 10), num_steps]
    first, last = rows[0], rows[-1]
    # Documents of the training data get easier with training.
    assert last["eval/seen/bits_per_byte"] < 0.9 * first["eval/seen/bits_per_byte"]
    assert last["eval/seen/loss"] < first["eval/seen/loss"]
    for name in sets:
        tokens_per_nat = last[f"eval/{name}/bits_per_byte"] * math.log(2) / math.log(last[f"eval/{name}/perplexity"])
        assert 0 < tokens_per_nat <= 1, "a token has at least a byte"
    # An objective without scores has no loss here, and that is no zero.
    assert last["eval/unscored/loss"] is None
    assert last["eval/seen/num_documents"] == last["eval/seen/num_in_training"] == 5
    assert (last["eval/fresh/num_in_training"], last["eval/fresh/num_in_training_13gram"]) == (0, 0)


def test_without_a_step_sets_are_measured_once_per_epoch(folder):
    num_steps, manifest, rows = train(folder, "b", eval_datasets={"fresh": str(folder / "fresh")})
    epoch = steps_per_epoch(manifest, batch_size=8)
    assert epoch < num_steps
    assert [row["train/global_step"] for row in rows] == sorted({*range(epoch, num_steps + 1, epoch), num_steps})


def test_a_set_that_overlaps_with_the_training_data_is_named_or_refused(folder, caplog):
    sets = {"seen": str(folder / "seen")}
    prepared(folder, eval_datasets=sets)
    assert "evaluation set seen: of 5 documents, 5 are also in the training data" in caplog.text
    with pytest.raises(ConfigError, match=r"seen: of 5 documents, 5 are also.*dataset\.eval_overlap: count"):
        prepared(folder, eval_datasets=sets, eval_overlap="refuse")


def test_the_training_data_is_compared_once(folder, tmp_path):
    config, _, stored = prepared(folder, eval_datasets={"fresh": str(folder / "fresh")})
    calls = []

    def counter(parts, sets):
        calls.append(parts)
        return overlaps_here(parts, sets)

    for _ in range(2):
        part = CorpusPart(str(folder / "scored" / "part-00000.parquet"), 0, "")
        found = store_eval_sets(
            config, read_eval_sets(config), parts=[part], folder=str(tmp_path / "sets"), counter=counter
        )
    assert len(calls) == 1
    assert found["fresh"]["num_documents"] == stored["fresh"]["num_documents"] == 2


def test_a_set_without_text_is_named(folder):
    config = load_config(
        str(folder / "task.yml"), overrides=[f"dataset.eval_datasets={{void: {write_text(folder / 'void', [''])}}}"]
    )
    with pytest.raises(DataError, match=r"dataset\.eval_datasets\.void: .*has no text"):
        read_eval_sets(config)


def test_the_name_of_a_set_is_a_word(folder):
    with pytest.raises(ConfigError, match="eval_datasets"):
        load_config(str(folder / "task.yml"), overrides=["dataset.eval_datasets={a/b: x}"])
