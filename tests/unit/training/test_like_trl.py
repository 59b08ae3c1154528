"""SFT, DPO and reward models on packed blocks have the losses, gradients and log keys of TRL's trainers, to 1e-5.

The stored values come from TRL itself, see tests/golden/make_trl.py.
"""

import json

import numpy as np
import places
import pytest
import torch
from trl_case import (
    BETA,
    FIRST,
    KTO_LOSSES,
    LABELS,
    LOSSES,
    MARGIN,
    MARGINS,
    PAIRS,
    REWARDS,
    SFT_WEIGHT,
    gradients_of,
    make_model,
    make_reward_model,
    make_tokenizer,
)

from phf_ray.blocks.examples import AnswerIds, RowLimits, pack_units, rows_of_unit
from phf_ray.blocks.mismatched import ExampleRow, with_mismatched
from phf_ray.blocks.stats import PackingStats
from phf_ray.models.language_model import LanguageModel
from phf_ray.models.reward_model import RewardModel
from phf_ray.objectives.answers import REFERENCE
from phf_ray.objectives.build import build_objective
from phf_ray.objectives.statistics import combine
from phf_ray.records import LABEL, TokenKind
from phf_ray.records import MARGIN as MARGIN_CHANNEL
from phf_ray.training.batches import MicroBatch
from phf_ray.training.survey import surveyed

GOLDEN = json.loads((places.GOLDEN / "trl.json").read_text())["values"]


def make_batch(*, pairs, length=40, rows=PAIRS, margins=None):
    limits = row_limits()
    units = []
    for place, (prompt, *answers) in enumerate(rows):
        unit = [AnswerIds(ids(prompt), ids(answer)) for answer in (answers if pairs else answers[:1])]
        made = rows_of_unit(unit, limits, stats=PackingStats())
        units.append(made if margins is None else [row.with_number(MARGIN_CHANNEL, margins[place]) for row in made])
    return packed(units, length=length)


def make_labelled_batch(places=(0, 1, 2, 3), *, length=40):
    """Answers with labels, and behind each a mismatched one."""
    limits = row_limits()
    examples = []
    for place in places:
        prompt, *answers = PAIRS[place]
        answer = answers[0] if LABELS[place] else answers[1]
        (row,) = rows_of_unit([AnswerIds(ids(prompt), ids(answer))], limits, stats=PackingStats())
        examples.append(ExampleRow(prompt, row.with_number(LABEL, 1.0 if LABELS[place] else -1.0)))
    return packed(list(with_mismatched(examples, limits, stats=PackingStats())), length=length)


def row_limits():
    tokenizer = make_tokenizer()
    return RowLimits(20, tokenizer.bos_token_id, tokenizer.eos_token_id)


def ids(text):
    return make_tokenizer()(text, add_special_tokens=False)["input_ids"]


def packed(units, *, length):
    blocks = list(pack_units(units, length=length, pad_id=make_tokenizer().pad_token_id))
    assert len(blocks) < len(units) or len(units) == 1, "several units share a block"
    columns = [
        np.stack([getattr(block, name) for block in blocks]) for name in ("input_ids", "token_scores", "token_kinds")
    ]
    channels = {name: torch.from_numpy(np.stack([b.channels[name] for b in blocks])) for name in blocks[0].channels}
    return MicroBatch(*map(torch.from_numpy, columns), first_block=0, channels=channels)


def masked(model, kind=LanguageModel):
    learner = kind(model)
    learner.mask_documents()
    return learner


def reference_logprobs(batch, seed=2):
    model = masked(make_model(seed))
    with torch.no_grad():
        positions = torch.where(batch.token_kinds_BS == int(TokenKind.END_OF_TEXT), 1, 0).cumsum(1)
        hidden = model._trained_states(batch.input_ids_BS, batch.token_kinds_BS)
        logps = (hidden @ model.head()[0].T).log_softmax(-1)[:, :-1]
        found = logps.gather(2, batch.input_ids_BS[:, 1:, None].long()).squeeze(2)
    assert positions.max() > 1 or len(positions) == 1
    return torch.nn.functional.pad(found, (1, 0))


def assert_like_trl(name, config, *batches, examples=False, learner=None, compat=None):
    """Of a step of these micro-batches."""
    learner = learner or masked(make_model(1))
    objective = build_objective(config, examples=examples, compat=compat)
    loss, num_targets, totals = 0.0, 0.0, {}
    for batch in surveyed(learner, batches, objective=objective, precision="fp32"):
        out = batch.through(learner, objective)
        out.loss.backward()
        loss, num_targets = loss + out.loss.item(), num_targets + out.num_targets.item()
        totals = combine(totals, out.metrics)
    wanted = GOLDEN[name]
    differs = abs(loss / num_targets - wanted["loss"]) > 1e-5 * wanted["loss"]
    for parameter in learner.backbone.parameters():
        parameter.grad /= num_targets
    found = gradients_of(learner.backbone)
    for parameter, numbers in wanted["gradients"].items():
        differs |= found[parameter] != pytest.approx(numbers, rel=1e-4, abs=1e-5)
    assert not differs, f"loss {loss / num_targets} for {wanted['loss']}"
    return objective.summarize(totals), wanted.get("metrics")


