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
    LOSSES,
    MARGIN,
    PAIRS,
    REWARDS,
    gradients_of,
    make_model,
    make_reward_model,
    make_tokenizer,
)

from phf_ray.blocks.examples import AnswerIds, RowLimits, pack_units, rows_of_unit
from phf_ray.blocks.stats import PackingStats
from phf_ray.models.language_model import LanguageModel
from phf_ray.models.reward_model import RewardModel
from phf_ray.objectives.build import build_objective
from phf_ray.objectives.dpo import REFERENCE
from phf_ray.records import TokenKind
from phf_ray.training.batches import MicroBatch

GOLDEN = json.loads((places.GOLDEN / "trl.json").read_text())["values"]


def make_batch(*, pairs, length=40):
    tokenizer = make_tokenizer()
    limits = RowLimits(20, tokenizer.bos_token_id, tokenizer.eos_token_id)

    def ids(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    units = []
    for prompt, *answers in PAIRS:
        unit = [AnswerIds(ids(prompt), ids(answer)) for answer in (answers if pairs else answers[:1])]
        units.append(rows_of_unit(unit, limits, stats=PackingStats()))
    blocks = list(pack_units(units, length=length, pad_id=tokenizer.pad_token_id))
    assert len(blocks) < len(PAIRS), "several units share a block"
    columns = [
        np.stack([getattr(block, name) for block in blocks]) for name in ("input_ids", "token_scores", "token_kinds")
    ]
    return MicroBatch(*map(torch.from_numpy, columns), first_block=0)


def masked(model, kind=LanguageModel):
    learner = kind(model)
    learner.mask_documents()
    return learner


def reference_logprobs(batch):
    model = masked(make_model(2))
    with torch.no_grad():
        positions = torch.where(batch.token_kinds_BS == int(TokenKind.END_OF_TEXT), 1, 0).cumsum(1)
        hidden = model._trained_states(batch.input_ids_BS, batch.token_kinds_BS)
        logps = (hidden @ model.head()[0].T).log_softmax(-1)[:, :-1]
        found = logps.gather(2, batch.input_ids_BS[:, 1:, None].long()).squeeze(2)
    assert positions.max() > 1
    return torch.nn.functional.pad(found, (1, 0))


def assert_like_trl(name, config, batch, *, examples=False, learner=None):
    learner = learner or masked(make_model(1))
    backbone = learner.backbone
    objective = build_objective(config, examples=examples)
    out = batch.through(learner, objective)
    (out.loss / out.num_targets).backward()
    wanted = GOLDEN[name]
    assert (out.loss / out.num_targets).item() == pytest.approx(wanted["loss"], rel=1e-5)
    found = gradients_of(backbone)
    for parameter, numbers in wanted["gradients"].items():
        assert found[parameter] == pytest.approx(numbers, rel=1e-4, abs=1e-5), parameter
    return objective.summarize(out.metrics), wanted["metrics"]


@pytest.mark.parametrize("loss_type", LOSSES)
def test_dpo(loss_type):
    batch = make_batch(pairs=True)
    batch.channels[REFERENCE] = reference_logprobs(batch)
    config = {"name": "DPO", "loss_type": loss_type, "beta": BETA, **LOSSES[loss_type]}
    figures, wanted = assert_like_trl(loss_type, config, batch)
    keys = [key for key in wanted if key.startswith(("rewards/", "logps/"))]
    assert len(keys) == 6
    assert [figures[key] for key in keys] == pytest.approx([wanted[key] for key in keys], rel=1e-5)


def test_sft_on_completions():
    assert_like_trl("sft", {"name": "MLE"}, make_batch(pairs=False, length=20), examples=True)


@pytest.mark.parametrize("name", REWARDS)
def test_reward_model(name):
    config = {
        "name": "BradleyTerry",
        "centring": REWARDS[name].get("center_rewards_coefficient", 0.0),
        "margin": MARGIN if name == "reward_margin" else 0.0,
    }
    learner = masked(make_reward_model(1), RewardModel)
    figures, wanted = assert_like_trl(name, config, make_batch(pairs=True), learner=learner)
    keys = [key for key in wanted if key in figures]
    assert len(keys) == 5
    assert [figures[key] for key in keys] == pytest.approx([wanted[key] for key in keys], rel=1e-5)
