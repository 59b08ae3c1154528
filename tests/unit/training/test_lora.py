"""Training adapters: frozen weights stay bit for bit, new rows and value heads learn, runs resume exactly."""

import dataclasses
from functools import partial

import pytest
import torch
import yaml
from ranks import run_on_ranks
from safetensors.torch import load_file
from tiny_models import BAD, GOOD, tiny_gpt2, tiny_llama, tiny_tokenizer
from train_here import prepared_run, stopped_after, train_here
from train_runs import losses, write_inputs

from jobs.train_lm import main as train_lm
from phf_ray.blocks.tokenizer import load_tokenizer
from phf_ray.checkpoint import read_info
from phf_ray.config import ModelConfig, TokenizerConfig, load_config
from phf_ray.errors import ConfigError, DataError, IncompleteError, PhfError
from phf_ray.generation.load import load_engine
from phf_ray.models.build import build_model
from phf_ray.models.loading import load_checkpoint
from phf_ray.objectives.build import build_objective
from phf_ray.records import TokenKind
from phf_ray.runs.checkpoints import find_checkpoint
from phf_ray.runs.directory import RunDirectory
from phf_ray.training.batches import MicroBatch
from phf_ray.training.snapshot import take_snapshot
from phf_ray.training.start import initial_model
from phf_ray.training.state import TrainState, build_optimizer, parallelize, unwrapped
from phf_ray.training.step import StepSettings, train_step

KINDS = {"gpt2": tiny_gpt2, "llama": tiny_llama}
MLE = build_objective({"name": "MLE"})


def write_base(folder, kind):
    tokenizer = tiny_tokenizer()
    KINDS[kind](tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=KINDS)
def base(request, tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("base") / request.param, request.param)


def new_state(base, *, special=(), parallelism="ddp", **lora):
    config = ModelConfig(
        path_or_name=str(base),
        from_scratch=False,
        lora={"r": 4, "dropout": 0.1, **lora},
        num_additional_tokens=len(special),
    )
    tokenizer = load_tokenizer(TokenizerConfig(path_or_name=str(base), special_tokens=list(special)))
    model = build_model(config, tokenizer=tokenizer, seed=5)
    parallel = parallelize(model, parallelism, device=torch.device("cpu"))
    return TrainState(parallel, build_optimizer(parallel, weight_decay=0.1, betas=(0.9, 0.999), epsilon=1e-8))


def micro_batch(position, *, num_ids):
    generator = torch.Generator().manual_seed(position)
    ids = torch.randint(num_ids - 20, num_ids, (2, 12), generator=generator, dtype=torch.int32)
    kinds = torch.full(ids.shape, int(TokenKind.CONTENT), dtype=torch.uint8)
    return MicroBatch(ids, torch.zeros(ids.shape), kinds, first_block=position)


