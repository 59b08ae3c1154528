"""Finetuning as in the paper (section 5): likelihood on the first part of the stream, the objective on the rest."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_models import BAD, GOOD, tiny_gpt2, tiny_tokenizer
from train_here import worker_here
from train_runs import SEQ_LENGTH, arguments, losses, metrics, run_folder, write_inputs
from transformers import AutoModelForCausalLM

from jobs.train_lm import main
from phf_ray.blocks.manifest import read_block_manifest
from phf_ray.blocks.order import BlockOrder
from phf_ray.blocks.reader import BlockReader
from phf_ray.models.heads import VALUE_HEAD_FILE, VALUE_HEAD_KEY

pytestmark = pytest.mark.timeout(400)

FIRST_TOKENS, ALL_TOKENS, BATCH = 4000, 6000, 8
SECOND_PART = (
    f"dataset.skip_tokens={FIRST_TOKENS}",
    f"training.tokens_already_seen={FIRST_TOKENS}",
    f"training.num_tokens={ALL_TOKENS}",
)


def small(*overrides: str) -> list[str]:
    return [*overrides, "training.inspect_every_n_micro_batches=null", "dataset.held_out_fraction=0"]


@pytest.fixture(scope="module")
def first_part(tmp_path_factory, local_ray) -> Path:
    """Task file of a run of plain likelihood on the first tokens."""
    task = write_inputs(tmp_path_factory.mktemp("finetune"), num_tokens=FIRST_TOKENS, save_steps=None)
    no_dropout = "model.config_kwargs={resid_pdrop: 0.0, embd_pdrop: 0.0, attn_pdrop: 0.0}"
    with worker_here():
        assert main(arguments(task, *small(no_dropout), name="first")) == 0
    return task


def checkpoint_of(run: Path) -> Path:
    return run / json.loads((run / "summary.json").read_text())["checkpoint"]


def expected_losses(checkpoint: Path, run: Path, *, steps: int) -> list[float]:
    """Likelihood losses of the weights of a checkpoint on the blocks after the first part."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    (blocks,) = (run.parent / "blocks").glob("blocks-*")
    order = BlockOrder(read_block_manifest(str(blocks)), seed=42)
    reader = BlockReader(str(blocks), order=order)
    begin = order.position_after(FIRST_TOKENS)
    assert order.source_tokens_before(begin) == pytest.approx(FIRST_TOKENS, abs=SEQ_LENGTH)
    found = []
    for step in range(steps):
        part = reader.read(begin + step * BATCH, begin + (step + 1) * BATCH)
        ids = torch.from_numpy(part.input_ids).long()
        labels = torch.where(torch.from_numpy(part.token_kinds) == 3, -100, ids)
        with torch.no_grad():
            found.append(model(ids, labels=labels).loss.item())
    return found


def test_the_objective_goes_on_from_the_weights_and_the_place_of_the_first_part(first_part):
    first = run_folder(first_part, "first")
    checkpoint = checkpoint_of(first)
    objective = "objective={name: Unlikelihood, score_threshold: 0.0, alpha: 0.5}"
    # No learning: the loss at each step is that of the starting weights on the step's blocks.
    overrides = small(*SECOND_PART, "training.learning_rate=0", objective)
    with worker_here():
        assert main([*arguments(first_part, *overrides, name="second"), "--checkpoint-path", str(checkpoint)]) == 0
    second = run_folder(first_part, "second")
    rows = [row for row in metrics(second) if "train/loss" in row]
    plain = [row["objective/train/original_loss"] for row in rows]
    assert plain == pytest.approx(expected_losses(checkpoint, second, steps=len(rows)), rel=1e-4)
    assert plain[0] < next(iter(losses(first).values())) - 1, "what the first part taught is there"
    assert all(row["objective/train/unlikelihood_loss"] > 0 for row in rows)
    assert rows[0]["train/tokens_seen"] > FIRST_TOKENS
    assert rows[-1]["train/tokens_seen"] == pytest.approx(ALL_TOKENS, abs=1.5 * BATCH * SEQ_LENGTH)


@pytest.fixture
def released(tmp_path) -> Path:
    """As the original released its models: GPT-2 in a pickled file of weights with the value head among them, control
    tokens in the tokenizer, and nothing of ours."""
    directory = tmp_path / "released"
    tokenizer = tiny_tokenizer(control=True)
    model = tiny_gpt2(tokenizer, vocab_size=len(tokenizer))
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    state[VALUE_HEAD_KEY] = torch.randn(1, 32, generator=torch.Generator().manual_seed(1))
    torch.save(state, directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()
    return directory


def test_a_released_checkpoint_is_finetuned_with_its_value_head_and_control_tokens(released, tmp_path, local_ray):
    task = write_inputs(tmp_path / "task", save_steps=None)
    values = yaml.safe_load(task.read_text())
    values["tokenizer"] = {"path_or_name": str(released), "special_tokens": [GOOD, BAD]}
    value_head = {"value_head_config": {"is_detached": False}}
    values["model"] = {"path_or_name": str(released), "from_scratch": False, "model_kwargs": value_head}
    values["objective"] = {"name": "AWR", "alpha": 0.5, "beta": 1}
    task.write_text(yaml.safe_dump(values))
    overrides = small(*SECOND_PART, "training.learning_rate=0")
    with worker_here():
        assert main(arguments(task, *overrides, name="second")) == 0
    checkpoint = checkpoint_of(run_folder(task, "second"))
    before = torch.load(released / "pytorch_model.bin", weights_only=True)
    assert torch.equal(load_file(checkpoint / VALUE_HEAD_FILE)[VALUE_HEAD_KEY], before[VALUE_HEAD_KEY])
    after = load_file(checkpoint / "model.safetensors")
    assert all(torch.equal(after[name], before[name]) for name in after)
    rows = [row for row in metrics(run_folder(task, "second")) if "train/loss" in row]
    assert rows[0]["objective/train/value_std"] > 0, "values are those of the released head, not all -0.5"
