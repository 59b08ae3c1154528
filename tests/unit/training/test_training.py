"""The loop without Ray: what a step computes, and that the split of the work does not show in it."""

import dataclasses
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from ranks import run_on_ranks
from transformers import GPT2Config, GPT2LMHeadModel, get_scheduler

from phf_ray.blocks.shards import BlockArrays
from phf_ray.errors import ConfigError, DataError
from phf_ray.models.heads import ValueHead
from phf_ray.models.language_model import LanguageModel
from phf_ray.objectives.build import build_objective
from phf_ray.records import TokenKind
from phf_ray.training import loop as training_loop
from phf_ray.training.batches import DataShare, MicroBatch, prefetched, share_of_step, step_batches
from phf_ray.training.events import CheckpointDue, InspectionDue, MetricsRow, NonFinite, WeightsDue
from phf_ray.training.hardware import peak_flops
from phf_ray.training.held_out import EncodedDocument, held_out_bits_per_byte, objective_on
from phf_ray.training.loop import LoopSettings, train
from phf_ray.training.schedule import Schedule, fitting_micro_batch, speed_up, steps_in, theoretical_loss
from phf_ray.training.snapshot import restore_training_state, take_snapshot, write_training_state
from phf_ray.training.state import TrainState, build_optimizer, parallelize
from phf_ray.training.step import StepSettings, train_step
from phf_ray.training.values import value_predictions

VOCABULARY, LENGTH = 50, 16


def tiny_model(*, dropout: float = 0.1, seed: int = 0) -> LanguageModel:
    torch.manual_seed(seed)
    return LanguageModel(
        GPT2LMHeadModel(
            GPT2Config(
                vocab_size=VOCABULARY,
                n_positions=LENGTH,
                n_embd=16,
                n_layer=2,
                n_head=2,
                embd_pdrop=dropout,
                resid_pdrop=dropout,
                attn_pdrop=dropout,
                bos_token_id=0,
                eos_token_id=0,
            )
        )
    )


def new_state(*, dropout: float = 0.1) -> TrainState:
    model = tiny_model(dropout=dropout)
    return TrainState(model, build_optimizer(model, weight_decay=0.1, betas=(0.9, 0.999), epsilon=1e-8))


def random_blocks(begin: int, end: int) -> BlockArrays:
    """Counting from a random token on; the tail of each block is padding, of a length that depends on its position."""
    starts = [np.random.default_rng(position).integers(VOCABULARY) for position in range(begin, end)]
    ids = np.stack([start + np.arange(LENGTH) for start in starts]) % (VOCABULARY - 1) + 1
    kinds = np.zeros((end - begin, LENGTH), np.uint8)
    kinds[:, 0] = TokenKind.END_OF_TEXT
    for row, position in enumerate(range(begin, end)):
        kinds[row, LENGTH - position % 9 :] = TokenKind.PAD
    return BlockArrays(ids.astype(np.int32), np.zeros((end - begin, LENGTH), np.float32), kinds)


def settings(num_steps: int, *, save_steps: int | None = None, logging_steps: int = 1) -> LoopSettings:
    schedule = Schedule(num_steps, 1e-2, warmup_ratio=0.2)
    return LoopSettings(schedule, StepSettings(seed=7), save_steps=save_steps, logging_steps=logging_steps)


def share(*, micro: int = 2, rank: int = 0, world_size: int = 1) -> DataShare:
    return DataShare(batch_size=8, micro_batch_size=micro, rank=rank, world_size=world_size)


def run(state: TrainState, *, loop: LoopSettings, data: DataShare | None = None) -> list[MetricsRow]:
    batches = step_batches(random_blocks, data or share(), steps=range(state.step, loop.schedule.num_steps))
    events = train(state, batches, objective=build_objective({"name": "MLE"}), settings=loop)
    return [event for event in events if isinstance(event, MetricsRow)]


# --- Shares -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize(("batch_size", "micro"), [(8, 2), (8, 8), (9, 2), (5, 3), (3, 1), (64, 24)])
def test_shares_of_all_ranks_are_the_blocks_of_the_step_in_order(world_size, batch_size, micro):
    shares = [
        share_of_step(3, rank, world_size=world_size, batch_size=batch_size, micro_batch_size=micro)
        for rank in range(world_size)
    ]
    positions = [position for ranges in shares for begin, end in ranges for position in range(begin, end)]
    assert positions == list(range(3 * batch_size, 4 * batch_size))
    assert len({len(ranges) for ranges in shares}) == 1, "FSDP needs equally many forward passes"
    sizes = [sum(end > begin for begin, end in ranges) for ranges in shares]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("batch_size", "micro", "num_workers", "expected", "fitting"),
    [
        (64, 16, 1, 1, 16),
        (64, 16, 4, 4, 16),
        (64, 16, 8, 4, 8),  # four micro-batches: half of the workers have none
        (64, 16, 3, 2, 11),  # a second round for the fourth; five of 11 and one of 9 fill two rounds
        (8, 2, 3, 2, 2),  # two rounds of three need two sequences each as well
        (4, 2, 8, 2, 1),
    ],
)
def test_speed_up_is_that_of_the_worker_with_the_most_micro_batches(batch_size, micro, num_workers, expected, fitting):
    sizes = {"batch_size": batch_size, "num_workers": num_workers}
    assert speed_up(**sizes, micro_batch_size=micro) == expected
    shares = [
        share_of_step(0, rank, world_size=num_workers, batch_size=batch_size, micro_batch_size=micro)
        for rank in range(num_workers)
    ]
    computed = [sum(end > begin for begin, end in ranges) for ranges in shares]
    assert sum(computed) / max(computed) == expected
    assert fitting_micro_batch(**sizes, micro_batch_size=micro) == fitting


