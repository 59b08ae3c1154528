"""Reference log-probabilities are computed once, stored beside the blocks, and read with them."""

import numpy as np
import pytest
import torch
from tiny_models import tiny_tokenizer

from phf_ray.blocks.examples import AnswerIds, RowLimits, pack_units, rows_of_unit
from phf_ray.blocks.manifest import MANIFEST, SUCCESS, BlockManifest, TokenScores
from phf_ray.blocks.order import BlockOrder
from phf_ray.blocks.reader import BlockReader
from phf_ray.blocks.shards import encode_shard
from phf_ray.blocks.stats import PackingStats
from phf_ray.config import parse_config
from phf_ray.errors import DataError
from phf_ray.objectives.dpo import REFERENCE
from phf_ray.records import TokenKind
from phf_ray.training.reference import compute_here, ensure_reference
from phf_ray.training.start import initial_model

LENGTH = 32


@pytest.fixture
def config(tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    return parse_config(
        {
            "tokenizer": {"path_or_name": str(tmp_path / "tokenizer")},
            "model": {
                "path_or_name": None,
                "model_type": "gpt2",
                "config_kwargs": {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64, "initializer_range": 0.3},
            },
            "dataset": {"seq_length": LENGTH},
            "training": {"document_mask": True, "per_device_train_batch_size": 2, "precision": "fp32"},
        }
    )


@pytest.fixture
def blocks(tmp_path):
    """Two shards of pairs."""
    folder = tmp_path / "blocks"
    folder.mkdir()
    generator = np.random.default_rng(0)
    shards = []
    for number in range(2):
        units = []
        for _ in range(5):
            answers = [AnswerIds(*(generator.integers(3, 90, n).tolist() for n in (3, 4))) for _ in range(2)]
            units.append(rows_of_unit(answers, RowLimits(16, 0, 1), stats=PackingStats()))
        packed = list(pack_units(units, length=LENGTH, pad_id=2))
        name = f"shard-{number:05d}-000.parquet"
        (folder / name).write_bytes(encode_shard(packed))
        shards.append(
            {
                "file": name,
                "corpus": 0,
                "group": number,
                "num_blocks": len(packed),
                "num_content_tokens": 50,
                "num_source_tokens": 50,
            }
        )
    manifest = BlockManifest(
        format=1, fingerprint="f", sequence_length=LENGTH, tokenizer={}, packing={}, thresholds={},
        held_out_fraction=0, corpora=[{"name": "c", "fingerprint": "f", "scorer": {}, "segmenter": "none"}],
        num_groups=2, shards=shards, documents={}, segments={}, tokens={},
        token_scores=TokenScores(mean=None, std=None, quantiles={}, quantile_relative_error=0),
    )  # fmt: skip
    (folder / MANIFEST).write_text(manifest.model_dump_json())
    (folder / SUCCESS).touch()
    return folder


def build(config):
    from phf_ray.blocks.tokenizer import load_tokenizer

    return initial_model(config, checkpoint_path=None, tokenizer=load_tokenizer(config.tokenizer))


def ensure(config, blocks, *, run=compute_here):
    return ensure_reference(config, blocks=str(blocks), checkpoint_path=None, build=lambda: build(config), run=run)


def test_numbers_are_those_of_the_model_and_are_read_with_their_blocks(config, blocks):
    folder = ensure(config, blocks)
    manifest = BlockManifest.model_validate_json((blocks / MANIFEST).read_text())
    reader = BlockReader(str(blocks), order=BlockOrder(manifest, seed=0), channels={REFERENCE: folder})
    read = reader.read(0, manifest.num_blocks)
    model = build(config).eval()
    model.mask_documents()
    ids, kinds = torch.from_numpy(read.input_ids).long(), torch.from_numpy(read.token_kinds)
    with torch.no_grad():
        logits = model._trained_states(ids, kinds) @ model.head()[0].T
    logps = logits.log_softmax(-1)[:, :-1].gather(2, ids[:, 1:, None]).squeeze(2).numpy()
    learned = read.token_kinds[:, 1:] == TokenKind.PLAIN
    assert learned.sum() > 30
    assert read.channels[REFERENCE][:, 1:] == pytest.approx(np.where(learned, logps, 0), abs=1e-5)
    assert (read.channels[REFERENCE][:, 0] == 0).all()


def test_what_is_there_is_not_computed_again_and_what_is_missing_is(config, blocks):
    folder = ensure(config, blocks)
    asked = []

    def run(job, shards):
        asked.append(list(shards))
        return compute_here(job, shards)

    assert ensure(config, blocks, run=run) == folder
    before = (blocks / folder / "shard-00001-000.parquet").read_bytes()
    (blocks / folder / "shard-00001-000.parquet").unlink()
    assert ensure(config, blocks, run=run) == folder
    assert asked == [[], ["shard-00001-000.parquet"]]
    assert (blocks / folder / "shard-00001-000.parquet").read_bytes() == before


def test_another_model_has_other_files(config, blocks):
    other = config.model_copy(update={"training": config.training.model_copy(update={"seed": 5})})
    assert ensure(config, blocks) != ensure(other, blocks)


def test_the_same_weights_in_another_architecture_have_other_files(config, blocks):
    shape = {**config.model.config_kwargs, "n_head": 4}
    other = config.model_copy(update={"model": config.model.model_copy(update={"config_kwargs": shape})})
    assert ensure(config, blocks) != ensure(other, blocks)


def test_a_file_of_other_blocks_is_refused(config, blocks):
    folder = ensure(config, blocks)
    (blocks / folder / "shard-00001-000.parquet").write_bytes((blocks / "shard-00001-000.parquet").read_bytes())
    manifest = BlockManifest.model_validate_json((blocks / MANIFEST).read_text())
    reader = BlockReader(str(blocks), order=BlockOrder(manifest, seed=0), channels={REFERENCE: folder})
    with pytest.raises(DataError, match="holds no reference_logprob"):
        reader.read(0, manifest.num_blocks)
