"""Two gloo ranks with DDP and with FSDP2 give the loss, gradients and figures of one process with the whole batch."""

from functools import partial

import pytest
import torch
import torch.distributed as dist
from ranks import run_on_ranks
from tiny_models import tiny_tokenizer
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from phf_ray.config import ModelConfig
from phf_ray.models.build import build_model
from phf_ray.models.forgetful_mask import ForgetfulMask
from phf_ray.models.language_model import transformer_blocks
from phf_ray.objectives.build import build_objective
from phf_ray.objectives.statistics import all_reduce, combine
from phf_ray.objectives.streams import CORPUS, LossStreams
from phf_ray.records import TokenKind
from phf_ray.training.batches import MicroBatch
from phf_ray.training.streams import weighed
from phf_ray.training.survey import surveyed

OBJECTIVES = {
    "mle": {"name": "MLE", "mask_above": 0.7},
    "unlikelihood": {"name": "Unlikelihood", "score_threshold": 0.5, "alpha": 0.5},
    "rwr": {"name": "RWR", "beta": 0.5, "normalise": "weights"},
    "awr": {"name": "AWR", "alpha": 0.5, "beta": 0.5},
    "dpo": {"name": "DPO", "beta": 0.3, "sft_weight": 0.2},
    "policy gradient": {
        "name": "PolicyGradient",
        "aggregation": "sequences",
        "value_coef": 0.3,
        "kl_loss": "k2",
        "kl_coef": 0.2,
    },
    "quark": {"name": "WeightedLikelihood", "kl_coef": 0.3, "entropy_coef": 0.2},
    "kto": {"name": "KTO", "beta": 0.3, "undesirable_weight": 1.5},
    "hindsight": {"name": "MLE"},
    "hindsight, blocks alike": {"name": "MLE"},
}
# Two fresh processes that import torch: seconds on an idle machine, minutes on a crowded one.
pytestmark = pytest.mark.timeout(400)
WORLD = 2
MICRO_BATCHES = 2


def make_objective(name):
    streams = None
    if name.startswith("hindsight"):
        streams = LossStreams((0, 1), (1.0, 0.3), rows_alike=name.endswith("alike"))
    objective = build_objective(OBJECTIVES[name], examples=streams is not None, streams=streams)
    if name == "quark":
        objective.compare_with(make_model(seed=7).operands, num_tokens=250)
    return objective