def test_a_share_starts_after_the_blocks_that_are_left_out():
    seen = []

    def read(begin: int, end: int) -> BlockArrays:
        seen.append((begin, end))
        return random_blocks(begin, end)

    list(step_batches(read, DataShare(batch_size=4, micro_batch_size=2, first_block=100), steps=range(2, 3)))
    assert seen == [(108, 110), (110, 112)]


def test_prefetched_items_are_the_same_and_an_error_of_the_source_arrives():
    def source() -> Iterator[int]:
        yield from range(10)
        raise DataError("block file is cut short; build the blocks again")

    items = prefetched(source(), depth=2)
    assert [next(items) for _ in range(10)] == list(range(10))
    with pytest.raises(DataError, match="build the blocks again"):
        next(items)


class OnItsWay:
    """A tensor that notes what is done to it."""

    device = torch.device("meta")

    def __init__(self) -> None:
        self.done: list[str] = []

    def pin_memory(self) -> "OnItsWay":
        self.done.append("pinned")
        return self

    def to(self, device: torch.device, *, non_blocking: bool) -> "OnItsWay":
        self.done.append(f"to {device}" if non_blocking else "waited")
        return self


@pytest.mark.parametrize(("device", "done"), [("cuda", ["pinned", "to cuda"]), ("cpu", ["to cpu"])])
def test_a_copy_to_a_gpu_starts_from_pinned_memory_and_is_not_waited_for(device, done):
    tensors = [OnItsWay() for _ in range(3)]
    moved = MicroBatch(*tensors, first_block=4).to(torch.device(device))
    assert [tensor.done for tensor in tensors] == [done] * 3
    assert moved == MicroBatch(*tensors, first_block=4)


# --- Schedule ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("warmup_ratio", [0.0, 0.01, 0.3])
def test_schedule_is_that_of_transformers(kind, warmup_ratio):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    name = "constant_with_warmup" if kind == "constant" else kind
    theirs = get_scheduler(name, optimizer, num_warmup_steps=math.ceil(40 * warmup_ratio), num_training_steps=40)
    ours = Schedule(40, 0.5, kind=kind, warmup_ratio=warmup_ratio)
    for number in range(40):
        assert ours.at(number) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        theirs.step()


def test_steps_follow_from_tokens_batch_and_the_blocks_own_token_count():
    assert steps_in(10_000, tokens_per_block=100.0, batch_size=10) == 10
    assert steps_in(10_999, tokens_per_block=100.0, batch_size=10) == 10
    # Control tokens do not count: at 80 content tokens a block the same budget takes more steps.
    assert steps_in(10_000, tokens_per_block=80.0, batch_size=10) == 12
    with pytest.raises(ConfigError, match=r"raise training\.num_tokens to at least 1000"):
        steps_in(999, tokens_per_block=100.0, batch_size=10)


def test_theoretical_loss_of_chinchilla():
    # 70 B parameters, 1.4 T tokens: 1.69 + 406.4 / 7e10^0.34 + 410.7 / 1.4e12^0.28 = 1.69 + 0.0834 + 0.1633
    assert theoretical_loss(70_000_000_000, num_tokens=1_400_000_000_000) == pytest.approx(1.9367, abs=2e-4)


# --- Step -------------------------------------------------------------------------------------------------------------