def step(state, number, *, num_ids, ranks=1, rank=0):
    batches = [micro_batch(4 * number + place, num_ids=num_ids) for place in range(4)]
    share = batches[rank * 4 // ranks : (rank + 1) * 4 // ranks]
    return train_step(state, share, objective=MLE, learning_rate=0.01, settings=StepSettings(seed=1)).read()


def tensors_of(state):
    return {name: each.detach().clone() for name, each in unwrapped(state.model).state_dict().items()}


# --- Steps --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("special", [(), (GOOD, BAD)])
def test_steps_move_the_adapter_and_new_rows_alone_and_the_optimizer_holds_no_more(base, special):
    state = new_state(base, special=special)
    model = unwrapped(state.model)
    num_ids = len(tiny_tokenizer()) + len(special)
    before = tensors_of(state)
    for number in range(3):
        step(state, number, num_ids=num_ids)
    partly = {id(each) for each in model.partly_trained()}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in partly:
            first = model.adapter.first_new_row
            assert torch.equal(parameter[:first], before[name][:first]), name
            assert (parameter[first:num_ids] != before[name][first:num_ids]).any(dim=1).all(), name
        else:
            assert torch.equal(parameter, before[name]) == (".lora_" not in name), name
    held = {id(each) for group in state.optimizer.param_groups for each in group["params"]}
    assert held == {id(each) for each in model.parameters() if each.requires_grad}
    assert set(map(id, state.optimizer.state)) == held
    snapshot = take_snapshot(state)
    assert not any("base_layer" in name for name in snapshot.model)
    assert {name.rpartition("/")[0] for name in snapshot.optimizer} <= set(snapshot.model)


def test_an_adapter_without_a_gradient_ends_the_run_at_its_first_step(base):
    state = new_state(base)
    layer = next(module for module in unwrapped(state.model).modules() if hasattr(module, "lora_A"))
    layer._disable_adapters = True
    with pytest.raises(PhfError, match=r"2 of \d+ trained parameters got no gradient"):
        step(state, 0, num_ids=250)


def on_rank(rank, *, folder):
    results = {}
    for kind in KINDS:
        for parallelism in ("ddp", "fsdp2"):
            state = new_state(folder / kind, special=(GOOD, BAD), parallelism=parallelism)
            for number in range(2):
                step(state, number, num_ids=len(tiny_tokenizer()) + 2, ranks=2, rank=rank)
            snapshot = take_snapshot(state, keep=rank == 0)
            if snapshot is not None:
                results[kind, parallelism] = snapshot.model
    if rank == 0:
        torch.save(results, folder / "results.pt")


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    for kind in KINDS:
        write_base(folder / kind, kind)
    run_on_ranks(partial(on_rank, folder=folder), world_size=2, directory=folder)
    return folder, torch.load(folder / "results.pt", weights_only=True)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("parallelism", ["ddp", "fsdp2"])
@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_learn_what_one_learns_and_keep_old_rows(two_ranks, kind, parallelism):
    folder, results = two_ranks
    state = new_state(folder / kind, special=(GOOD, BAD))
    model = unwrapped(state.model)
    before = tensors_of(state)
    for number in range(2):
        step(state, number, num_ids=len(tiny_tokenizer()) + 2)
    alone, together = take_snapshot(state).model, results[kind, parallelism]
    assert together.keys() == alone.keys()
    first = model.adapter.first_new_row
    for name, tensor in together.items():
        # Adam's first steps are signs of gradients, some of which are near zero.
        torch.testing.assert_close(tensor, alone[name], rtol=0, atol=1e-4, msg=name)
        if ".lora_" not in name:
            assert torch.equal(tensor[:first], before[name][:first]), name


# --- Runs ---------------------------------------------------------------------------------------------------------


def prepare(folder, kind, **changes):
    """Configuration, plan and blocks of a run of adapters, with control tokens and a value head."""
    task = write_inputs(folder, conditional=True, save_steps=3, num_tokens=3000)
    write_base(folder / "base", kind)
    values = yaml.safe_load(task.read_text())
    values["model"] = {
        "path_or_name": str(folder / "base"),
        "from_scratch": False,
        "num_additional_tokens": 2,
        "lora": {"r": 4, "dropout": 0.1},
        "model_kwargs": {"value_head_config": {"is_detached": False}},
    } | changes
    values["objective"] = {"name": "AWR", "alpha": 0.5, "beta": 1.0}
    task.write_text(yaml.safe_dump(values))
    return task


@pytest.fixture(scope="module", params=KINDS)
def prepared(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(f"run {request.param}")
    config = load_config(str(prepare(folder, request.param)))
    return prepared_run(config, corpus=str(folder / "scored"), folder=str(folder))


def test_a_stopped_run_of_adapters_with_new_tokens_and_a_value_head_ends_bit_for_bit(prepared, tmp_path):
    whole, parts = RunDirectory(tmp_path / "whole"), RunDirectory(tmp_path / "parts")
    assert train_here(prepared, whole)["status"] == "finished"
    with stopped_after(num_rows=3), pytest.raises(IncompleteError):
        train_here(prepared, parts)
    assert 0 < parts.latest_step() < prepared[1].num_steps
    train_here(prepared, parts)
    assert losses(parts.path) == losses(whole.path)
    files = ["adapter_model.safetensors", "adapter_config.json", "value_head.safetensors"]
    for name in [*files, "training_state/optimizer.safetensors"]:
        assert (parts.latest_checkpoint() / name).read_bytes() == (whole.latest_checkpoint() / name).read_bytes(), name

    checkpoint = find_checkpoint(whole.path, option="--model")
    config = prepared[0]
    tokenizer = load_tokenizer(config.tokenizer)
    start = initial_model(config, checkpoint_path=None, tokenizer=tokenizer)
    loaded = load_checkpoint(checkpoint)
    assert loaded.model.value_head.head.weight.any(), "the value head learned, and was saved"
    first = start.adapter.first_new_row
    ours, theirs = (model.backbone.get_input_embeddings().weight for model in (loaded.model, start))
    assert torch.equal(ours[:first], theirs[:first])
    assert not torch.equal(ours[first : first + 2], theirs[first : first + 2])
    info = read_info(checkpoint)
    assert info.base.name == config.model.path_or_name
    assert info.control.good == GOOD
    assert load_engine(checkpoint).strings is not None
    assert not any("base_layer" in name for name in load_file(checkpoint / "training_state" / "optimizer.safetensors"))


def test_a_run_whose_base_has_changed_is_not_continued(prepared, tmp_path):
    config, plan, blocks = prepared
    run = RunDirectory(tmp_path / "run")
    with stopped_after(num_rows=2), pytest.raises(IncompleteError):
        train_here(prepared, run)
    info = read_info(run.latest_checkpoint())
    path = run.latest_checkpoint() / "phf.json"
    path.write_text(path.read_text().replace(info.base.fingerprint, "0" * 32))
    with pytest.raises(DataError, match="has other weights than the base model"):
        train_here((config, dataclasses.replace(plan), blocks), run)


BAD_INPUT = {
    "targets": ({"lora": {"target_modules": ["q_proj"]}}, r"target_modules: \['q_proj'\].*it has c_attn, c_fc, c_proj"),
    "from scratch": ({"from_scratch": True}, r"model\.lora with model\.from_scratch"),
    "no base": ({"path_or_name": "/nowhere/base"}, r"model\.path_or_name /nowhere/base: there is no such folder"),
    "4 bits": ({"load_in_4bit": True}, r"model\.load_in_4bit needs"),
    "padding": ({"pad_vocab_to_multiple_of": 512, "num_additional_tokens": 0}, r"pad_vocab_to_multiple_of=512"),
}


@pytest.mark.parametrize("what", BAD_INPUT)
def test_what_adapters_can_not_be_is_said_before_ray_starts(what, tmp_path, monkeypatch):
    if what == "4 bits" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    changes, words = BAD_INPUT[what]
    task = prepare(tmp_path, "gpt2", **changes)
    monkeypatch.setattr("jobs.train_lm.start_ray", lambda: pytest.fail("Ray was started"))
    with pytest.raises(ConfigError, match=words):
        train_lm(["--task", str(task), "--run-name", "run", "--storage-path", str(tmp_path / "runs")])
    assert not (tmp_path / "runs").exists()