def make_model(*, seed=3, forgets=False):
    """GPT-2 with tied embeddings and a value head, in float64 and without dropout."""
    config = ModelConfig(
        path_or_name=None,
        model_type="gpt2",
        config_kwargs={"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16, "initializer_range": 0.2},
        model_kwargs={"value_head_config": {"is_detached": False}},
    )
    model = build_model(config, tokenizer=tiny_tokenizer(), seed=seed).eval().double()
    if forgets:
        model.forget(ForgetfulMask(0.2, 0.8, seed=5))
    torch.nn.init.normal_(model.value_head.head.weight, generator=torch.Generator().manual_seed(1))
    return model


def make_rows(name):
    """Eight rows; the ranks' shares differ in their number of valid targets."""
    generator = torch.Generator().manual_seed(11)
    ids = torch.randint(250, (WORLD * MICRO_BATCHES * 2, 12), generator=generator)
    scores = torch.rand(ids.shape, generator=generator)
    kinds = torch.zeros(ids.shape, dtype=torch.uint8)
    labels = torch.zeros(ids.shape)
    corpus = torch.zeros(ids.shape)
    if name in ("dpo", "kto", "policy gradient", "quark"):
        # A pair in each row, or an answer and a mismatched one; two rows are padding.
        kinds[:] = TokenKind.PLAIN
        kinds[:, [0, 6]] = TokenKind.END_OF_TEXT
        kinds[:, [1, 2, 7, 8, 9]] = TokenKind.GIVEN
        kinds[1::4] = TokenKind.PAD
        labels[:, :6] = torch.tensor([1.0, -1.0]).repeat(len(ids) // 2)[:, None]
    elif name.startswith("hindsight"):
        # Two records in each of five rows, text in the others; one row is padding.
        kinds[:] = TokenKind.PLAIN
        kinds[:, [0, 6]] = TokenKind.END_OF_TEXT
        corpus[[2, 3, 7]] = 1
        kinds[corpus == 0] = torch.where(ids[corpus == 0] % 3 > 0, kinds[corpus == 0], TokenKind.GIVEN)
        kinds[5] = TokenKind.PAD
    else:
        kinds[:, 5] = TokenKind.END_OF_TEXT
        kinds[0, 4:] = TokenKind.PAD
        kinds[1, 3:9] = TokenKind.UNSCORED
    # Of KTO's mismatched answers the policy thinks more than the reference does.
    return ids, scores, kinds, -9 * scores - 3 * (labels == 0), labels, corpus


def gradients_of(model, num_targets):
    """Of the loss divided by the global number of targets."""
    found = {}
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        gradient = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
        # DDP and FSDP average over ranks.
        found[name.removeprefix("module.")] = gradient * WORLD / num_targets
    return found


def surveyed_parts(model, objective, rows, *, num_parts, first_row=0):
    """Micro-batches of a step, with what the objective has to know of all of them."""
    size = len(rows[0]) // num_parts
    batches = [
        MicroBatch(
            ids,
            scores,
            kinds,
            first_row + index * size,
            {
                **dict.fromkeys(("reference_logprob", "old_logprob"), reference),
                **dict.fromkeys(("advantage", "return", "old_value", "weight"), scores),
                "label": labels,
                CORPUS: corpus,
            },
        )
        for index, (ids, scores, kinds, reference, labels, corpus) in enumerate(
            zip(*(part.chunk(num_parts) for part in rows), strict=True)
        )
    ]
    weighed_batches = weighed(batches, objective=objective, device=torch.device("cpu"))
    return surveyed(model, weighed_batches, objective=objective, precision="fp32")


def accumulate(model, objective, rows, *, no_sync, first_row):
    """One rank's share of the step, in micro-batches; only the last one talks to the other rank."""
    num_targets, totals = torch.zeros((), dtype=torch.float64), {}
    parts = surveyed_parts(model, objective, rows, num_parts=MICRO_BATCHES, first_row=first_row)
    for index, part in enumerate(parts):
        with no_sync(index < len(parts) - 1):
            out = part.through(model, objective, is_forgetful=True)
            out.loss.backward()
        num_targets += out.num_targets
        totals = combine(totals, out.metrics)
    dist.all_reduce(num_targets)
    return num_targets, all_reduce(totals)


def on_rank(rank, directory):
    results = {}
    for name in OBJECTIVES:
        rows = [part.chunk(WORLD)[rank] for part in make_rows(name)]
        first_row = rank * len(rows[0])
        objective, forgets = make_objective(name), name.startswith("hindsight")
        replicated = DistributedDataParallel(make_model(forgets=forgets))

        def ddp_no_sync(skip, model=replicated):
            return model.no_sync() if skip else torch.enable_grad()

        num_targets, totals = accumulate(replicated, objective, rows, no_sync=ddp_no_sync, first_row=first_row)
        results[name, "ddp"] = gradients_of(replicated, num_targets), objective.summarize(totals)

        sharded = make_model(forgets=forgets)
        mesh = dist.device_mesh.init_device_mesh("cpu", (WORLD,))
        for block in transformer_blocks(sharded):
            fully_shard(block, mesh=mesh)
        fully_shard(sharded, mesh=mesh, reshard_after_forward=True)

        def fsdp_no_sync(skip, model=sharded):
            model.set_requires_gradient_sync(not skip)
            return torch.enable_grad()

        num_targets, totals = accumulate(sharded, objective, rows, no_sync=fsdp_no_sync, first_row=first_row)
        results[name, "fsdp2"] = gradients_of(sharded, num_targets), objective.summarize(totals)
    if rank == 0:
        torch.save(results, directory / "results.pt")


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    directory = tmp_path_factory.mktemp("ranks")
    run_on_ranks(partial(on_rank, directory=directory), world_size=WORLD, directory=directory)
    return torch.load(directory / "results.pt", weights_only=True)


@pytest.mark.parametrize("parallelism", ["ddp", "fsdp2"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_ranks_and_micro_batches_change_neither_gradients_nor_figures(two_ranks, name, parallelism):
    model, objective = make_model(forgets=name.startswith("hindsight")), make_objective(name)
    (whole,) = surveyed_parts(model, objective, make_rows(name), num_parts=1)
    out = whole.through(model, objective, is_forgetful=True)
    (out.loss / out.num_targets).backward()
    gradients, figures = two_ranks[name, parallelism]
    assert gradients.keys() == {key for key, _ in model.named_parameters()}
    for key, parameter in model.named_parameters():
        assert torch.allclose(gradients[key], parameter.grad, rtol=1e-9, atol=1e-12), key
    assert figures == pytest.approx(objective.summarize(out.metrics), rel=1e-9)
    assert name not in ("kto", "quark") or figures["kl"] > 0.1