def test_a_step_is_adamw_on_the_mean_gradient_over_the_targets_of_all_micro_batches():
    """Against plain torch: one cross entropy over the whole batch, clipped, decay on matrices only."""
    blocks = random_blocks(0, 8)
    reference = tiny_model(dropout=0)
    ids = torch.from_numpy(blocks.input_ids).long()
    labels = ids.masked_fill(torch.from_numpy(blocks.token_kinds) == TokenKind.PAD, -100)
    logits = reference.backbone(ids).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.1)
    matrices = [p for p in reference.parameters() if p.ndim > 1]
    vectors = [p for p in reference.parameters() if p.ndim == 1]
    torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}], lr=1e-2
    ).step()

    state = new_state(dropout=0)
    micro_batches = next(step_batches(random_blocks, share(micro=3), steps=range(1)))
    assert [len(batch.input_ids_BS) for batch in micro_batches] == [3, 3, 2]
    totals = train_step(
        state,
        micro_batches,
        objective=build_objective({"name": "MLE"}),
        learning_rate=1e-2,
        settings=StepSettings(max_grad_norm=0.1),
    ).read()
    assert float(norm) > 0.1, "clipping was not at work"
    assert float(totals["sum/grad_norm"]) == pytest.approx(float(norm), rel=1e-5)
    assert float(totals["sum/step_loss"] / totals["sum/step_targets"]) == pytest.approx(loss.item(), rel=1e-6)
    for (name, ours), theirs in zip(state.model.named_parameters(), reference.parameters(), strict=True):
        # Adam's first step is the sign of the gradient: elements near zero differ in the last bits only.
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5, msg=name)


def test_a_step_of_padding_only_changes_nothing_but_decay():
    state = new_state(dropout=0)
    before = {name: p.detach().clone() for name, p in state.model.named_parameters()}

    def padding(begin: int, end: int) -> BlockArrays:
        blocks = random_blocks(begin, end)
        return blocks._replace(token_kinds=np.full_like(blocks.token_kinds, TokenKind.PAD))

    batch = next(step_batches(padding, share(), steps=range(1)))
    train_step(state, batch, objective=build_objective({"name": "MLE"}), learning_rate=0.5, settings=StepSettings())
    for name, parameter in state.model.named_parameters():
        decay = 1 - 0.5 * 0.1 if parameter.ndim > 1 else 1
        torch.testing.assert_close(parameter, before[name] * decay, msg=name)


def test_dropout_masks_follow_from_seed_and_position_not_from_the_generators_state():
    def loss(*, seed: int, disturbance: int) -> float:
        torch.manual_seed(disturbance)
        state = new_state(dropout=0.5)
        torch.rand(disturbance)
        batch = next(step_batches(random_blocks, share(), steps=range(1)))
        objective = build_objective({"name": "MLE"})
        totals = train_step(state, batch, objective=objective, learning_rate=0.1, settings=StepSettings(seed=seed))
        return float(totals.read()["sum/step_loss"])

    assert loss(seed=1, disturbance=3) == loss(seed=1, disturbance=4)
    assert loss(seed=1, disturbance=3) != loss(seed=2, disturbance=3)
    assert loss(seed=-1, disturbance=3) == loss(seed=-1, disturbance=4) != loss(seed=1, disturbance=3)


def test_bf16_computes_in_bf16_and_keeps_fp32_weights():
    state = new_state(dropout=0)
    batch = next(step_batches(random_blocks, share(), steps=range(1)))
    seen = []
    state.model.backbone.transformer.h[0].mlp.register_forward_hook(lambda _m, _i, out: seen.append(out.dtype))
    objective = build_objective({"name": "MLE"})
    train_step(state, batch, objective=objective, learning_rate=0.1, settings=StepSettings(precision="bf16"))
    assert set(seen) == {torch.bfloat16}
    assert {parameter.dtype for parameter in state.model.parameters()} == {torch.float32}


# --- Loop -------------------------------------------------------------------------------------------------------------


def test_rows_and_checkpoints_come_at_their_steps():
    state = new_state()
    batches = step_batches(random_blocks, share(), steps=range(7))
    events = list(
        train(
            state,
            batches,
            objective=build_objective({"name": "MLE"}),
            settings=settings(7, save_steps=3, logging_steps=2),
        )
    )
    rows = [event for event in events if isinstance(event, MetricsRow)]
    assert [row.step for row in rows] == [1, 2, 4, 6, 7]
    due = [event for event in events if isinstance(event, CheckpointDue)]
    assert [(event.step, event.is_last) for event in due] == [(3, False), (6, False), (7, True)]
    # A checkpoint comes after the row of its step, so the row is on disk when the checkpoint is.
    assert [type(event).__name__ for event in events[-2:]] == ["MetricsRow", "CheckpointDue"]
    content = sum(int((random_blocks(p, p + 1).token_kinds == TokenKind.CONTENT).sum()) for p in range(7 * 8))
    assert rows[-1].metrics["train/tokens_seen"] == content == state.tokens_seen
    assert rows[-1].metrics["train/learning_rate"] == settings(7).schedule.at(6)
    assert rows[-1].metrics["objective/train/docs_used"] == 7 * 8, "one end-of-text token in each block"


