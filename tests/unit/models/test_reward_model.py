"""Reward models of every architecture, and on two ranks."""

from functools import partial

import pytest
import torch
from model_kinds import ARCHITECTURES, config_for
from ranks import run_on_ranks
from tiny_models import tiny_gpt2, tiny_llama, tiny_tokenizer
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from phf_ray.adapter_folder import AdapterBase
from phf_ray.checkpoint import CheckpointInfo
from phf_ray.config import LoraSettings
from phf_ray.errors import ConfigError
from phf_ray.models.adapters import add_adapter
from phf_ray.models.build import build_model
from phf_ray.models.language_model import LanguageModel
from phf_ray.models.reward_model import RewardModel, as_reward_model, load_reward_model
from phf_ray.models.saving import save_checkpoint
from phf_ray.models.shape import shape_of
from phf_ray.objectives.build import build_objective
from phf_ray.records import TokenKind
from phf_ray.training.batches import MicroBatch
from phf_ray.training.snapshot import take_snapshot
from phf_ray.training.state import TrainState, build_optimizer, parallelize
from phf_ray.training.step import StepSettings, train_step

# Without a classifier in transformers: refused by name.
WITHOUT = {"cohere", "granite"}


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_every_architecture_is_saved_as_transformers_reads_it(tmp_path, model_type):
    tokenizer = tiny_tokenizer()
    built = build_model(config_for(model_type), tokenizer=tokenizer, seed=0)
    if model_type in WITHOUT:
        with pytest.raises(ConfigError, match=rf"{model_type}.* can't be a reward model"):
            as_reward_model(built)
        return
    model = as_reward_model(built)
    assert shape_of(model).num_trained == sum(each.numel() for each in model.parameters())
    assert not any("lm_head" in name or "embed_out" in name for name, _ in model.named_parameters())
    torch.nn.init.normal_(model.backbone.score.weight, generator=torch.Generator().manual_seed(0))
    save_checkpoint(tmp_path, model, tokenizer, CheckpointInfo())
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    again = load_reward_model(tmp_path)
    again.eval()
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        wanted = loaded(ids).logits.item()
        assert again.rewards(again.hidden_states(ids))[0, -1].item() == pytest.approx(wanted, abs=1e-5)
        model.eval()
        assert model.rewards(model.hidden_states(ids))[0, -1].item() == pytest.approx(wanted, abs=1e-5)


def test_a_head_on_something_else_than_hidden_states_of_a_causal_trunk_is_refused():
    config = BertConfig(
        vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=1
    )
    with pytest.raises(ConfigError, match="has no linear head of one number"):
        RewardModel(BertForSequenceClassification(config))


KINDS = {"gpt2": tiny_gpt2, "llama": tiny_llama}  # tied and untied heads
ADAPTED = " with an adapter and new tokens"
ALL_KINDS = [*KINDS, f"gpt2{ADAPTED}", f"llama{ADAPTED}"]
OBJECTIVE = build_objective({"name": "BradleyTerry", "centring": 0.01})


def new_state(kind, parallelism):
    built = LanguageModel(KINDS[kind.removesuffix(ADAPTED)](tiny_tokenizer()))
    if kind.endswith(ADAPTED):
        base = AdapterBase("nowhere")
        built.adapter = add_adapter(built.backbone, LoraSettings(r=4), base=base, first_new_row=200, seed=0)
    model = as_reward_model(built)
    model.mask_documents()
    model.disable_dropout()
    parallel = parallelize(model.train(), parallelism, device=torch.device("cpu"))
    optimizer = build_optimizer(parallel, weight_decay=0.0, betas=(0.9, 0.999), epsilon=1e-8)
    return TrainState(parallel, optimizer)


def micro_batch(position, *, is_padding=False):
    generator = torch.Generator().manual_seed(position)
    ids = torch.randint(10, 250, (1, 32), generator=generator)
    kinds = torch.full((1, 32), int(TokenKind.PLAIN), dtype=torch.uint8)
    kinds[0, [0, 8, 12, 20]] = int(TokenKind.END_OF_TEXT)
    kinds[0, 28:] = int(TokenKind.PAD)
    if is_padding:
        kinds[:] = int(TokenKind.PAD)
    return MicroBatch(ids, torch.zeros(ids.shape), kinds, first_block=-1 if is_padding else position)


def steps(state, *, rank=0, ranks=1):
    for number in range(2):
        # Three micro-batches of two ranks: the last of the second rank is padding.
        batches = [micro_batch(3 * number + place) for place in range(3)]
        share = batches if ranks == 1 else [batches[:2], [batches[2], micro_batch(0, is_padding=True)]][rank]
        settings = StepSettings(seed=1)
        train_step(state, share, objective=OBJECTIVE, learning_rate=1e-3, settings=settings).read()


def on_rank(rank, *, folder):
    results = {}
    for kind in ALL_KINDS:
        for parallelism in ("ddp", "fsdp2"):
            state = new_state(kind, parallelism)
            steps(state, rank=rank, ranks=2)
            snapshot = take_snapshot(state, keep=rank == 0)
            if snapshot is not None:
                results[kind, parallelism] = snapshot.model
    if rank == 0:
        torch.save(results, folder / "results.pt")


@pytest.mark.timeout(400)
def test_two_ranks_learn_what_one_learns(tmp_path):
    run_on_ranks(partial(on_rank, folder=tmp_path), world_size=2, directory=tmp_path)
    results = torch.load(tmp_path / "results.pt", weights_only=True)
    for kind in ALL_KINDS:
        state = new_state(kind, "ddp")
        steps(state)
        alone = take_snapshot(state).model
        for parallelism in ("ddp", "fsdp2"):
            together = results[kind, parallelism]
            assert together.keys() == alone.keys()
            for name, tensor in together.items():
                # Adam's first steps are signs of gradients, some of which are near zero.
                torch.testing.assert_close(tensor, alone[name], rtol=0, atol=1e-4, msg=f"{kind} {parallelism} {name}")
