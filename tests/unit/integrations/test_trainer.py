"""The Trainer of transformers with our objectives: the losses and gradients of our own loop."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import tiny_gpt2, tiny_llama, tiny_tokenizer
from train_runs import write_inputs
from transformers import AutoModelForCausalLM, TrainerCallback, TrainingArguments

from phf_ray.blocks.build import build_here, ensure_blocks
from phf_ray.blocks.manifest import read_block_manifest
from phf_ray.blocks.order import BlockOrder
from phf_ray.blocks.reader import BlockReader
from phf_ray.config import load_config
from phf_ray.errors import ConfigError
from phf_ray.integrations import BlockDataset, PHFTrainer
from phf_ray.models.heads import ValueHead, load_value_head
from phf_ray.models.language_model import LanguageModel
from phf_ray.objectives import build_objective
from phf_ray.training.batches import DataShare, step_batches
from phf_ray.training.state import TrainState
from phf_ray.training.step import StepSettings, train_step

OBJECTIVES = {
    "MLE": {"name": "MLE"},
    "Unlikelihood": {"name": "Unlikelihood", "score_threshold": 0.1, "alpha": 0.5},
    "RWR": {"name": "RWR", "beta": 0.5, "normalise": "weights"},
    "AWR": {"name": "AWR", "beta": 0.5},
}


@pytest.fixture(scope="module")
def blocks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blocks")
    config = load_config(str(write_inputs(folder)))
    plan = ensure_blocks(
        config, corpora=[str(folder / "scored")], output_root=str(folder / "blocks"), builder=build_here
    )
    return plan.root


class Gradients(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, *, model, **kwargs):
        self.found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def trained(model, blocks, objective, folder, **changes):
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=1,
        learning_rate=0.0,
        max_grad_norm=0.0,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        logging_steps=1,
        **changes,
    )
    gradients = Gradients()
    trainer = PHFTrainer(
        model, arguments, objective=objective, train_dataset=BlockDataset(blocks, seed=3), callbacks=[gradients]
    )
    return trainer, trainer.train(), gradients.found


def ours(model, blocks, objective):
    """Loss and gradients of the first step of our own loop, on the same four blocks in two micro-batches."""
    manifest = read_block_manifest(blocks)
    reader = BlockReader(blocks, order=BlockOrder(manifest, seed=3))
    [batches] = step_batches(reader.read, DataShare(batch_size=4, micro_batch_size=2), steps=range(1))
    kept = {}

    class Keep(torch.optim.SGD):
        def step(self, closure=None):
            kept.update({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})

    state = TrainState(model, Keep(model.parameters(), lr=0.0))
    built = build_objective(objective)
    settings = StepSettings(max_grad_norm=None)
    totals = train_step(state, batches, objective=built, learning_rate=0.0, settings=settings).read()
    return float(totals["sum/step_loss"] / totals["sum/step_targets"]), kept


def without_dropout(backbone):
    for module in backbone.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return backbone


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_losses_and_gradients_are_those_of_our_loop(blocks, tmp_path, name, make):
    tokenizer = tiny_tokenizer()
    backbone = without_dropout(make(tokenizer, seed=1))
    head = ValueHead(backbone.get_output_embeddings().weight.shape[1]) if name == "AWR" else None
    expected_loss, expected = ours(LanguageModel(backbone, value_head=head), blocks, OBJECTIVES[name])
    _, result, found = trained(without_dropout(make(tokenizer, seed=1)), blocks, OBJECTIVES[name], tmp_path)
    assert result.training_loss == pytest.approx(expected_loss, rel=1e-5)
    for parameter, gradient in found.items():
        same = parameter if parameter.startswith("value_head") else f"backbone.{parameter}"
        torch.testing.assert_close(gradient, expected[same], rtol=1e-4, atol=1e-7, msg=parameter)
    assert len(found) == len(expected)


def test_a_trained_model_is_an_ordinary_directory_with_its_value_head(blocks, tmp_path):
    model = tiny_gpt2(tiny_tokenizer(), seed=1)
    trainer, _, _ = trained(model, blocks, OBJECTIVES["AWR"], tmp_path)
    with torch.no_grad():
        model.value_head.head.weight.fill_(0.25)
    trainer.save_model(str(tmp_path / "saved"))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(again.get_output_embeddings().weight, model.get_output_embeddings().weight)
    head = ValueHead(model.config.n_embd)
    assert load_value_head(head, str(tmp_path / "saved"), revision=None)
    assert (head.head.weight == 0.25).all()


def test_blocks_come_in_the_order_of_our_training(blocks):
    dataset = BlockDataset(blocks, seed=3)
    reader = BlockReader(blocks, order=BlockOrder(read_block_manifest(blocks), seed=3))
    expected = reader.read(0, len(dataset))
    found = np.stack([dataset[index]["input_ids"].numpy() for index in range(len(dataset))])
    assert (found == expected.input_ids).all()


def test_an_unknown_objective_is_named(blocks, tmp_path):
    with pytest.raises(ConfigError, match="PPO"):
        trained(tiny_gpt2(tiny_tokenizer()), blocks, {"name": "PPO"}, tmp_path)


def test_text_without_scores_trains_by_likelihood_and_is_refused_by_an_objective_that_reads_scores(blocks, tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("value = first + 1\n" * 200)
    config = load_config(str(next(Path(blocks).parents[1].glob("pep8/*.yml"))))
    root = ensure_blocks(
        config, corpora=[str(tmp_path / "texts")], output_root=str(tmp_path / "blocks"), builder=build_here
    ).root
    _, outcome, gradients = trained(tiny_gpt2(tiny_tokenizer()), root, {"name": "MLE"}, tmp_path / "out")
    assert outcome.training_loss > 0
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
    with pytest.raises(ConfigError, match="texts has no scores, which this objective needs"):
        trained(tiny_gpt2(tiny_tokenizer()), root, {"name": "RWR"}, tmp_path / "out")