def test_a_row_averages_over_the_targets_of_its_steps():
    """By hand: the loss of two steps together is (sum of both sums) / (sum of both counts)."""
    single = run(new_state(), loop=settings(4))
    pairs = run(new_state(), loop=settings(4, logging_steps=4))
    assert [row.step for row in pairs] == [1, 4]
    targets = [
        sum(int((random_blocks(p, p + 1).token_kinds[:, 1:] != TokenKind.PAD).sum()) for p in range(8 * k, 8 * k + 8))
        for k in range(1, 4)
    ]
    weighted = sum(n * row.metrics["train/loss"] for n, row in zip(targets, single[1:], strict=True))
    assert pairs[1].metrics["train/loss"] == pytest.approx(weighted / sum(targets), rel=1e-9)


def test_tokens_seen_counts_all_tokens_on_request():
    loop = LoopSettings(Schedule(2, 1e-2), count_tokens="all")
    state = new_state()
    run(state, loop=loop)
    assert state.tokens_seen == sum(LENGTH - p % 9 if p % 9 else LENGTH for p in range(16))


def test_a_stop_ends_the_loop_with_a_checkpoint_of_the_state():
    state = new_state()
    asked = []

    def wants_stop() -> bool:
        asked.append(state.step)
        return state.step == 3

    batches = step_batches(random_blocks, share(), steps=range(50))
    objective = build_objective({"name": "MLE"})
    events = list(train(state, batches, objective=objective, settings=settings(50), wants_stop=wants_stop))
    assert events[-1] == CheckpointDue(state.step, is_last=True)
    assert 4 <= state.step <= 5


def test_inspections_come_after_the_first_step_and_then_every_so_many():
    state = new_state()
    loop = dataclasses.replace(settings(7), inspect_steps=3)
    events = train(
        state,
        step_batches(random_blocks, share(), steps=range(7)),
        objective=build_objective({"name": "MLE"}),
        settings=loop,
    )
    due = [event for event in events if isinstance(event, InspectionDue)]
    assert [event.step for event in due] == [1, 4, 7]
    assert [event.micro_batches[0].first_block for event in due] == [0, 24, 48]


def test_utilization_is_reported_where_the_device_is_known():
    """PaLM, appendix B: tokens/s x operations a token / what the device could do."""
    loop = dataclasses.replace(settings(3), flops_per_token=100.0, peak_flops=1e6)
    for row in run(new_state(), loop=loop):
        assert row.metrics["train/mfu"] == pytest.approx(row.metrics["train/tokens_per_s_per_device"] * 100 / 1e6)
    assert all("train/mfu" not in row.metrics for row in run(new_state(), loop=settings(3)))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA GB200", 2.25e15),
        ("NVIDIA B200", 2.25e15),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA A10G", 70e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40", 181e12),
        ("NVIDIA L40G", None),
        ("NVIDIA RTX A1000", None),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("a processor", None),
    ],
)
def test_what_a_device_could_do_is_known_by_the_words_of_its_name(name, expected):
    assert peak_flops(name) == expected