@pytest.mark.parametrize("loss_type", LOSSES)
def test_dpo(loss_type):
    batch = make_batch(pairs=True)
    batch.channels[REFERENCE] = reference_logprobs(batch)
    config = {"name": "DPO", "loss_type": loss_type, "beta": BETA, **LOSSES[loss_type]}
    figures, wanted = assert_like_trl(loss_type, config, batch)
    keys = [key for key in wanted if key.startswith(("rewards/", "logps/"))]
    assert len(keys) == 6
    assert [figures[key] for key in keys] == pytest.approx([wanted[key] for key in keys], rel=1e-5)


@pytest.mark.parametrize("name", KTO_LOSSES)
def test_kto(name):
    batch = make_labelled_batch()
    policy, reference = (2, 1) if name == "kto_clamped" else (1, 2)
    batch.channels[REFERENCE] = reference_logprobs(batch, reference)
    loss_type = "apo_zero_unpaired" if name == "apo_zero_unpaired" else "kto"
    config = {"name": "KTO", "beta": BETA, "loss_type": loss_type, **KTO_LOSSES[name]}
    figures, wanted = assert_like_trl(name, config, batch, learner=masked(make_model(policy)))
    keys = [key for key in wanted if key.startswith(("rewards/", "logps/", "kl"))]
    assert len(keys) == 6
    assert [figures[key] for key in keys] == pytest.approx([wanted[key] for key in keys], rel=1e-5)
    assert (figures["kl"] > 0) == (name in ("kto", "kto_weights"))


def micro_batches(**options):
    return [make_batch(rows=rows, **options) for rows in (PAIRS[:FIRST], PAIRS[FIRST:])]


def step_of(name):
    """The objective's configuration and the two micro-batches of a case of TRL's Trainer."""
    if name == "step_sft":
        return {"name": "MLE"}, micro_batches(pairs=False, length=40)
    if name == "step_reward":
        return {"name": "BradleyTerry"}, micro_batches(pairs=True)
    if name == "step_kto":
        return {"name": "KTO", "beta": BETA}, [make_labelled_batch(places, length=60) for places in ((0, 1), (2, 3))]
    return {"name": "DPO", "beta": BETA, "sft_weight": SFT_WEIGHT}, micro_batches(pairs=True)


@pytest.mark.parametrize("name", ["step_sft", "step_dpo", "step_reward", "step_kto"])
def test_a_step_of_unequal_micro_batches_is_that_of_trl_under_compat(name):
    config, batches = step_of(name)
    for batch in batches:
        batch.channels[REFERENCE] = reference_logprobs(batch)

    def learner():
        return masked(make_reward_model(1), RewardModel) if name == "step_reward" else masked(make_model(1))

    assert_like_trl(name, config, *batches, learner=learner(), examples=True, compat="trl")
    if name == "step_sft":  # TRL counts the tokens of the whole step, too
        assert_like_trl(name, config, *batches, learner=learner(), examples=True)
        return
    with pytest.raises(AssertionError, match="loss"):
        assert_like_trl(name, config, *batches, learner=learner(), examples=True)


def test_alpaca_farm_averages_finetuning_over_micro_batches_too():
    config, batches = step_of("step_sft")
    objective = build_objective(config, examples=True, compat="alpaca_farm")
    learner = masked(make_model(1))
    found = [batch.through(learner, objective) for batch in batches]
    apart = [batch.through(learner, build_objective(config, examples=True)) for batch in batches]
    assert [out.num_targets.item() for out in found] == [1, 1]
    means = [(out.loss / out.num_targets).item() for out in apart]
    assert [out.loss.item() for out in found] == pytest.approx(means)


def test_sft_on_completions():
    assert_like_trl("sft", {"name": "MLE"}, make_batch(pairs=False, length=20), examples=True)


@pytest.mark.parametrize("name", REWARDS)
def test_reward_model(name):
    config = {
        "name": "BradleyTerry",
        "centring": REWARDS[name].get("center_rewards_coefficient", 0.0),
        "margin": {"reward_margin": MARGIN, "reward_margins": "column"}.get(name, 0.0),
    }
    batch = make_batch(pairs=True, margins=MARGINS if name == "reward_margins" else None)
    learner = masked(make_reward_model(1), RewardModel)
    figures, wanted = assert_like_trl(name, config, batch, learner=learner)
    keys = [key for key in wanted if key in figures]
    assert len(keys) == 5
    assert [figures[key] for key in keys] == pytest.approx([wanted[key] for key in keys], rel=1e-5)