class Clock:
    """Time that passes only where somebody is said to take it."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def perf_counter(self) -> float:
        return self.now_s


@dataclasses.dataclass
class Launched:
    """Totals of a step that the device has done at `done_s`."""

    totals: dict
    clock: Clock
    done_s: float
    is_there: bool

    def read(self) -> dict:
        self.clock.now_s = max(self.clock.now_s, self.done_s)
        return self.totals


@pytest.mark.parametrize("is_asynchronous", [True, False], ids=["gpu", "cpu"])
def test_tokens_per_second_are_those_of_the_clock_on_the_wall(monkeypatch, is_asynchronous):
    """A step takes 50 ms, a row its reader 30: on a GPU, beside the next step unless a checkpoint or an inspection
    waits for it. Those count in no row."""
    clock = Clock()
    costs_s = {MetricsRow: 0.03, CheckpointDue: 5.0, WeightsDue: 7.0, InspectionDue: 9.0}

    done_s = clock.now_s

    def timed_step(*arguments, **options) -> Launched:
        nonlocal done_s
        totals = train_step(*arguments, **options).read()
        done_s = max(done_s, clock.now_s) + 0.05
        launched = Launched(totals, clock, done_s, is_there=not is_asynchronous)
        if not is_asynchronous:
            launched.read()
        return launched

    monkeypatch.setattr(training_loop, "time", clock)
    monkeypatch.setattr(training_loop, "train_step", timed_step)
    loop = dataclasses.replace(settings(9, save_steps=5), evaluation_steps=frozenset({3}), inspect_steps=6)
    seconds = {}
    events = train(
        new_state(),
        step_batches(random_blocks, share(), steps=range(9)),
        objective=build_objective({"name": "MLE"}),
        settings=loop,
    )
    for event in events:
        if isinstance(event, MetricsRow):
            kinds = [random_blocks(p, p + 1).token_kinds for p in range(8 * event.step - 8, 8 * event.step)]
            num_tokens = sum(int((kind != TokenKind.PAD).sum()) for kind in kinds)
            seconds[event.step] = num_tokens / event.metrics["train/tokens_per_s"]
        clock.now_s += costs_s[type(event)]
    if is_asynchronous:
        # Inspections after steps 1 and 7, weights after 3, a checkpoint after 5: then nothing is left to be done.
        expected = {number: 0.08 if number in (2, 4, 6, 8) else 0.05 for number in range(1, 10)}
    else:
        # Each row has its own step and the reader of the row before.
        expected = {number: 0.05 if number == 1 else 0.08 for number in range(1, 10)}
    assert seconds == pytest.approx(expected, rel=1e-6)


def test_a_stop_that_an_inspection_finds_out_of_ends_with_a_checkpoint():
    state = new_state()
    loop = dataclasses.replace(settings(50), inspect_steps=3)
    batches = step_batches(random_blocks, share(), steps=range(50))
    objective = build_objective({"name": "MLE"})
    events = list(train(state, batches, objective=objective, settings=loop, wants_stop=lambda: state.step == 3))
    assert [type(event) for event in events[-2:]] == [InspectionDue, CheckpointDue]
    assert events[-1] == CheckpointDue(4, is_last=True)


def test_a_row_has_the_distribution_of_the_weights_of_all_its_steps():
    events = train(
        new_state(),
        step_batches(random_blocks, share(), steps=range(4)),
        objective=build_objective({"name": "RWR"}),
        settings=settings(4, logging_steps=4),
    )
    first, last = [event.metrics for event in events if isinstance(event, MetricsRow)]
    counts = [row["objective/train/weight_dist"]["counts"] for row in (first, last)]
    assert [max(each) for each in counts] == [sum(each) for each in counts], "all scores are 0: all weights are 1"
    assert sum(counts[1]) == pytest.approx(3 * sum(counts[0]), rel=0.2)


def test_the_objective_on_held_out_blocks_is_its_mean_over_all_of_them_in_eval_mode():
    model = tiny_model(dropout=0.5).train()
    objective = build_objective({"name": "Unlikelihood", "score_threshold": 0.0})
    (batches,) = step_batches(random_blocks, share(micro=3), steps=range(1))
    whole = [batch for (batch,) in step_batches(random_blocks, share(micro=8), steps=range(1))]
    assert len(batches) == 3
    figures = objective_on(model, batches, objective=objective)
    assert figures == pytest.approx(objective_on(model, whole, objective=objective), rel=1e-5)
    assert model.training
    model.eval()
    (batch,) = whole
    out = model(batch.input_ids_BS, batch.token_scores_BS, batch.token_kinds_BS, objective)
    assert figures["loss"] == pytest.approx((out.loss / out.num_targets).item(), rel=1e-5)


def model_with_values() -> LanguageModel:
    model = LanguageModel(tiny_model().backbone, value_head=ValueHead(16))
    torch.nn.init.normal_(model.value_head.head.weight, generator=torch.Generator().manual_seed(0))
    return model


def test_what_the_value_head_says_is_read_in_eval_mode():
    model = model_with_values()
    model.train()
    (batch, *_), *_ = step_batches(random_blocks, share(), steps=range(1))
    values = value_predictions(model, batch)
    assert model.training
    model.eval()
    assert torch.equal(values, model.values(model.hidden_states(batch.input_ids_BS)).detach())
    assert value_predictions(tiny_model(), batch) is None


def test_a_loss_that_is_not_finite_ends_the_loop_before_any_checkpoint():
    state = new_state()

    def poisoned() -> Iterator[list]:
        for number, batch in enumerate(step_batches(random_blocks, share(), steps=range(9))):
            if number == 4:
                with torch.no_grad():
                    state.model.backbone.transformer.wpe.weight[0, 0] = math.nan
            yield batch

    objective = build_objective({"name": "MLE"})
    events = list(train(state, poisoned(), objective=objective, settings=settings(9, save_steps=5)))
    broken = events[-1]
    assert isinstance(broken, NonFinite)
    assert broken.step == 5
    assert [batch.first_block for batch in broken.micro_batches] == [32, 34, 36, 38]
    assert not any(isinstance(event, CheckpointDue) for event in events)


# --- The split of the work does not show ------------------------------------------------------------------------------

# fp32 sums in another order; 12 steps of Adam at 1e-2 carry the differences on.
SPLIT_TOLERANCE = 2e-5


def _losses_of_rank(rank: int, *, world_size: int, kind: str, directory: Path, micro: int) -> None:
    model = parallelize(tiny_model(), kind, device=torch.device("cpu"))
    optimizer = build_optimizer(model, weight_decay=0.1, betas=(0.9, 0.999), epsilon=1e-8)
    state = TrainState(model, optimizer)
    rows = run(state, loop=settings(12), data=share(micro=micro, rank=rank, world_size=world_size))
    snapshot = take_snapshot(state, keep=rank == 0)
    bits = held_out_bits_per_byte(state.model, documents(), window=LENGTH, batch_size=2)
    figures = objective_on(state.model, held_out_batches(), objective=build_objective({"name": "MLE"}))
    valued = parallelize(model_with_values(), kind, device=torch.device("cpu"))
    values = value_predictions(valued, held_out_batches()[0])
    if rank == 0:
        result = {
            "figures": figures,
            "values": values,
            "losses": [row.metrics["train/loss"] for row in rows],
            "tokens": state.tokens_seen,
            "model": snapshot.model,
            "optimizer": snapshot.optimizer,
            "bits": bits,
        }
        torch.save(result, directory / "result.pt")


def held_out_batches() -> list[MicroBatch]:
    """Five: on two ranks the last round has one of padding."""
    return [batch for (batch, *_) in step_batches(random_blocks, share(), steps=range(100, 105))]


def run_processes(directory: Path, *, world_size: int, kind: str = "ddp", micro: int = 2) -> dict:
    job = partial(_losses_of_rank, world_size=world_size, kind=kind, directory=directory, micro=micro)
    run_on_ranks(job, world_size=world_size, directory=directory)
    return torch.load(directory / "result.pt", weights_only=True)


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("kind", "world_size"), [("ddp", 2), ("ddp", 3), ("fsdp2", 2)])
def test_loss_curve_and_weights_do_not_depend_on_the_number_of_workers(tmp_path, kind, world_size):
    """Accumulation 4 on one worker; 2 x 2; 3 workers with 2, 1 and 1 micro-batches, one of padding each."""
    state = new_state()
    rows = run(state, loop=settings(12), data=share(micro=2))
    alone = take_snapshot(state)
    together = run_processes(tmp_path, world_size=world_size, kind=kind)
    losses = [row.metrics["train/loss"] for row in rows]
    assert losses[-1] < losses[0] - 0.1, "nothing was learned, so nothing was compared"
    assert together["losses"] == pytest.approx(losses, abs=SPLIT_TOLERANCE)
    assert together["tokens"] == state.tokens_seen
    assert together["bits"] == pytest.approx(
        held_out_bits_per_byte(state.model, documents(), window=LENGTH, batch_size=2), abs=1e-4
    )
    alone_figures = objective_on(state.model, held_out_batches(), objective=build_objective({"name": "MLE"}))
    assert together["figures"] == pytest.approx(alone_figures, abs=1e-4)
    torch.testing.assert_close(together["values"], value_predictions(model_with_values(), held_out_batches()[0]))
    for name, tensor in alone.model.items():
        torch.testing.assert_close(together["model"][name], tensor, rtol=0, atol=1e-3, msg=name)
    assert together["optimizer"].keys() == alone.optimizer.keys()


def test_accumulation_does_not_show_without_dropout():
    curves = [
        [row.metrics["train/loss"] for row in run(new_state(dropout=0), loop=settings(12), data=share(micro=micro))]
        for micro in (8, 4, 3, 1)
    ]
    for curve in curves[1:]:
        assert curve == pytest.approx(curves[0], abs=SPLIT_TOLERANCE)


# --- Saving and restoring ---------------------------------------------------------------------------------------------


def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path):
    whole = new_state()
    losses = [row.metrics["train/loss"] for row in run(whole, loop=settings(10))]

    first = new_state()
    batches = step_batches(random_blocks, share(), steps=range(10))
    for event in train(first, batches, objective=build_objective({"name": "MLE"}), settings=settings(10, save_steps=4)):
        if isinstance(event, CheckpointDue):
            break
    snapshot = take_snapshot(first)
    write_training_state(tmp_path, snapshot)

    second = new_state()
    second.model.load_state_dict(snapshot.model)
    restore_training_state(tmp_path, second)
    assert (second.step, second.tokens_seen) == (4, first.tokens_seen)
    rest = run(second, loop=settings(10))
    assert [row.metrics["train/loss"] for row in rest] == losses[4:]
    assert (second.tokens_seen, second.documents_seen) == (whole.tokens_seen, whole.documents_seen)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], tensor), name


def _saved_on_rank(
    rank: int, *, world_size: int, kind: str, directory: Path, precision: str, resumes: bool, checkpointing: bool
) -> None:
    """Ten steps with the state written after the fourth; `resumes`: from there on. Rank 0 leaves what was learned."""
    model = tiny_model()
    if checkpointing:
        model.checkpoint_activations()
    if resumes:
        model.load_state_dict(torch.load(directory / "model.pt", weights_only=True))
    parallel = parallelize(model, kind, device=torch.device("cpu"))
    state = TrainState(parallel, build_optimizer(parallel, weight_decay=0.1, betas=(0.9, 0.999), epsilon=1e-8))
    if resumes:
        restore_training_state(directory, state)
    loop = settings(10, save_steps=4)
    loop = dataclasses.replace(loop, step=dataclasses.replace(loop.step, precision=precision))
    batches = step_batches(random_blocks, share(rank=rank, world_size=world_size), steps=range(state.step, 10))
    losses = {}
    for event in train(state, batches, objective=build_objective({"name": "MLE"}), settings=loop):
        if isinstance(event, MetricsRow):
            losses[event.step] = event.metrics["train/loss"]
            continue
        snapshot = take_snapshot(state, keep=rank == 0)
        if snapshot is not None and event.step == 4:
            torch.save(snapshot.model, directory / "model.pt")
            write_training_state(directory, snapshot)
    if snapshot is not None:
        learned = {"losses": losses, "model": snapshot.model, "optimizer": snapshot.optimizer}
        torch.save(learned, directory / f"learned-{resumes}.pt")


def whole_and_resumed(
    directory: Path,
    *,
    world_size: int,
    kind: str,
    resumed_as: str | None = None,
    precision: str = "fp32",
    checkpointing: bool = False,
) -> tuple[dict, dict]:
    """What an uninterrupted run learns, and one that goes on after its fourth step in new processes."""
    for resumes, parallelism in ((False, kind), (True, resumed_as or kind)):
        job = partial(
            _saved_on_rank,
            world_size=world_size,
            kind=parallelism,
            directory=directory,
            precision=precision,
            resumes=resumes,
            checkpointing=checkpointing,
        )
        (directory / "rendezvous").unlink(missing_ok=True)
        run_on_ranks(job, world_size=world_size, directory=directory)
    whole, resumed = (torch.load(directory / f"learned-{name}.pt", weights_only=True) for name in (False, True))
    assert list(whole["losses"]) == list(range(1, 11))
    assert list(resumed["losses"]) == list(range(5, 11))
    return whole, resumed


def assert_equal_bytes(resumed: dict, whole: dict) -> None:
    assert resumed["losses"] == {step: whole["losses"][step] for step in resumed["losses"]}
    for part in ("model", "optimizer"):
        assert resumed[part].keys() == whole[part].keys()
        for name, tensor in whole[part].items():
            assert torch.equal(resumed[part][name], tensor), f"{part}: {name}"


@pytest.mark.timeout(400)
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_several_workers_resume_bit_for_bit(tmp_path, kind):
    """Three workers: from there on, the layout of DDP's buckets shows in the order of the sums."""
    whole, resumed = whole_and_resumed(tmp_path, world_size=3, kind=kind)
    assert whole["losses"][10] < whole["losses"][1] - 0.1, "nothing was learned, so nothing was compared"
    assert_equal_bytes(resumed, whole)


@pytest.mark.timeout(400)
def test_sharded_bf16_with_checkpointed_layers_resumes_bit_for_bit(tmp_path):
    whole, resumed = whole_and_resumed(tmp_path, world_size=2, kind="fsdp2", precision="bf16", checkpointing=True)
    assert whole["losses"][10] < whole["losses"][1] - 0.1
    assert_equal_bytes(resumed, whole)
    assert {tensor.dtype for tensor in whole["model"].values()} == {torch.float32}


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("kind", "resumed_as"), [("ddp", "fsdp2"), ("fsdp2", "ddp")])
def test_a_run_goes_on_under_the_other_parallelism(tmp_path, kind, resumed_as):
    whole, resumed = whole_and_resumed(tmp_path, world_size=2, kind=kind, resumed_as=resumed_as)
    expected = {step: whole["losses"][step] for step in resumed["losses"]}
    assert resumed["losses"] == pytest.approx(expected, abs=SPLIT_TOLERANCE)
    for name, tensor in whole["model"].items():
        torch.testing.assert_close(resumed["model"][name], tensor, rtol=0, atol=1e-3, msg=name)
    assert resumed["optimizer"].keys() == whole["optimizer"].keys()


@pytest.mark.parametrize("objective", ["MLE", "RWR"])
def test_a_row_that_a_checkpoint_cut_in_two_is_that_of_the_uninterrupted_run(tmp_path, objective):
    """Rows of the steps 4 to 6, the checkpoint after 4; a stop after 5 is no end of a row either."""
    loop = settings(10, logging_steps=3, save_steps=4)

    def events(state: TrainState, *, stop_at: int | None = None) -> Iterator:
        batches = step_batches(random_blocks, share(), steps=range(state.step, 10))
        built = build_objective({"name": objective})
        return train(state, batches, objective=built, settings=loop, wants_stop=lambda: state.step == stop_at)

    def figures(event: MetricsRow) -> dict:
        timed = ("train/tokens_per_s", "train/tokens_per_s_per_device", "train/data_wait_fraction")
        left_out = {*timed, "train/peak_memory_gb"}
        return {name: value for name, value in event.metrics.items() if name not in left_out}

    whole = [figures(event) for event in events(new_state()) if isinstance(event, MetricsRow)]
    assert [row["train/global_step"] for row in whole] == [1, 3, 6, 9, 10]
    for stop_at in (None, 3):
        state, rows = new_state(), []
        for event in events(state, stop_at=stop_at):
            rows += [figures(event)] if isinstance(event, MetricsRow) else []
            if isinstance(event, CheckpointDue) and (stop_at is None or event.is_last):
                break
        assert state.step in (4, 5)
        snapshot = take_snapshot(state)
        write_training_state(tmp_path, snapshot)
        resumed = new_state()
        resumed.model.load_state_dict(snapshot.model)
        restore_training_state(tmp_path, resumed)
        rows += [figures(event) for event in events(resumed) if isinstance(event, MetricsRow)]
        assert rows == whole


def test_without_the_optimizer_state_the_resumed_run_would_differ(tmp_path):
    """Guard of the test above: it would see a lost moment estimate."""
    whole = new_state()
    losses = [row.metrics["train/loss"] for row in run(whole, loop=settings(10))]
    first = new_state()
    batches = step_batches(random_blocks, share(), steps=range(4))
    objective = build_objective({"name": "MLE"})
    for number, batch in enumerate(batches):
        learning_rate = settings(10).schedule.at(number)
        train_step(first, batch, objective=objective, learning_rate=learning_rate, settings=settings(10).step)
    second = new_state()
    second.model.load_state_dict(first.model.state_dict())
    second.step = 4
    assert [row.metrics["train/loss"] for row in run(second, loop=settings(10))] != losses[4:]


def test_a_snapshot_does_not_change_when_training_goes_on():
    state = new_state()
    run(state, loop=settings(2))
    snapshot = take_snapshot(state)
    before = {name: tensor.clone() for name, tensor in (snapshot.model | snapshot.optimizer).items()}
    state.step = 0
    run(state, loop=settings(2))
    for name, tensor in (snapshot.model | snapshot.optimizer).items():
        assert torch.equal(tensor, before[name]), name


def test_a_missing_training_state_is_named(tmp_path):
    with pytest.raises(DataError, match="start from another checkpoint"):
        restore_training_state(tmp_path, new_state())


# --- Held-out bits per byte -------------------------------------------------------------------------------------------


def documents() -> list[EncodedDocument]:
    lengths = [5, 16, 17, 40, 100]
    made = []
    for number, length in enumerate(lengths):
        ids = np.random.default_rng(number).integers(1, VOCABULARY, length).astype(np.int32)
        ids[0] = 0
        made.append(EncodedDocument(ids, np.arange(length) > 0, num_bytes=3 * length))
    return made


def uniform_model() -> LanguageModel:
    model = tiny_model()
    with torch.no_grad():
        model.backbone.lm_head.weight.zero_()
    return model


def test_a_uniform_model_needs_log2_of_the_vocabulary_for_each_content_token():
    num_content = sum(int(document.is_predicted.sum()) for document in documents())
    num_bytes = sum(document.num_bytes for document in documents())
    expected = num_content * math.log2(VOCABULARY) / num_bytes
    for window, batch_size in [(16, 1), (16, 4), (10, 3), (7, 2)]:
        measured = held_out_bits_per_byte(uniform_model(), documents(), window=window, batch_size=batch_size)
        assert measured == pytest.approx(expected, rel=1e-6), "a token was lost or counted twice"


def test_tokens_that_are_not_content_are_given_not_predicted():
    marked = [
        EncodedDocument(document.input_ids, document.is_predicted & (np.arange(len(document.input_ids)) % 3 > 0), 100)
        for document in documents()
    ]
    num_content = sum(int(document.is_predicted.sum()) for document in marked)
    measured = held_out_bits_per_byte(uniform_model(), marked, window=16, batch_size=2)
    assert measured == pytest.approx(num_content * math.log2(VOCABULARY) / 500, rel=1e-6)


def test_bits_per_byte_of_a_short_document_is_its_log_probability():
    model = tiny_model()
    document = documents()[1]
    ids = torch.from_numpy(document.input_ids).long()[None]
    model.eval()
    logp = model.backbone(ids).logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])
    expected = -logp.sum().item() / math.log(2) / document.num_bytes
    model.train()
    measured = held_out_bits_per_byte(model, [document], window=LENGTH, batch_size=4)
    assert measured == pytest.approx(expected, rel=1e-5), "dropout was on"
    assert model.training


def test_bits_per_byte_of_nothing_is_an_error():
    with pytest.raises(DataError, match="held_out_fraction"):
        held_out_bits_per_byte(uniform_model(), [], window=16, batch_size=2)
